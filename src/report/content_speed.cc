// Throughput and peak memory by batch size.
#include <algorithm>
#include <cmath>
#include <set>

#include "src/base/units.h"
#include "src/report/content_parts.h"
#include "src/report/numbers.h"
#include "src/report/svg_bars.h"
#include "src/report/svg_lines.h"

namespace nibble {
namespace {

std::vector<LegendEntry> BenchedLegend(const StudyRecord& record) {
  return LegendFor(record, [](const MethodRecord& m) { return !m.bench.empty(); });
}

// "512 tokens in, 200 out, median of 3 repetitions"
std::string Workload(const StudyRecord& record) {
  std::string repetitions;
  if (record.repetitions == 1) repetitions = ", one repetition";
  if (record.repetitions > 1) {
    repetitions = fmt::format(", median of {} repetitions", record.repetitions);
  }
  for (const MethodRecord& method : record.methods) {
    if (method.bench.empty()) continue;
    return fmt::format("{} tokens in and {} out per sequence{}",
                       FormatCount(method.bench[0].input_length),
                       FormatCount(method.bench[0].output_length), repetitions);
  }
  return "";
}

std::vector<double> AsNumbers(const std::vector<int64_t>& values) {
  return {values.begin(), values.end()};
}

LineChart ThroughputChart(const StudyRecord& record) {
  LineChart chart;
  chart.id = "throughput";
  chart.title = "Throughput by batch size";
  chart.description =
      "Output tokens per second against batch size, one line a method. The numbers "
      "are in the table below the figure.";
  chart.x_title = "batch size";
  chart.y_title = "output tokens/s (logarithmic)";
  double low = INFINITY, high = 0;
  for (size_t m = 0; m < record.methods.size(); ++m) {
    DataLine line;
    line.series = static_cast<int>(m);
    line.name = record.methods[m].name;
    for (const BenchRun& run : record.methods[m].bench) {
      if (!(run.output_tokens_per_second > 0)) continue;
      low = std::min(low, run.output_tokens_per_second);
      high = std::max(high, run.output_tokens_per_second);
      line.points.push_back({static_cast<double>(run.batch_size), run.output_tokens_per_second});
      line.tooltips.push_back(fmt::format("{}, batch {}: {} tokens/s", line.name, run.batch_size,
                                          FormatSignificant(run.output_tokens_per_second)));
    }
    if (!line.points.empty()) chart.lines.push_back(std::move(line));
  }
  chart.x = Axis::LogarithmicAt(AsNumbers(BatchSizes(record)));
  chart.y = Axis::Logarithmic(chart.lines.empty() ? 1 : low, std::max(high, 1e-6), 7);
  return chart;
}

LineChart SpeedupChart(const StudyRecord& record) {
  LineChart chart;
  chart.id = "speedup";
  chart.title = "Speed relative to " + record.methods[0].name;
  chart.description =
      "Output tokens per second divided by the baseline's, against batch size, one "
      "line a method. The numbers are in the table below the figure.";
  chart.x_title = "batch size";
  chart.y_title = fmt::format("times {}’s output tokens/s", record.methods[0].name);
  double high = 1;
  for (size_t m = 0; m < record.methods.size(); ++m) {
    DataLine line;
    line.series = static_cast<int>(m);
    line.name = record.methods[m].name;
    for (const BenchRun& run : record.methods[m].bench) {
      const BenchRun* baseline = FindRun(record.methods[0], run.batch_size);
      if (baseline == nullptr || !(baseline->output_tokens_per_second > 0)) continue;
      const double speedup = run.output_tokens_per_second / baseline->output_tokens_per_second;
      high = std::max(high, speedup);
      line.points.push_back({static_cast<double>(run.batch_size), speedup});
      line.tooltips.push_back(
          fmt::format("{}, batch {}: {}", line.name, run.batch_size, FormatRatio(speedup)));
    }
    if (!line.points.empty()) chart.lines.push_back(std::move(line));
  }
  chart.x = Axis::LogarithmicAt(AsNumbers(BatchSizes(record)));
  chart.y = Axis::Linear(0, high, 6);
  return chart;
}

// Milliseconds of a decode step that the hardware allows.
std::optional<double> StepLimitMs(const BenchRun& run) {
  if (!run.time_per_output_token_ms || !run.roofline_fraction) return std::nullopt;
  const double limit = *run.time_per_output_token_ms * *run.roofline_fraction;
  return limit > 0 ? std::optional(limit) : std::nullopt;
}

// Decode steps, each method's times above its limit.
LineChart StepTimeChart(const StudyRecord& record) {
  LineChart chart;
  chart.id = "step-time";
  chart.title = "Time of a decode step by batch size";
  chart.description =
      "Milliseconds of a step that decodes one token of every sequence, against batch size: one "
      "solid line a method, and dashed the least time that the hardware allows it. The numbers are "
      "in the table below the figure.";
  chart.x_title = "batch size";
  chart.y_title = "ms a step (logarithmic)";
  double low = INFINITY, high = 0;
  for (size_t m = 0; m < record.methods.size(); ++m) {
    const std::string& name = record.methods[m].name;
    DataLine time{.series = static_cast<int>(m), .name = name};
    DataLine limit{.series = static_cast<int>(m), .name = name, .style = LineStyle::kLimit};
    for (const BenchRun& run : record.methods[m].bench) {
      const std::optional<double> least = StepLimitMs(run);
      if (!least) continue;
      const auto batch = static_cast<double>(run.batch_size);
      low = std::min({low, *least, *run.time_per_output_token_ms});
      high = std::max({high, *least, *run.time_per_output_token_ms});
      limit.points.push_back({batch, *least});
      time.points.push_back({batch, *run.time_per_output_token_ms});
      time.tooltips.push_back(fmt::format("{}, batch {}: {} ms a step, at least {} by the hardware",
                                          name, run.batch_size,
                                          FormatSignificant(*run.time_per_output_token_ms),
                                          FormatSignificant(*least)));
    }
    if (time.points.empty()) continue;
    chart.lines.push_back(std::move(limit));
    chart.lines.push_back(std::move(time));
  }
  chart.x = Axis::LogarithmicAt(AsNumbers(BatchSizes(record)));
  chart.y = Axis::Logarithmic(chart.lines.empty() ? 1 : low, std::max(high, 1e-6), 7);
  return chart;
}

Table StepTimeTable(const StudyRecord& record) {
  Table table;
  table.caption = "Time of a decode step by batch size and method: " + Workload(record);
  table.columns = {{"Method", Align::kLeft},
                   {"Batch"},
                   {"Step, ms"},
                   {"The hardware’s limit, ms"},
                   {"Of the limit"}};
  for (const int64_t batch : BatchSizes(record)) {
    for (const MethodRecord& method : record.methods) {
      const BenchRun* run = FindRun(method, batch);
      if (run == nullptr || !StepLimitMs(*run)) continue;
      table.rows.push_back({method.name, FormatCount(batch),
                            FormatSignificant(*run->time_per_output_token_ms),
                            FormatSignificant(*StepLimitMs(*run)),
                            FormatPercent(*run->roofline_fraction)});
    }
  }
  return table;
}

// One batch size makes no line: bars instead.
BarChart SingleBatchChart(const StudyRecord& record) {
  BarChart chart;
  chart.id = "throughput";
  chart.title = "Throughput";
  chart.axis_title = "output tokens/s";
  chart.description =
      "Output tokens per second, one bar a method. The numbers are in the table "
      "below the figure.";
  BarGroup group;
  double high = 0;
  for (size_t m = 0; m < record.methods.size(); ++m) {
    for (const BenchRun& run : record.methods[m].bench) {
      high = std::max(high, run.output_tokens_per_second);
      const std::string label = FormatSignificant(run.output_tokens_per_second);
      group.bars.push_back({static_cast<int>(m),
                            {run.output_tokens_per_second},
                            std::nullopt,
                            label,
                            label,
                            fmt::format("{}: {} tokens/s", record.methods[m].name, label)});
      group.label = fmt::format("batch size {}", run.batch_size);
    }
  }
  chart.groups.push_back(std::move(group));
  chart.axis = Axis::Linear(0, high, 5);
  return chart;
}

std::string OptionalNumber(const std::optional<double>& value) {
  return value ? FormatSignificant(*value) : "–";
}

Table ThroughputTable(const StudyRecord& record) {
  const BenchRun* baseline = nullptr;
  bool energy = false;
  for (const MethodRecord& method : record.methods) {
    for (const BenchRun& run : method.bench) energy |= run.energy_joules_per_token.has_value();
  }
  Table table;
  table.caption = "Throughput by batch size and method: " + Workload(record);
  table.columns = {{"Method", Align::kLeft},
                   {"Batch"},
                   {"Output, tokens/s"},
                   {"of " + record.methods[0].name},
                   {"Prefill, tokens/s"},
                   {"Decode, tokens/s"},
                   {"First token, ms"},
                   {"Per output token, ms"},
                   {"Decode, of the hardware’s limit"}};
  if (energy) table.columns.push_back({"Energy, J/token"});
  for (const int64_t batch : BatchSizes(record)) {
    baseline = FindRun(record.methods[0], batch);
    for (const MethodRecord& method : record.methods) {
      const BenchRun* run = FindRun(method, batch);
      if (run == nullptr) continue;
      const bool comparable = baseline != nullptr && baseline->output_tokens_per_second > 0;
      const double prefill_tokens =
          static_cast<double>(run->batch_size) * static_cast<double>(run->input_length);
      table.rows.push_back(
          {method.name, FormatCount(batch), FormatSignificant(run->output_tokens_per_second),
           comparable
               ? FormatRatio(run->output_tokens_per_second / baseline->output_tokens_per_second)
               : "–",
           run->prefill_seconds > 0 ? FormatSignificant(prefill_tokens / run->prefill_seconds)
                                    : "–",
           FormatSignificant(run->decode_tokens_per_second),
           OptionalNumber(run->time_to_first_token_ms),
           OptionalNumber(run->time_per_output_token_ms),
           run->roofline_fraction ? FormatPercent(*run->roofline_fraction) : "–"});
      if (energy) table.rows.back().push_back(OptionalNumber(run->energy_joules_per_token));
    }
  }
  return table;
}

uint64_t LargestTotal(const StudyRecord& record) {
  uint64_t largest = 1;
  for (const MethodRecord& method : record.methods) {
    for (const BenchRun& run : method.bench) {
      largest = std::max({largest, run.total_bytes, run.process_bytes.value_or(0)});
    }
  }
  return largest;
}

BarChart MemoryChart(const StudyRecord& record, const ByteUnit& unit) {
  BarChart chart;
  chart.id = "memory";
  chart.title = "Peak memory by batch size";
  chart.axis_title = fmt::format("peak memory, {}", unit.name);
  chart.description =
      "Stacked bars of weights, KV cache and workspace, one bar a method, for each "
      "batch size. The numbers are in the table below the figure.";
  double high = 0;
  for (const int64_t batch : BatchSizes(record)) {
    BarGroup group;
    group.label = fmt::format("batch {}", batch);
    for (size_t m = 0; m < record.methods.size(); ++m) {
      const BenchRun* run = FindRun(record.methods[m], batch);
      if (run == nullptr) continue;
      Bar bar;
      bar.series = static_cast<int>(m);
      double total = 0;
      for (const uint64_t bytes : {run->weights_bytes, run->kv_cache_bytes, run->workspace_bytes}) {
        bar.segments.push_back(static_cast<double>(bytes) / unit.bytes);
        total += bar.segments.back();
      }
      high = std::max(high, total);
      bar.label = FormatInUnit(run->total_bytes, unit);
      bar.short_label = FormatSignificant(static_cast<double>(run->total_bytes) / unit.bytes, 2);
      bar.tooltip = fmt::format("{}, batch {}: {} ({} weights, {} KV cache, {} workspace)",
                                record.methods[m].name, batch, FormatBytes(run->total_bytes),
                                FormatBytes(run->weights_bytes), FormatBytes(run->kv_cache_bytes),
                                FormatBytes(run->workspace_bytes));
      group.bars.push_back(std::move(bar));
    }
    chart.groups.push_back(std::move(group));
  }
  chart.axis = Axis::Linear(0, high, 5);
  return chart;
}

Table MemoryTable(const StudyRecord& record, const ByteUnit& unit) {
  Table table;
  table.caption =
      fmt::format("Peak memory by batch size and method, {}: {}", unit.name, Workload(record));
  table.columns = {{"Method", Align::kLeft},
                   {"Batch"},
                   {"Weights"},
                   {"KV cache"},
                   {"Workspace"},
                   {"Total"},
                   {"of " + record.methods[0].name},
                   {"Whole process"}};
  for (const int64_t batch : BatchSizes(record)) {
    const BenchRun* baseline = FindRun(record.methods[0], batch);
    for (const MethodRecord& method : record.methods) {
      const BenchRun* run = FindRun(method, batch);
      if (run == nullptr) continue;
      const bool comparable = baseline != nullptr && baseline->total_bytes > 0;
      table.rows.push_back({method.name, FormatCount(batch), FormatInUnit(run->weights_bytes, unit),
                            FormatInUnit(run->kv_cache_bytes, unit),
                            FormatInUnit(run->workspace_bytes, unit),
                            FormatInUnit(run->total_bytes, unit),
                            comparable ? FormatPercent(static_cast<double>(run->total_bytes) /
                                                       static_cast<double>(baseline->total_bytes))
                                       : "–",
                            run->process_bytes ? FormatInUnit(*run->process_bytes, unit) : "–"});
    }
  }
  return table;
}

}  // namespace

const BenchRun* FindRun(const MethodRecord& method, int64_t batch_size) {
  for (const BenchRun& run : method.bench) {
    if (run.batch_size == batch_size) return &run;
  }
  return nullptr;
}

std::vector<int64_t> BatchSizes(const StudyRecord& record) {
  std::set<int64_t> sizes;
  for (const MethodRecord& method : record.methods) {
    for (const BenchRun& run : method.bench) sizes.insert(run.batch_size);
  }
  return {sizes.begin(), sizes.end()};
}

std::optional<Section> ThroughputSection(const StudyRecord& record) {
  if (BenchedLegend(record).empty()) return std::nullopt;
  Section section;
  section.title = "Throughput";
  section.paragraphs.push_back(
      "Output tokens per second are batch size × output length ÷ the seconds of prefill and decode "
      "together. Decode, one token of every sequence at a time, is bound by reading the weights, "
      "which is where fewer bits help; prefill is bound by arithmetic, where they do not.");
  Figure figure;
  figure.legend = BenchedLegend(record);
  figure.data = ThroughputTable(record);
  if (BatchSizes(record).size() > 1) {
    figure.title = "Throughput by batch size";
    figure.caption = fmt::format(
        "First panel: tokens generated per second, prefill included; both axes are logarithmic, so "
        "that equal distances are equal factors. Second panel: the same divided by {}’s. {}.",
        record.methods[0].name, Workload(record));
    figure.drawings.push_back({DrawLines(ThroughputChart(record), kPanelFigure), ""});
    const LineChart speedup = SpeedupChart(record);
    if (speedup.lines.size() > 1) {
      figure.drawings.push_back({DrawLines(speedup, kPanelFigure), ""});
    }
  } else {
    figure.title = fmt::format("Throughput at batch size {}", BatchSizes(record)[0]);
    figure.caption =
        fmt::format("Tokens generated per second, prefill included. {}.", Workload(record));
    figure.drawings.push_back({DrawRows(SingleBatchChart(record), kPanelFigure), ""});
  }
  section.blocks.push_back(std::move(figure));
  LineChart steps = StepTimeChart(record);
  if (BatchSizes(record).size() > 1 && !steps.lines.empty()) {
    Figure limit;
    limit.title = "Decode against the hardware’s limit";
    limit.caption = fmt::format(
        "Solid: the time of a step that decodes one token of every sequence. Dashed: the least that "
        "the hardware allows, the sum over the step’s operations of the longer of reading their bytes "
        "once and computing them at the measured rates. Both axes are logarithmic. {}.",
        Workload(record));
    limit.legend = BenchedLegend(record);
    Drawing drawing;
    drawing.wide = DrawLines(steps, kWideFigure);
    steps.id += "-narrow";
    drawing.narrow = DrawLines(steps, kNarrowFigure);
    limit.drawings = {std::move(drawing)};
    limit.data = StepTimeTable(record);
    section.blocks.push_back(std::move(limit));
  }
  return section;
}

std::optional<Section> MemorySection(const StudyRecord& record) {
  if (BenchedLegend(record).empty()) return std::nullopt;
  const ByteUnit unit = ByteUnitFor(LargestTotal(record));
  Section section;
  section.title = "Memory";
  Figure figure;
  figure.title = "Peak memory by batch size";
  figure.legend = BenchedLegend(record);
  figure.parts = LegendParts::kMemoryClasses;
  figure.caption = fmt::format(
      "The most memory that was allocated at once, in {}: weights, the KV cache of exactly batch × "
      "(input + output) tokens, and workspace. What the whole process held is in the table. {}.",
      unit.name, Workload(record));
  BarChart chart = MemoryChart(record, unit);
  Drawing drawing;
  drawing.wide = DrawColumns(chart, kWideFigure);
  chart.id += "-narrow";
  drawing.narrow = DrawRows(chart, kNarrowFigure);
  figure.drawings = {std::move(drawing)};
  figure.data = MemoryTable(record, unit);
  section.blocks.push_back(std::move(figure));
  return section;
}

}  // namespace nibble

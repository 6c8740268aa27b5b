// Perplexity, divergence, and what quantizing itself cost.
#include <algorithm>
#include <cmath>

#include "src/base/units.h"
#include "src/report/content_parts.h"
#include "src/report/numbers.h"
#include "src/report/svg_dots.h"

namespace nibble {
namespace {

Drawing PerplexityDrawing(const StudyRecord& record) {
  DotPlot plot;
  plot.id = "perplexity";
  plot.title = "Perplexity";
  plot.axis_title = "perplexity (lower is better)";
  plot.description = "One dot a method, with a 95 % interval. The numbers are in the table below.";
  double low = INFINITY, high = -INFINITY;
  for (size_t m = 0; m < record.methods.size(); ++m) {
    const auto& result = record.methods[m].perplexity;
    if (!result || !std::isfinite(result->perplexity)) continue;
    const double half = std::isfinite(result->standard_error) ? 1.96 * result->standard_error : 0;
    const Interval interval{result->perplexity - half, result->perplexity + half};
    low = std::min(low, interval.low);
    high = std::max(high, interval.high);
    const std::string label = FormatSignificant(result->perplexity, 4);
    DotRow row;
    row.label = record.methods[m].name;
    row.dots.push_back({static_cast<int>(m), result->perplexity, interval, label, label,
                        record.methods[m].name + ": " + label});
    plot.rows.push_back(std::move(row));
  }
  if (plot.rows.empty()) return {};
  plot.axis = Axis::Linear(low, high, 4);
  return {DrawDots(plot, kPanelFigure, RowLabels::kAbove), ""};
}

Drawing DivergenceDrawing(const StudyRecord& record) {
  DotPlot plot;
  plot.id = "divergence";
  plot.title = "KL divergence from " + record.methods[0].name;
  plot.axis_title = "KL divergence, nats (logarithmic)";
  plot.description =
      "One dot a method: the mean; the line runs from the median to the 99th "
      "percentile. The numbers are in the table below.";
  double low = INFINITY, high = 0;
  for (size_t m = 1; m < record.methods.size(); ++m) {
    const auto& result = record.methods[m].perplexity;
    if (!result || !result->kl_divergence || !(result->kl_divergence->mean > 0)) continue;
    const Divergence& kl = *result->kl_divergence;
    DotRow row;
    row.label = record.methods[m].name;
    std::optional<Interval> interval;
    if (kl.median > 0 && kl.p99 >= kl.median) {
      interval = Interval{kl.median, kl.p99};
      low = std::min(low, kl.median);
      high = std::max(high, kl.p99);
    }
    low = std::min(low, kl.mean);
    high = std::max(high, kl.mean);
    const std::string label = FormatSignificant(kl.mean);
    row.dots.push_back({static_cast<int>(m), kl.mean, interval, label, label,
                        record.methods[m].name + ": mean " + label});
    plot.rows.push_back(std::move(row));
  }
  if (plot.rows.empty()) return {};
  plot.axis = Axis::Logarithmic(low, high, 5);
  return {DrawDots(plot, kPanelFigure, RowLabels::kAbove), ""};
}

Table DivergenceTable(const StudyRecord& record) {
  Table table;
  table.caption = "Perplexity, and divergence from " + record.methods[0].name + " at each token";
  table.columns = {{"Method", Align::kLeft},
                   {"Perplexity"},
                   {"± standard error"},
                   {"Ratio"},
                   {"KL mean"},
                   {"median"},
                   {"99 %"},
                   {"99.9 %"},
                   {"max"},
                   {"Same top token"},
                   {"Δp mean, points"},
                   {"Δp 1 to 99 %, points"}};
  for (const MethodRecord& method : record.methods) {
    if (!method.perplexity) continue;
    const PerplexityResult& result = *method.perplexity;
    std::vector<std::string> row = {
        method.name, FormatSignificant(result.perplexity, 4),
        FormatSignificant(result.standard_error, 2),
        result.perplexity_ratio ? FormatSignificant(*result.perplexity_ratio, 4) : "–"};
    if (const auto& kl = result.kl_divergence) {
      for (const double value : {kl->mean, kl->median, kl->p99, kl->p999, kl->max}) {
        row.push_back(FormatSignificant(value));
      }
    } else {
      row.insert(row.end(), 5, "–");
    }
    row.push_back(result.top1_agreement ? FormatPercent(*result.top1_agreement) : "–");
    row.push_back(result.delta_p ? FormatFixed(100 * result.delta_p->mean, 2) : "–");
    row.push_back(result.delta_p ? fmt::format("{} to {}", FormatFixed(100 * result.delta_p->p1, 1),
                                               FormatFixed(100 * result.delta_p->p99, 1))
                                 : "–");
    table.rows.push_back(std::move(row));
  }
  return table;
}

// The middle one of those that are finite; NaN where none is.
double Median(std::vector<double> values) {
  std::erase_if(values, [](double value) { return !std::isfinite(value); });
  if (values.empty()) return NAN;
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

std::string MedianError(const QuantizeResult& result) {
  std::vector<double> errors;
  for (const QuantizedModule& module : result.modules) errors.push_back(module.error);
  const double median = Median(std::move(errors));
  return std::isfinite(median) ? FormatSignificant(median) : "–";
}

// How the module errors compare with plain rounding's on the same grid.
std::string MedianGain(const QuantizeResult& result) {
  std::vector<double> ratios;
  for (const QuantizedModule& module : result.modules) {
    if (module.error_rtn && *module.error_rtn > 0) {
      ratios.push_back(module.error / *module.error_rtn);
    }
  }
  const double median = Median(std::move(ratios));
  return std::isfinite(median) ? FormatRatio(median) : "–";
}

std::string WorstModule(const QuantizeResult& result) {
  const QuantizedModule* worst = nullptr;
  for (const QuantizedModule& module : result.modules) {
    if (!std::isfinite(module.error)) continue;
    if (worst == nullptr || module.error > worst->error) worst = &module;
  }
  if (worst == nullptr) return "–";
  return fmt::format("{} ({})", worst->name, FormatSignificant(worst->error));
}

}  // namespace

namespace {

// "4,094 tokens scored of wiki.test.raw (raw), in 2 of 166 windows of 2,048"
std::string TextConditions(const PerplexityResult& result) {
  std::string text = FormatCount(result.tokens) + " tokens scored";
  if (!result.text.empty()) text += " of " + result.text;
  if (!result.join.empty()) text += " (" + result.join + ")";
  if (result.windows > 0 && result.context > 0) {
    text += fmt::format(
        ", in {}{} windows of {} tokens", FormatCount(result.windows),
        result.windows < result.windows_in_text ? " of " + FormatCount(result.windows_in_text) : "",
        FormatCount(result.context));
  }
  return text;
}

}  // namespace

std::optional<Section> DivergenceSection(const StudyRecord& record) {
  const auto has = [](const MethodRecord& m) { return m.perplexity.has_value(); };
  if (LegendFor(record, has).empty()) return std::nullopt;
  std::string conditions;
  for (const MethodRecord& method : record.methods) {
    if (has(method) && conditions.empty()) conditions = TextConditions(*method.perplexity);
  }
  Section section;
  section.title = "Perplexity and divergence";
  section.paragraphs.push_back(
      fmt::format("Perplexity is e to the mean surprise per token of a text; lower is better. The "
                  "KL divergence "
                  "compares the method’s next-token distribution with {}’s at every token, and "
                  "sees changes that "
                  "perplexity and multiple choice average away.",
                  record.methods[0].name));
  Figure figure;
  figure.title = "Perplexity and KL divergence";
  figure.legend = LegendFor(record, has);
  figure.caption = fmt::format(
      "First panel: perplexity with 95 % intervals; every method read the same text, so "
      "differences are more certain than these intervals suggest. Second panel: mean KL divergence "
      "from {}; the line runs from the median to the 99th percentile over tokens. {}.",
      record.methods[0].name, conditions);
  for (Drawing drawing : {PerplexityDrawing(record), DivergenceDrawing(record)}) {
    if (!drawing.wide.empty()) figure.drawings.push_back(std::move(drawing));
  }
  figure.data = DivergenceTable(record);
  section.blocks.push_back(std::move(figure));
  return section;
}

std::optional<Section> QuantizationSection(const StudyRecord& record) {
  uint64_t largest = 0;
  bool on_gpu = false;
  for (const MethodRecord& method : record.methods) {
    if (!method.quantize) continue;
    largest =
        std::max({largest, method.quantize->peak_memory_bytes, method.quantize->checkpoint_bytes,
                  method.quantize->peak_device_bytes.value_or(0)});
    on_gpu |= method.quantize->peak_device_bytes.has_value();
  }
  const ByteUnit unit = ByteUnitFor(largest);
  Section section;
  section.title = "The cost of quantizing";
  Table table;
  table.caption = "Time, memory and size of quantizing, once per method";
  table.columns = {{"Method", Align::kLeft},
                   {"Layout", Align::kLeft},
                   {"Grid", Align::kLeft},
                   {"Group"},
                   {"Bits per weight"},
                   {"Time"},
                   {fmt::format("Peak memory, {}", unit.name)},
                   {fmt::format("Checkpoint, {}", unit.name)},
                   {"Modules"},
                   {"Median error"},
                   {"of rounding’s"},
                   {"Largest error", Align::kLeft}};
  constexpr int kBehindMemory = 7;
  if (on_gpu) {
    table.columns.insert(table.columns.begin() + kBehindMemory,
                         {fmt::format("Peak GPU memory, {}", unit.name)});
  }
  std::string error_measure;
  for (const MethodRecord& method : record.methods) {
    if (!method.quantize) continue;
    const QuantizeResult& result = *method.quantize;
    error_measure = result.error_measure;
    table.rows.push_back({method.name, result.format, result.grid,
                          result.group_size < 0 ? "row" : FormatCount(result.group_size),
                          result.bits_per_weight ? FormatFixed(*result.bits_per_weight, 2) : "–",
                          FormatSeconds(result.seconds),
                          FormatInUnit(result.peak_memory_bytes, unit),
                          FormatInUnit(result.checkpoint_bytes, unit),
                          FormatCount(static_cast<int64_t>(result.modules.size())),
                          MedianError(result), MedianGain(result), WorstModule(result)});
    if (on_gpu) {
      auto& row = table.rows.back();
      row.insert(row.begin() + kBehindMemory,
                 result.peak_device_bytes ? FormatInUnit(*result.peak_device_bytes, unit) : "–");
    }
    for (const std::string& note : result.notes) {
      section.paragraphs.push_back(method.name + ": " + note);
    }
    if (!result.skipped.empty()) {
      section.paragraphs.push_back(fmt::format(
          "{} left {} module{} unquantized: {} ({}{}).", method.name, result.skipped.size(),
          result.skipped.size() == 1 ? "" : "s", result.skipped[0].first, result.skipped[0].second,
          result.skipped.size() == 1 ? "" : "; and others"));
    }
  }
  if (table.rows.empty()) return std::nullopt;
  std::string introduction = "Quantizing is done once.";
  if (!error_measure.empty()) {
    introduction += fmt::format(" A module’s error is the {}.", error_measure);
  }
  section.paragraphs.insert(section.paragraphs.begin(), introduction);
  section.blocks.push_back(std::move(table));
  return section;
}

}  // namespace nibble

// A served model under load.
#include <algorithm>
#include <cmath>
#include <set>

#include "src/report/content_parts.h"
#include "src/report/numbers.h"
#include "src/report/svg_lines.h"

namespace nibble {
namespace {

enum class LoadKind { kClosedLoop, kPoisson };

const std::vector<LoadRun>& RunsOf(const LoadSeries& series, LoadKind kind) {
  return kind == LoadKind::kClosedLoop ? series.closed_loop : series.poisson;
}

// The series' models, told apart by their places where they have one name.
std::vector<std::string> SeriesNames(const StudyRecord& record) {
  std::vector<std::string> names;
  std::set<std::string> seen;
  for (const LoadSeries& series : record.load_series) {
    const bool is_new = seen.insert(series.model).second;
    names.push_back(is_new ? series.model : fmt::format("{} ({})", series.model, names.size() + 1));
  }
  return names;
}

struct LoadPanel {
  const char* id;
  const char* title;
  const char* y_title;
  std::optional<double> (*value)(const LoadRun&);
};

constexpr LoadPanel kLoadPanels[] = {
    {"load-throughput", "Throughput", "output tokens/s",
     [](const LoadRun& run) { return std::optional(run.output_tokens_per_second); }},
    {"load-first-token", "First token, 99th percentile", "ms (logarithmic)",
     [](const LoadRun& run) {
       return run.first_token ? std::optional(run.first_token->p99) : std::nullopt;
     }},
    {"load-per-token", "Per output token, 99th percentile", "ms (logarithmic)",
     [](const LoadRun& run) {
       return run.per_token ? std::optional(run.per_token->p99) : std::nullopt;
     }}};

LineChart LoadChart(const StudyRecord& record, LoadKind kind, const LoadPanel& panel) {
  const bool closed = kind == LoadKind::kClosedLoop;
  LineChart chart;
  chart.id = std::string(panel.id) + (closed ? "" : "-poisson");
  chart.title = panel.title;
  chart.description = fmt::format(
      "{}, {}, against {}, one line a model. The numbers are in the table below the figure.",
      panel.title, panel.y_title, closed ? "the number of clients" : "the requests a second");
  chart.x_title = closed ? "clients" : "requests/s";
  chart.y_title = panel.y_title;
  const std::vector<std::string> names = SeriesNames(record);
  std::set<double> levels;
  double low = INFINITY, high = 0;
  for (size_t i = 0; i < record.load_series.size(); ++i) {
    DataLine line{.series = static_cast<int>(i), .name = names[i]};
    for (const LoadRun& run : RunsOf(record.load_series[i], kind)) {
      const std::optional<double> value = panel.value(run);
      // A level is measured once in a line.
      if (!value || !(*value > 0) ||
          (!line.points.empty() && line.points.back().x == run.level())) {
        continue;
      }
      levels.insert(run.level());
      low = std::min(low, *value);
      high = std::max(high, *value);
      line.points.push_back({run.level(), *value});
      line.tooltips.push_back(fmt::format("{}, {} {}: {}", names[i], FormatShort(run.level()),
                                          chart.x_title, FormatSignificant(*value)));
    }
    if (!line.points.empty()) chart.lines.push_back(std::move(line));
  }
  if (chart.lines.empty()) return chart;  // no request of any level was answered
  chart.x = Axis::LogarithmicAt({levels.begin(), levels.end()});
  const bool logarithmic = &panel != &kLoadPanels[0];
  chart.y =
      logarithmic ? Axis::Logarithmic(low, high, 6) : Axis::Linear(0, std::max(high, 1e-6), 6);
  return chart;
}

Table LoadTableOf(const StudyRecord& record, LoadKind kind, std::string caption) {
  const bool closed = kind == LoadKind::kClosedLoop;
  Table table;
  table.caption = std::move(caption);
  table.columns = {{"Model", Align::kLeft},
                   {closed ? "Clients" : "Requests/s asked"},
                   {"Complete"},
                   {"Failed"},
                   {"Output, tokens/s"},
                   {"Requests/s"},
                   {"First token, ms, p50"},
                   {"p90"},
                   {"p99"},
                   {"Per output token, ms, p50"},
                   {"p90"},
                   {"p99"},
                   {"End to end, ms, p50"},
                   {"p99"}};
  const std::vector<std::string> names = SeriesNames(record);
  bool goodput = false;
  for (const LoadSeries& series : record.load_series) {
    for (const LoadRun& run : RunsOf(series, kind)) {
      goodput |= run.goodput_requests_per_second.has_value();
    }
  }
  if (goodput) table.columns.push_back({"Goodput, requests/s"});
  const auto number = [](const std::optional<LoadLatency>& latency, double LoadLatency::*member) {
    return latency ? FormatSignificant(*latency.*member) : std::string("–");
  };
  for (size_t i = 0; i < record.load_series.size(); ++i) {
    for (const LoadRun& run : RunsOf(record.load_series[i], kind)) {
      table.rows.push_back(
          {names[i], FormatShort(run.level()), FormatCount(run.completed),
           FormatCount(run.requests - run.completed),
           FormatSignificant(run.output_tokens_per_second),
           FormatSignificant(run.requests_per_second), number(run.first_token, &LoadLatency::p50),
           number(run.first_token, &LoadLatency::p90), number(run.first_token, &LoadLatency::p99),
           number(run.per_token, &LoadLatency::p50), number(run.per_token, &LoadLatency::p90),
           number(run.per_token, &LoadLatency::p99), number(run.end_to_end, &LoadLatency::p50),
           number(run.end_to_end, &LoadLatency::p99)});
      if (goodput) {
        table.rows.back().push_back(run.goodput_requests_per_second
                                        ? FormatSignificant(*run.goodput_requests_per_second)
                                        : "–");
      }
    }
  }
  return table;
}

// "512 tokens in and up to 200 out; goodput counts …", of the first series.
std::string LoadConditions(const StudyRecord& record) {
  const LoadSeries& series = record.load_series[0];
  std::string text = series.input_length ? fmt::format("Prompts of {} random tokens",
                                                       FormatCount(*series.input_length))
                                         : std::string("Prompts of a text file");
  text += fmt::format(", answers of up to {} tokens.", FormatCount(series.output_length));
  if (series.slo_first_token_ms || series.slo_per_token_ms) {
    text += " Goodput counts answers";
    if (series.slo_first_token_ms) {
      text += fmt::format(" whose first token came within {} ms",
                          FormatSignificant(*series.slo_first_token_ms));
    }
    if (series.slo_first_token_ms && series.slo_per_token_ms) text += " and";
    if (series.slo_per_token_ms) {
      text += fmt::format(" whose further tokens took {} ms each at most, on average",
                          FormatSignificant(*series.slo_per_token_ms));
    }
    text += ".";
  }
  return text;
}

}  // namespace

std::optional<Section> LoadSection(const StudyRecord& record) {
  if (record.load_series.empty()) return std::nullopt;
  Section section;
  section.title = "Serving under load";
  section.paragraphs.push_back(
      "Measured at the server’s socket, streaming. The first token’s time is from a request’s "
      "sending "
      "and holds its wait; the time per output token is an answer’s, from its first token to its "
      "last.");
  for (const LoadKind kind : {LoadKind::kClosedLoop, LoadKind::kPoisson}) {
    const bool any =
        std::any_of(record.load_series.begin(), record.load_series.end(),
                    [&](const LoadSeries& series) { return !RunsOf(series, kind).empty(); });
    if (!any) continue;
    const bool closed = kind == LoadKind::kClosedLoop;
    Figure figure;
    figure.title = closed ? "A closed loop of clients" : "Requests at a given rate";
    figure.caption = fmt::format(
        "{} {}",
        closed ? "Each client sends its next request once it has the answer to its last."
               : "Requests arrive as a Poisson process, however long answers take.",
        LoadConditions(record));
    for (const LoadPanel& panel : kLoadPanels) {
      const LineChart chart = LoadChart(record, kind, panel);
      if (!chart.lines.empty()) figure.drawings.push_back({DrawLines(chart, kPanelFigure), ""});
    }
    const std::vector<std::string> names = SeriesNames(record);
    for (size_t i = 0; i < names.size(); ++i) {
      if (!RunsOf(record.load_series[i], kind).empty()) {
        figure.legend.push_back({static_cast<int>(i), names[i]});
      }
    }
    figure.data = LoadTableOf(record, kind, figure.title + ": " + LoadConditions(record));
    section.blocks.push_back(std::move(figure));
  }
  return section;
}

}  // namespace nibble

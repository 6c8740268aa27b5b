#include "src/load/load_result.h"

#include <algorithm>
#include <cmath>

#include "src/eval/percentile.h"

namespace nibble {
namespace {

Json DistributionJson(const std::optional<Distribution>& d) {
  if (!d) return nullptr;
  return {{"mean", d->mean}, {"p50", d->p50}, {"p90", d->p90}, {"p99", d->p99}, {"max", d->max}};
}

Json OptionalJson(const std::optional<double>& value) {
  return value ? Json(*value) : Json(nullptr);
}

}  // namespace

std::optional<Distribution> DistributionOf(std::vector<double> values) {
  if (values.empty()) return std::nullopt;
  std::sort(values.begin(), values.end());
  double sum = 0;
  for (const double value : values) sum += value;
  return Distribution{.mean = sum / static_cast<double>(values.size()),
                      .p50 = Percentile(values, 0.5),
                      .p90 = Percentile(values, 0.9),
                      .p99 = Percentile(values, 0.99),
                      .max = values.back()};
}

LoadSummary Summarize(const LoadLevel& level, std::span<const LoadRecord> records,
                      const ServiceLevel& service_level) {
  LoadSummary summary{.level = level, .requests = static_cast<int64_t>(records.size())};
  std::vector<double> first_ms, per_token_ms, whole_ms;
  double begin_s = INFINITY, end_s = 0;
  int64_t good = 0;
  for (const LoadRecord& record : records) {
    begin_s = std::min(begin_s, record.sent_s);
    if (!record.failure.empty()) {
      ++summary.failures[record.failure];
      continue;
    }
    ++summary.completed;
    summary.input_tokens += record.input_tokens;
    summary.output_tokens += record.output_tokens;
    end_s = std::max(end_s, record.last_s);
    first_ms.push_back((record.first_s - record.sent_s) * 1e3);
    whole_ms.push_back((record.last_s - record.sent_s) * 1e3);
    bool is_good =
        !service_level.first_token_ms || first_ms.back() <= *service_level.first_token_ms;
    if (record.output_tokens > 1) {
      const auto steps = static_cast<double>(record.output_tokens - 1);
      per_token_ms.push_back((record.last_s - record.first_s) * 1e3 / steps);
      if (service_level.per_token_ms && per_token_ms.back() > *service_level.per_token_ms) {
        is_good = false;
      }
    }
    if (is_good) ++good;
  }
  if (summary.completed > 0) summary.seconds = end_s - begin_s;
  summary.first_token_ms = DistributionOf(std::move(first_ms));
  summary.per_token_ms = DistributionOf(std::move(per_token_ms));
  summary.end_to_end_ms = DistributionOf(std::move(whole_ms));
  if (service_level.any()) summary.good = good;
  return summary;
}

Json LoadDocument(const std::string& url, const LoadWorkload& workload,
                  const ServiceLevel& service_level, std::span<const LoadSummary> runs) {
  Json document = {{"schema", "nibble.load-test/1"}, {"url", url}, {"model", workload.model}};
  Json& asked = document["workload"];
  asked["prompts"] = workload.texts.empty() ? "random" : "text";
  asked["input_length"] = workload.texts.empty() ? Json(workload.input_length) : Json(nullptr);
  asked["output_length"] = workload.output_length;
  asked["temperature"] = workload.temperature;
  asked["ignore_eos"] = workload.end == EndOfSequence::kIgnore;
  asked["seed"] = workload.seed;
  document["slo"] = {{"time_to_first_token_ms", OptionalJson(service_level.first_token_ms)},
                     {"time_per_output_token_ms", OptionalJson(service_level.per_token_ms)}};
  Json& list = document["runs"] = Json::array();
  for (const LoadSummary& run : runs) {
    const bool closed = run.level.arrivals == Arrivals::kClosedLoop;
    Json entry;
    entry["arrivals"] = closed ? "closed_loop" : "poisson";
    entry["concurrency"] = closed ? Json(static_cast<int64_t>(run.level.value)) : Json(nullptr);
    entry["request_rate"] = closed ? Json(nullptr) : Json(run.level.value);
    entry["requests"] = run.requests;
    entry["completed"] = run.completed;
    entry["failures"] = Json::object();
    for (const auto& [kind, count] : run.failures) entry["failures"][kind] = count;
    entry["seconds"] = run.seconds;
    entry["input_tokens"] = run.input_tokens;
    entry["output_tokens"] = run.output_tokens;
    entry["output_tokens_per_second"] = run.PerSecond(run.output_tokens);
    entry["requests_per_second"] = run.PerSecond(run.completed);
    entry["time_to_first_token_ms"] = DistributionJson(run.first_token_ms);
    entry["time_per_output_token_ms"] = DistributionJson(run.per_token_ms);
    entry["end_to_end_ms"] = DistributionJson(run.end_to_end_ms);
    entry["goodput_requests_per_second"] =
        run.good ? Json(run.PerSecond(*run.good)) : Json(nullptr);
    entry["goodput_share"] =
        run.good && run.requests > 0
            ? Json(static_cast<double>(*run.good) / static_cast<double>(run.requests))
            : Json(nullptr);
    list.push_back(std::move(entry));
  }
  return document;
}

std::string LoadTable(std::span<const LoadSummary> runs) {
  const bool goodput = std::any_of(runs.begin(), runs.end(),
                                   [](const LoadSummary& run) { return run.good.has_value(); });
  std::string text =
      fmt::format("{:>12} {:>9} {:>7} {:>9} {:>8}  {:^26}  {:^23}  {:^26}", "", "", "", "output",
                  "", "first token, ms", "per output token, ms", "end to end, ms");
  text += goodput ? "   goodput\n" : "\n";
  text += fmt::format(
      "{:>12} {:>9} {:>7} {:>9} {:>8}  {:>8} {:>8} {:>8}  {:>7} {:>7} {:>7}  {:>8} {:>8} {:>8}", "",
      "complete", "failed", "tokens/s", "req/s", "p50", "p90", "p99", "p50", "p90", "p99", "p50",
      "p90", "p99");
  text += goodput ? "     req/s\n" : "\n";
  const auto cells = [](const std::optional<Distribution>& d, int width, int decimals) {
    std::string row;
    for (const double value : {d ? d->p50 : 0, d ? d->p90 : 0, d ? d->p99 : 0}) {
      row += d ? fmt::format(" {:>{}.{}f}", value, width, decimals)
               : fmt::format(" {:>{}}", "-", width);
    }
    return row;
  };
  for (const LoadSummary& run : runs) {
    const std::string name = run.level.arrivals == Arrivals::kClosedLoop
                                 ? fmt::format("{} clients", run.level.value)
                                 : fmt::format("{} req/s", run.level.value);
    text += fmt::format("{:>12} {:>9} {:>7} {:>9.1f} {:>8.2f} {} {} {}", name, run.completed,
                        run.requests - run.completed, run.PerSecond(run.output_tokens),
                        run.PerSecond(run.completed), cells(run.first_token_ms, 8, 1),
                        cells(run.per_token_ms, 7, 2), cells(run.end_to_end_ms, 8, 0));
    text += goodput ? fmt::format(" {:>9.2f}\n", run.PerSecond(run.good.value_or(0))) : "\n";
  }
  for (const LoadSummary& run : runs) {
    for (const auto& [kind, count] : run.failures) {
      text += fmt::format(
          "{} of {} requests failed at {}{}: {}\n", count, run.requests, run.level.value,
          run.level.arrivals == Arrivals::kClosedLoop ? " clients" : " req/s", kind);
    }
  }
  return text;
}

}  // namespace nibble

#include "src/report/load_series.h"

#include <algorithm>

#include "src/report/markup.h"

namespace nibble {
namespace {

constexpr size_t kMaxLoadRuns = 200;
constexpr int64_t kMaxLoadCount = 1'000'000'000'000;
constexpr double kMaxLoadQuantity = 1e15;

Result<double> LoadQuantity(const JsonObject& object, const char* key) {
  NIBBLE_ASSIGN_OR_RETURN(const double value, object.Number(key));
  if (!(value >= 0 && value <= kMaxLoadQuantity)) {
    return BadInput("{}: \"{}\": want a number from 0 to {}, got {}", object.source(), key,
                    kMaxLoadQuantity, value);
  }
  return value;
}

Result<std::optional<double>> OptionalLoadQuantity(const JsonObject& object, const char* key) {
  if (!object.Has(key)) return std::nullopt;
  NIBBLE_ASSIGN_OR_RETURN(const double value, LoadQuantity(object, key));
  return std::optional(value);
}

Result<std::optional<LoadLatency>> ReadLatency(const JsonObject& run, const char* key) {
  if (!run.Has(key)) return std::nullopt;
  NIBBLE_ASSIGN_OR_RETURN(const JsonObject object, run.Object(key));
  LoadLatency latency;
  NIBBLE_ASSIGN_OR_RETURN(latency.p50, LoadQuantity(object, "p50"));
  NIBBLE_ASSIGN_OR_RETURN(latency.p90, LoadQuantity(object, "p90"));
  NIBBLE_ASSIGN_OR_RETURN(latency.p99, LoadQuantity(object, "p99"));
  return std::optional(latency);
}

Result<LoadRun> ReadLoadRun(const Json& json, const std::string& source) {
  NIBBLE_ASSIGN_OR_RETURN(const JsonObject object, JsonObject::Of(json, source));
  LoadRun run;
  NIBBLE_ASSIGN_OR_RETURN(run.request_rate, OptionalLoadQuantity(object, "request_rate"));
  if (object.Has("concurrency")) {
    NIBBLE_ASSIGN_OR_RETURN(run.concurrency, object.Integer("concurrency", 1, kMaxLoadCount));
  }
  if (run.concurrency.has_value() == run.request_rate.has_value() || !(run.level() > 0)) {
    return BadInput("{}: want either a \"concurrency\" or a \"request_rate\" above 0", source);
  }
  NIBBLE_ASSIGN_OR_RETURN(run.requests, object.Integer("requests", 0, kMaxLoadCount));
  NIBBLE_ASSIGN_OR_RETURN(run.completed, object.Integer("completed", 0, run.requests));
  NIBBLE_ASSIGN_OR_RETURN(run.output_tokens_per_second,
                          LoadQuantity(object, "output_tokens_per_second"));
  NIBBLE_ASSIGN_OR_RETURN(run.requests_per_second, LoadQuantity(object, "requests_per_second"));
  NIBBLE_ASSIGN_OR_RETURN(run.first_token, ReadLatency(object, "time_to_first_token_ms"));
  NIBBLE_ASSIGN_OR_RETURN(run.per_token, ReadLatency(object, "time_per_output_token_ms"));
  NIBBLE_ASSIGN_OR_RETURN(run.end_to_end, ReadLatency(object, "end_to_end_ms"));
  NIBBLE_ASSIGN_OR_RETURN(run.goodput_requests_per_second,
                          OptionalLoadQuantity(object, "goodput_requests_per_second"));
  return run;
}

}  // namespace

Result<LoadSeries> LoadSeries::FromJson(const Json& json, const std::string& source) {
  NIBBLE_ASSIGN_OR_RETURN(const JsonObject object, JsonObject::Of(json, source));
  NIBBLE_ASSIGN_OR_RETURN(const std::string schema, object.String("schema"));
  if (schema != "nibble.load-test/1") {
    return BadInput("{}: \"schema\": want nibble.load-test/1, got {}", source, Printable(schema));
  }
  LoadSeries series;
  NIBBLE_ASSIGN_OR_RETURN(const std::string model, object.String("model"));
  series.model = Printable(model);
  NIBBLE_ASSIGN_OR_RETURN(const JsonObject workload, object.Object("workload"));
  if (workload.Has("input_length")) {
    NIBBLE_ASSIGN_OR_RETURN(series.input_length,
                            workload.Integer("input_length", 1, kMaxLoadCount));
  }
  NIBBLE_ASSIGN_OR_RETURN(series.output_length,
                          workload.Integer("output_length", 1, kMaxLoadCount));
  NIBBLE_ASSIGN_OR_RETURN(const JsonObject slo, object.Object("slo"));
  NIBBLE_ASSIGN_OR_RETURN(series.slo_first_token_ms,
                          OptionalLoadQuantity(slo, "time_to_first_token_ms"));
  NIBBLE_ASSIGN_OR_RETURN(series.slo_per_token_ms,
                          OptionalLoadQuantity(slo, "time_per_output_token_ms"));
  const Json* runs = object.Find("runs");
  if (runs == nullptr || !runs->is_array() || runs->empty() || runs->size() > kMaxLoadRuns) {
    return BadInput("{}: \"runs\": want an array of 1 to {}", source, kMaxLoadRuns);
  }
  for (size_t i = 0; i < runs->size(); ++i) {
    NIBBLE_ASSIGN_OR_RETURN(LoadRun run,
                            ReadLoadRun((*runs)[i], fmt::format("{}: runs[{}]", source, i)));
    (run.concurrency ? series.closed_loop : series.poisson).push_back(std::move(run));
  }
  for (std::vector<LoadRun>* list : {&series.closed_loop, &series.poisson}) {
    std::stable_sort(list->begin(), list->end(),
                     [](const LoadRun& a, const LoadRun& b) { return a.level() < b.level(); });
  }
  return series;
}

}  // namespace nibble

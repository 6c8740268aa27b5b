// A load test's result, as the report reads it: a document nibble.load-test/1 (docs/json.md)
// checked and typed. The file is input like any other; text in it is made printable on the way in.
#ifndef NIBBLE_REPORT_LOAD_SERIES_H_
#define NIBBLE_REPORT_LOAD_SERIES_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "src/base/error.h"
#include "src/base/json.h"

namespace nibble {

struct LoadLatency {
  double p50 = 0, p90 = 0, p99 = 0;  // ms
};

struct LoadRun {
  std::optional<int64_t> concurrency;  // of a closed loop
  std::optional<double> request_rate;  // of a Poisson process; one of the two is there
  int64_t requests = 0;
  int64_t completed = 0;
  double output_tokens_per_second = 0;
  double requests_per_second = 0;
  std::optional<LoadLatency> first_token, per_token, end_to_end;
  std::optional<double> goodput_requests_per_second;

  double level() const {
    return concurrency ? static_cast<double>(*concurrency) : request_rate.value_or(0);
  }
};

struct LoadSeries {
  std::string model;
  std::optional<int64_t> input_length;  // absent: prompts of a text file
  int64_t output_length = 0;
  std::optional<double> slo_first_token_ms, slo_per_token_ms;
  std::vector<LoadRun> closed_loop, poisson;  // by level, ascending

  // `source` names the document in errors.
  static Result<LoadSeries> FromJson(const Json& json, const std::string& source);
};

}  // namespace nibble

#endif  // NIBBLE_REPORT_LOAD_SERIES_H_

// What a level's records say.
#ifndef NIBBLE_LOAD_LOAD_RESULT_H_
#define NIBBLE_LOAD_LOAD_RESULT_H_

#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "src/base/json.h"
#include "src/load/load_level.h"

namespace nibble {

// The latest that an answer may come to count; absent: any.
struct ServiceLevel {
  std::optional<double> first_token_ms;
  std::optional<double> per_token_ms;

  bool any() const { return first_token_ms || per_token_ms; }
};

struct Distribution {
  double mean = 0, p50 = 0, p90 = 0, p99 = 0, max = 0;
};
// Absent where there are no values.
std::optional<Distribution> DistributionOf(std::vector<double> values);

struct LoadSummary {
  LoadLevel level;
  int64_t requests = 0;
  int64_t completed = 0;
  std::map<std::string, int64_t> failures;  // by kind
  double seconds = 0;                       // from the first request to the last answer's end
  int64_t input_tokens = 0;                 // of complete answers, as all that follows
  int64_t output_tokens = 0;
  std::optional<Distribution> first_token_ms;  // from a request's sending, connecting included
  std::optional<Distribution>
      per_token_ms;  // (last - first) / (tokens - 1), of each answer of two or more
  std::optional<Distribution> end_to_end_ms;
  std::optional<int64_t> good;  // answers within the service level

  double PerSecond(int64_t count) const {
    return seconds > 0 ? static_cast<double>(count) / seconds : 0;
  }
};

LoadSummary Summarize(const LoadLevel& level, std::span<const LoadRecord> records,
                      const ServiceLevel& service_level);

// The document nibble.load-test/1 (docs/json.md).
Json LoadDocument(const std::string& url, const LoadWorkload& workload,
                  const ServiceLevel& service_level, std::span<const LoadSummary> runs);

// For a terminal.
std::string LoadTable(std::span<const LoadSummary> runs);

}  // namespace nibble

#endif  // NIBBLE_LOAD_LOAD_RESULT_H_

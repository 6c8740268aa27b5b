// What /metrics shows, in Prometheus's text format 0.0.4, under the names that vLLM uses, so that
// its dashboards work.
#ifndef NIBBLE_SERVE_METRICS_H_
#define NIBBLE_SERVE_METRICS_H_

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "src/engine/scheduler.h"
#include "src/tensor/memory.h"

namespace nibble {

class Histogram {
 public:
  explicit Histogram(std::vector<double> bounds)  // ascending upper bounds
      : bounds_(std::move(bounds)), counts_(bounds_.size() + 1) {}
  void Observe(double value);
  // Appends the samples of a metric of this name; `labels` as `a="b"`.
  void AppendTo(std::string& text, std::string_view name, std::string_view labels) const;

 private:
  std::vector<double> bounds_;
  std::vector<int64_t> counts_;  // not cumulative; the last is beyond all bounds
  double sum_ = 0;
};

// Counters since the start, and how things stand.
struct ServeMetrics {
  int64_t running = 0;
  int64_t waiting = 0;
  int64_t kv_tokens = 0;       // that the cache holds
  int64_t kv_tokens_used = 0;  // in whole blocks
  int64_t prompt_tokens = 0;
  int64_t generation_tokens = 0;
  int64_t preemptions = 0;
  PrefixCacheCounts prefix_cache;
  int64_t stopped = 0;  // choices by how they ended
  int64_t length = 0;
  int64_t aborted = 0;
  MemoryUse memory;
  Histogram first_token_seconds = Histogram({0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25,
                                             0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40});
  Histogram per_token_seconds = Histogram({0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1,
                                           0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5});
  Histogram whole_seconds = Histogram(
      {0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480});
};

struct ModelMetrics {
  std::string model_name;
  ServeMetrics metrics;
};
// `energy_joules`: that the device has taken, where it says so.
std::string MetricsText(std::span<const ModelMetrics> models, std::optional<double> energy_joules);

}  // namespace nibble

#endif  // NIBBLE_SERVE_METRICS_H_

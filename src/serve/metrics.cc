#include "src/serve/metrics.h"

#include <fmt/format.h>

#include <algorithm>

namespace nibble {
namespace {

// A label's value: backslash, quote and line feed are escaped.
std::string Escaped(std::string_view value) {
  std::string escaped;
  for (const char c : value) {
    if (c == '\\' || c == '"') escaped += '\\';
    if (c == '\n') {
      escaped += "\\n";
    } else {
      escaped += c;
    }
  }
  return escaped;
}

}  // namespace

void Histogram::Observe(double value) {
  const auto bucket = std::lower_bound(bounds_.begin(), bounds_.end(), value) - bounds_.begin();
  ++counts_[static_cast<size_t>(bucket)];
  sum_ += value;
}

void Histogram::AppendTo(std::string& text, std::string_view name, std::string_view labels) const {
  int64_t total = 0;
  for (size_t i = 0; i < bounds_.size(); ++i) {
    total += counts_[i];
    text += fmt::format("{}_bucket{{{},le=\"{}\"}} {}\n", name, labels, bounds_[i], total);
  }
  total += counts_.back();
  text +=
      fmt::format("{0}_bucket{{{1},le=\"+Inf\"}} {2}\n{0}_sum{{{1}}} {3}\n{0}_count{{{1}}} {2}\n",
                  name, labels, total, sum_);
}

std::string MetricsText(const ServeMetrics& m, std::string_view model_name) {
  const std::string model = fmt::format("model_name=\"{}\"", Escaped(model_name));
  std::string text;
  const auto head = [&](std::string_view name, std::string_view type, std::string_view help) {
    text += fmt::format("# HELP {0} {2}\n# TYPE {0} {1}\n", name, type, help);
  };
  const auto one = [&](std::string_view name, std::string_view type, std::string_view help,
                       auto value) {
    head(name, type, help);
    text += fmt::format("{}{{{}}} {}\n", name, model, value);
  };
  const auto histogram = [&](std::string_view name, std::string_view help, const Histogram& h) {
    head(name, "histogram", help);
    h.AppendTo(text, name, model);
  };
  one("vllm:num_requests_running", "gauge", "Sequences that are being computed.", m.running);
  one("vllm:num_requests_waiting", "gauge", "Sequences that wait for room.", m.waiting);
  one("vllm:kv_cache_usage_perc", "gauge", "The share of the KV cache that is held, 0 to 1.",
      m.kv_tokens == 0 ? 0.0
                       : static_cast<double>(m.kv_tokens_used) / static_cast<double>(m.kv_tokens));
  one("vllm:prompt_tokens_total", "counter", "Tokens of accepted prompts.", m.prompt_tokens);
  one("vllm:generation_tokens_total", "counter", "Tokens generated.", m.generation_tokens);
  one("vllm:num_preemptions_total", "counter",
      "Sequences that gave their KV blocks back for others.", m.preemptions);
  histogram("vllm:time_to_first_token_seconds", "From acceptance to the first token.",
            m.first_token_seconds);
  histogram("vllm:time_per_output_token_seconds", "Between a sequence's tokens.",
            m.per_token_seconds);
  histogram("vllm:e2e_request_latency_seconds", "From acceptance to the last token.",
            m.whole_seconds);
  head("vllm:request_success_total", "counter", "Sequences by how they ended.");
  for (const auto& [reason, count] : {std::pair<std::string_view, int64_t>{"stop", m.stopped},
                                      {"length", m.length},
                                      {"abort", m.aborted}}) {
    text += fmt::format("vllm:request_success_total{{{},finished_reason=\"{}\"}} {}\n", model,
                        reason, count);
  }
  head("nibble:memory_bytes", "gauge", "Bytes held on the device, by class.");
  for (const MemoryClass c :
       {MemoryClass::kWeights, MemoryClass::kKvCache, MemoryClass::kWorkspace}) {
    text += fmt::format("nibble:memory_bytes{{{},class=\"{}\"}} {}\n", model, Name(c), m.memory[c]);
  }
  return text;
}

}  // namespace nibble

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

std::string MetricsText(std::span<const ModelMetrics> models, std::optional<double> energy_joules) {
  std::string text;
  const auto head = [&](std::string_view name, std::string_view type, std::string_view help) {
    text += fmt::format("# HELP {0} {2}\n# TYPE {0} {1}\n", name, type, help);
  };
  const auto label = [](const ModelMetrics& model) {
    return fmt::format("model_name=\"{}\"", Escaped(model.model_name));
  };
  // A metric's samples stand together: one of each model.
  const auto one = [&](std::string_view name, std::string_view type, std::string_view help,
                       auto value_of) {
    head(name, type, help);
    for (const ModelMetrics& model : models) {
      text += fmt::format("{}{{{}}} {}\n", name, label(model), value_of(model.metrics));
    }
  };
  const auto value = [&](std::string_view name, std::string_view type, std::string_view help,
                         auto ServeMetrics::*member) {
    one(name, type, help, [&](const ServeMetrics& metrics) { return metrics.*member; });
  };
  const auto histogram = [&](std::string_view name, std::string_view help,
                             Histogram ServeMetrics::*member) {
    head(name, "histogram", help);
    for (const ModelMetrics& model : models) {
      (model.metrics.*member).AppendTo(text, name, label(model));
    }
  };
  value("vllm:num_requests_running", "gauge", "Sequences that are being computed.",
        &ServeMetrics::running);
  value("vllm:num_requests_waiting", "gauge", "Sequences that wait for room.",
        &ServeMetrics::waiting);
  one("vllm:kv_cache_usage_perc", "gauge", "The share of the KV cache that is held, 0 to 1.",
      [](const ServeMetrics& m) {
        return m.kv_tokens == 0
                   ? 0.0
                   : static_cast<double>(m.kv_tokens_used) / static_cast<double>(m.kv_tokens);
      });
  value("vllm:prompt_tokens_total", "counter", "Tokens of accepted prompts.",
        &ServeMetrics::prompt_tokens);
  value("vllm:generation_tokens_total", "counter", "Tokens generated.",
        &ServeMetrics::generation_tokens);
  value("vllm:num_preemptions_total", "counter",
        "Sequences that gave their KV blocks back for others.", &ServeMetrics::preemptions);
  one("vllm:prefix_cache_queries_total", "counter",
      "Tokens of sequences that were looked for in the prefix cache.",
      [](const ServeMetrics& m) { return m.prefix_cache.queries; });
  one("vllm:prefix_cache_hits_total", "counter", "Tokens of sequences that the prefix cache had.",
      [](const ServeMetrics& m) { return m.prefix_cache.hits; });
  histogram("vllm:time_to_first_token_seconds", "From acceptance to the first token.",
            &ServeMetrics::first_token_seconds);
  histogram("vllm:time_per_output_token_seconds", "Between a sequence's tokens.",
            &ServeMetrics::per_token_seconds);
  histogram("vllm:e2e_request_latency_seconds", "From acceptance to the last token.",
            &ServeMetrics::whole_seconds);
  head("vllm:request_success_total", "counter", "Sequences by how they ended.");
  for (const ModelMetrics& model : models) {
    const ServeMetrics& m = model.metrics;
    for (const auto& [reason, count] : {std::pair<std::string_view, int64_t>{"stop", m.stopped},
                                        {"length", m.length},
                                        {"abort", m.aborted}}) {
      text += fmt::format("vllm:request_success_total{{{},finished_reason=\"{}\"}} {}\n",
                          label(model), reason, count);
    }
  }
  head("nibble:memory_bytes", "gauge", "Bytes held on the device, by class.");
  for (const ModelMetrics& model : models) {
    for (const MemoryClass c :
         {MemoryClass::kWeights, MemoryClass::kKvCache, MemoryClass::kWorkspace}) {
      text += fmt::format("nibble:memory_bytes{{{},class=\"{}\"}} {}\n", label(model), Name(c),
                          model.metrics.memory[c]);
    }
  }
  if (energy_joules) {
    head("nibble:energy_joules_total", "counter",
         "Energy that the device has taken; its rate is the power.");
    text += fmt::format("nibble:energy_joules_total {}\n", *energy_joules);
  }
  return text;
}

}  // namespace nibble

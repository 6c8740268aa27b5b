// The options of how tokens are chosen, of the commands that write text.
#ifndef NIBBLE_CLI_SAMPLING_OPTIONS_H_
#define NIBBLE_CLI_SAMPLING_OPTIONS_H_

#include <CLI/CLI.hpp>

#include "src/base/error.h"
#include "src/ops/sampling.h"

namespace nibble {

// `sampling` must outlive the command; what it holds are the defaults.
inline void AddSamplingOptions(CLI::App& command, SamplingOptions& sampling) {
  command.add_option("--temperature", sampling.temperature, "0: greedy")->capture_default_str();
  command.add_option("--top-k", sampling.top_k, "0: all")->capture_default_str();
  command.add_option("--top-p", sampling.top_p, "nucleus")->capture_default_str();
  command.add_option("--seed", sampling.seed, "of the sampling")->capture_default_str();
}

inline Status CheckSamplingOptions(const SamplingOptions& sampling) {
  if (!(sampling.temperature >= 0) || !(sampling.top_p > 0 && sampling.top_p <= 1) ||
      sampling.top_k < 0) {
    return WrongUsage("want --temperature ≥ 0, 0 < --top-p ≤ 1 and --top-k ≥ 0");
  }
  return {};
}

}  // namespace nibble

#endif  // NIBBLE_CLI_SAMPLING_OPTIONS_H_

// The options of the speed measurement.
#ifndef NIBBLE_CLI_WORKLOAD_OPTIONS_H_
#define NIBBLE_CLI_WORKLOAD_OPTIONS_H_

#include <CLI/CLI.hpp>

#include "src/bench/workload.h"

namespace nibble {

struct WorkloadOptions {
  Workload workload;

  void AddTo(CLI::App& command) {
    command.add_option("--batch-sizes", workload.batch_sizes, "sequences at a time")
        ->delimiter(',')
        ->capture_default_str();
    command.add_option("--input-length", workload.input_length, "tokens in, of each sequence")
        ->capture_default_str();
    command.add_option("--output-length", workload.output_length, "tokens out, of each sequence")
        ->capture_default_str();
    command.add_option("--repetitions", workload.repetitions, "the median is reported")
        ->capture_default_str();
    command.add_option("--seed", workload.seed, "of the prompts' token ids")->capture_default_str();
  }
};

}  // namespace nibble

#endif  // NIBBLE_CLI_WORKLOAD_OPTIONS_H_

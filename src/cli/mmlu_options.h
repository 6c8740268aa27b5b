// The options that name MMLU's questions and how they are asked.
#ifndef NIBBLE_CLI_MMLU_OPTIONS_H_
#define NIBBLE_CLI_MMLU_OPTIONS_H_

#include <CLI/CLI.hpp>
#include <string>

#include "src/eval/mmlu_data.h"
#include "src/eval/mmlu_task.h"

namespace nibble {

struct MmluCommandOptions {
  std::string data;
  int shots = 5;
  int64_t questions_per_subject = 0;  // 0: all
  std::string selection = "first";
  uint64_t question_seed = 0;
  std::string prompt_template = "original";
  int64_t max_batch = kMmluSequences;

  void AddTo(CLI::App& command) {
    command
        .add_option("--data", data, "MMLU's directory, with dev/ and test/ (CSV, original layout)")
        ->required();
    command.add_option("--shots", shots, "worked examples before each question")
        ->capture_default_str();
    command
        .add_option("--questions-per-subject", questions_per_subject, "questions at most; 0: all")
        ->capture_default_str();
    command
        .add_option("--selection", selection,
                    "which ones: first, or sample (drawn with --question-seed)")
        ->check(CLI::IsMember({"first", "sample"}))
        ->capture_default_str();
    command.add_option("--question-seed", question_seed, "of --selection sample")
        ->capture_default_str();
    command
        .add_option("--template", prompt_template,
                    "original (hendrycks/test) or lm-eval (lm-evaluation-harness)")
        ->capture_default_str();
    command.add_option("--max-batch", max_batch, "sequences at a time")->capture_default_str();
  }

  Result<MmluDataOptions> DataOptions() const {
    if (questions_per_subject < 0) {
      return WrongUsage("--questions-per-subject {}: want 0 or more", questions_per_subject);
    }
    MmluDataOptions options{
        .shots = shots,
        .selection = selection == "first" ? MmluSelection::kFirst : MmluSelection::kSample,
        .seed = question_seed};
    if (questions_per_subject > 0) options.questions_per_subject = questions_per_subject;
    return options;
  }
};

}  // namespace nibble

#endif  // NIBBLE_CLI_MMLU_OPTIONS_H_

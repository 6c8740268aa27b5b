#include <fmt/format.h>

#include <memory>

#include "src/base/file.h"
#include "src/base/units.h"
#include "src/cli/command.h"
#include "src/cli/mmlu_options.h"
#include "src/cli/solver_options.h"
#include "src/cli/workload_options.h"
#include "src/report/report.h"
#include "src/study/study.h"

namespace nibble {
namespace {

struct StudyCommandOptions {
  std::string model;
  std::vector<std::string> methods = {"fp16", "rtn", "awq", "gptq"};
  MmluCommandOptions mmlu;
  std::vector<std::string> scorings = {"letters", "cloze"};
  std::string text;
  std::string join = "raw";
  int64_t context = 2048;
  int64_t max_windows = 0;
  SolverCommandOptions solver;
  WorkloadOptions workload;
  double max_accuracy_drop = -1;
  std::string memory_budget;
  bool allow_random = false;
  std::string output;
};

Result<StudyOptions> ToStudyOptions(const StudyCommandOptions& options,
                                    const CommandContext& context) {
  StudyOptions study{.model = options.model,
                     .output = options.output,
                     .methods = options.methods,
                     .device = context.common.device,
                     .random_weights = AllowRandom(options.allow_random),
                     .data = options.mmlu.data,
                     .max_batch = options.mmlu.max_batch,
                     .calibration = options.solver.calibration,
                     .solver = options.solver.Solver(),
                     .workload = options.workload.workload,
                     .progress = context.common.progress()};
  NIBBLE_ASSIGN_OR_RETURN(study.questions, options.mmlu.DataOptions());
  NIBBLE_ASSIGN_OR_RETURN(study.prompt_template, ParseMmluTemplate(options.mmlu.prompt_template));
  study.scorings.clear();
  for (const std::string& name : options.scorings) {
    NIBBLE_ASSIGN_OR_RETURN(const MmluScoring scoring, ParseMmluScoring(name));
    study.scorings.push_back(scoring);
  }
  study.perplexity.text_path = options.text;
  NIBBLE_ASSIGN_OR_RETURN(study.perplexity.join, ParseTextJoin(options.join));
  study.perplexity.options.context = options.context;
  if (options.max_windows != 0) study.perplexity.options.max_windows = options.max_windows;
  if (options.max_accuracy_drop >= 0) {
    study.limits.max_accuracy_drop_points = options.max_accuracy_drop;
  }
  if (!options.memory_budget.empty()) {
    NIBBLE_ASSIGN_OR_RETURN(study.limits.memory_budget_bytes, ParseSize(options.memory_budget));
  }
  return study;
}

Status RunStudy(const StudyCommandOptions& options, const CommandContext& context) {
  NIBBLE_ASSIGN_OR_RETURN(const StudyOptions study_options, ToStudyOptions(options, context));
  NIBBLE_ASSIGN_OR_RETURN(const std::unique_ptr<Study> study,
                          Study::Create(study_options, context.cancel));
  NIBBLE_ASSIGN_OR_RETURN(const StudyRecord record, study->Run());
  fmt::print("{}\nReport: {}\n", SummaryTable(record), JoinPath(options.output, "report.html"));
  // The others are reported on, but a script must not take this for all that was asked for.
  if (!study->failures().empty()) return tl::unexpected<Error>(study->failures().front());
  return {};
}

}  // namespace

void AddStudyCommand(Program& program) {
  CLI::App* command =
      program.Add("study", "Quantize, evaluate, measure and report, in one command that resumes",
                  "  nibble study ./model --data ./mmlu --text wiki.test.raw --output ./study\n"
                  "  nibble study ./model --methods fp16,rtn,rtn-g64-sym --data ./mmlu --text "
                  "wiki.test.raw \\\n"
                  "      --max-accuracy-drop 1 --memory-budget 8GiB --output ./study\n");
  auto options = std::make_shared<StudyCommandOptions>();
  command->add_option("model", options->model, "the model")->required();
  command
      ->add_option("--methods", options->methods,
                   "the baseline first, then NAME[-gN][-asym|-sym|-sym-full]")
      ->delimiter(',')
      ->capture_default_str();
  options->mmlu.AddTo(*command);
  command->add_option("--scoring", options->scorings, "letters, cloze or both")
      ->delimiter(',')
      ->capture_default_str();
  command->add_option("--text", options->text, "the text for perplexity")->required();
  command->add_option("--join", options->join, "raw or paper (see nibble perplexity)")
      ->capture_default_str();
  command
      ->add_option("--context", options->context,
                   "tokens of a perplexity window, at most the model's context")
      ->capture_default_str();
  command->add_option("--max-windows", options->max_windows, "windows at most; 0: all")
      ->capture_default_str();
  options->solver.AddTo(*command, "--calibration-seed");
  options->workload.AddTo(*command);
  command
      ->add_option("--max-accuracy-drop", options->max_accuracy_drop,
                   "percentage points that deployment may lose")
      ->check(CLI::Range(0.0, 100.0));
  command->add_option("--memory-budget", options->memory_budget,
                      "memory that deployment may take, for example 16GiB");
  command->add_flag("--allow-random", options->allow_random, "accept synthetic weights");
  command->add_option("--output", options->output, "the study's directory; resumed where it exists")
      ->required();
  program.Run(command, [options](const CommandContext& c) { return RunStudy(*options, c); });
}

}  // namespace nibble

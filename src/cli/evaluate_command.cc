#include <fmt/format.h>

#include <memory>

#include "src/cli/command.h"
#include "src/cli/mmlu_options.h"
#include "src/eval/eval_table.h"
#include "src/study/documents.h"

namespace nibble {
namespace {

struct EvaluateOptions {
  std::string model;
  std::string task = "mmlu";
  MmluCommandOptions mmlu;
  std::string scoring = "letters";
  std::string reference;
  bool subjects = false;
  bool allow_random = false;
  std::string output;
};

Status EvaluateModel(const EvaluateOptions& options, const CommandContext& context) {
  if (options.task != "mmlu") return WrongUsage("--task \"{}\": want mmlu", options.task);
  NIBBLE_ASSIGN_OR_RETURN(const MmluDataOptions questions, options.mmlu.DataOptions());
  NIBBLE_ASSIGN_OR_RETURN(const MmluTemplate prompt_template,
                          ParseMmluTemplate(options.mmlu.prompt_template));
  NIBBLE_ASSIGN_OR_RETURN(const MmluScoring scoring, ParseMmluScoring(options.scoring));
  NIBBLE_ASSIGN_OR_RETURN(const MmluDataset data, MmluDataset::Load(options.mmlu.data, questions));
  // Read first: a bad reference should not cost an evaluation.
  std::optional<EvalResult> reference;
  if (!options.reference.empty()) {
    NIBBLE_ASSIGN_OR_RETURN(const Json json, ReadJsonFile(options.reference));
    NIBBLE_ASSIGN_OR_RETURN(reference, EvalResult::FromJson(json, options.reference));
  }
  if (!context.common.quiet) {
    fmt::print(stderr, "{}\n", DescribeDetectableDifference(data.question_count()));
  }
  NIBBLE_ASSIGN_OR_RETURN(
      const std::unique_ptr<LoadedModel> model,
      LoadModelOn(options.model, context.common.device, AllowRandom(options.allow_random),
                  context.common.progress(), context.cancel));
  NIBBLE_ASSIGN_OR_RETURN(EvalResult result, Evaluate(*model, data, {prompt_template, scoring},
                                                      options.mmlu.max_batch, context.common.progress(), context.cancel));
  if (reference) {
    NIBBLE_ASSIGN_OR_RETURN(result, Compare(*reference, std::move(result)));
  }
  fmt::print("{}",
             FormatEvalTable(result, options.subjects ? SubjectRows::kShow : SubjectRows::kHide));
  return WriteOutput(options.output, result.ToJson());
}

}  // namespace

void AddEvaluateCommand(Program& program) {
  CLI::App* command = program.Add(
      "evaluate", "Accuracy on MMLU, by category, subcategory and subject",
      "  nibble evaluate ./model --data ./mmlu --output fp16.json\n"
      "  nibble evaluate ./model-rtn --data ./mmlu --reference fp16.json\n"
      "  nibble evaluate ./small-model --data ./mmlu --scoring cloze --questions-per-subject 20\n");
  auto options = std::make_shared<EvaluateOptions>();
  command->add_option("model", options->model, "the model")->required();
  command->add_option("--task", options->task, "mmlu")->capture_default_str();
  options->mmlu.AddTo(*command);
  command
      ->add_option("--scoring", options->scoring,
                   "letters: the probabilities of A to D; cloze: of the answers' texts")
      ->capture_default_str();
  command->add_option("--reference", options->reference,
                      "the JSON of another evaluation to compare with, question by question");
  command->add_flag("--subjects", options->subjects, "show all 57 subjects");
  command->add_flag("--allow-random", options->allow_random, "accept synthetic weights");
  command->add_option("--output", options->output, "also write the result as JSON");
  program.Run(command, [options](const CommandContext& c) { return EvaluateModel(*options, c); });
}

}  // namespace nibble

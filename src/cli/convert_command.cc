#include <fmt/format.h>

#include <memory>

#include "src/checkpoint/convert.h"
#include "src/cli/command.h"

namespace nibble {
namespace {

struct ConvertCommandOptions {
  std::string model;
  std::string output;
};

Status Convert(const ConvertCommandOptions& options, const CommandContext& context) {
  NIBBLE_ASSIGN_OR_RETURN(const OpenedModel model, OpenModel(options.model, RandomWeights::kAllow));
  WarnAboutUnrecognized(model);
  NIBBLE_RETURN_IF_ERROR(ConvertToDirectory(
      *model.checkpoint, options.output,
      {.progress = context.common.progress(), .cancel = &context.cancel}));
  fmt::print("{} ({}) in {}\n", options.model, model.checkpoint->label(), options.output);
  return {};
}

}  // namespace

void AddConvertCommand(Program& program) {
  CLI::App* command = program.Add(
      "convert", "From GGUF, or synthetic weights, to a directory in Hugging Face layout",
      "  nibble convert model.gguf --output ./model\n"
      "  nibble convert random:tinyllama-1.1b --output ./synthetic\n");
  auto options = std::make_shared<ConvertCommandOptions>();
  command->add_option("model", options->model, "the model")->required();
  command->add_option("--output", options->output, "a directory that does not exist yet")
      ->required();
  program.Run(command, [options](const CommandContext& c) { return Convert(*options, c); });
}

}  // namespace nibble

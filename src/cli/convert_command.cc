#include <fmt/format.h>

#include <memory>

#include "src/checkpoint/convert.h"
#include "src/cli/command.h"

namespace nibble {
namespace {

struct ConvertOptions {
  std::string model;
  std::string output;
};

Status Convert(const ConvertOptions& options, const CommandContext& context) {
  NIBBLE_ASSIGN_OR_RETURN(const OpenedModel model, OpenModel(options.model, RandomWeights::kAllow));
  WarnAboutUnrecognized(model);
  {
    Progress progress(context.common.progress(), "converting", 1);
    NIBBLE_RETURN_IF_ERROR(ConvertToDirectory(
        *model.checkpoint, options.output,
        [&](int64_t done, int64_t total) { progress.Update(done, total); }, context.cancel));
  }
  fmt::print("{} ({}) in {}\n", options.model, model.checkpoint->label(), options.output);
  return {};
}

}  // namespace

void AddConvertCommand(Program& program) {
  CLI::App* command = program.Add(
      "convert", "From GGUF, or synthetic weights, to a directory in Hugging Face layout",
      "  nibble convert model.gguf --output ./model\n"
      "  nibble convert random:tinyllama-1.1b --output ./synthetic\n");
  auto options = std::make_shared<ConvertOptions>();
  command->add_option("model", options->model, "the model")->required();
  command->add_option("--output", options->output, "a directory that does not exist yet")
      ->required();
  program.Run(command, [options](const CommandContext& c) { return Convert(*options, c); });
}

}  // namespace nibble

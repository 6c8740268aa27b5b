#include <fmt/format.h>

#include <memory>

#include "src/base/units.h"
#include "src/checkpoint/convert.h"
#include "src/cli/command.h"
#include "src/quantize/method.h"

namespace nibble {
namespace {

struct ConvertCommandOptions {
  std::string model;
  std::string output;
  std::string format;
  std::string max_shard_size;
};

Status Convert(const ConvertCommandOptions& options, const CommandContext& context) {
  ConvertOptions convert{.progress = context.common.progress(), .cancel = &context.cancel};
  if (!options.max_shard_size.empty()) {
    NIBBLE_ASSIGN_OR_RETURN(convert.max_shard_bytes, ParseSize(options.max_shard_size));
  }
  if (!options.format.empty()) {
    NIBBLE_ASSIGN_OR_RETURN(convert.layout, ParseLayout(options.format));
  }
  NIBBLE_ASSIGN_OR_RETURN(const OpenedModel model, OpenModel(options.model, RandomWeights::kAllow));
  WarnAboutUnrecognized(model);
  NIBBLE_RETURN_IF_ERROR(ConvertToDirectory(*model.checkpoint, options.output, convert));
  const std::string layout =
      convert.layout ? fmt::format(" to the {} layout", Name(*convert.layout)) : std::string();
  fmt::print("{} ({}){} in {}\n", options.model, model.checkpoint->label(), layout, options.output);
  return {};
}

}  // namespace

void AddConvertCommand(Program& program) {
  CLI::App* command = program.Add(
      "convert",
      "Between the layouts of quantized models, losslessly; from GGUF, or synthetic weights, to a "
      "directory in Hugging Face layout",
      "  nibble convert ./model-awq --format compressed-tensors --output ./model-ct\n"
      "  nibble convert model.gguf --output ./model\n"
      "  nibble convert random:tinyllama-1.1b --output ./synthetic\n");
  auto options = std::make_shared<ConvertCommandOptions>();
  command->add_option("model", options->model, "the model")->required();
  command->add_option("--output", options->output, "a directory that does not exist yet")
      ->required();
  command->add_option("--format", options->format,
                      "of the quantized layers: awq, gptq, gptq_v2 or compressed-tensors (default: "
                      "the model's own)");
  command->add_option("--max-shard-size", options->max_shard_size,
                      "of one file of weights (default 5GB)");
  program.Run(command, [options](const CommandContext& c) { return Convert(*options, c); });
}

}  // namespace nibble

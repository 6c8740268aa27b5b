#include <fmt/format.h>

#include <memory>

#include "src/base/thread_pool.h"
#include "src/base/units.h"
#include "src/cli/command.h"
#include "src/quantize/quantize.h"
#include "src/study/documents.h"

namespace nibble {
namespace {

struct QuantizeCommandOptions {
  std::string model;
  std::string method = "rtn";
  std::string group_size;
  std::string grid;
  std::string format;
  std::string output;
};

Status Quantize(const QuantizeCommandOptions& options, const CommandContext& context) {
  QuantizeOptions quantize{.output = options.output};
  NIBBLE_ASSIGN_OR_RETURN(quantize.method, ParseMethod(options.method));
  if (!options.group_size.empty()) {
    NIBBLE_ASSIGN_OR_RETURN(quantize.method.quant.group_size, ParseGroupSize(options.group_size));
  }
  if (!options.grid.empty()) {
    const std::optional<Grid> grid = GridFromName(options.grid);
    if (!grid) return WrongUsage("--grid \"{}\": want asym, sym or sym-full", options.grid);
    quantize.method.quant.grid = *grid;
  }
  quantize.layout = DefaultLayout(quantize.method.quant.grid);
  if (!options.format.empty()) {
    NIBBLE_ASSIGN_OR_RETURN(quantize.layout, ParseLayout(options.format));
    NIBBLE_RETURN_IF_ERROR(CheckLayout(quantize.layout, quantize.method.quant.grid));
  }
  NIBBLE_ASSIGN_OR_RETURN(const OpenedModel model, OpenModel(options.model, RandomWeights::kAllow));
  WarnAboutUnrecognized(model);
  ThreadPool pool(ThreadsFor(context.common.device));
  Json record;
  {
    Progress progress(context.common.progress(), "quantizing", 1);
    NIBBLE_ASSIGN_OR_RETURN(
        record, QuantizeCheckpoint(
                    *model.checkpoint, model.description, quantize, pool,
                    [&](int64_t done, int64_t total, std::string_view name, double error) {
                      progress.Update(done, total, fmt::format("{} {:.2e}", name, error));
                    },
                    context.cancel));
  }
  for (const Json& note : record["notes"]) fmt::print("note: {}\n", note.get<std::string>());
  for (const Json& skipped : record["skipped"]) {
    fmt::print("left as it was: {}: {}\n", skipped["name"].get<std::string>(),
               skipped["reason"].get<std::string>());
  }
  fmt::print(
      "{}: {} linears, {} grid, groups of {}, {:.3f} bits a weight, mean error {:.3e}\n"
      "{} in {}, layout {}, in {}\n",
      record["method"].get<std::string>(), record["modules"].size(),
      record["grid"].get<std::string>(), record["group_size"].get<int64_t>(),
      record["bits_per_weight"].get<double>(), record["mean_error"].get<double>(),
      FormatBytes(record["checkpoint_bytes"].get<uint64_t>()), options.output,
      record["format"].get<std::string>(), FormatSeconds(record["seconds"].get<double>()));
  return {};
}

}  // namespace

void AddQuantizeCommand(Program& program) {
  CLI::App* command = program.Add(
      "quantize", "Quantize to 4 bits, into a checkpoint that other tools load too",
      "  nibble quantize ./model --method rtn --output ./model-rtn\n"
      "  nibble quantize model.gguf --method rtn --group-size 64 --grid sym --output ./model-4bit\n");
  auto options = std::make_shared<QuantizeCommandOptions>();
  command->add_option("model", options->model, "the model")->required();
  command->add_option("--method", options->method, "rtn")->capture_default_str();
  command->add_option("--group-size", options->group_size,
                      "weights that share a scale: 32, 64, 128 (default) or channel");
  command->add_option("--grid", options->grid, "asym (default), sym or sym-full");
  command->add_option("--format", options->format,
                      "awq (asymmetric; its default), gptq (symmetric; its default), gptq_v2 or "
                      "compressed-tensors");
  command->add_option("--output", options->output, "a directory that does not exist yet")
      ->required();
  program.Run(command, [options](const CommandContext& c) { return Quantize(*options, c); });
}

}  // namespace nibble

#include <fmt/format.h>

#include <memory>

#include "src/base/units.h"
#include "src/checkpoint/checkpoint_writer.h"
#include "src/cli/command.h"
#include "src/cli/solver_options.h"
#include "src/quantize/quantize.h"
#include "src/study/calibrate.h"
#include "src/study/documents.h"
#include "src/study/stage.h"

namespace nibble {
namespace {

struct QuantizeCommandOptions {
  std::string model;
  std::string method = "rtn";
  std::string group_size;
  std::string grid;
  std::string format;
  SolverCommandOptions solver;
  std::string max_host_memory, max_device_memory;
  std::string output;
};

Status Quantize(const QuantizeCommandOptions& options, const CommandContext& context) {
  QuantizeOptions quantize{.solver = options.solver.Solver(), .output = options.output};
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
  // What can be known to fail before anything is computed.
  NIBBLE_RETURN_IF_ERROR(PlanQuantization(model.description, quantize.method.quant));
  NIBBLE_RETURN_IF_ERROR(CheckOutputDirectory(options.output));
  std::optional<CalibrationSet> calibration;
  if (quantize.method.method != QuantMethod::kRtn) {
    NIBBLE_ASSIGN_OR_RETURN(calibration,
                            Calibrate(options.solver.calibration, model, context.common.device,
                                      context.common.progress(), context.cancel));
    quantize.calibration = &*calibration;
  }
  NIBBLE_ASSIGN_OR_RETURN(quantize.source_fingerprint, FingerprintOfFiles(options.model));
  if (!options.max_host_memory.empty()) {
    NIBBLE_ASSIGN_OR_RETURN(quantize.max_host_bytes, ParseSize(options.max_host_memory));
  }
  if (!options.max_device_memory.empty()) {
    NIBBLE_ASSIGN_OR_RETURN(quantize.max_device_bytes, ParseSize(options.max_device_memory));
  }
  NIBBLE_ASSIGN_OR_RETURN(const std::unique_ptr<Backend> backend,
                          MakeBackend(context.common.device, model.description.config));
  Json record;
  {
    Progress progress(context.common.progress(), "quantizing", 1);
    NIBBLE_ASSIGN_OR_RETURN(
        record, QuantizeCheckpoint(
                    *model.checkpoint, model.description, quantize, *backend,
                    [&](int64_t done, int64_t total, std::string_view name, const Json& module) {
                      progress.Update(
                          done, total,
                          fmt::format("{} {:.2e}", name, module["error"].get<double>()));
                    },
                    context.cancel));
  }
  for (const Json& note : record["notes"]) fmt::print("note: {}\n", note.get<std::string>());
  for (const Json& skipped : record["skipped"]) {
    fmt::print("left as it was: {}: {}\n", skipped["name"].get<std::string>(),
               skipped["reason"].get<std::string>());
  }
  if (record.contains("mean_error_ratio")) {
    fmt::print("output error on the calibration tokens: {:.3f} of rounding to nearest's\n",
               record["mean_error_ratio"].get<double>());
  }
  fmt::print(
      "{}: {} linears, {} grid, groups of {}, {:.3f} bits a weight, mean weight error {:.3e}\n"
      "{} in {}, layout {}, in {}\n",
      record["method"].get<std::string>(), record["modules"].size(),
      record["grid"].get<std::string>(), record["group_size"].get<int64_t>(),
      record["bits_per_weight"].get<double>(), record["mean_weight_error"].get<double>(),
      FormatBytes(record["checkpoint_bytes"].get<uint64_t>()), options.output,
      record["format"].get<std::string>(), FormatSeconds(record["seconds"].get<double>()));
  return {};
}

}  // namespace

void AddQuantizeCommand(Program& program) {
  CLI::App* command = program.Add(
      "quantize", "Quantize to 4 bits, into a checkpoint that other tools load too",
      "  nibble quantize ./model --method gptq --calibration c4.txt --output ./model-gptq\n"
      "  nibble quantize ./model --method awq --calibration chats.jsonl --samples 64 --output "
      "./awq\n"
      "  nibble quantize model.gguf --method rtn --group-size 64 --grid sym --output "
      "./model-4bit\n");
  auto options = std::make_shared<QuantizeCommandOptions>();
  command->add_option("model", options->model, "the model")->required();
  command->add_option("--method", options->method, "rtn, awq, gptq or awq+gptq")
      ->capture_default_str();
  command->add_option("--group-size", options->group_size,
                      "weights that share a scale: 32, 64, 128 (default) or channel");
  command->add_option("--grid", options->grid,
                      "asym (default but for gptq), sym (gptq's default) or sym-full");
  command->add_option("--format", options->format,
                      "awq (asymmetric; its default), gptq (symmetric; its default), gptq_v2 or "
                      "compressed-tensors");
  options->solver.AddTo(*command, "--seed");
  command->add_option("--max-host-memory", options->max_host_memory,
                      "on a CPU, activations beyond it are kept in files, for example 16GiB");
  command->add_option("--max-device-memory", options->max_device_memory,
                      "on a GPU, activations beyond it are computed again (default 12GiB)");
  command->add_option("--output", options->output, "a directory that does not exist yet")
      ->required();
  program.Run(command, [options](const CommandContext& c) { return Quantize(*options, c); });
}

}  // namespace nibble

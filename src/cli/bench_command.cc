#include <fmt/format.h>

#include <memory>

#include "src/base/thread_pool.h"
#include "src/cli/command.h"
#include "src/cli/workload_options.h"
#include "src/study/documents.h"

namespace nibble {
namespace {

struct BenchOptions {
  std::string model;
  WorkloadOptions workload;
  std::string output;
};

Status RunBench(const BenchOptions& options, const CommandContext& context) {
  const Workload& workload = options.workload.workload;
  DeviceLimits limits;
  {
    // Said before anything is loaded.
    NIBBLE_ASSIGN_OR_RETURN(const OpenedModel model,
                            OpenModel(options.model, RandomWeights::kAllow));
    NIBBLE_ASSIGN_OR_RETURN(const std::unique_ptr<Backend> backend,
                            MakeBackend(context.common.device, model.description.config));
    NIBBLE_ASSIGN_OR_RETURN(const DType kv_dtype,
                            KvTypeFor(context.common.device, *backend, model.description.config));
    NIBBLE_RETURN_IF_ERROR(CheckWorkload(workload, *model.checkpoint, model.description, *backend,
                                         kv_dtype, backend->AvailableBytes()));
    ThreadPool pool(ThreadsFor(context.common.device));
    NIBBLE_ASSIGN_OR_RETURN(limits, MeasureLimits(*backend, pool));
  }
  NIBBLE_ASSIGN_OR_RETURN(const std::unique_ptr<LoadedModel> model,
                          LoadModelOn(options.model, context.common.device, RandomWeights::kAllow,
                                      context.common.progress(), context.cancel));
  NIBBLE_ASSIGN_OR_RETURN(const Json document, Bench(*model, workload, limits, std::nullopt,
                                                     context.common.progress(), context.cancel));
  fmt::print("read bandwidth {:.1f} GB/s, matrix product {:.0f} GFLOP/s\n{}",
             limits.read_bytes_per_second / 1e9, limits.matrix_flops_per_second / 1e9,
             FormatBench(document));
  return WriteOutput(options.output, document);
}

}  // namespace

void AddBenchCommand(Program& program) {
  CLI::App* command = program.Add(
      "bench", "Tokens per second and peak memory by batch size",
      "  nibble bench ./model --batch-sizes 1,2,4,8 --output bench.json\n"
      "  nibble bench random:llama-2-7b:gptq-g128-sym --input-length 512 --output-length 200\n");
  auto options = std::make_shared<BenchOptions>();
  command->add_option("model", options->model, "the model")->required();
  options->workload.AddTo(*command);
  command->add_option("--output", options->output, "also write the result as JSON");
  program.Run(command, [options](const CommandContext& c) { return RunBench(*options, c); });
}

}  // namespace nibble

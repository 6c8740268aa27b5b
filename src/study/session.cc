#include "src/study/session.h"

#include <spdlog/spdlog.h>

#include "src/base/thread_pool.h"
#include "src/ops/cpu/cpu_backend.h"
#include "src/ops/cpu/cpu_quantize.h"
#include "src/ops/cuda/device.h"
#include "src/ops/ref/ref_backend.h"
#include "src/ops/ref/ref_quantize.h"

namespace nibble {
namespace {

// Code that only runs with a loaded model, threads' stacks and small allocations.
constexpr uint64_t kPagesOfRunning = 4 << 20;

tl::unexpected<Error> NoCudaEngine(const std::string& device) {
  const std::vector<CudaDevice> found = ListCudaDevices();
  return BadInput("device {}: {}; this version of nibble computes on the CPU: use --device cpu",
                  device,
                  found.empty() ? "no usable NVIDIA GPU was found"
                                : fmt::format("{} is there", found.front().name));
}

}  // namespace

int ThreadsFor(const DeviceOptions& options) {
  return options.threads > 0 ? options.threads : UsableCores();
}

Result<std::unique_ptr<Backend>> MakeBackend(const DeviceOptions& options) {
  if (options.threads < 0 || options.threads > 4096) {
    return WrongUsage("--threads {}: want 1 to 4096, or 0 for all cores", options.threads);
  }
  const int threads = ThreadsFor(options);
  if (options.device == "ref") return MakeRefBackend(threads);
  if (options.device == "auto" || options.device == "cpu") {
    return MakeCpuBackend({.threads = threads});
  }
  if (options.device == "cuda" || options.device.starts_with("cuda:")) {
    return NoCudaEngine(options.device);
  }
  return WrongUsage("device \"{}\": want auto, cpu, ref, cuda or cuda:N", options.device);
}

std::unique_ptr<QuantizeOps> MakeQuantizeOps(Backend& backend, ThreadPool& pool) {
  if (backend.name() == "ref") return MakeRefQuantizeOps(backend.memory());
  return MakeCpuQuantizeOps(pool, backend.memory());
}

Result<DType> KvTypeFor(const DeviceOptions& options, const Backend& backend,
                        const ModelConfig& config) {
  if (options.dtype == "auto") return backend.name() == "ref" ? DType::kF32 : config.dtype;
  const std::optional<DType> type = DTypeFromName(options.dtype);
  if (!type || !IsFloat(*type)) {
    return WrongUsage("--dtype \"{}\": want auto, f32, f16 or bf16", options.dtype);
  }
  return *type;
}

uint64_t AvailableBytes(const Backend&) { return ReadHostMemory().available_bytes; }

uint64_t MeasureOverhead(const Checkpoint& checkpoint) {
  const auto tokenizer = checkpoint.LoadTokenizer();
  TrimHeap();
  return ResidentBytes() + kPagesOfRunning;
}

Result<OpenedModel> OpenModel(const std::string& path, RandomWeights random_weights) {
  OpenedModel model;
  NIBBLE_ASSIGN_OR_RETURN(model.checkpoint, OpenCheckpoint(path));
  if (model.checkpoint->synthetic() && random_weights == RandomWeights::kRefuse) {
    return BadInput(
        "{}: the weights are random, so that accuracy means nothing; --allow-random measures it "
        "anyway",
        path);
  }
  NIBBLE_ASSIGN_OR_RETURN(model.description, DescribeModel(*model.checkpoint));
  return model;
}

void WarnAboutUnrecognized(const OpenedModel& model) {
  for (const std::string& name : model.description.config.unrecognized) {
    spdlog::warn("{}: config member \"{}\" is not known to nibble and was not looked at",
                 model.checkpoint->path(), name);
  }
}

Result<ModelWeights> LoadWeights(const OpenedModel& model, Backend& backend, ProgressStyle style,
                                 const CancelToken& cancel) {
  WarnAboutUnrecognized(model);
  Progress progress(style, fmt::format("loading {}", model.checkpoint->label()),
                    model.description.config.layers);
  return LoadModel(
      *model.checkpoint, model.description, backend,
      [&](int64_t done, int64_t) { progress.Update(done); }, cancel);
}

Status CheckMemory(const OpenedModel& model, const Backend& backend,
                   const EngineOptions& options) {
  return PredictMemory(*model.checkpoint, model.description, backend, options)
      .CheckAgainst(AvailableBytes(backend));
}

}  // namespace nibble

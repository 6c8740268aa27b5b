#include "src/study/session.h"

#include <spdlog/spdlog.h>

#include <charconv>

#include "src/base/thread_pool.h"
#include "src/ops/cpu/cpu_backend.h"
#include "src/ops/cpu/cpu_quantize.h"
#include "src/ops/cuda/cuda_backend.h"
#include "src/ops/cuda/device.h"
#include "src/ops/ref/ref_backend.h"
#include "src/ops/ref/ref_quantize.h"

namespace nibble {
namespace {

// Code that only runs with a loaded model, threads' stacks and small allocations.
constexpr uint64_t kPagesOfRunning = 4 << 20;

Result<DType> NamedType(const std::string& name) {
  const std::optional<DType> type = DTypeFromName(name);
  if (!type || !IsFloat(*type)) {
    return WrongUsage("--dtype \"{}\": want auto, f32, f16 or bf16", name);
  }
  return *type;
}

Result<std::unique_ptr<Backend>> MakeGpuBackend(const DeviceOptions& options, int index,
                                                const ModelConfig& config) {
  if (options.kernels != "auto" && options.kernels != "portable") {
    return WrongUsage("--kernels \"{}\": want auto or portable", options.kernels);
  }
  CudaOptions cuda{.device = index,
                   .kernels = options.batch_invariant ? CudaKernels::kBatchInvariant
                              : options.kernels == "portable" ? CudaKernels::kPortable
                                                              : CudaKernels::kAuto};
  if (options.dtype == "auto") {
    cuda.activations = config.dtype == DType::kBF16 ? DType::kBF16 : DType::kF16;
  } else {
    NIBBLE_ASSIGN_OR_RETURN(cuda.activations, NamedType(options.dtype));
  }
  return MakeCudaBackend(cuda);
}

Result<std::unique_ptr<Backend>> MakeUnlimitedBackend(const DeviceOptions& options,
                                                      const ModelConfig& config) {
  if (options.threads < 0 || options.threads > 4096) {
    return WrongUsage("--threads {}: want 1 to 4096, or 0 for all cores", options.threads);
  }
  const int threads = ThreadsFor(options);
  if (options.device == "ref") {
    if (options.dtype == "auto") return MakeRefBackend(threads);
    NIBBLE_ASSIGN_OR_RETURN(const DType activations, NamedType(options.dtype));
    return MakeRefBackend(threads, activations);
  }
  if (options.device == "auto" && options.dtype != "f32" && !ListCudaDevices().empty()) {
    Result<std::unique_ptr<Backend>> gpu = MakeGpuBackend(options, 0, config);
    if (gpu || gpu.error().code() == ErrorCode::kUsage) return gpu;
    spdlog::warn("{}; the CPU computes instead", gpu.error().message());
  }
  if (options.device == "auto" || options.device == "cpu") {
    return MakeCpuBackend({.threads = threads});
  }
  if (options.device == "cuda") return MakeGpuBackend(options, 0, config);
  if (options.device.starts_with("cuda:")) {
    const std::string_view number = std::string_view(options.device).substr(5);
    int index = 0;
    const auto [end, error] = std::from_chars(number.begin(), number.end(), index);
    if (error == std::errc() && end == number.end()) return MakeGpuBackend(options, index, config);
  }
  return WrongUsage("device \"{}\": want auto, cpu, ref, cuda or cuda:N", options.device);
}

}  // namespace

int ThreadsFor(const DeviceOptions& options) {
  return options.threads > 0 ? options.threads : UsableCores();
}

Result<std::unique_ptr<Backend>> MakeBackend(const DeviceOptions& options,
                                             const ModelConfig& config) {
  if (!(options.memory_fraction > 0 && options.memory_fraction <= 1)) {
    return WrongUsage("--memory-fraction {}: want more than 0, at most 1", options.memory_fraction);
  }
  NIBBLE_ASSIGN_OR_RETURN(std::unique_ptr<Backend> backend, MakeUnlimitedBackend(options, config));
  if (options.memory_fraction < 1) {
    backend->memory().SetLimit(static_cast<uint64_t>(
        options.memory_fraction * static_cast<double>(backend->MemoryBytes())));
  }
  return backend;
}

Result<DType> KvTypeFor(const DeviceOptions& options, const Backend& backend,
                        const ModelConfig& config) {
  if (options.kv_cache != "auto" && options.kv_cache != "fp8") {
    return WrongUsage("--kv-cache \"{}\": want auto or fp8", options.kv_cache);
  }
  if (options.kv_cache == "fp8") {
    if (backend.name() == "cuda") return DType::kF8E4M3;
    return WrongUsage("--kv-cache fp8 wants a GPU, not {}", backend.description());
  }
  if (backend.name() == "cuda") return backend.activation_type();
  if (options.dtype == "auto") return backend.name() == "ref" ? DType::kF32 : config.dtype;
  return NamedType(options.dtype);
}

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
      .CheckAgainst(backend.AvailableBytes());
}

}  // namespace nibble

// What every command starts from: a device, and a model loaded onto it.
#ifndef NIBBLE_STUDY_SESSION_H_
#define NIBBLE_STUDY_SESSION_H_

#include <memory>
#include <optional>
#include <string>

#include "src/base/cancel.h"
#include "src/base/progress.h"
#include "src/checkpoint/checkpoint.h"
#include "src/engine/engine.h"
#include "src/model/model_weights.h"

namespace nibble {

struct DeviceOptions {
  std::string device = "auto";  // auto, cpu, ref, cuda, cuda:N
  int threads = 0;              // 0: all usable cores
  std::string dtype = "auto";   // auto, f32, f16, bf16
  std::string kv_cache = "auto";  // auto: as dtype says; fp8, on a GPU
  bool batch_invariant = false;
  std::string kernels = "auto";  // of a GPU: auto, portable
  double memory_fraction = 1;    // of the device's memory that may be used, in (0, 1]
};

// The device for models of this configuration: "auto" is the first usable GPU, or the CPU where there
// is none; on a GPU, "auto" activations are of the model's own 16-bit type. kBadInput where the device
// is missing or this build cannot use it, kUsage where there is none of that name or it cannot do what is
// asked for.
Result<std::unique_ptr<Backend>> MakeBackend(const DeviceOptions& options,
                                             const ModelConfig& config);
int ThreadsFor(const DeviceOptions& options);

// The KV cache's type: as asked for; under "auto" the checkpoint's own (float32 on ref, the
// activations' on a GPU). kUsage for one that there is not on this device.
Result<DType> KvTypeFor(const DeviceOptions& options, const Backend& backend,
                        const ModelConfig& config);

// What this process takes beside the memory that nibble counts, once the model is open, its tokenizer
// read and its kernels have run: code, libraries, tables. Measured in this process, so before a model
// is loaded.
uint64_t MeasureOverhead(const Checkpoint& checkpoint);

enum class RandomWeights { kRefuse, kAllow };

// A checkpoint that was opened and found to be a model that nibble can run; nothing is loaded.
struct OpenedModel {
  std::unique_ptr<Checkpoint> checkpoint;
  ModelDescription description;
};
// kRefuse: kBadInput for synthetic weights, which say nothing about accuracy.
Result<OpenedModel> OpenModel(const std::string& path, RandomWeights random_weights);

// Logs what of the configuration was not looked at.
void WarnAboutUnrecognized(const OpenedModel& model);

// Loads the weights, with progress on stderr.
Result<ModelWeights> LoadWeights(const OpenedModel& model, Backend& backend, ProgressStyle progress,
                                 const CancelToken& cancel);

// Fails with kResources where the weights and an engine with these options would not fit.
Status CheckMemory(const OpenedModel& model, const Backend& backend, const EngineOptions& options);

}  // namespace nibble

#endif  // NIBBLE_STUDY_SESSION_H_

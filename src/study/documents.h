// The documents that commands write and a study collects: one function each for evaluate, perplexity
// and bench, from a loaded model to JSON.
#ifndef NIBBLE_STUDY_DOCUMENTS_H_
#define NIBBLE_STUDY_DOCUMENTS_H_

#include <optional>
#include <string>

#include "src/base/json.h"
#include "src/bench/workload.h"
#include "src/eval/eval_result.h"
#include "src/eval/mmlu_task.h"
#include "src/eval/perplexity.h"
#include "src/study/session.h"

namespace nibble {

// A model whose weights are on a device.
struct LoadedModel {
  OpenedModel opened;
  std::unique_ptr<Backend> backend;
  ModelWeights weights;
  DType kv_dtype = DType::kF16;
  // Backend::SystemBytes() before the weights came: what the program (on a GPU, the driver too, and
  // whoever else uses it) holds without them.
  uint64_t idle_bytes = 0;
  // Read before the weights, so that what reading it takes does not come on top of them. Null where
  // there is none that could be read; then the status says why.
  std::unique_ptr<Tokenizer> tokenizer;
  Status tokenizer_status;

  const Checkpoint& checkpoint() const { return *opened.checkpoint; }
};
Result<std::unique_ptr<LoadedModel>> LoadModelOn(const std::string& path,
                                                 const DeviceOptions& device,
                                                 RandomWeights random_weights,
                                                 ProgressStyle progress, const CancelToken& cancel);

// "nibble.evaluate/1", with at most `max_batch` sequences at a time and as large a KV cache as helps and
// fits.
Result<EvalResult> Evaluate(LoadedModel& model, const MmluDataset& data, const MmluFormat& format,
                            int64_t max_batch, ProgressStyle progress, const CancelToken& cancel);

// "nibble.perplexity/1". `reference` may be null.
struct PerplexityRequest {
  std::string text_path;
  TextJoin join = TextJoin::kRaw;
  PerplexityOptions options;
};
Result<Json> MeasurePerplexity(LoadedModel& model, LoadedModel* reference,
                               const PerplexityRequest& request, ProgressStyle progress,
                               const CancelToken& cancel);

// "nibble.bench/1". The largest batch is looked for within the budget, or what the device has where
// there is none.
Result<Json> Bench(LoadedModel& model, const Workload& workload, const DeviceLimits& limits,
                   std::optional<uint64_t> memory_budget_bytes, ProgressStyle progress,
                   const CancelToken& cancel);

// Aligned plain text for the terminal.
std::string FormatPerplexity(const Json& document);
std::string FormatBench(const Json& document);

}  // namespace nibble

#endif  // NIBBLE_STUDY_DOCUMENTS_H_

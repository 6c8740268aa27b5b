// Quantizes a checkpoint into a new one, linear by linear.
//
// Quantized are the seven linear layers of every transformer layer; embeddings, the output layer and
// norms stay as they are. The new checkpoint is in a published layout (see QuantizationConfig), with
// the tokenizer, generation config and chat template of the old one, a model card, and
// quantize.json.
#ifndef NIBBLE_QUANTIZE_QUANTIZE_H_
#define NIBBLE_QUANTIZE_QUANTIZE_H_

#include <functional>
#include <string>
#include <vector>

#include "src/base/cancel.h"
#include "src/base/json.h"
#include "src/base/thread_pool.h"
#include "src/model/model_weights.h"
#include "src/quantize/method.h"

namespace nibble {

// Which linears are quantized, and in which groups. The public layouts know one group size for each
// checkpoint: the largest of 128, 64 and 32 not above the one asked for that divides the inputs of
// every quantized linear. A linear that no group or layout fits stays as it is, and so do those that
// are packed together with it (q, k, v; gate, up).
struct QuantizationPlan {
  struct Skipped {
    std::string name;
    std::string reason;
  };
  QuantSpec spec;
  std::vector<LinearName> quantized;
  std::vector<Skipped> skipped;
  std::vector<std::string> notes;  // for people: where the plan differs from what was asked for
};
// kBadInput where nothing can be quantized or the model is quantized already.
Result<QuantizationPlan> PlanQuantization(const ModelDescription& model, const QuantSpec& wanted);

struct QuantizeOptions {
  MethodSpec method;
  QuantLayout layout = QuantLayout::kAwqGemm;
  std::string output;  // a directory that does not exist yet
};

// Called with the number of linears done, their total, and the name and error of the last.
using QuantizeProgress =
    std::function<void(int64_t done, int64_t total, std::string_view name, double error)>;

// Returns the content of quantize.json ("nibble.quantize/1").
Result<Json> QuantizeCheckpoint(const Checkpoint& checkpoint, const ModelDescription& model,
                                const QuantizeOptions& options, ThreadPool& pool,
                                const QuantizeProgress& progress, const CancelToken& cancel);

}  // namespace nibble

#endif  // NIBBLE_QUANTIZE_QUANTIZE_H_

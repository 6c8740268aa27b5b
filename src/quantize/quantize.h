// Quantizes a checkpoint into a new one, layer by layer.
//
// Quantized are the seven linear layers of every transformer layer; embeddings and the output layer
// stay as they are, and so do norms but where AWQ folds scales into them. The new checkpoint is in
// a published layout (see QuantizationConfig), with the tokenizer, generation config and chat
// template of the old one, a model card, and quantize.json.
//
// Finished layers are kept in OUTPUT.quantizing until the checkpoint is complete: interrupted at
// any moment, the same call goes on at the layer it was in, and the checkpoint is bit for bit what
// it would have been.
#ifndef NIBBLE_QUANTIZE_QUANTIZE_H_
#define NIBBLE_QUANTIZE_QUANTIZE_H_

#include <functional>
#include <string>
#include <vector>

#include "src/base/cancel.h"
#include "src/base/json.h"
#include "src/model/model_weights.h"
#include "src/quantize/layer_quantizer.h"
#include "src/quantize/method.h"
#include "src/quantize/plan.h"

namespace nibble {

struct QuantizeOptions {
  MethodSpec method;
  QuantLayout layout = QuantLayout::kAwqGemm;
  SolverOptions solver;
  const CalibrationSet* calibration = nullptr;  // borrowed; needed by all methods but rtn
  // What quantizing should take in all of the host's memory where a CPU quantizes, or of the GPU's that
  // does: activations beyond it are kept elsewhere or computed again (ActivationStorage).
  uint64_t max_host_bytes = UINT64_MAX;
  uint64_t max_device_bytes = uint64_t{12} << 30;
  std::string source_fingerprint;               // of the model's files
  std::string output;                           // a directory that does not exist yet
};

// Called with the number of linears done, their total, and the name and record (as in
// quantize.json) of the last.
using QuantizeProgress =
    std::function<void(int64_t done, int64_t total, std::string_view name, const Json& record)>;

// The solvers' options, as in quantize.json.
Json SolverRecord(const SolverOptions& options);

// Returns the content of quantize.json ("nibble.quantize/1").
Result<Json> QuantizeCheckpoint(const Checkpoint& checkpoint, const ModelDescription& model,
                                const QuantizeOptions& options, Backend& backend,
                                const QuantizeProgress& progress, const CancelToken& cancel);

}  // namespace nibble

#endif  // NIBBLE_QUANTIZE_QUANTIZE_H_

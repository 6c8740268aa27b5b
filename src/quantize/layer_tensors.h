// One layer's tensors while the layer is being quantized: its matrices as float32 in the device's
// memory, its vectors on the host.
#ifndef NIBBLE_QUANTIZE_LAYER_TENSORS_H_
#define NIBBLE_QUANTIZE_LAYER_TENSORS_H_

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "src/model/model_weights.h"
#include "src/ops/quantize_ops.h"
#include "src/quantize/plan.h"

namespace nibble {

struct LinearTensor {
  LinearName name;
  bool quantized = false;     // by the plan; else it stays as it is
  Matrix weight;              // float32 [out, in]
  std::vector<float> bias;    // [out], or empty
  std::vector<float> scales;  // [in] that the columns were multiplied by
  bool bias_changed = false;

  MatrixView view() const { return weight.view(); }
};

struct NormTensor {
  std::string name;
  std::vector<float> gain;
  DType stored = DType::kF16;
  bool changed = false;
};

using Linears = std::vector<LinearTensor*>;

struct LayerTensors {
  NormTensor input_norm, post_attention_norm;
  LinearTensor q, k, v, output, gate, up, down;

  Linears All() { return {&q, &k, &v, &output, &gate, &up, &down}; }
};

// kBadInput, naming the tensor, where a value is not finite.
Result<LayerTensors> ReadLayerTensors(const Checkpoint& checkpoint, const ModelDescription& model,
                                      const QuantizationPlan& plan, int64_t layer,
                                      QuantizeOps& ops);

// weight · diag(scales); `scales` multiplies what was there before.
void ScaleColumns(QuantizeOps& ops, LinearTensor& linear, std::span<const float> scales);
// diag(scales)⁻¹ · weight, and the bias.
void DivideRows(QuantizeOps& ops, LinearTensor& linear, std::span<const float> scales);
std::vector<float> Reciprocals(std::span<const float> scales);
// gain / scales in the type the norm is stored in; `scales` become what the division then amounts
// to, so that nothing is lost to the rounding. Where the gain would vanish or overflow, the scale
// becomes 1.
void FoldIntoNorm(NormTensor& norm, std::vector<float>& scales);

// The layer as its tensors are.
Result<LayerWeights> PrepareLayer(Backend& backend, const LayerTensors& tensors);
// Packs linears that form one prepared linear, with `weights` in their stead.
Result<std::unique_ptr<PreparedLinear>> Prepare(Backend& backend, Interleave interleave,
                                                std::span<const LinearTensor* const> linears,
                                                std::span<const Weight> weights);

// A contiguous float32 matrix as a weight. Borrows it.
DenseWeight DenseWeightOf(MatrixView matrix);

}  // namespace nibble

#endif  // NIBBLE_QUANTIZE_LAYER_TENSORS_H_

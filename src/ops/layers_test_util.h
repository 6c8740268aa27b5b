// Layers operation by operation, for the tests of Backend::RunLayers.
#ifndef NIBBLE_OPS_LAYERS_TEST_UTIL_H_
#define NIBBLE_OPS_LAYERS_TEST_UTIL_H_

#include "src/base/must.h"
#include "src/ops/backend.h"

namespace nibble {

// What RunLayers promises, as src/model/forward.h composes a layer.
inline void RunLayersApart(Backend& backend, BatchPlan& plan, std::span<const DecoderLayer> layers,
                           const RopeSpec& rope, float epsilon, KvCache& cache,
                           MatrixView residual) {
  const auto scratch = [&](int64_t columns) {
    return Must(backend.Allocate(MemoryClass::kWorkspace, backend.activation_type(), residual.rows,
                                 columns));
  };
  for (size_t i = 0; i < layers.size(); ++i) {
    const DecoderLayer& layer = layers[i];
    const AttentionSpec& attention = layer.attention;
    const Matrix normed = scratch(residual.columns), qkv = scratch(layer.qkv->out_features()),
                 attended = scratch(attention.heads * attention.head_dim),
                 gated = scratch(layer.down->in_features());
    backend.RmsNorm(residual, layer.input_norm, epsilon, normed.view());
    backend.Linear(plan, *layer.qkv, normed.view(), Epilogue::kNone, qkv.view());
    backend.RopeAndAttend(plan, rope, attention, static_cast<int64_t>(i), qkv.view(), cache,
                          attended.view());
    backend.Linear(plan, *layer.output, attended.view(), Epilogue::kAdd, residual);
    backend.RmsNorm(residual, layer.post_attention_norm, epsilon, normed.view());
    backend.Linear(plan, *layer.gate_up, normed.view(), Epilogue::kSiluMul, gated.view());
    backend.Linear(plan, *layer.down, gated.view(), Epilogue::kAdd, residual);
  }
}

}  // namespace nibble

#endif  // NIBBLE_OPS_LAYERS_TEST_UTIL_H_

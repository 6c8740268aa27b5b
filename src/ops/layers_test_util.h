// Layers operation by operation, for the tests of Backend::RunLayers.
#ifndef NIBBLE_OPS_LAYERS_TEST_UTIL_H_
#define NIBBLE_OPS_LAYERS_TEST_UTIL_H_

#include "src/ops/backend.h"

namespace nibble {

// What RunLayers promises, as src/model/forward.h composes a layer.
inline void RunLayersApart(Backend& backend, BatchPlan& plan, std::span<const DecoderLayer> layers,
                           const RopeSpec& rope, float epsilon, KvCache& cache,
                           const LayerActivations& activations) {
  const auto& [residual, normed, qkv, attended, gated] = activations;
  for (size_t i = 0; i < layers.size(); ++i) {
    const DecoderLayer& layer = layers[i];
    backend.RmsNorm(residual, layer.input_norm, epsilon, normed);
    backend.Linear(plan, *layer.qkv, normed, Epilogue::kNone, qkv);
    backend.RopeAndAttend(plan, rope, layer.attention, static_cast<int64_t>(i), qkv, cache,
                          attended);
    backend.Linear(plan, *layer.output, attended, Epilogue::kAdd, residual);
    backend.RmsNorm(residual, layer.post_attention_norm, epsilon, normed);
    backend.Linear(plan, *layer.gate_up, normed, Epilogue::kSiluMul, gated);
    backend.Linear(plan, *layer.down, gated, Epilogue::kAdd, residual);
  }
}

}  // namespace nibble

#endif  // NIBBLE_OPS_LAYERS_TEST_UTIL_H_

#include "src/ops/cuda/linked_layers.h"

#include <algorithm>

#include "src/ops/cuda/cuda_linear.h"
#include "src/ops/cuda/elementwise.h"
#include "src/ops/cuda/linear_q4.h"

namespace nibble::cuda {

bool CanLinkLayers(const DeviceBatch& batch, std::span<const DecoderLayer> layers) {
  if (layers.empty() || batch.rows < 2 || batch.rows > kMostLinkedRows ||
      batch.prefill_tile_count > 0) {
    return false;
  }
  const auto is_linked = [](const PreparedLinear* linear) {
    const auto& weight = static_cast<const CudaLinear&>(*linear);
    return weight.layout().q4 && weight.order() == nullptr &&
           LinearQ4TakesNorms(*weight.layout().q4);
  };
  return std::ranges::all_of(layers, [&](const DecoderLayer& layer) {
    return is_linked(layer.qkv) && is_linked(layer.output) && is_linked(layer.gate_up) &&
           is_linked(layer.down);
  });
}

size_t LinkedLayersScratchBytes(const ModelExtents& model) {
  return static_cast<size_t>(LinkedSquares(model.hidden)) * sizeof(float);
}

void RunLinkedLayers(Stream& stream, std::span<const DecoderLayer> layers, float epsilon,
                     const LayerActivations& activations, void* scratch,
                     const std::function<void(int64_t)>& attend) {
  const auto& [residual, normed, qkv, attention, gated] = activations;
  const auto norm = [&](MatrixView gain, float largest_gain) {
    return LinkedNorm{.gain = gain.row<float>(0),
                      .scale = ScaleOfGain(largest_gain),
                      .epsilon = epsilon,
                      .scaled = activations.normed,
                      .squares = static_cast<float*>(scratch)};
  };
  const auto multiply = [&](const PreparedLinear& linear, MatrixView x, Epilogue epilogue,
                            MatrixView out, const LinkedNorms& norms) {
    const auto& weight = static_cast<const CudaLinear&>(linear);
    LinearQ4(stream, *weight.layout().q4, weight.weight(), weight.bias(), x, epilogue, out,
             /*scratch=*/nullptr, CudaKernels::kAuto, norms);
  };
  LinkedNorm input = norm(layers[0].input_norm, layers[0].largest_input_gain);
  RmsNorm(stream, residual, input.gain, epsilon, normed);
  for (size_t i = 0; i < layers.size(); ++i) {
    const DecoderLayer& layer = layers[i];
    multiply(*layer.qkv, normed, Epilogue::kNone, qkv, {.before = i == 0 ? nullptr : &input});
    attend(static_cast<int64_t>(i));
    const LinkedNorm middle = norm(layer.post_attention_norm, layer.largest_post_attention_gain);
    multiply(*layer.output, attention, Epilogue::kAdd, residual, {.behind = &middle});
    multiply(*layer.gate_up, normed, Epilogue::kSiluMul, gated, {.before = &middle});
    const bool is_last = i + 1 == layers.size();
    if (!is_last) input = norm(layers[i + 1].input_norm, layers[i + 1].largest_input_gain);
    multiply(*layer.down, gated, Epilogue::kAdd, residual, {.behind = is_last ? nullptr : &input});
  }
}

}  // namespace nibble::cuda

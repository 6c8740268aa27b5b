// All layers of a step of a few rows, without kernels for their norms: the 4-bit products around a
// norm take it over (LinkedNorm).
#ifndef NIBBLE_OPS_CUDA_LINKED_LAYERS_H_
#define NIBBLE_OPS_CUDA_LINKED_LAYERS_H_

#include <cstddef>
#include <functional>
#include <span>

#include "src/ops/backend.h"
#include "src/ops/cuda/device_batch.h"
#include "src/ops/cuda/stream.h"

namespace nibble::cuda {

// Whether layers can be run so, on this device: 2 to kMostLinkedRows rows that only decode, 4-bit
// weights that LinearQ4 multiplies as they are.
bool CanLinkLayers(const DeviceBatch& batch, std::span<const DecoderLayer> layers);

// Bytes of scratch memory.
size_t LinkedLayersScratchBytes(const ModelExtents& model);

// As Backend::RunLayers. attend(i): layer i's attention, from activations.qkv to
// activations.attention.
void RunLinkedLayers(Stream& stream, std::span<const DecoderLayer> layers, float epsilon,
                     const LayerActivations& activations, void* scratch,
                     const std::function<void(int64_t)>& attend);

}  // namespace nibble::cuda

#endif  // NIBBLE_OPS_CUDA_LINKED_LAYERS_H_

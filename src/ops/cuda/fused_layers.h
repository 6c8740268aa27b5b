// All layers of a step of one row, in one kernel (fused_layers.cu).
#ifndef NIBBLE_OPS_CUDA_FUSED_LAYERS_H_
#define NIBBLE_OPS_CUDA_FUSED_LAYERS_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <span>

#include "src/ops/backend.h"
#include "src/ops/cuda/device_batch.h"
#include "src/ops/cuda/stream.h"

namespace nibble::cuda {

// Whether these layers can be run so, on this device, in a cache of this layout, with contexts up
// to so many tokens: on Hopper, all layers alike, 4-bit weights whose groups are one length, heads
// of 64 or 128, at most 8,192 hidden elements, a 16-bit cache.
bool CanFuseLayers(std::span<const DecoderLayer> layers, const KvLayout& cache, int64_t context,
                   int multiprocessors);

// Bytes of scratch memory, zeroed once and then used by nothing else.
size_t FusedLayersScratchBytes(const ModelExtents& model);

// As Backend::RunLayers, of one row. angles: [head_dim / 2], cos and sin; keys: of the first layer,
// the others' follow, each layer's keys and values half_layer_bytes.
struct FusedKv {
  std::byte* keys;
  size_t half_layer_bytes;
};
void RunFusedLayers(Stream& stream, const DeviceBatch& batch, std::span<const DecoderLayer> layers,
                    const float2* angles, float epsilon, const FusedKv& kv, MatrixView residual,
                    void* scratch);

}  // namespace nibble::cuda

#endif  // NIBBLE_OPS_CUDA_FUSED_LAYERS_H_

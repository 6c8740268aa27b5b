// The KV cache in 8 bits (kv_fp8.cuh). Decode attention reads it as it is; for prefill, whose
// kernels copy 16-bit keys and values, a layer's are expanded before.
#ifndef NIBBLE_OPS_CUDA_KV_FP8_H_
#define NIBBLE_OPS_CUDA_KV_FP8_H_

#include "src/ops/backend.h"
#include "src/ops/cuda/device_batch.h"
#include "src/ops/cuda/stream.h"

namespace nibble::cuda {

// RopeAndStoreKv (elementwise.h), AttendDecode (attention.h) for a view with scales; head_dim a
// multiple of 16, at most 256.
void RopeAndStoreFp8(Stream& stream, const DeviceBatch& batch, const AttentionSpec& attention,
                     const float2* table, MatrixView qkv, KvView kv);
void AttendDecodeFp8(Stream& stream, const DeviceBatch& batch, const AttentionSpec& attention,
                     MatrixView q, KvView kv, MatrixView out, void* scratch);

// wide = kv, of the activations' type, in the blocks of all sequences that have prefill tiles.
void ExpandKv(Stream& stream, const DeviceBatch& batch, const AttentionSpec& attention,
              DType activations, KvView kv, KvView wide);

}  // namespace nibble::cuda

#endif  // NIBBLE_OPS_CUDA_KV_FP8_H_

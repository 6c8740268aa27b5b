// Attention over the paged KV cache.
//
// Decode is flash decoding (Dao et al., 2023): all contexts, laid end to end, are cut into as many
// equal parts as there is room for blocks on the device, each with an online softmax
// (arXiv:1805.02867); parts of one context are merged. Parts, lengths and block tables are read on
// the device. Prefill is FlashAttention-2 (arXiv:2307.08691) over tiles of query rows, on Hopper
// FlashAttention-3 (arXiv:2407.08608) for heads of 64 and 128. Scores and sums are float32;
// weights are rounded to the activations' type before they multiply the values.
#ifndef NIBBLE_OPS_CUDA_ATTENTION_H_
#define NIBBLE_OPS_CUDA_ATTENTION_H_

#include <cstddef>

#include "src/ops/backend.h"
#include "src/ops/cuda/cuda_backend.h"
#include "src/ops/cuda/device_batch.h"
#include "src/ops/cuda/stream.h"

namespace nibble::cuda {

// Bytes of scratch that AttendDecode needs; they do not grow with the sequences. It must be zeroed
// once; its counters are left at zero, so that the next call, of any batch, finds them so.
size_t DecodeScratchBytes(int multiprocessors, const AttentionSpec& attention);

// q, out: [rows, heads · head_dim], 16-bit, rows aligned to 16 bytes; head_dim a multiple of 8, at
// most 256. Each handles the rows of its own kind (of sequences with one row, with more than one)
// and leaves the others alone. The batch's decode parts must be DivideDecode's for these heads, KV
// heads, head dimension and window. AttendDecode reads the batch before the kernels that were
// issued just before it are done; none of them may write it. `kernels`: which prefill may use.
void AttendDecode(Stream& stream, const DeviceBatch& batch, const AttentionSpec& attention,
                  MatrixView q, KvView kv, MatrixView out, void* scratch);
void AttendPrefill(Stream& stream, const DeviceBatch& batch, const AttentionSpec& attention,
                   MatrixView q, KvView kv, MatrixView out, CudaKernels kernels);

// RopeAndStoreKv and AttendDecode in one kernel, for batches of sequences with one row each and heads
// of 64, 128 or 256: as CanRopeAndAttendDecode says. qkv: as RopeAndStoreKv's; angles: as RopeTable's.
// It reads the batch and what the cache had before the step while the kernels before it still run:
// they may write neither.
bool CanRopeAndAttendDecode(const DeviceBatch& batch, const AttentionSpec& attention);
void RopeAndAttendDecode(Stream& stream, const DeviceBatch& batch, const AttentionSpec& attention,
                         const float2* angles, MatrixView qkv, KvView kv, MatrixView out,
                         void* scratch);

}  // namespace nibble::cuda

#endif  // NIBBLE_OPS_CUDA_ATTENTION_H_

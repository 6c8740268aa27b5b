// What the prefill kernels are given, and the one for Hopper.
#ifndef NIBBLE_OPS_CUDA_ATTENTION_PREFILL_CUH_
#define NIBBLE_OPS_CUDA_ATTENTION_PREFILL_CUH_

#include <cstdint>

#include "src/ops/cuda/attention.h"

namespace nibble::cuda {

struct PrefillArguments {
  const void* keys;             // [blocks, kv_heads, kBlockTokens, head_dim]
  const void* values;           // likewise
  const void* q;                // [rows, q_stride]
  void* out;                    // [rows, out_stride]
  const int32_t* positions;     // [rows]
  const int32_t* row_begin;     // [sequences + 1]
  const int32_t* block_tables;  // [sequences, table_stride]
  const PrefillTile* tiles;
  int64_t q_stride, out_stride, table_stride;
  int kv_heads, group, head_dim, window;
  float scale_log2;
};

// Whether there is code for this device, and for heads of this size: 64 or 128.
bool CanUseHopperPrefill(const AttentionSpec& attention);
void HopperPrefill(Stream& stream, DType dtype, const PrefillArguments& arguments, int64_t heads,
                   int64_t tiles);

}  // namespace nibble::cuda

#endif  // NIBBLE_OPS_CUDA_ATTENTION_PREFILL_CUH_

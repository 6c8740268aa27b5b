// A step's batch where kernels read it, at addresses that stay the same from step to step, so that a
// captured graph serves every step of its shape.
#ifndef NIBBLE_OPS_CUDA_DEVICE_BATCH_H_
#define NIBBLE_OPS_CUDA_DEVICE_BATCH_H_

#include <cstdint>

namespace nibble::cuda {

inline constexpr int kBlockTokens = 32;   // of the KV cache
inline constexpr int kPrefillRows = 128;  // query rows of a prefill tile

struct PrefillTile {
  int32_t sequence;
  int32_t first_row;  // of the batch
};

struct DecodePart;  // decode_parts.h

// See Batch (src/ops/kv.h) for what the arrays hold. All pointers are to device memory.
struct DeviceBatch {
  const int32_t* tokens = nullptr;           // [rows]
  const int32_t* chosen_rows = nullptr;      // [rows] -1, or into `chosen` in place of `tokens`
  int32_t* chosen = nullptr;                 // [logit rows] the tokens that were chosen last
  const int32_t* positions = nullptr;        // [rows]
  const int32_t* row_sequence = nullptr;     // [rows] the sequence of each row
  const int32_t* row_begin = nullptr;        // [sequences + 1]
  const int32_t* context_lengths = nullptr;  // [sequences]
  const int32_t* block_tables = nullptr;     // [sequences, table_stride]
  const int32_t* logit_rows = nullptr;       // [logit rows]
  // The rows of each sequence that has more than one, in tiles of at most kPrefillRows.
  const PrefillTile* prefill_tiles = nullptr;  // [prefill_tile_count]
  // [decode blocks] how decode attention is divided in layers without and with a window. Null where
  // no sequence has one row; the second also where no layer has a window.
  const DecodePart* decode_parts = nullptr;
  const DecodePart* window_decode_parts = nullptr;
  int64_t rows = 0;
  int64_t sequences = 0;
  int64_t table_stride = 0;
  int64_t prefill_tile_count = 0;
  int64_t longest_prefill = 0;  // the longest context of a sequence that has tiles, in tokens
  bool has_decode = false;  // whether some sequence has exactly one row
};

// One layer's keys and values.
struct KvView {
  // [blocks, kv_heads, kBlockTokens, head_dim], of the activations' type, or where there are scales of
  // 8 bits in the order of kv_fp8.cuh.
  void* keys = nullptr;
  void* values = nullptr;  // likewise
  // [blocks, kv_heads, kBlockTokens] of 8-bit numbers: bfloat16, the keys' in the lower half and the
  // values' in the upper one. Powers of two.
  uint32_t* scales = nullptr;
};

}  // namespace nibble::cuda

#endif  // NIBBLE_OPS_CUDA_DEVICE_BATCH_H_

// A block's way through its part of decode attention's work (see decode_parts.h).
#ifndef NIBBLE_OPS_CUDA_DECODE_LINE_CUH_
#define NIBBLE_OPS_CUDA_DECODE_LINE_CUH_

#include <cstdint>

#include "src/ops/cuda/decode_parts.h"

namespace nibble::cuda {

// The batch, and what else the line depends on.
struct DecodeLine {
  const DecodePart* parts;         // [blocks]
  const int32_t* row_begin;        // [sequences + 1]
  const int32_t* context_lengths;  // [sequences]
  const int32_t* block_tables;     // [sequences, table_stride]
  int64_t table_stride;
  int sequences, kv_heads, head_tiles, window;
};

// What of its context a sequence's row sees: tokens [first_token, end_token), in `tiles` tiles from
// first_tile on.
struct Span {
  int row;
  int first_token, end_token;
  int first_tile, tiles;
};

inline __device__ Span SpanOf(const DecodeLine& a, int row, int context) {
  Span span;
  span.row = row;
  span.end_token = context;
  span.first_token = max(0, context - a.window);
  span.first_tile = span.first_token / kTileTokens;
  span.tiles = (context + kTileTokens - 1) / kTileTokens - span.first_tile;
  return span;
}

// A block's part of one pair: `count` of the pair's `granules` from the first-th on.
struct Segment {
  Span span;
  int sequence, kv_head, head_tile;
  int first, count, granules;
  bool is_first;  // of the block's
};

// A block's segments in their order.
template <int kWarps>
class Walk {
 public:
  __device__ explicit Walk(const DecodePart& part)
      : row_(part.row),
        context_(part.context),
        sequence_(part.sequence),
        kv_head_(part.kv_head),
        head_tile_(part.head_tile),
        first_(part.first),
        left_(part.count) {}

  __device__ bool Next(const DecodeLine& a, Segment& segment) {
    if (left_ == 0) return false;
    if (kv_head_ == a.kv_heads) {  // the next sequence of one row
      do {
        row_ = a.row_begin[++sequence_];
      } while (a.row_begin[sequence_ + 1] - row_ != 1);
      context_ = a.context_lengths[sequence_];
      kv_head_ = 0;
    }
    segment.span = SpanOf(a, row_, context_);
    segment.sequence = sequence_;
    segment.kv_head = kv_head_;
    segment.head_tile = head_tile_;
    segment.first = first_;
    segment.granules = (segment.span.tiles + kWarps - 1) / kWarps;
    segment.count = min(segment.granules - first_, left_);
    segment.is_first = is_first_;
    // A segment that is not the part's last reaches the end of its pair.
    if (++head_tile_ == a.head_tiles) {
      head_tile_ = 0;
      ++kv_head_;
    }
    first_ = 0;
    left_ -= segment.count;
    is_first_ = false;
    return true;
  }

 private:
  int row_, context_;  // of the sequence
  int sequence_, kv_head_, head_tile_, first_, left_;
  bool is_first_ = true;
};

}  // namespace nibble::cuda

#endif  // NIBBLE_OPS_CUDA_DECODE_LINE_CUH_

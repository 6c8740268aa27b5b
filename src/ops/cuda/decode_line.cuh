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

// The numbers of the pairs that a block takes in turn, in shared memory. Of a block's pair number n
// from 2 on, `next` n % kTurns: there when the block has finished pair n - 2, replaced when it has
// begun pair n + 2.
inline constexpr int kTurns = 4;
struct Turns {
  unsigned next[kTurns];
};

// Of the whole line; where pairs are taken in turn, each sequence has one row.
inline __device__ unsigned AllPairs(const DecodeLine& a) {
  return static_cast<unsigned>(a.sequences * a.kv_heads * a.head_tiles);
}

// A block's segments in their order.
template <int kWarps>
class Walk {
 public:
  __device__ Walk(const DecodePart& part, const Turns& turns)
      : turns_(part.in_turn() ? &turns : nullptr),
        row_(part.row),
        context_(part.context),
        sequence_(part.sequence),
        kv_head_(part.kv_head),
        head_tile_(part.head_tile),
        first_(part.first),
        left_(part.count) {}

  __device__ bool Next(const DecodeLine& a, Segment& segment) {
    if (left_ == 0 && !TakeTurn(a)) return false;
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
  // Goes to the pair whose turn it is; false where there is none.
  __device__ bool TakeTurn(const DecodeLine& a) {
    if (turns_ == nullptr) return false;
    const unsigned pair = ++pair_ == 1 ? blockIdx.x + gridDim.x : turns_->next[pair_ % kTurns];
    if (pair >= AllPairs(a)) {
      turns_ = nullptr;
      return false;
    }
    const int of_sequence = a.kv_heads * a.head_tiles, number = static_cast<int>(pair);
    sequence_ = number / of_sequence;
    row_ = sequence_;
    context_ = a.context_lengths[sequence_];
    kv_head_ = number % of_sequence / a.head_tiles;
    head_tile_ = number % a.head_tiles;
    first_ = 0;
    left_ = (SpanOf(a, row_, context_).tiles + kWarps - 1) / kWarps;
    return true;
  }

  const Turns* turns_;  // null where none are taken, or none any more
  unsigned pair_ = 0;   // of the block's
  int row_, context_;  // of the sequence
  int sequence_, kv_head_, head_tile_, first_, left_;
  bool is_first_ = true;
};

}  // namespace nibble::cuda

#endif  // NIBBLE_OPS_CUDA_DECODE_LINE_CUH_

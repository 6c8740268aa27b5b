// How the work of decode attention is divided.
//
// It is a line of granules: sequence after sequence that has one row, in it KV head after KV head
// (and, where more than kTileHeads query heads share one, tile after tile of those), in it granules
// of one tile of keys for each warp. The blocks, as many as are resident at a time, share the line
// evenly, whatever the contexts' lengths. So a block works on a few pairs of sequence and KV head
// one after another, and only its first and its last can be shared with other blocks. Its loads run
// ahead from one pair into the next. Where all contexts are about as long, blocks rather begin and
// end with pairs, or a pair is cut into a few parts: there is less to merge at the end.
//
// Equal shares do not end together: on an H200 a multiprocessor is busy for 89 % of the time on
// average. Smaller shares at the end, taken in turn, cost more than that where loads did not run
// ahead into them.
#ifndef NIBBLE_OPS_CUDA_DECODE_LINE_CUH_
#define NIBBLE_OPS_CUDA_DECODE_LINE_CUH_

#include <cstdint>

#include "src/ops/cuda/device_batch.h"

namespace nibble::cuda {

inline constexpr int kTileTokens = 16;  // the depth of one tensor-core product
inline constexpr int kTilesPerBlock = kBlockTokens / kTileTokens;
// Query heads of one KV head that a block handles together: the product's rows.
inline constexpr int kTileHeads = 16;
// Blocks to a pair, on average. With more, merging them takes longer than it saves.
inline constexpr int kMostParts = 32;
// Pairs that a block has whole.
inline constexpr int kMostWholePairs = 4;

// The batch, and what else the line depends on.
struct DecodeLine {
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

inline __device__ Span SpanOf(const DecodeLine& a, int sequence) {
  Span span;
  span.row = a.row_begin[sequence];
  span.end_token = a.context_lengths[sequence];
  if (a.row_begin[sequence + 1] - span.row != 1) span.end_token = 0;  // not ours
  span.first_token = max(0, span.end_token - a.window);
  span.first_tile = span.first_token / kTileTokens;
  span.tiles = (span.end_token + kTileTokens - 1) / kTileTokens - span.first_tile;
  return span;
}

template <int kWarps>
__device__ int GranulesOf(const DecodeLine& a, int sequence) {
  if (sequence >= a.sequences) return 0;
  return (SpanOf(a, sequence).tiles + kWarps - 1) / kWarps;
}

struct Line {
  int length;  // granules
  int pairs;
  int of_pair;  // granules, where all pairs have as many; else 0
};

// How the line is shared: block b has granules [Begin(b), Begin(b + 1)).
struct Share {
  int blocks, each;
  int longer = 0;          // the first so many blocks have one more than `each`; or
  int run = 0, parts = 0;  // each run of so many granules, whole pairs, is that of `parts` blocks
  int length;

  __device__ Share(const Line& line, int most_blocks) : length(line.length) {
    blocks = min(min(most_blocks, length), line.pairs * kMostParts);
    if (blocks == 0) return;
    each = length / blocks;
    longer = length - each * blocks;
    if (line.of_pair == 0) return;
    // By pairs, where no block has then much more to do; with many pairs to a block, little of its
    // time would be won.
    const int pairs_each = (line.pairs + most_blocks - 1) / most_blocks;
    if (pairs_each > kMostWholePairs) return;
    run = pairs_each * line.of_pair;
    const int most_parts = pairs_each > 1 ? 1 : min(blocks / line.pairs, run);
    const int by_pairs = (run + most_parts - 1) / most_parts, longest = each + (longer > 0);
    if (by_pairs > longest + longest / 16) return;
    each = by_pairs;
    parts = (run + each - 1) / each;
    blocks = (line.pairs + pairs_each - 1) / pairs_each * parts;
  }
  __device__ int Begin(int block) const {
    if (parts == 0) return block * each + min(block, longer);
    return min(block / parts * run + block % parts * each, length);
  }
  __device__ int BlockOf(int granule) const {
    if (parts != 0) return granule / run * parts + granule % run / each;
    const int in_longer = longer * (each + 1);
    return granule < in_longer ? granule / (each + 1) : longer + (granule - in_longer) / each;
  }
};

// A place on the line.
struct Place {
  int sequence;
  int offset;  // granules of the sequence before it, all KV heads'
};

// The line, and where on it a granule is; all lanes of a warp call these together.
template <int kWarps>
__device__ Line FindLine(const DecodeLine& a) {
  int length = 0, sequences = 0, most = 0;
  for (int s = static_cast<int>(threadIdx.x) % 32; s < a.sequences; s += 32) {
    const int granules = GranulesOf<kWarps>(a, s);
    length += granules;
    sequences += granules > 0;
    most = max(most, granules);
  }
  length = __reduce_add_sync(~0u, length);
  sequences = __reduce_add_sync(~0u, sequences);
  most = __reduce_max_sync(~0u, most);
  const int pairs = a.kv_heads * a.head_tiles;
  return {length * pairs, sequences * pairs, length == sequences * most ? most : 0};
}

template <int kWarps>
__device__ Place Find(const DecodeLine& a, int granule) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int base = 0;; base += 32) {
    const int own = GranulesOf<kWarps>(a, base + lane) * a.kv_heads * a.head_tiles;
    int end = own;  // of the sequence, from `base` on
    for (int step = 1; step < 32; step *= 2) {
      const int other = __shfl_up_sync(~0u, end, step);
      if (lane >= step) end += other;
    }
    const unsigned after = __ballot_sync(~0u, end > granule);
    if (after != 0) {
      const int found = __ffs(static_cast<int>(after)) - 1;
      return {base + found, granule - __shfl_sync(~0u, end - own, found)};
    }
    granule -= __shfl_sync(~0u, end, 31);
  }
}

// A block's part of one pair: `count` of the pair's `granules` from the first-th on, which begin at
// `granule` on the line.
struct Segment {
  Span span;
  int sequence, pair;  // of the sequence's
  int granule, first, count, granules;
};

// A block's way along the line.
template <int kWarps>
class Walk {
 public:
  __device__ Walk(const Place& place, int begin, int end)
      : place_(place), granule_(begin), end_(end) {}

  __device__ bool Next(const DecodeLine& a, Segment& segment) {
    if (granule_ == end_) return false;
    while (true) {
      segment.span = SpanOf(a, place_.sequence);
      segment.granules = (segment.span.tiles + kWarps - 1) / kWarps;
      if (segment.granules > 0) break;
      ++place_.sequence;
    }
    segment.sequence = place_.sequence;
    segment.pair = place_.offset / segment.granules;
    segment.first = place_.offset % segment.granules;
    segment.granule = granule_;
    segment.count = min(segment.granules - segment.first, end_ - granule_);
    granule_ += segment.count;
    place_.offset += segment.count;
    if (place_.offset == segment.granules * a.kv_heads * a.head_tiles) {
      place_ = {place_.sequence + 1, 0};
    }
    return true;
  }

 private:
  Place place_;
  int granule_, end_;
};

}  // namespace nibble::cuda

#endif  // NIBBLE_OPS_CUDA_DECODE_LINE_CUH_

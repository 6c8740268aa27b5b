#include "src/ops/cuda/decode_parts.h"

#include <algorithm>
#include <limits>

#include "src/base/checked.h"

namespace nibble::cuda {
namespace {

// Blocks to a pair, on average. With more, merging them takes longer than it saves.
constexpr int64_t kMostParts = 32;
// Pairs that a block has whole.
constexpr int64_t kMostWholePairs = 4;
// Pairs to a block that are taken in turn: with fewer, the last ones take too long.
constexpr int64_t kLeastPairsInTurn = 6;

struct Line {
  int64_t length = 0;  // granules
  int64_t pairs = 0;
  int64_t of_pair = 0;  // granules, where all pairs have as many; else 0
  int64_t least = std::numeric_limits<int64_t>::max(), most = 0;  // granules of a pair
};

// Whether blocks take pairs in turn. A block knows its next pair when it begins the one before:
// loads may run ahead into that, but no further.
bool TakesTurns(const Line& line, int64_t blocks, int stages) {
  return line.pairs >= kLeastPairsInTurn * blocks &&
         line.most * kLeastPairsInTurn * blocks <= line.length && line.least > stages;
}

// How the line is shared: block b has granules [Begin(b), Begin(b + 1)).
struct Share {
  int64_t blocks, each = 0;
  int64_t longer = 0;  // the first so many blocks have one more than `each`; or, with parts:
  // Each run of so many granules, whole pairs, is that of `parts` blocks.
  int64_t run = 0, parts = 0;
  int64_t length;

  Share(const Line& line, int64_t most_blocks) : length(line.length) {
    blocks = std::min({most_blocks, length, line.pairs * kMostParts});
    if (blocks == 0) return;
    each = length / blocks;
    longer = length - each * blocks;
    if (line.of_pair == 0) return;
    // By pairs, where no block has then much more to do; with many pairs to a block, little of its
    // time would be won.
    const int64_t pairs_each = CeilDiv(line.pairs, most_blocks);
    if (pairs_each > kMostWholePairs) return;
    run = pairs_each * line.of_pair;
    const int64_t most_parts = pairs_each > 1 ? 1 : std::min(blocks / line.pairs, run);
    const int64_t by_pairs = CeilDiv(run, most_parts), longest = each + (longer > 0 ? 1 : 0);
    if (by_pairs > longest + longest / 16) return;
    each = by_pairs;
    parts = CeilDiv(run, each);
    blocks = CeilDiv(line.pairs, pairs_each) * parts;
  }
  int64_t Begin(int64_t block) const {
    if (parts == 0) return block * each + std::min(block, longer);
    return std::min(block / parts * run + block % parts * each, length);
  }
};

}  // namespace

void DivideDecode(const AttentionSpec& attention, std::span<const int32_t> row_begin,
                  std::span<const int32_t> context_lengths, std::span<DecodePart> parts) {
  const int64_t group = attention.heads / attention.kv_heads;
  const int64_t head_tiles = CeilDiv<int64_t>(group, kTileHeads);
  const int64_t pairs = attention.kv_heads * head_tiles;  // of a sequence
  const int64_t window = attention.window.value_or(std::numeric_limits<int64_t>::max());
  // Of each pair of a sequence's.
  const auto granules_of = [&](size_t s) -> int64_t {
    if (row_begin[s + 1] - row_begin[s] != 1) return 0;
    const int64_t context = context_lengths[s];
    CHECK(context > 0, "sequence {} has no context", s);
    const int64_t first_tile = std::max<int64_t>(0, context - window) / kTileTokens;
    const int64_t tiles = CeilDiv<int64_t>(context, kTileTokens) - first_tile;
    return CeilDiv<int64_t>(tiles, DecodeWarps(attention.head_dim));
  };
  Line line;
  for (size_t s = 0; s < context_lengths.size(); ++s) {
    const int64_t granules = granules_of(s);
    line.length += granules * pairs;
    line.pairs += granules > 0 ? pairs : 0;
    line.least = std::min(line.least, granules);
    line.most = std::max(line.most, granules);
  }
  if (line.length == line.pairs * line.most) line.of_pair = line.most;
  const auto blocks = static_cast<int64_t>(parts.size());
  if (TakesTurns(line, blocks, MostDecodeStages(attention.head_dim))) {
    for (int64_t b = 0; b < blocks; ++b) {
      const auto sequence = static_cast<size_t>(b / pairs);
      parts[static_cast<size_t>(b)] = {.count = static_cast<int32_t>(granules_of(sequence)),
                                       .sequence = static_cast<int32_t>(sequence),
                                       .row = row_begin[sequence],
                                       .context = context_lengths[sequence],
                                       .kv_head = static_cast<uint16_t>(b % pairs / head_tiles),
                                       .head_tile = static_cast<uint16_t>(b % pairs % head_tiles)};
    }
    return;
  }
  const Share share(line, blocks);
  CHECK(line.length <= std::numeric_limits<int32_t>::max(), "{} granules", line.length);
  CHECK(pairs <= UINT16_MAX && 2 * parts.size() <= UINT16_MAX, "{} pairs, {} blocks", pairs,
        parts.size());

  // The sequence that a granule belongs to, and where it begins; granules come in ascending order.
  size_t sequence = 0;
  int64_t sequence_begin = 0, granules = context_lengths.empty() ? 0 : granules_of(0);
  const auto go_to = [&](int64_t granule) {
    while (granule >= sequence_begin + granules * pairs) {
      sequence_begin += granules * pairs;
      granules = granules_of(++sequence);
    }
  };
  std::ranges::fill(parts, DecodePart{});
  int64_t begin = 0, last_pair = -1;
  size_t first_slot = 0;  // of the last pair
  for (size_t b = 0; b < static_cast<size_t>(share.blocks); ++b) {
    DecodePart& part = parts[b];
    const int64_t next = share.Begin(static_cast<int64_t>(b) + 1);
    // The part's first pair and its last one, which may be the same; those between are whole.
    for (const size_t end : {size_t{0}, size_t{1}}) {
      const int64_t granule = end == 0 ? begin : next - 1;
      go_to(granule);
      const int64_t pair = (granule - sequence_begin) / granules;
      const int64_t pair_begin = sequence_begin + pair * granules;
      if (end == 0) {
        part = {.count = static_cast<int32_t>(next - begin),
                .sequence = static_cast<int32_t>(sequence),
                .row = row_begin[sequence],
                .context = context_lengths[sequence],
                .first = static_cast<int32_t>(begin - pair_begin),
                .kv_head = static_cast<uint16_t>(pair / head_tiles),
                .head_tile = static_cast<uint16_t>(pair % head_tiles)};
      }
      if (pair_begin != last_pair) first_slot = 2 * b + end;
      last_pair = pair_begin;
      part.first_slot[end] = static_cast<uint16_t>(first_slot);
      if (pair_begin + granules > next) continue;  // the next block goes on with it
      // It ends here, so that its blocks are known.
      const size_t first = first_slot / 2;
      const auto blocks = static_cast<uint16_t>(b - first + 1);
      parts[first].blocks[first_slot % 2] = blocks;
      for (size_t i = first + 1; i <= b; ++i) parts[i].blocks[0] = blocks;
    }
    begin = next;
  }
}

}  // namespace nibble::cuda

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
// average. So where there are many pairs to a block, blocks take them in turn: each begins with two
// and asks for its next but one when it begins one, so that its loads run ahead into all of them.
//
// The host divides, once for all layers of a step: at one row a block that finds its own part takes
// longer for that than for its keys.
#ifndef NIBBLE_OPS_CUDA_DECODE_PARTS_H_
#define NIBBLE_OPS_CUDA_DECODE_PARTS_H_

#include <cstdint>
#include <span>

#include "src/ops/backend.h"
#include "src/ops/cuda/device_batch.h"

namespace nibble::cuda {

inline constexpr int kTileTokens = 16;  // the depth of one tensor-core product
inline constexpr int kTilesPerBlock = kBlockTokens / kTileTokens;
// Query heads of one KV head that a block handles together: two products' columns.
inline constexpr int kTileHeads = 16;
inline constexpr int kResident = 2;  // blocks on a multiprocessor

// Tiles of a warp that are under way at most.
constexpr int MostDecodeStages(int64_t head_dim) { return head_dim > 64 ? 4 : 8; }
constexpr int DecodeWarps(int64_t head_dim) { return head_dim > 128 ? 2 : 4; }
constexpr int64_t DecodeBlocks(int multiprocessors) { return int64_t{kResident} * multiprocessors; }

// A block's part of the line, read at once. Where pairs are taken in turn it is one whole pair, of
// the line's pairs the block's own number; the block's second is as many further as there are
// blocks.
struct alignas(32) DecodePart {
  int32_t count = 0;  // granules
  // Where it begins, of a sequence of one row: `first` granules of the pair are before it.
  int32_t sequence = 0, row = 0, context = 0, first = 0;
  uint16_t kv_head = 0, head_tile = 0;  // of the pair
  // Of the part's first and of its last pair: how many blocks share it, and the slot of the first
  // of those blocks: 2 · block, + 1 where the pair is that block's last. The other blocks leave
  // what they have of it in their first slot. Not used of a pair that one block has whole.
  uint16_t blocks[2] = {}, first_slot[2] = {};

  constexpr bool in_turn() const { return count > 0 && blocks[0] == 0; }
};

// Fills the parts of DecodeBlocks blocks. row_begin, context_lengths: as Batch's, contexts of at
// least one token.
void DivideDecode(const AttentionSpec& attention, std::span<const int32_t> row_begin,
                  std::span<const int32_t> context_lengths, std::span<DecodePart> parts);

}  // namespace nibble::cuda

#endif  // NIBBLE_OPS_CUDA_DECODE_PARTS_H_

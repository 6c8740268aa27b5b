// Causal attention over the paged cache.
//
// The work is cut into items: one key-value head and a tile of consecutive rows
// of one sequence, with all the query heads that share the key-value head, so
// that a block of the cache is read and converted once for many queries. A
// query meets its tokens in chunks of 64 that begin at multiples of 64,
// whatever else is in its tile, with an online softmax (arXiv:1805.02867); its
// bits depend on nothing but itself.
#ifndef NIBBLE_OPS_CPU_ATTENTION_H_
#define NIBBLE_OPS_CPU_ATTENTION_H_

#include <cstddef>
#include <cstdint>
#include <span>

#include "src/ops/backend.h"
#include "src/ops/cpu/cpu_kv_cache.h"

namespace nibble::cpu {

inline constexpr int64_t kChunkTokens = 64;

// What a thread needs for an item; all float32.
struct AttentionScratch {
  int64_t queries = 0;     // of an item, at most
  int64_t padded_dim = 0;  // head_dim, rounded up to 16

  static AttentionScratch Of(int64_t group, int64_t head_dim);  // group: query heads per kv head

  int64_t rows(int64_t group) const { return queries / group; }  // of an item, at most
  size_t bytes() const;                                          // a multiple of 64
};

struct AttendTask {
  AttentionSpec spec;
  int64_t layer = 0;
  MatrixView q, out;
  const CpuKvCache* cache = nullptr;
  const Batch* batch = nullptr;
  AttentionScratch scratch;
  std::span<const int32_t> tile_begin;  // [sequences + 1]: a sequence's first tile of rows

  int64_t group() const { return spec.heads / spec.kv_heads; }
  int64_t items() const { return tile_begin.back() * spec.kv_heads; }
};

// Fills tile_begin for the batch and returns it.
std::span<const int32_t> CountTiles(const Batch& batch, int64_t rows_per_tile,
                                    std::span<int32_t> tile_begin);

void AttendItems(const AttendTask& task, int64_t begin, int64_t end, std::byte* scratch);

}  // namespace nibble::cpu

#endif  // NIBBLE_OPS_CPU_ATTENTION_H_

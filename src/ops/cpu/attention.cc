#include "src/ops/cpu/attention.h"

#include "src/ops/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/ops/cpu/attention.cc"
#include <limits>

#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
#include "src/ops/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace nibble::cpu::HWY_NAMESPACE {
namespace {

// A thread's scratch memory, for one item.
struct AttendState {
  float* queries;  // tiles of T queries, [head_dim][T], times the scale
  float* sums;     // [queries][padded_dim]
  float* scores;   // [queries][kChunkTokens]; after the softmax, weights
  float* highest;  // [queries]
  float* totals;   // [queries]

  AttendState(const AttentionScratch& size, std::byte* memory)
      : queries(reinterpret_cast<float*>(memory)),
        sums(queries + size.queries * size.padded_dim),
        scores(sums + size.queries * size.padded_dim),
        highest(scores + size.queries * kChunkTokens),
        totals(highest + size.queries) {}
};

// The tokens of the current chunk that a query sees, relative to the chunk's
// first.
struct TokenRange {
  int64_t begin, end;
  bool empty() const { return begin >= end; }
};

// One item: rows [row_begin, row_end) of a sequence for one key-value head.
// Query i is head i % group of row row_begin + i / group.
struct Item {
  int64_t sequence, kv_head, row_begin, row_end;
};

TokenRange RangeOf(const AttendTask& task, int64_t row, int64_t chunk) {
  const int64_t position = task.batch->positions[static_cast<size_t>(row)];
  const int64_t first =
      task.spec.window ? std::max<int64_t>(0, position - *task.spec.window + 1) : 0;
  return {std::max<int64_t>(first - chunk, 0), std::min(position + 1 - chunk, kChunkTokens)};
}

// The blocks that hold a chunk's tokens [range.begin, range.end): their keys,
// [head_dim][16], each followed by their values, [16][head_dim].
template <typename W>
struct ChunkBlocks {
  const W* at[kChunkTokens / kBlockTokens];

  ChunkBlocks(const AttendTask& task, const Item& item, int64_t chunk, TokenRange range) {
    for (int64_t b = range.begin / kBlockTokens; b * kBlockTokens < range.end; ++b) {
      const int64_t entry = item.sequence * task.batch->max_blocks + chunk / kBlockTokens + b;
      const int32_t block = task.batch->block_tables[static_cast<size_t>(entry)];
      at[b] = reinterpret_cast<const W*>(task.cache->keys(task.layer, block, item.kv_head));
    }
  }
};

// scores[T][64] of blocks [begin, end) of a chunk for a tile of queries.
template <typename W, int T>
void Score(const ChunkBlocks<W>& blocks, int64_t begin, int64_t end, const float* queries,
           int64_t head_dim, float* scores) {
  constexpr int kStep = PanelsFor(T);
  int64_t b = begin;
  for (; b + kStep <= end; b += kStep) {
    AccumulateDense<W, T, kStep>(blocks.at + b, queries, head_dim, scores + b * kBlockTokens,
                                 kChunkTokens, false);
  }
  if constexpr (kStep > 1) {
    for (; b < end; ++b) {
      AccumulateDense<W, T, 1>(blocks.at + b, queries, head_dim, scores + b * kBlockTokens,
                               kChunkTokens, false);
    }
  }
}

// Online softmax of one query's chunk: scores become weights relative to the
// new highest score, and what was summed so far is brought to it too.
void Soften(TokenRange range, int64_t padded_dim, float* scores, float* sums, float& highest,
            float& total) {
  const F32 d;
  const float lowest = -std::numeric_limits<float>::infinity();
  for (int64_t t = 0; t < range.begin; ++t) scores[t] = lowest;
  for (int64_t t = range.end; t < kChunkTokens; ++t) scores[t] = lowest;
  VecF max = hn::Set(d, highest);
  for (int64_t t = 0; t < kChunkTokens; t += kLanes) max = hn::Max(hn::LoadU(d, scores + t), max);
  max = hn::MaxOfLanes(d, max);
  const float new_highest = hn::GetLane(max);
  VecF sum = hn::Zero(d);
  for (int64_t t = 0; t < kChunkTokens; t += kLanes) {
    const VecF p = ExpOrNaN(hn::Sub(hn::LoadU(d, scores + t), max));
    sum = hn::Add(sum, p);
    hn::StoreU(p, d, scores + t);
  }
  const VecF factor = ExpOrNaN(hn::Sub(hn::Set(d, highest), max));
  total = total * hn::GetLane(factor) + hn::GetLane(hn::SumOfLanes(d, sum));
  if (new_highest != highest) {
    for (int64_t i = 0; i < padded_dim; i += kLanes) {
      hn::StoreU(hn::Mul(hn::LoadU(d, sums + i), factor), d, sums + i);
    }
  }
  highest = new_highest;
}

// sums[T][padded_dim] += weights[T][64] · values over the chunk's tokens in
// `range`, in order.
template <typename W, int T, int kVecs>
HWY_INLINE void AddValuesAt(const ChunkBlocks<W>& blocks, int64_t head_dim, int64_t dimension,
                            TokenRange range, const float* HWY_RESTRICT weights,
                            float* HWY_RESTRICT sums, int64_t sums_stride) {
  const F32 d;
  VecF acc[T][kVecs];
#pragma GCC unroll kUnroll
  for (int t = 0; t < T; ++t) {
#pragma GCC unroll kUnroll
    for (int v = 0; v < kVecs; ++v) acc[t][v] = hn::LoadU(d, sums + t * sums_stride + v * kLanes);
  }
  for (int64_t begin = range.begin; begin < range.end;) {
    const int64_t block = begin / kBlockTokens;
    const int64_t end = std::min(range.end, (block + 1) * kBlockTokens);
    // Values follow the keys, which are as many.
    const W* HWY_RESTRICT values =
        blocks.at[block] + (kBlockTokens + begin % kBlockTokens) * head_dim + dimension;
    for (int64_t token = begin; token < end; ++token, values += head_dim) {
      VecF value[kVecs];
#pragma GCC unroll kUnroll
      for (int v = 0; v < kVecs; ++v) value[v] = LoadAsFloat(values + v * kLanes);
#pragma GCC unroll kUnroll
      for (int t = 0; t < T; ++t) {
        const VecF weight = hn::Set(d, weights[t * kChunkTokens + token]);
#pragma GCC unroll kUnroll
        for (int v = 0; v < kVecs; ++v) acc[t][v] = hn::MulAdd(weight, value[v], acc[t][v]);
      }
    }
    begin = end;
  }
#pragma GCC unroll kUnroll
  for (int t = 0; t < T; ++t) {
#pragma GCC unroll kUnroll
    for (int v = 0; v < kVecs; ++v) hn::StoreU(acc[t][v], d, sums + t * sums_stride + v * kLanes);
  }
}

template <typename W, int T>
void AddValues(const ChunkBlocks<W>& blocks, int64_t head_dim, TokenRange range,
               const float* weights, float* sums, int64_t sums_stride) {
  if (range.empty()) return;
  // Few queries have too few accumulators to keep the multipliers busy on 16
  // dimensions.
  constexpr int kWide = (T == 1 ? 4 : T <= 2 ? 2 : 1) * kPanelVecs;
  int64_t i = 0;
  for (; i + kWide * kLanes <= head_dim; i += kWide * kLanes) {
    AddValuesAt<W, T, kWide>(blocks, head_dim, i, range, weights, sums + i, sums_stride);
  }
  for (; i < head_dim; i += kLanes) {
    AddValuesAt<W, T, 1>(blocks, head_dim, i, range, weights, sums + i, sums_stride);
  }
}

// One chunk for a tile of T queries, the first of them query `first` of the
// item.
template <typename W, int T>
void AttendChunk(const AttendTask& task, const Item& item, int64_t chunk, int64_t first,
                 const AttendState& state) {
  const int64_t head_dim = task.spec.head_dim;
  const int64_t stride = task.scratch.padded_dim;
  TokenRange ranges[T];
  TokenRange any{kChunkTokens, 0};  // seen by one of them at least
  TokenRange all{0, kChunkTokens};  // seen by each
  for (int t = 0; t < T; ++t) {
    ranges[t] = RangeOf(task, item.row_begin + (first + t) / task.group(), chunk);
    all = {std::max(all.begin, ranges[t].begin), std::min(all.end, ranges[t].end)};
    if (ranges[t].empty()) continue;
    any = {std::min(any.begin, ranges[t].begin), std::max(any.end, ranges[t].end)};
  }
  if (any.empty()) return;
  const ChunkBlocks<W> blocks(task, item, chunk, any);
  float* scores = state.scores + first * kChunkTokens;
  float* sums = state.sums + first * stride;
  Score<W, T>(blocks, any.begin / kBlockTokens, CeilDiv(any.end, kBlockTokens),
              state.queries + first * head_dim, head_dim, scores);
  for (int t = 0; t < T; ++t) {
    if (ranges[t].empty()) continue;
    Soften(ranges[t], stride, scores + t * kChunkTokens, sums + t * stride,
           state.highest[first + t], state.totals[first + t]);
  }
  // The queries share the loads of the tokens that all of them see. The others
  // each adds alone: a weight of zero would still let a NaN of an unseen token
  // through.
  const auto alone = [&](int t, TokenRange range) HWY_ATTR {
    AddValues<W, 1>(blocks, head_dim, range, scores + t * kChunkTokens, sums + t * stride, stride);
  };
  if (all.empty()) {
    for (int t = 0; t < T; ++t) alone(t, ranges[t]);
    return;
  }
  for (int t = 0; t < T; ++t) alone(t, {ranges[t].begin, all.begin});
  AddValues<W, T>(blocks, head_dim, all, scores, sums, stride);
  for (int t = 0; t < T; ++t) alone(t, {all.end, ranges[t].end});
}

template <typename W>
void AttendChunkOf(int64_t queries, const AttendTask& task, const Item& item, int64_t chunk,
                   int64_t first, const AttendState& state) {
  switch (queries) {
    case 1:
      return AttendChunk<W, 1>(task, item, chunk, first, state);
    case 2:
      return AttendChunk<W, 2>(task, item, chunk, first, state);
    case 3:
      return AttendChunk<W, 3>(task, item, chunk, first, state);
    case 4:
      return AttendChunk<W, 4>(task, item, chunk, first, state);
    case 5:
      return AttendChunk<W, 5>(task, item, chunk, first, state);
    default:
      return AttendChunk<W, 6>(task, item, chunk, first, state);
  }
}

template <typename W>
void AttendItem(const AttendTask& task, const Item& item, const AttendState& state) {
  const int64_t head_dim = task.spec.head_dim;
  const int64_t padded = task.scratch.padded_dim;
  const int64_t group = task.group();
  const int64_t queries = (item.row_end - item.row_begin) * group;
  const Tiling tiling{queries};
  for (int64_t tile = 0; tile < tiling.tiles(); ++tile) {
    const int64_t size = tiling.size(tile);
    for (int64_t t = 0; t < size; ++t) {
      const int64_t query = tiling.begin(tile) + t;
      const float* q = task.q.row<float>(item.row_begin + query / group) +
                       (item.kv_head * group + query % group) * head_dim;
      float* to = state.queries + tiling.begin(tile) * head_dim + t;
      for (int64_t i = 0; i < head_dim; ++i) to[i * size] = q[i] * task.spec.scale;
    }
  }
  std::fill_n(state.sums, queries * padded, 0.0f);
  std::fill_n(state.highest, queries, -std::numeric_limits<float>::infinity());
  std::fill_n(state.totals, queries, 0.0f);

  // Positions rise with the rows, so the first row begins earliest and the last
  // ends last.
  const auto position = [&](int64_t row) HWY_ATTR {
    return int64_t{task.batch->positions[static_cast<size_t>(row)]};
  };
  const int64_t window = task.spec.window.value_or(std::numeric_limits<int64_t>::max());
  const int64_t earliest = std::max<int64_t>(0, position(item.row_begin) - window + 1);
  const int64_t latest = position(item.row_end - 1);
  for (int64_t chunk = earliest / kChunkTokens * kChunkTokens; chunk <= latest;
       chunk += kChunkTokens) {
    for (int64_t tile = 0; tile < tiling.tiles(); ++tile) {
      AttendChunkOf<W>(tiling.size(tile), task, item, chunk, tiling.begin(tile), state);
    }
  }
  for (int64_t i = 0; i < queries; ++i) {
    float* out = task.out.row<float>(item.row_begin + i / group) +
                 (item.kv_head * group + i % group) * head_dim;
    for (int64_t c = 0; c < head_dim; ++c) out[c] = state.sums[i * padded + c] / state.totals[i];
  }
}

void Attend(const AttendTask& task, const Item& item, const AttendState& state) {
  switch (task.cache->layout().dtype) {
    case DType::kF16:
      return AttendItem<hwy::float16_t>(task, item, state);
    case DType::kBF16:
      return AttendItem<hwy::bfloat16_t>(task, item, state);
    default:
      return AttendItem<float>(task, item, state);
  }
}

void AttendAll(const AttendTask& task, int64_t begin, int64_t end, std::byte* scratch) {
  const AttendState state(task.scratch, scratch);
  for (int64_t i = begin; i < end; ++i) {
    // Neighbouring items are the heads of the same rows.
    const auto tile = static_cast<int32_t>(i / task.spec.kv_heads);
    const auto after = std::upper_bound(task.tile_begin.begin(), task.tile_begin.end(), tile);
    const auto sequence = static_cast<size_t>(after - task.tile_begin.begin() - 1);
    const int64_t rows = task.scratch.rows(task.group());
    const int64_t row = task.batch->row_begin[sequence] + (tile - task.tile_begin[sequence]) * rows;
    Attend(task,
           {.sequence = static_cast<int64_t>(sequence),
            .kv_head = i % task.spec.kv_heads,
            .row_begin = row,
            .row_end = std::min<int64_t>(row + rows, task.batch->row_begin[sequence + 1])},
           state);
  }
}

}  // namespace
}  // namespace nibble::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble::cpu {

HWY_EXPORT(AttendAll);

namespace {

// Queries of an item: enough to reuse a chunk of the cache while it is in the
// first-level cache, few enough that their own state stays there or in the
// second.
constexpr int64_t kItemQueries = 48;

}  // namespace

AttentionScratch AttentionScratch::Of(int64_t group, int64_t head_dim) {
  return {.queries = std::max<int64_t>(1, kItemQueries / group) * group,
          .padded_dim = RoundUp<int64_t>(head_dim, 16)};
}

size_t AttentionScratch::bytes() const {
  const int64_t floats = queries * (2 * padded_dim + kChunkTokens + 2);
  return RoundUp<size_t>(static_cast<size_t>(floats) * sizeof(float), 64);
}

std::span<const int32_t> CountTiles(const Batch& batch, int64_t rows_per_tile,
                                    std::span<int32_t> tile_begin) {
  tile_begin[0] = 0;
  for (size_t s = 0; s + 1 < tile_begin.size(); ++s) {
    const int64_t rows = batch.row_begin[s + 1] - batch.row_begin[s];
    tile_begin[s + 1] = tile_begin[s] + static_cast<int32_t>(CeilDiv(rows, rows_per_tile));
  }
  return tile_begin;
}

void AttendItems(const AttendTask& task, int64_t begin, int64_t end, std::byte* scratch) {
  HWY_DYNAMIC_DISPATCH(AttendAll)(task, begin, end, scratch);
}

}  // namespace nibble::cpu
#endif  // HWY_ONCE

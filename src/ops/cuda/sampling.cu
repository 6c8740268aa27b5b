#include "src/ops/cuda/dependent_launch.cuh"
#include "src/ops/cuda/sampling.h"
#include "src/ops/cuda/warp_sum.cuh"
#include "src/ops/token_weight.h"

namespace nibble::cuda {
namespace {

// One block a row. Nothing is sorted: the last token that is kept is found digit by digit from
// histograms of the distances, the one that is drawn from sums over ranges of columns. All sums are
// of integers, so that their order does not matter.
constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / 32;
constexpr int kBuckets = 2 * kThreads;  // of a digit of 11 bits
constexpr unsigned kAll = ~0u;

using Wide = unsigned long long;  // what atomicAdd takes

struct Shared {
  unsigned low[kBuckets], high[kBuckets];  // halves of 64-bit sums, which have no fast atomics
  Wide warps[kWarps];
  Wide found[2];

  __device__ void Add(unsigned bucket, Wide value) {
    const auto half = static_cast<unsigned>(value);
    const unsigned before = atomicAdd(&low[bucket], half);
    const auto upper = static_cast<unsigned>(value >> 32) + (before + half < before ? 1u : 0u);
    if (upper != 0) atomicAdd(&high[bucket], upper);
  }
  __device__ Wide Sum(unsigned bucket) const {
    return static_cast<Wide>(high[bucket]) << 32 | low[bucket];
  }
};

__device__ int Lane() { return static_cast<int>(threadIdx.x) % 32; }
__device__ int Warp() { return static_cast<int>(threadIdx.x) / 32; }

// The sum over the lanes up to this one.
__device__ Wide WarpPrefix(Wide value) {
  for (int step = 1; step < 32; step *= 2) {
    const Wide below = __shfl_up_sync(kAll, value, step);
    if (Lane() >= step) value += below;
  }
  return value;
}

// The sum over the block, in every thread.
__device__ Wide BlockSum(Wide value, Shared& shared) {
  value = SumOverWarp(value);
  __syncthreads();
  if (Lane() == 0) shared.warps[Warp()] = value;
  __syncthreads();
  return SumOverWarp(shared.warps[Lane()]);
}

// The sum over the threads before this one.
__device__ Wide BlockPrefix(Wide value, Shared& shared) {
  const Wide in_warp = WarpPrefix(value);
  __syncthreads();
  if (Lane() == 31) shared.warps[Warp()] = in_warp;
  __syncthreads();
  const Wide warps = WarpPrefix(shared.warps[Lane()]);
  const Wide before = __shfl_sync(kAll, warps, Warp() > 0 ? Warp() - 1 : 0);
  return in_warp - value + (Warp() > 0 ? before : 0);
}

struct Row {
  const float* logits;
  int columns;
  float highest;
  float scale;

  __device__ uint32_t Distance(int column) const {
    return TokenDistance(highest, logits[column], scale);
  }
};

// A beginning of the order by distance and column: its last token.
struct Cut {
  uint32_t distance;
  int column;

  __device__ bool Keeps(uint32_t d, int c) const {
    return d < distance || (d == distance && c <= column);
  }
};

// The least column for which the sum of measure(0 … column) exceeds `rank`, which the whole sum
// does.
template <typename Measure>
__device__ int Find(Wide rank, int columns, const Measure& measure, Shared& shared) {
  int begin = 0, end = columns;
  while (end - begin > 32) {
    const int step = ((end - begin + kWarps - 1) / kWarps + 31) / 32 * 32;
    const int first = begin + Warp() * step;
    const int last = min(first + step, end);
    Wide sum = 0;
#pragma unroll 4
    for (int c = first + Lane(); c < last; c += 32) sum += measure(c);
    sum = SumOverWarp(sum);
    __syncthreads();
    if (Lane() == 0) shared.warps[Warp()] = sum;
    __syncthreads();
    const Wide part = shared.warps[Lane()];
    const Wide prefix = WarpPrefix(part);
    const int found = __ffs(static_cast<int>(__ballot_sync(kAll, prefix > rank))) - 1;
    rank -= __shfl_sync(kAll, prefix - part, found);
    begin += found * step;
    end = min(begin + step, end);
  }
  const int c = begin + Lane();
  const Wide prefix = WarpPrefix(c < end ? measure(c) : 0);
  return begin + __ffs(static_cast<int>(__ballot_sync(kAll, prefix > rank))) - 1;
}

enum class Measure { kCount, kWeight };

template <Measure kMeasure>
__device__ Wide MeasureOf(uint32_t distance) {
  return kMeasure == Measure::kCount ? 1 : TokenWeight(distance);
}

// The shortest beginning of the order whose count, or weight, is at least `target`; all tokens that
// may be drawn where they hold less. target > 0.
template <Measure kMeasure>
__device__ Cut Select(const Row& row, Wide target, Shared& shared) {
  constexpr int kDigits = 3;
  constexpr int kShift[kDigits] = {21, 10, 0};
  const int padded = (row.columns + 31) / 32 * 32;  // whole warps, for their votes
  uint32_t prefix = 0;                              // the digits that are known
  Wide group = 0;                                   // of the tokens that have them
  for (int digit = 0; digit < kDigits; ++digit) {
    const int shift = kShift[digit];
    for (int b = static_cast<int>(threadIdx.x); b < kBuckets; b += kThreads) {
      shared.low[b] = 0;
      shared.high[b] = 0;
    }
    __syncthreads();
    for (int c = static_cast<int>(threadIdx.x); c < padded; c += kThreads) {
      const uint32_t distance = c < row.columns ? row.Distance(c) : kNeverDrawn;
      const bool in = distance != kNeverDrawn &&
                      (digit == 0 || distance >> kShift[digit > 0 ? digit - 1 : 0] == prefix);
      const uint32_t bucket = in ? distance >> shift & (digit == 2 ? 1023u : 2047u) : kNeverDrawn;
      int same = 0;
      __match_all_sync(kAll, bucket, &same);
      if (same != 0) {  // equal logits must not queue up at one address
        if (bucket == kNeverDrawn) continue;
        const Wide sum = SumOverWarp(MeasureOf<kMeasure>(distance));
        if (Lane() == 0) shared.Add(bucket, sum);
      } else if (in) {
        shared.Add(bucket, MeasureOf<kMeasure>(distance));
      }
    }
    __syncthreads();
    // Each thread has two buckets.
    const unsigned b = 2 * threadIdx.x;
    const Wide low = shared.Sum(b), high = shared.Sum(b + 1);
    const Wide before = BlockPrefix(low + high, shared);
    if (threadIdx.x == 0) shared.found[0] = kBuckets;
    __syncthreads();
    if (before < target && target <= before + low + high) {
      const bool first = target <= before + low;
      shared.found[0] = first ? b : b + 1;
      shared.found[1] = target - before - (first ? 0 : low);
    }
    __syncthreads();
    // Less than the target, which only the first digit can find.
    if (shared.found[0] == kBuckets) return {kNeverDrawn - 1, row.columns - 1};
    const auto bucket = static_cast<uint32_t>(shared.found[0]);
    target = shared.found[1];
    group = shared.Sum(bucket);
    prefix = prefix << (digit == 2 ? 10 : 11) | bucket;
    __syncthreads();
  }
  // Tokens that are equally far: as many of them, by column, as the target wants.
  const Wide each = MeasureOf<kMeasure>(prefix);
  const Wide take = (target + each - 1) / each;
  if (take * each >= group) return {prefix, row.columns - 1};
  const auto equal = [&](int c) -> Wide { return row.Distance(c) == prefix; };
  return {prefix, Find(take - 1, row.columns, equal, shared)};
}

// Orders by value, then by the lower column.
struct Best {
  float value;
  int column;
};
__device__ Best Better(Best a, Best b) {
  return b.value > a.value || (b.value == a.value && b.column < a.column) ? b : a;
}

// In every thread.
__device__ Best MostProbable(const float* logits, int columns) {
  __shared__ Best bests[kWarps];
  Best best{-INFINITY, 0x7fffffff};
#pragma unroll 8
  for (int c = static_cast<int>(threadIdx.x); c < columns; c += kThreads) {
    const float value = logits[c];
    best = Better(best, {isnan(value) ? -INFINITY : value, c});
  }
  const auto reduce = [](Best& x) {
    for (int step = 16; step > 0; step /= 2) {
      x = Better(x, {__shfl_xor_sync(kAll, x.value, step), __shfl_xor_sync(kAll, x.column, step)});
    }
  };
  reduce(best);
  if (Lane() == 0) bests[Warp()] = best;
  __syncthreads();
  best = bests[Lane()];
  reduce(best);
  return best;
}

__device__ int ChooseToken(const float* logits, int columns, const TokenChoice& choice,
                           Shared& shared) {
  const Best best = MostProbable(logits, columns);
  if (choice.scale == 0) return best.column;
  const Row row{logits, columns, best.value, choice.scale};
  Cut cut{kNeverDrawn - 1, columns - 1};
  const auto weight = [&](int c) -> Wide {
    const uint32_t distance = row.Distance(c);
    return cut.Keeps(distance, c) ? TokenWeight(distance) : 0;
  };
  const auto total_weight = [&] {
    Wide sum = 0;
#pragma unroll 4
    for (int c = static_cast<int>(threadIdx.x); c < columns; c += kThreads) sum += weight(c);
    return BlockSum(sum, shared);
  };
  if (choice.top_k > 0) {
    cut = Select<Measure::kCount>(row, static_cast<Wide>(choice.top_k), shared);
  }
  Wide total = total_weight();
  if (total == 0) return best.column;  // infinite logits, or NaN alone
  const auto target = static_cast<Wide>(ceil(__dmul_rn(__ull2double_rn(total), choice.top_p)));
  if (choice.top_p < 1 && target < total) {
    cut = Select<Measure::kWeight>(row, max(target, Wide{1}), shared);
    total = total_weight();
  }
  return Find(__umul64hi(choice.random, total), columns, weight, shared);
}

__global__ void __launch_bounds__(kThreads)
    ChooseTokensKernel(const float* logits, int columns, int64_t stride, const TokenChoice* choices,
                       int32_t* tokens, int32_t* host_tokens) {
  StartNextKernel();
  WaitForLastKernel();
  __shared__ Shared shared;
  const TokenChoice choice = choices != nullptr ? choices[blockIdx.x] : TokenChoice{};
  const int token = ChooseToken(logits + blockIdx.x * stride, columns, choice, shared);
  if (threadIdx.x != 0) return;
  tokens[blockIdx.x] = token;
  host_tokens[blockIdx.x] = token;
}

}  // namespace

void ChooseTokens(Stream& stream, MatrixView logits, const TokenChoice* choices, int32_t* tokens,
                  int32_t* host_tokens) {
  if (logits.rows == 0) return;
  LaunchDependent(stream, ChooseTokensKernel, static_cast<unsigned>(logits.rows), kThreads, 0,
                  logits.row<float>(0), static_cast<int>(logits.columns), logits.stride, choices,
                  tokens, host_tokens);
  stream.CheckLaunch("choosing tokens", logits.rows, logits.columns);
}

}  // namespace nibble::cuda

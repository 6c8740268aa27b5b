#include <algorithm>

#include "src/base/checked.h"
#include "src/ops/cuda/dependent_launch.cuh"
#include "src/ops/cuda/sampling.h"
#include "src/ops/cuda/warp_sum.cuh"
#include "src/ops/token_weight.h"

#if __CUDA_ARCH__ >= 900
#include <cooperative_groups.h>
#endif

namespace nibble::cuda {
namespace {

// A row has a team of blocks: a cluster of eight where there are few rows with many columns and the
// GPU has clusters, one otherwise. Each block has consecutive columns, and of those each warp.
// Nothing is sorted: the last token that is kept is found digit by digit from histograms of the
// distances, the one that is drawn from sums over ranges of columns. All sums are of integers, so
// that neither their order nor the team matters.
constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / 32;
constexpr int kBuckets = 2 * kThreads;  // of a digit of 11 bits
constexpr unsigned kAll = ~0u;

constexpr int kCluster = 8;
// Columns of each row from which on a cluster is faster (docs/results/h200.md), for every row that
// there is: many clusters do not run at the same time, and all wait for each other's blocks.
constexpr int64_t kClusterColumns = 4000, kGreedyClusterColumns = 16000;
constexpr int64_t kFewestClusterColumns = 8 << 10;  // fewer leave warps of a cluster without work

using Wide = unsigned long long;  // what atomicAdd takes

// What blocks of a team show each other. Sync: all have come, and see what the others wrote before.
// Of: a block's variable of that name.
#if __CUDA_ARCH__ >= 900
constexpr bool kHasClusters = true;
template <int kBlocks>
struct Team {
  static __device__ void Sync() { cooperative_groups::this_cluster().sync(); }
  template <typename T>
  static __device__ const T& Of(int block, const T& shared) {
    return *cooperative_groups::this_cluster().map_shared_rank(&shared, block);
  }
};
#else
constexpr bool kHasClusters = false;
template <int kBlocks>
struct Team;
#endif
template <>
struct Team<1> {
  static __device__ void Sync() { __syncthreads(); }
  template <typename T>
  static __device__ const T& Of(int, const T& shared) {
    return shared;
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

// The first lane for which the sum over the lanes up to it exceeds `rank`, which from then on
// counts from that lane. -1 where the whole sum does not exceed it.
__device__ int FirstBeyond(Wide& rank, Wide value) {
  const Wide prefix = WarpPrefix(value);
  const int lane = __ffs(static_cast<int>(__ballot_sync(kAll, prefix > rank))) - 1;
  if (lane >= 0) rank -= __shfl_sync(kAll, prefix - value, lane);
  return lane;
}

// Orders by value, then by the lower column.
struct Best {
  float value;
  int column;
};
__device__ Best Better(Best a, Best b) {
  return b.value > a.value || (b.value == a.value && b.column < a.column) ? b : a;
}
__device__ Best BestOfWarp(Best best) {
  for (int step = 16; step > 0; step /= 2) {
    best = Better(
        best, {__shfl_xor_sync(kAll, best.value, step), __shfl_xor_sync(kAll, best.column, step)});
  }
  return best;
}

struct Histogram {
  unsigned low[kBuckets], high[kBuckets];  // halves of 64-bit sums, which have no fast atomics
  Wide warps[kWarps];                      // sums of 64 buckets

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

// What the team reads of a block after a Sync.
struct Slot {
  Histogram histogram;
  Wide total;
  Best best;
};

struct Found {
  int bucket;  // -1: none
  Wide rank;   // in it
  Wide sum;    // of it
};

struct Shared {
  // Taken in turn, one for each Sync: who comes to a Sync has read what was shown at the last one,
  // so that behind it a slot may be written again.
  Slot slots[2];
  Wide warps[kWarps];
  Best bests[kWarps];
  Found found;
};

// A beginning of the order by distance and column: its last token. A block may have any column
// before its own, or behind them, for one that is another block's.
struct Cut {
  uint32_t distance;
  int column;

  __device__ bool Keeps(uint32_t d, int c) const {
    return d < distance || (d == distance && c <= column);
  }
};

// Sums over the team's blocks.
struct Sums {
  Wide before, own, all;  // `before`: over the blocks before this one
};

enum class Measure { kCount, kWeight };

template <Measure kMeasure>
__device__ Wide MeasureOf(uint32_t distance) {
  return kMeasure == Measure::kCount ? 1 : TokenWeight(distance);
}

// Of a warp, a multiple of 32; the last warps may have fewer, or none.
__host__ __device__ constexpr int ColumnsOfWarp(int columns, int blocks) {
  return CeilDiv(columns, blocks * kThreads) * 32;
}

// One block's part in a row.
template <int kBlocks>
class Chooser {
 public:
  // distances: for the block's columns, in a cluster.
  __device__ Chooser(const float* logits, int columns, Shared& shared, uint32_t* distances)
      : logits_(logits),
        columns_(columns),
        of_warp_(ColumnsOfWarp(columns, kBlocks)),
        begin_(min(block_ * kWarps * of_warp_, columns)),
        end_(min(begin_ + kWarps * of_warp_, columns)),
        distances_(distances),
        shared_(shared) {}

  __device__ bool Has(int column) const { return column >= begin_ && column < end_; }

  // The token, at least in the block that has it; the others may get a column of no block.
  __device__ int Choose(const TokenChoice& choice) {
    const Best best = MostProbable();
    if (choice.scale == 0) return best.column;
    highest_ = best.value;
    scale_ = choice.scale;
    if constexpr (kBlocks > 1) {
#pragma unroll 4
      for (int c = WarpBegin() + Lane(); c < WarpEnd(); c += 32) {
        distances_[c - begin_] = TokenDistance(highest_, logits_[c], scale_);
      }
    }
    Cut cut{kNeverDrawn - 1, columns_ - 1};
    const auto weight = [&](int c) -> Wide {
      const uint32_t distance = Distance(c);
      return cut.Keeps(distance, c) ? TokenWeight(distance) : 0;
    };
    if (choice.top_k > 0) {
      cut = Select<Measure::kCount>(static_cast<Wide>(choice.top_k) - 1, cut);
    }
    Sums sums = SumOf(weight);
    if (sums.all == 0) return best.column;  // infinite logits, or NaN alone
    const auto target = static_cast<Wide>(ceil(__dmul_rn(__ull2double_rn(sums.all), choice.top_p)));
    if (choice.top_p < 1 && target < sums.all) {
      cut = Select<Measure::kWeight>(max(target, Wide{1}) - 1, cut);
      sums = SumOf(weight);
    }
    return Find(__umul64hi(choice.random, sums.all), sums, weight);
  }

 private:
  __device__ int WarpBegin() const { return min(begin_ + Warp() * of_warp_, end_); }
  __device__ int WarpEnd() const { return min(WarpBegin() + of_warp_, end_); }

  __device__ uint32_t Distance(int column) const {
    if constexpr (kBlocks > 1) return distances_[column - begin_];
    return TokenDistance(highest_, logits_[column], scale_);
  }

  __device__ Slot& NextSlot() {
    turn_ ^= 1;
    return shared_.slots[turn_];
  }

  // In every thread.
  __device__ Best MostProbable() {
    Best best{-INFINITY, 0x7fffffff};
#pragma unroll 8
    for (int c = WarpBegin() + Lane(); c < WarpEnd(); c += 32) {
      const float value = logits_[c];
      best = Better(best, {isnan(value) ? -INFINITY : value, c});
    }
    best = BestOfWarp(best);
    if (Lane() == 0) shared_.bests[Warp()] = best;
    __syncthreads();
    best = BestOfWarp(shared_.bests[Lane()]);
    Slot& slot = NextSlot();
    if (threadIdx.x == 0) slot.best = best;
    Team<kBlocks>::Sync();
    return BestOfWarp(Team<kBlocks>::Of(Lane() % kBlocks, slot).best);
  }

  // Each warp's sum over its columns of begin … end, so many for each warp.
  template <typename Measure>
  __device__ void SumWarps(int begin, int end, int of_warp, const Measure& measure) {
    const int first = begin + Warp() * of_warp;
    const int last = min(first + of_warp, end);
    Wide sum = 0;
#pragma unroll 4
    for (int c = first + Lane(); c < last; c += 32) sum += measure(c);
    sum = SumOverWarp(sum);
    __syncthreads();
    if (Lane() == 0) shared_.warps[Warp()] = sum;
    __syncthreads();
  }

  // Over all columns. The warps' sums stay for Find.
  template <typename Measure>
  __device__ Sums SumOf(const Measure& measure) {
    SumWarps(begin_, end_, of_warp_, measure);
    const Wide own = SumOverWarp(shared_.warps[Lane()]);
    Slot& slot = NextSlot();
    if (threadIdx.x == 0) slot.total = own;
    Team<kBlocks>::Sync();
    const Wide total = Lane() < kBlocks ? Team<kBlocks>::Of(Lane(), slot).total : 0;
    return {SumOverWarp(Lane() < block_ ? total : 0), own, SumOverWarp(total)};
  }

  // The least column for which the sum of measure(0 … column) exceeds `rank`, which the whole sum
  // does; `sums` is SumOf(measure), the last that was asked for. Where it is another block's, a
  // column before this block's, or behind them, as that one is.
  template <typename Measure>
  __device__ int Find(Wide rank, const Sums& sums, const Measure& measure) {
    if (rank < sums.before) return -1;
    rank -= sums.before;
    if (rank >= sums.own) return columns_;
    int begin = begin_, end = end_, of_warp = of_warp_;
    for (;;) {
      begin += FirstBeyond(rank, shared_.warps[Lane()]) * of_warp;
      end = min(begin + of_warp, end);
      if (of_warp == 32) break;
      of_warp = ColumnsOfWarp(end - begin, 1);
      SumWarps(begin, end, of_warp, measure);
    }
    const int c = begin + Lane();
    return begin + FirstBeyond(rank, c < end ? measure(c) : 0);
  }

  // The shortest beginning of the order whose count, or weight, exceeds `rank`, of what `within`
  // keeps; `within` where that holds no more.
  template <Measure kMeasure>
  __device__ Cut Select(Wide rank, Cut within) {
    uint32_t base = 0, span = ~0u;  // the distances that have the known digits: base … base + span
    Wide group = 0;                 // of their tokens
    for (int shift = 21; span > 0; shift = max(shift - 11, 0)) {
      Histogram& histogram = NextSlot().histogram;
      for (int b = static_cast<int>(threadIdx.x); b < kBuckets; b += kThreads) {
        histogram.low[b] = 0;
        histogram.high[b] = 0;
      }
      __syncthreads();
      // Whole warps, for their votes.
      for (int first = WarpBegin(); first < WarpEnd(); first += 32) {
        const int c = first + Lane();
        const uint32_t distance = c < end_ ? Distance(c) : kNeverDrawn;
        const bool in = distance - base <= span && within.Keeps(distance, c);
        const uint32_t bucket = in ? (distance - base) >> shift : kNeverDrawn;
        int same = 0;
        __match_all_sync(kAll, bucket, &same);
        if (same != 0) {  // equal logits must not queue up at one address
          if (bucket == kNeverDrawn) continue;
          const Wide sum = SumOverWarp(MeasureOf<kMeasure>(distance));
          if (Lane() == 0) histogram.Add(bucket, sum);
        } else if (in) {
          histogram.Add(bucket, MeasureOf<kMeasure>(distance));
        }
      }
      __syncthreads();
      // Each thread has two buckets.
      const unsigned b = 2 * threadIdx.x;
      const Wide sum = SumOverWarp(histogram.Sum(b) + histogram.Sum(b + 1));
      if (Lane() == 0) histogram.warps[Warp()] = sum;
      Team<kBlocks>::Sync();
      if (Warp() == 0) FindBucket(rank, histogram);
      __syncthreads();
      const Found& found = shared_.found;
      if (found.bucket < 0) return within;  // which only the first digit can find
      rank = found.rank;
      group = found.sum;
      base += static_cast<uint32_t>(found.bucket) << shift;
      span = (1u << shift) - 1;
    }
    // Tokens that are equally far: as many of them, by column, as the rank wants.
    const Wide each = MeasureOf<kMeasure>(base);
    rank /= each;
    if ((rank + 1) * each >= group) {
      return {base, base == within.distance ? within.column : columns_ - 1};
    }
    const auto equal = [&](int c) -> Wide {
      const uint32_t distance = Distance(c);
      return distance == base && within.Keeps(distance, c);
    };
    return {base, Find(rank, SumOf(equal), equal)};
  }

  // By one warp: the bucket of the team's histograms in which the sum first exceeds `rank`.
  __device__ void FindBucket(Wide rank, const Histogram& histogram) {
    Wide sum = 0;
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) sum += Team<kBlocks>::Of(i, histogram).warps[Lane()];
    const int warp = FirstBeyond(rank, sum);
    if (warp < 0) {
      if (Lane() == 0) shared_.found.bucket = -1;
      return;
    }
    const int bucket = 64 * warp + 2 * Lane();
    Wide low = 0, high = 0;
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
      const Histogram& of_block = Team<kBlocks>::Of(i, histogram);
      low += of_block.Sum(bucket);
      high += of_block.Sum(bucket + 1);
    }
    if (FirstBeyond(rank, low + high) != Lane()) return;
    shared_.found = rank < low ? Found{bucket, rank, low} : Found{bucket + 1, rank - low, high};
  }

  const float* logits_;
  const int columns_;
  const int block_ = static_cast<int>(blockIdx.x) % kBlocks;  // of the team
  const int of_warp_;
  const int begin_, end_;  // the block's columns
  uint32_t* distances_;
  Shared& shared_;
  int turn_ = 0;
  float highest_ = 0, scale_ = 0;
};

template <int kBlocks>
__global__ void __launch_bounds__(kThreads, 1)
    ChooseTokensKernel(const float* logits, int columns, int64_t stride, const TokenChoice* choices,
                       int32_t* tokens, int32_t* host_tokens) {
  if constexpr (kBlocks == 1 || kHasClusters) {
    StartNextKernel();
    WaitForLastKernel();
    __shared__ Shared shared;
    extern __shared__ uint32_t distances[];
    const unsigned row = blockIdx.x / kBlocks;
    Chooser<kBlocks> chooser(logits + row * stride, columns, shared, distances);
    const int token = chooser.Choose(choices != nullptr ? choices[row] : TokenChoice{});
    if (threadIdx.x == 0 && chooser.Has(token)) {
      tokens[row] = token;
      host_tokens[row] = token;
    }
    Team<kBlocks>::Sync();  // others may still read the block's slots
  }
}

// Bytes that a cluster's blocks may have for distances; none where there are no clusters.
int RoomForDistances() {
  static const int room = [] {
    // Without clusters the kernel is empty and has no shared memory.
    cudaFuncAttributes attributes{};
    if (cudaFuncGetAttributes(&attributes, ChooseTokensKernel<kCluster>) != cudaSuccess ||
        attributes.sharedSizeBytes == 0) {
      return 0;
    }
    int device = 0, most = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    return most - static_cast<int>(attributes.sharedSizeBytes);
  }();
  return room;
}

}  // namespace

void ChooseTokens(Stream& stream, MatrixView logits, const TokenChoice* choices, int32_t* tokens,
                  int32_t* host_tokens) {
  if (logits.rows == 0) return;
  const auto columns = static_cast<int>(logits.columns);
  const auto launch = [&](auto* kernel, unsigned blocks, int shared_bytes) {
    LaunchDependentClusters(stream, kernel, blocks, blocks * static_cast<unsigned>(logits.rows),
                            kThreads, static_cast<size_t>(shared_bytes), logits.row<float>(0),
                            columns, logits.stride, choices, tokens, host_tokens);
  };
  const int distance_bytes =
      ColumnsOfWarp(columns, kCluster) * kWarps * static_cast<int>(sizeof(uint32_t));
  const int64_t worth = choices != nullptr ? kClusterColumns : kGreedyClusterColumns;
  if (columns >= std::max(kFewestClusterColumns, logits.rows * worth) &&
      distance_bytes <= RoomForDistances()) {
    launch(ChooseTokensKernel<kCluster>, kCluster, distance_bytes);
  } else {
    launch(ChooseTokensKernel<1>, 1, 0);
  }
  stream.CheckLaunch("choosing tokens", logits.rows, logits.columns);
}

}  // namespace nibble::cuda

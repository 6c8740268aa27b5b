// Prefill attention with Hopper's warpgroup products (after FlashAttention-3, arXiv:2407.08608).
//
// A block has a tile's 128 queries of one head. Two warpgroups have 64 of them each; a third brings
// keys and values, 128 at a time, through a ring each. A warpgroup starts the scores of the next keys
// before it adds this step's values, so that exponentials and products overlap.
#include <algorithm>

#include "src/ops/cuda/attention_common.cuh"
#include "src/ops/cuda/attention_prefill.cuh"
#include "src/ops/cuda/hopper.cuh"

namespace nibble::cuda {
namespace {

constexpr int kGroupThreads = 128, kGroupRows = 64;  // of a warpgroup
constexpr int kConsumers = kPrefillRows / kGroupRows * kGroupThreads;
constexpr int kThreads = kConsumers + kGroupThreads;
constexpr int kConsumerRegisters = 232, kCopyRegisters = 40;
static_assert(2 * kConsumerRegisters + kCopyRegisters <= 3 * 168);  // what a block begins with
constexpr int kKeys = 128;                                          // of a step
constexpr int kStages = 2;
constexpr int kAlignment = 1024;  // of matrices in shared memory

// Queries, keys and values all lie in shared memory as SwizzledDescriptor says.
constexpr int kPanelBytes = kKeys * 128;
static_assert(kKeys == kPrefillRows);
template <int kDim>
inline constexpr int kMatrixBytes = kDim / 64 * kPanelBytes;
template <int kDim>
inline constexpr int kSharedBytes = (1 + 2 * kStages) * kMatrixBytes<kDim> + kAlignment;

struct Barriers {
  uint64_t queries;
  // Of keys and of values.
  uint64_t full[2][kStages], empty[2][kStages];
};

#if NIBBLE_HOPPER_CODE

__device__ uint32_t ChunkOffset(int row, int chunk) {
  return static_cast<uint32_t>(chunk / 8 * kPanelBytes + row * 128 + (chunk % 8 ^ row % 8) * 16);
}

// A block's part of the work.
struct Task {
  __device__ explicit Task(const PrefillArguments& a) {
    const PrefillTile tile = a.tiles[blockIdx.y];
    head = static_cast<int>(blockIdx.x);
    first_row = tile.first_row;
    rows = min(kPrefillRows, a.row_begin[tile.sequence + 1] - first_row);
    table = a.block_tables + tile.sequence * a.table_stride;
    end_token = a.positions[first_row + rows - 1] + 1;
    first_step = max(0, a.positions[first_row] - a.window + 1) / kKeys;
  }
  int head, first_row, rows, end_token, first_step;
  const int32_t* table;
};

// The ring's place of step n of a block.
struct Place {
  __device__ explicit Place(int n) : stage(n % kStages), parity(n / kStages % 2) {}
  int stage;
  uint32_t parity;
};

template <typename T, int kDim>
class Copier {
  static constexpr int kChunks = kDim / 8;                       // of a row
  static constexpr int kRowsAtOnce = kGroupThreads / kChunks;    // a multiple of 8
  static constexpr int kPages = kKeys / kBlockTokens;            // of a step

 public:
  __device__ Copier(const PrefillArguments& a, const Task& task)
      : a_(a), task_(task), thread_(static_cast<int>(threadIdx.x) - kConsumers) {
    row_ = thread_ / kChunks;
    chunk_ = thread_ % kChunks;
    offset_ = ChunkOffset(row_, chunk_);
  }

  // Rows from the task's end on become zeros.
  __device__ void CopyQueries(uint32_t to) const {
    const T* from = static_cast<const T*>(a_.q) + task_.first_row * a_.q_stride +
                    static_cast<int64_t>(task_.head) * kDim + chunk_ * 8;
#pragma unroll
    for (int row = 0; row < kPrefillRows; row += kRowsAtOnce) {
      const bool wanted = row + row_ < task_.rows;
      CopyAsync16(to + offset_ + row * 128, wanted ? from + (row + row_) * a_.q_stride : from,
                  wanted);
    }
  }

  __device__ void FindPages(int step, int (&pages)[kPages]) const {
#pragma unroll
    for (int i = 0; i < kPages; ++i) {
      const int page = step * kPages + i;
      pages[i] = page * kBlockTokens < task_.end_token ? task_.table[page] : 0;
    }
  }
  // Keys or values of a step; those of tokens from end_token on become zeros, since their slots
  // may hold anything, even NaN.
  __device__ void Copy(const void* part, const int (&pages)[kPages], int step, uint32_t to) const {
    const int tokens = task_.end_token - step * kKeys - row_;
    const T* const base = static_cast<const T*>(part) + row_ * kDim + chunk_ * 8;
    const int kv_head = task_.head / a_.group;
#pragma unroll
    for (int i = 0; i < kPages; ++i) {
      const T* from = base + (static_cast<int64_t>(pages[i]) * a_.kv_heads + kv_head) *
                                 (kBlockTokens * kDim);
#pragma unroll
      for (int slot = 0; slot < kBlockTokens; slot += kRowsAtOnce) {
        const int token = i * kBlockTokens + slot;
        CopyAsync16(to + offset_ + token * 128, from + slot * kDim, token < tokens);
      }
    }
  }

  // The third warpgroup's part.
  __device__ void Run(uint32_t shared, Barriers& barriers) const {
    CopyQueries(shared);
    ArriveAfterCopies(SharedAddress(&barriers.queries));
    const int end_step = (task_.end_token + kKeys - 1) / kKeys;
    int pages[kPages];
    FindPages(task_.first_step, pages);
    for (int step = task_.first_step; step < end_step; ++step) {
      const int n = step - task_.first_step;
      const Place place(n);
      int next_pages[kPages];
      FindPages(step + 1, next_pages);
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        if (n >= kStages) {
          WaitForPhase(SharedAddress(&barriers.empty[part][place.stage]), place.parity ^ 1);
        }
        Copy(part == 0 ? a_.keys : a_.values, pages, step,
             shared + (1 + 2 * place.stage + part) * kMatrixBytes<kDim>);
        ArriveAfterCopies(SharedAddress(&barriers.full[part][place.stage]));
      }
#pragma unroll
      for (int i = 0; i < kPages; ++i) pages[i] = next_pages[i];
    }
  }

 private:
  const PrefillArguments& a_;
  const Task& task_;
  int thread_, row_, chunk_;
  uint32_t offset_;
};

template <int kTiles>
__device__ float (&Flat(float (&tiles)[kTiles][4]))[kTiles * 4] {
  return reinterpret_cast<float(&)[kTiles * 4]>(tiles);
}
template <int kTiles>
__device__ void PinAll(float (&tiles)[kTiles][4]) {
#pragma unroll
  for (int i = 0; i < 4 * kTiles; ++i) Pin(tiles[i / 4][i % 4]);
}

// One warpgroup's 64 queries.
template <typename T, int kDim>
class Consumer {
  static constexpr int kKeyTiles = kKeys / 8, kDimTiles = kDim / 8, kKeySteps = kKeys / 16;

 public:
  __device__ Consumer(const PrefillArguments& a, const Task& task, unsigned char* memory,
                      Barriers& barriers)
      : a_(a), task_(task), memory_(memory), barriers_(barriers) {
    shared_ = SharedAddress(memory);
    group_row_ = static_cast<int>(threadIdx.x) / kGroupThreads * kGroupRows;
    rows_ = min(kGroupRows, task.rows - group_row_);
    const int32_t* positions = a.positions + task.first_row + group_row_;
    first_position_ = positions[0];
    last_position_ = positions[rows_ - 1];
#pragma unroll
    for (int r = 0; r < 2; ++r) position_[r] = positions[min(Row(r), rows_ - 1)];
    queries_ = SwizzledDescriptor(shared_ + group_row_ * 128, kPanelBytes);
  }

  __device__ void Run() {
    const int end_step = last_position_ / kKeys + 1;
    float out[kDimTiles][4] = {};
    uint32_t weights[kKeySteps][4];
    WaitForPhase(SharedAddress(&barriers_.queries), 0);
    {
      float scores[kKeyTiles][4], factors[2];
      BeginScores(0, scores);
      WaitForProducts<0>();
      PinAll(scores);
      Release(0, 0);
      Weigh(task_.first_step, scores, factors);
      Pack(scores, weights);
    }
    int n = 0;  // the step whose values are to be added
    for (int step = task_.first_step + 1; step < end_step; ++step, ++n) {
      float scores[kKeyTiles][4], factors[2];
      BeginScores(n + 1, scores);
      BeginValues(n, weights, out);
      WaitForProducts<1>();
      PinAll(scores);
      Release(0, n + 1);
      Weigh(step, scores, factors);
      WaitForProducts<0>();
      PinAll(out);
      Release(1, n);
      ScaleRows(factors, out);
      Pack(scores, weights);
    }
    BeginValues(n, weights, out);
    WaitForProducts<0>();
    PinAll(out);
    Store(out);
  }

 private:
  // In the warpgroup, of this lane's sums 2 · r and 2 · r + 1.
  __device__ int Row(int r) const {
    return static_cast<int>(threadIdx.x) % kGroupThreads / 32 * 16 + r * 8 +
           static_cast<int>(threadIdx.x) % 32 / 4;
  }
  // part: 0 keys, 1 values.
  __device__ uint64_t WaitFor(int part, int n) const {
    const Place place(n);
    WaitForPhase(SharedAddress(&barriers_.full[part][place.stage]), place.parity);
    ShowToProducts();
    return SwizzledDescriptor(shared_ + (1 + 2 * place.stage + part) * kMatrixBytes<kDim>,
                              kPanelBytes);
  }
  __device__ void Release(int part, int n) const {
    if (threadIdx.x % 32 == 0) Arrive(SharedAddress(&barriers_.empty[part][Place(n).stage]));
  }

  __device__ void BeginScores(int n, float (&scores)[kKeyTiles][4]) const {
    const uint64_t keys = WaitFor(0, n);
    BeginProducts();
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
      const int offset = (step % 4 * 32 + step / 4 * kPanelBytes) / 16;
      MultiplyShared<T, kKeys>(Flat(scores), queries_ + offset, keys + offset, step > 0);
    }
    CommitProducts();
  }
  __device__ void BeginValues(int n, const uint32_t (&weights)[kKeySteps][4],
                              float (&out)[kDimTiles][4]) const {
    const uint64_t values = WaitFor(1, n);
    BeginProducts();
#pragma unroll
    for (int step = 0; step < kKeySteps; ++step) {
      MultiplyTransposed<T, kDim>(Flat(out), weights[step], values + step * (16 * 128 / 16), 1);
    }
    CommitProducts();
  }

  __device__ void Weigh(int step, float (&scores)[kKeyTiles][4], float (&factors)[2]) {
    const int token = step * kKeys;
    const bool all_seen =
        token + kKeys - 1 <= first_position_ && token > last_position_ - a_.window;
    if (!all_seen) {
      const int first = token + static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
      for (int t = 0; t < kKeyTiles; ++t) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int key = first + t * 8 + j % 2, at = position_[j / 2];
          if (key > at || key <= at - a_.window) scores[t][j] = -INFINITY;
        }
      }
    }
    SoftmaxWeights(a_.scale_log2, scores, highest_, sums_, factors);
  }

  __device__ static void Pack(const float (&scores)[kKeyTiles][4],
                              uint32_t (&weights)[kKeySteps][4]) {
#pragma unroll
    for (int i = 0; i < 4 * kKeySteps; ++i) {
      const float* pair = &scores[i / 2][i % 2 * 2];
      weights[i / 4][i % 4] = PackHalves<T>(pair[0], pair[1]);
    }
  }

  // Through shared memory, where the queries were, to write whole rows. Each warp has its own.
  __device__ void Store(const float (&out)[kDimTiles][4]) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    asm volatile("bar.sync %0, %1;" ::"r"(1 + group_row_ / kGroupRows), "n"(kGroupThreads)
                 : "memory");  // no warp's products read the queries any more
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float factor = 1 / SumOverQuad(sums_[r]);
#pragma unroll
      for (int t = 0; t < kDimTiles; ++t) {
        *reinterpret_cast<uint32_t*>(memory_ + ChunkOffset(group_row_ + Row(r), t) + lane % 4 * 4) =
            PackHalves<T>(out[t][2 * r] * factor, out[t][2 * r + 1] * factor);
      }
    }
    __syncwarp();
    constexpr int kChunks = kDim / 8;
    T* to = static_cast<T*>(a_.out) + (task_.first_row + group_row_) * a_.out_stride +
            static_cast<int64_t>(task_.head) * kDim;
    const int first_row = Row(0) - lane / 4;
#pragma unroll
    for (int i = lane; i < 16 * kChunks; i += 32) {
      const int row = first_row + i / kChunks, chunk = i % kChunks;
      if (row < rows_) {
        *reinterpret_cast<uint4*>(to + row * a_.out_stride + chunk * 8) =
            *reinterpret_cast<const uint4*>(memory_ + ChunkOffset(group_row_ + row, chunk));
      }
    }
  }

  const PrefillArguments& a_;
  const Task& task_;
  unsigned char* memory_;
  Barriers& barriers_;
  uint32_t shared_;
  uint64_t queries_;
  int group_row_, rows_, first_position_, last_position_, position_[2];
  float highest_[2] = {-INFINITY, -INFINITY}, sums_[2] = {};
};

#endif  // NIBBLE_HOPPER_CODE

// Grid: [heads, tiles].
template <typename T, int kDim>
__global__ void __launch_bounds__(kThreads, 1)
    HopperPrefillKernel(const __grid_constant__ PrefillArguments a) {
#if NIBBLE_HOPPER_CODE
  extern __shared__ unsigned char unaligned[];
  __shared__ Barriers barriers;
  unsigned char* const memory =
      unaligned + (kAlignment - SharedAddress(unaligned) % kAlignment) % kAlignment;
  StartNextKernel();
  WaitForLastKernel();
  const Task task(a);
  const int groups = (task.rows + kGroupRows - 1) / kGroupRows;
  if (threadIdx.x == 0) {
    InitializeBarrier(SharedAddress(&barriers.queries), kGroupThreads);
    for (int part = 0; part < 2; ++part) {
      for (int i = 0; i < kStages; ++i) {
        InitializeBarrier(SharedAddress(&barriers.full[part][i]), kGroupThreads);
        InitializeBarrier(SharedAddress(&barriers.empty[part][i]), groups * kGroupThreads / 32);
      }
    }
    PublishBarriers();
  }
  __syncthreads();
  if (threadIdx.x >= kConsumers) {
    GiveRegisters<kCopyRegisters>();
    Copier<T, kDim>(a, task).Run(SharedAddress(memory), barriers);
  } else {
    TakeRegisters<kConsumerRegisters>();
    if (static_cast<int>(threadIdx.x) / kGroupThreads < groups) {
      Consumer<T, kDim>(a, task, memory, barriers).Run();
    }
  }
#endif
}

}  // namespace

bool CanUseHopperPrefill(const AttentionSpec& attention) {
  if (attention.head_dim != 64 && attention.head_dim != 128) return false;
  // Without Hopper's code the kernel is empty and has no barriers.
  cudaFuncAttributes attributes;
  return cudaFuncGetAttributes(&attributes, HopperPrefillKernel<__half, 64>) == cudaSuccess &&
         attributes.sharedSizeBytes > 0;
}

void HopperPrefill(Stream& stream, DType dtype, const PrefillArguments& arguments, int64_t heads,
                   int64_t tiles) {
  const dim3 grid(static_cast<unsigned>(heads), static_cast<unsigned>(tiles));
  WithHalfType(dtype, [&]<typename T>() {
    if (arguments.head_dim == 64) {
      LaunchDependent(stream, HopperPrefillKernel<T, 64>, grid, kThreads, kSharedBytes<64>,
                      arguments);
    } else {
      LaunchDependent(stream, HopperPrefillKernel<T, 128>, grid, kThreads, kSharedBytes<128>,
                      arguments);
    }
  });
}

}  // namespace nibble::cuda

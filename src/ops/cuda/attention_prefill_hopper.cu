// Prefill attention with Hopper's warpgroup products (after FlashAttention-3, arXiv:2407.08608).
//
// As many blocks as there are multiprocessors share the tasks: a tile's 128 queries of one head.
// Two warpgroups have 64 of them each; a third brings keys and values, 128 at a time, through a
// ring each, and the next task's while this one's are still being used. A warpgroup starts the
// scores of the next keys before it adds this step's values, so that exponentials and products
// overlap.
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
constexpr int kQueryStages = 2;
constexpr int kAlignment = 1024;  // of matrices in shared memory

// Queries, keys and values all lie in shared memory as SwizzledDescriptor says.
constexpr int kPanelBytes = kKeys * 128;
static_assert(kKeys == kPrefillRows);
template <int kDim>
inline constexpr int kMatrixBytes = kDim / 64 * kPanelBytes;
template <int kDim>
inline constexpr int kSharedBytes = (kQueryStages + 2 * kStages) * kMatrixBytes<kDim> + kAlignment;

// Consecutive rows of one sequence, all of them at consecutive positions, and one head.
struct Task {
  int head, first_row, rows, first_position;
  int first_step, end_step;  // of the keys that its queries see
};

// Besides the matrices.
struct Shared {
  uint64_t queries_full[kQueryStages], queries_empty[kQueryStages];
  uint64_t full[2][kStages], empty[2][kStages];  // of keys and of values
  Task tasks[kQueryStages];                      // published with the queries
};

#if NIBBLE_HOPPER_CODE

__device__ uint32_t ChunkOffset(int row, int chunk) {
  return static_cast<uint32_t>(chunk / 8 * kPanelBytes + row * 128 + (chunk % 8 ^ row % 8) * 16);
}

// A block's n-th task, of all that are counted tile by tile. Tiles come with the longest contexts
// first, so every other round goes backwards to even things out.
__device__ int TaskIndex(int n) {
  const auto blocks = static_cast<int>(gridDim.x), block = static_cast<int>(blockIdx.x);
  return n * blocks + (n % 2 == 0 ? block : blocks - 1 - block);
}

// Where in a ring the n-th thing lies, and the parity of its barrier's phase.
template <int kPlaces>
struct Place {
  __device__ explicit Place(int n) : stage(n % kPlaces), parity(n / kPlaces % 2) {}
  int stage;
  uint32_t parity;
};

template <int kDim>
__device__ uint32_t KeysOrValues(uint32_t matrices, int stage, int part) {
  return matrices + (kQueryStages + 2 * stage + part) * kMatrixBytes<kDim>;
}

// The third warpgroup's part.
template <typename T, int kDim>
class Copier {
  static constexpr int kChunks = kDim / 8;                     // of a row
  static constexpr int kRowsAtOnce = kGroupThreads / kChunks;  // a multiple of 8
  static constexpr int kPages = kKeys / kBlockTokens;          // of a step

 public:
  __device__ Copier(const PrefillArguments& a, uint32_t matrices, Shared& shared)
      : a_(a), matrices_(matrices), shared_(shared) {
    const int thread = static_cast<int>(threadIdx.x) - kConsumers;
    row_ = thread / kChunks;
    column_ = thread % kChunks * 8;
    offset_ = ChunkOffset(row_, thread % kChunks);
  }

  __device__ void Run(int heads, int tasks) {
    int n = 0;  // steps
    for (int i = 0; TaskIndex(i) < tasks; ++i) {
      const PrefillTile tile = a_.tiles[TaskIndex(i) / heads];
      Task task{.head = TaskIndex(i) % heads, .first_row = tile.first_row};
      task.rows = min(kPrefillRows, a_.row_begin[tile.sequence + 1] - task.first_row);
      task.first_position = a_.positions[task.first_row];
      const int end_token = task.first_position + task.rows;
      task.first_step = max(0, task.first_position - a_.window + 1) / kKeys;
      task.end_step = (end_token + kKeys - 1) / kKeys;
      const int32_t* table = a_.block_tables + tile.sequence * a_.table_stride;
      int pages[kPages];
      FindPages(table, task.first_step, end_token, pages);

      const Place<kQueryStages> queries(i);
      const uint32_t full = SharedAddress(&shared_.queries_full[queries.stage]);
      if (i >= kQueryStages) {
        WaitForPhase(SharedAddress(&shared_.queries_empty[queries.stage]), queries.parity ^ 1);
      }
      if (threadIdx.x == kConsumers) {
        shared_.tasks[queries.stage] = task;
        Arrive(full);
      }
      CopyQueries(task, matrices_ + queries.stage * kMatrixBytes<kDim>);
      ArriveAfterCopies(full);
      for (int step = task.first_step; step < task.end_step; ++step, ++n) {
        const Place<kStages> place(n);
        int next_pages[kPages];
        FindPages(table, step + 1, end_token, next_pages);
#pragma unroll
        for (int part = 0; part < 2; ++part) {
          if (n >= kStages) {
            WaitForPhase(SharedAddress(&shared_.empty[part][place.stage]), place.parity ^ 1);
          }
          Copy(part == 0 ? a_.keys : a_.values, pages, task.head / a_.group,
               end_token - step * kKeys, KeysOrValues<kDim>(matrices_, place.stage, part));
          ArriveAfterCopies(SharedAddress(&shared_.full[part][place.stage]));
        }
#pragma unroll
        for (int j = 0; j < kPages; ++j) pages[j] = next_pages[j];
      }
    }
  }

 private:
  // Rows that the task does not have become zeros.
  __device__ void CopyQueries(const Task& task, uint32_t to) const {
    const T* from = static_cast<const T*>(a_.q) + task.first_row * a_.q_stride +
                    static_cast<int64_t>(task.head) * kDim + column_;
#pragma unroll
    for (int row = 0; row < kPrefillRows; row += kRowsAtOnce) {
      const bool wanted = row + row_ < task.rows;
      CopyAsync16(to + offset_ + row * 128, wanted ? from + (row + row_) * a_.q_stride : from,
                  wanted);
    }
  }
  __device__ static void FindPages(const int32_t* table, int step, int end_token,
                                   int (&pages)[kPages]) {
#pragma unroll
    for (int i = 0; i < kPages; ++i) {
      const int page = step * kPages + i;
      pages[i] = page * kBlockTokens < end_token ? table[page] : 0;
    }
  }
  // Keys or values of a step. Only the first `tokens` exist; others become zeros, since their slots
  // may hold anything, even NaN.
  __device__ void Copy(const void* part, const int (&pages)[kPages], int kv_head, int tokens,
                       uint32_t to) const {
    const T* const base = static_cast<const T*>(part) + row_ * kDim + column_;
#pragma unroll
    for (int i = 0; i < kPages; ++i) {
      const T* from =
          base + (static_cast<int64_t>(pages[i]) * a_.kv_heads + kv_head) * (kBlockTokens * kDim);
#pragma unroll
      for (int slot = 0; slot < kBlockTokens; slot += kRowsAtOnce) {
        const int token = i * kBlockTokens + slot;
        CopyAsync16(to + offset_ + token * 128, from + slot * kDim, token + row_ < tokens);
      }
    }
  }

  const PrefillArguments& a_;
  uint32_t matrices_;
  Shared& shared_;
  int row_, column_;
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
  __device__ Consumer(const PrefillArguments& a, unsigned char* memory, Shared& shared)
      : a_(a), memory_(memory), shared_(shared) {
    matrices_ = SharedAddress(memory);
    group_row_ = static_cast<int>(threadIdx.x) / kGroupThreads * kGroupRows;
  }

  __device__ void Run(int tasks) {
    if (group_row_ > 0) GiveTurn();
    int n = 0;  // steps
    for (int i = 0; TaskIndex(i) < tasks; ++i) {
      const Place<kQueryStages> queries(i);
      WaitForPhase(SharedAddress(&shared_.queries_full[queries.stage]), queries.parity);
      const Task& task = shared_.tasks[queries.stage];
      const int offset = queries.stage * kMatrixBytes<kDim> + group_row_ * 128;
      const int steps = task.end_step - task.first_step;
      const int done = Attend(task, n, offset);
      for (int step = done; step < steps; ++step) {
        if (step > 0) TakeTurn();
        if (step > 0) GiveTurn();
        Skip(n + step);
      }
      n += steps;
      __syncwarp();
      if (threadIdx.x % 32 == 0) Arrive(SharedAddress(&shared_.queries_empty[queries.stage]));
    }
  }

 private:
  // The warpgroups issue their products in turns, one for each step of a task but the first, so
  // that one's exponentials fall in the time of the other's products. Both take part in all steps.
  __device__ void TakeTurn() const {
    asm volatile("bar.sync %0, %1;" ::"r"(3 + group_row_ / kGroupRows), "n"(kConsumers) : "memory");
  }
  __device__ void GiveTurn() const {
    asm volatile("bar.arrive %0, %1;" ::"r"(4 - group_row_ / kGroupRows), "n"(kConsumers)
                 : "memory");
  }

  // The task's steps that this group's queries need, the first of which is the block's n-th; how
  // many they were.
  __device__ int Attend(const Task& task, int n, int queries_offset) {
    const int rows = min(kGroupRows, task.rows - group_row_);
    if (rows <= 0) return 0;
    first_position_ = task.first_position + group_row_;
    last_position_ = first_position_ + rows - 1;
    const int first_step = task.first_step, end_step = last_position_ / kKeys + 1;
    const uint64_t queries = SwizzledDescriptor(matrices_ + queries_offset, kPanelBytes);
    float highest[2] = {-INFINITY, -INFINITY}, sums[2] = {}, out[kDimTiles][4] = {};
    uint32_t weights[kKeySteps][4];
    {
      float scores[kKeyTiles][4], factors[2];
      BeginScores(queries, n, scores);
      WaitForProducts<0>();
      PinAll(scores);
      Release(0, n);
      Mask(first_step, scores);
      SoftmaxWeights(a_.scale_log2, scores, highest, sums, factors, [](int) {});
      Pack(scores, weights);
    }
    for (int step = first_step + 1; step < end_step; ++step, ++n) {
      float scores[kKeyTiles][4], factors[2];
      TakeTurn();
      BeginScores(queries, n + 1, scores);
      BeginValues(n, weights, out);
      GiveTurn();
      WaitForProducts<1>();
      PinAll(scores);
      Release(0, n + 1);
      Mask(step, scores);
      SoftmaxWeights(a_.scale_log2, scores, highest, sums, factors, [](int) {});
      WaitForProducts<0>();
      PinAll(out);
      Release(1, n);
      ScaleRows(factors, out);
      Pack(scores, weights);
    }
    BeginValues(n, weights, out);
    WaitForProducts<0>();
    PinAll(out);
    Release(1, n);
    Store(task, rows, queries_offset, sums, out);
    return end_step - first_step;
  }

  // In the warpgroup, of this lane's sums 2 · r and 2 · r + 1.
  __device__ int Row(int r) const {
    return static_cast<int>(threadIdx.x) % kGroupThreads / 32 * 16 + r * 8 +
           static_cast<int>(threadIdx.x) % 32 / 4;
  }
  // part: 0 keys, 1 values.
  __device__ uint32_t WaitFor(int part, int n) const {
    const Place<kStages> place(n);
    WaitForPhase(SharedAddress(&shared_.full[part][place.stage]), place.parity);
    return KeysOrValues<kDim>(matrices_, place.stage, part);
  }
  __device__ void Release(int part, int n) const {
    if (threadIdx.x % 32 == 0) {
      Arrive(SharedAddress(&shared_.empty[part][Place<kStages>(n).stage]));
    }
  }
  __device__ void Skip(int n) const {
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      WaitFor(part, n);
      __syncwarp();
      Release(part, n);
    }
  }

  __device__ void BeginScores(uint64_t queries, int n, float (&scores)[kKeyTiles][4]) const {
    const uint64_t keys = SwizzledDescriptor(WaitFor(0, n), kPanelBytes);
    ShowToProducts();
    BeginProducts();
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
      const int offset = (step % 4 * 32 + step / 4 * kPanelBytes) / 16;
      MultiplyShared<T, kKeys>(Flat(scores), queries + offset, keys + offset, step > 0);
    }
    CommitProducts();
  }
  __device__ void BeginValues(int n, const uint32_t (&weights)[kKeySteps][4],
                              float (&out)[kDimTiles][4]) const {
    const uint64_t values = SwizzledDescriptor(WaitFor(1, n), kPanelBytes);
    ShowToProducts();
    BeginProducts();
#pragma unroll
    for (int step = 0; step < kKeySteps; ++step) {
      MultiplyTransposed<T, kDim>(Flat(out), weights[step], values + step * (16 * 128 / 16), 1);
    }
    CommitProducts();
  }

  // Of keys that a query does not see.
  __device__ void Mask(int step, float (&scores)[kKeyTiles][4]) const {
    const int token = step * kKeys;
    if (token + kKeys - 1 <= first_position_ && token > last_position_ - a_.window) return;
    const int first = token + static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
    for (int t = 0; t < kKeyTiles; ++t) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int key = first + t * 8 + j % 2, at = first_position_ + Row(j / 2);
        if (key > at || key <= at - a_.window) scores[t][j] = -INFINITY;
      }
    }
  }

  __device__ static void ScaleRows(const float (&factors)[2], float (&out)[kDimTiles][4]) {
#pragma unroll
    for (int t = 0; t < kDimTiles; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) out[t][i] *= factors[i / 2];
    }
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
  __device__ void Store(const Task& task, int rows, int queries_offset, const float (&sums)[2],
                        const float (&out)[kDimTiles][4]) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    unsigned char* const place = memory_ + queries_offset;
    asm volatile("bar.sync %0, %1;" ::"r"(1 + group_row_ / kGroupRows), "n"(kGroupThreads)
                 : "memory");  // no warp's products read the queries any more
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float factor = 1 / SumOverQuad(sums[r]);
#pragma unroll
      for (int t = 0; t < kDimTiles; ++t) {
        *reinterpret_cast<uint32_t*>(place + ChunkOffset(Row(r), t) + lane % 4 * 4) =
            PackHalves<T>(out[t][2 * r] * factor, out[t][2 * r + 1] * factor);
      }
    }
    __syncwarp();
    constexpr int kChunks = kDim / 8;
    T* to = static_cast<T*>(a_.out) + (task.first_row + group_row_) * a_.out_stride +
            static_cast<int64_t>(task.head) * kDim;
    const int first_row = Row(0) - lane / 4;
#pragma unroll
    for (int i = lane; i < 16 * kChunks; i += 32) {
      const int row = first_row + i / kChunks, chunk = i % kChunks;
      if (row < rows) {
        *reinterpret_cast<uint4*>(to + row * a_.out_stride + chunk * 8) =
            *reinterpret_cast<const uint4*>(place + ChunkOffset(row, chunk));
      }
    }
  }

  const PrefillArguments& a_;
  unsigned char* memory_;
  Shared& shared_;
  uint32_t matrices_;
  int group_row_;
  int first_position_ = 0, last_position_ = 0;  // of the group's queries
};

#endif  // NIBBLE_HOPPER_CODE

template <typename T, int kDim>
__global__ void __launch_bounds__(kThreads, 1)
    HopperPrefillKernel(const __grid_constant__ PrefillArguments a, int heads, int tasks) {
#if NIBBLE_HOPPER_CODE
  extern __shared__ unsigned char unaligned[];
  __shared__ Shared shared;
  unsigned char* const memory =
      unaligned + (kAlignment - SharedAddress(unaligned) % kAlignment) % kAlignment;
  if (threadIdx.x == 0) {
    constexpr int kConsumerWarps = kConsumers / 32;
    for (int i = 0; i < kQueryStages; ++i) {
      InitializeBarrier(SharedAddress(&shared.queries_full[i]), kGroupThreads + 1);
      InitializeBarrier(SharedAddress(&shared.queries_empty[i]), kConsumerWarps);
    }
    for (int part = 0; part < 2; ++part) {
      for (int i = 0; i < kStages; ++i) {
        InitializeBarrier(SharedAddress(&shared.full[part][i]), kGroupThreads);
        InitializeBarrier(SharedAddress(&shared.empty[part][i]), kConsumerWarps);
      }
    }
    PublishBarriers();
  }
  __syncthreads();
  StartNextKernel();
  WaitForLastKernel();
  if (threadIdx.x >= kConsumers) {
    GiveRegisters<kCopyRegisters>();
    Copier<T, kDim>(a, SharedAddress(memory), shared).Run(heads, tasks);
  } else {
    TakeRegisters<kConsumerRegisters>();
    Consumer<T, kDim>(a, memory, shared).Run(tasks);
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
  const int64_t tasks = heads * tiles;
  CHECK(tasks < int64_t{1} << 30, "{} heads, {} tiles", heads, tiles);
  const auto blocks = static_cast<unsigned>(std::min<int64_t>(tasks, stream.multiprocessors()));
  WithHalfType(dtype, [&]<typename T>() {
    if (arguments.head_dim == 64) {
      LaunchDependent(stream, HopperPrefillKernel<T, 64>, blocks, kThreads, kSharedBytes<64>,
                      arguments, heads, tasks);
    } else {
      LaunchDependent(stream, HopperPrefillKernel<T, 128>, blocks, kThreads, kSharedBytes<128>,
                      arguments, heads, tasks);
    }
  });
}

}  // namespace nibble::cuda

// Prefill attention on any GPU, and which kernel a call gets.
#include "src/base/checked.h"
#include "src/ops/cuda/attention_common.cuh"
#include "src/ops/cuda/attention_prefill.cuh"

namespace nibble::cuda {
namespace {

// Contexts that are all shorter take the portable kernel less time (docs/results/kernels.md).
constexpr int64_t kHopperFewestTokens = 129;

// Head dimensions up to kDim are padded to it with zeros. A warp has 16 queries, a block half of a
// tile's. Two blocks on a multiprocessor: for three, registers spill (nvcc 13.0).
template <int kDim_>
struct PrefillShape {
  static constexpr int kDim = kDim_;
  static constexpr int kBlocks = kDim == 64 ? 3 : 2;   // on a multiprocessor
  static constexpr int kKeys = kDim == 256 ? 32 : 64;  // of a tile
  static constexpr int kRows = kPrefillRows / 2;
  static constexpr int kThreads = kRows / 16 * 32;
  static constexpr bool kQueriesInRegisters = kDim <= 128;
  static constexpr int kRowBytes = kDim * 2;
  static constexpr int kTileBytes = kKeys * kRowBytes;
  // In shared memory: keys, values, of two tiles; the queries, later the outputs, in the second
  // tile's place where that is not needed yet and no more.
  static constexpr int kQueries = (kQueriesInRegisters ? 2 : 4) * kTileBytes;
  static constexpr int kSharedBytes =
      kQueriesInRegisters ? 4 * kTileBytes : kQueries + kRows * kRowBytes;
  static_assert(kQueries + kRows * kRowBytes <= kSharedBytes);
};

// Where a row's 16-byte chunk lies: eight rows of the same chunk are in different banks.
template <typename Shape>
__device__ uint32_t ChunkOffset(int row, int chunk) {
  return static_cast<uint32_t>(row * Shape::kRowBytes + (chunk ^ (row % 8)) * 16);
}

// Addresses for ldmatrix: this lane's row of a 16 x 16 piece of a matrix at `rows`, in the piece's
// columns of step 0, 1, 2, ....
template <typename Shape>
class Fragments {
 public:
  // The lane names row `row` of the piece, and of its two chunks the one given.
  __device__ Fragments(int row, int chunk) {
#pragma unroll
    for (int i = 0; i < 4; ++i) offsets_[i] = ChunkOffset<Shape>(row, 2 * i + chunk);
  }
  // first_row: a multiple of 8.
  __device__ uint32_t At(uint32_t matrix, int first_row, int step) const {
    return matrix + offsets_[step % 4] +
           static_cast<uint32_t>(first_row * Shape::kRowBytes + step / 4 * 128);
  }

 private:
  uint32_t offsets_[4];
};

// Copies a tile of keys or values; those of tokens from end_token on become zeros, since their
// slots may hold anything, even NaN. blocks: the tile's numbers of blocks.
template <typename T, typename Shape>
__device__ void LoadTile(const PrefillArguments& a, const T* part, const int (&blocks)[2],
                         int kv_head, int first_token, int end_token, uint32_t shared) {
  constexpr int kChunks = Shape::kDim / 8;  // of a row
  constexpr int kRowsAtOnce = Shape::kThreads / kChunks;
  static_assert(kBlockTokens % kRowsAtOnce == 0 && kRowsAtOnce > 0);
  const int row = static_cast<int>(threadIdx.x) / kChunks;
  const int chunk = static_cast<int>(threadIdx.x) % kChunks;
  const bool has_column = chunk * 8 < a.head_dim;
#pragma unroll
  for (int b = 0; b < Shape::kKeys / kBlockTokens; ++b) {
    const T* from =
        part + (static_cast<int64_t>(blocks[b]) * a.kv_heads + kv_head) * kBlockTokens * a.head_dim;
#pragma unroll
    for (int slot = 0; slot < kBlockTokens; slot += kRowsAtOnce) {
      const int token = b * kBlockTokens + slot + row;
      const bool wanted = has_column && first_token + token < end_token;
      CopyAsync16(shared + ChunkOffset<Shape>(token, chunk),
                  from + (wanted ? (slot + row) * a.head_dim + chunk * 8 : 0), wanted);
    }
  }
}

// scores += queries · keysᵀ of one step of 16 columns.
template <typename T, typename Shape>
__device__ void Score(const uint32_t (&query)[4], const Fragments<Shape>& fragments, uint32_t keys,
                      int step, float (&scores)[Shape::kKeys / 8][4]) {
#pragma unroll
  for (int t = 0; t < Shape::kKeys / 8; t += 2) {
    uint32_t fragment[4];
    LoadMatrices(fragments.At(keys, t * 8, step), fragment);
    MultiplyAdd<T>(query, fragment[0], fragment[1], scores[t]);
    MultiplyAdd<T>(query, fragment[2], fragment[3], scores[t + 1]);
  }
}

// out += weights · values.
template <typename T, typename Shape>
__device__ void AddValues(const float (&weights)[Shape::kKeys / 8][4],
                          const Fragments<Shape>& fragments, uint32_t values,
                          float (&out)[Shape::kDim / 8][4]) {
#pragma unroll
  for (int step = 0; step < Shape::kKeys / 16; ++step) {
    const float(&low)[4] = weights[2 * step];
    const float(&high)[4] = weights[2 * step + 1];
    const uint32_t weight[4] = {PackHalves<T>(low[0], low[1]), PackHalves<T>(low[2], low[3]),
                                PackHalves<T>(high[0], high[1]), PackHalves<T>(high[2], high[3])};
#pragma unroll
    for (int t = 0; t < Shape::kDim / 8; t += 2) {
      uint32_t fragment[4];
      LoadMatricesTransposed(fragments.At(values, step * 16, t / 2), fragment);
      MultiplyAdd<T>(weight, fragment[0], fragment[1], out[t]);
      MultiplyAdd<T>(weight, fragment[2], fragment[3], out[t + 1]);
    }
  }
}

// Grid: [heads, 2 · tiles], of a tile the late half first.
template <typename T, int kDim>
__global__ void __launch_bounds__(PrefillShape<kDim>::kThreads, PrefillShape<kDim>::kBlocks)
    PrefillKernel(const __grid_constant__ PrefillArguments a) {
  using Shape = PrefillShape<kDim>;
  constexpr int kChunks = kDim / 8;
  PrefillTile tile = a.tiles[blockIdx.y / 2];
  tile.first_row += blockIdx.y % 2 == 0 ? Shape::kRows : 0;
  const int head = static_cast<int>(blockIdx.x), kv_head = head / a.group;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int rows = min(Shape::kRows, a.row_begin[tile.sequence + 1] - tile.first_row);
  if (rows <= 0) return;
  const int first_position = a.positions[tile.first_row];
  const int end_token = a.positions[tile.first_row + rows - 1] + 1;
  const int32_t* table = a.block_tables + tile.sequence * a.table_stride;
  const auto* keys = static_cast<const T*>(a.keys);
  const auto* values = static_cast<const T*>(a.values);

  extern __shared__ __align__(128) unsigned char memory[];
  const uint32_t shared = SharedAddress(memory);
  const int first_tile = max(0, first_position - a.window + 1) / Shape::kKeys;
  const int end_tile = (end_token + Shape::kKeys - 1) / Shape::kKeys;
  const auto tile_at = [&](int i) {  // the first one lies before the queries
    return shared + static_cast<uint32_t>((i - first_tile) % 2 * 2 * Shape::kTileBytes);
  };
  const auto load = [&](int i) {
    int blocks[2];
#pragma unroll
    for (int b = 0; b < Shape::kKeys / kBlockTokens; ++b) {
      const int block = i * (Shape::kKeys / kBlockTokens) + b;
      blocks[b] = block * kBlockTokens < end_token ? table[block] : 0;
    }
    const uint32_t to = tile_at(i);
    LoadTile<T, Shape>(a, keys, blocks, kv_head, i * Shape::kKeys, end_token, to);
    LoadTile<T, Shape>(a, values, blocks, kv_head, i * Shape::kKeys, end_token,
                       to + Shape::kTileBytes);
  };

  // Each warp copies its own queries.
  const int64_t head_column = static_cast<int64_t>(head) * a.head_dim;
  const T* q = static_cast<const T*>(a.q) + tile.first_row * a.q_stride + head_column;
#pragma unroll
  for (int i = lane; i < 16 * kChunks; i += 32) {
    const int row = warp * 16 + i / kChunks, chunk = i % kChunks;
    const bool wanted = row < rows && chunk * 8 < a.head_dim;
    CopyAsync16(shared + Shape::kQueries + ChunkOffset<Shape>(row, chunk),
                wanted ? q + row * a.q_stride + chunk * 8 : q, wanted);
  }
  CommitCopies();
  load(first_tile);
  CommitCopies();

  const Fragments<Shape> key_fragments(lane / 16 * 8 + lane % 8, lane / 8 % 2);
  const Fragments<Shape> value_fragments(lane % 16, lane / 16);
  const Fragments<Shape>& query_fragments = value_fragments;
  const uint32_t warp_queries = shared + Shape::kQueries + warp * 16 * Shape::kRowBytes;
  uint32_t queries[Shape::kQueriesInRegisters ? kDim / 16 : 1][4];
  if constexpr (Shape::kQueriesInRegisters) {
    WaitForCopies<1>();
    __syncwarp();
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
      LoadMatrices(query_fragments.At(warp_queries, 0, step), queries[step]);
    }
  }
  int position[2];  // of rows lane / 4 and lane / 4 + 8 of the warp
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    position[r] = a.positions[tile.first_row + min(warp * 16 + r * 8 + lane / 4, rows - 1)];
  }

  float highest[2] = {-INFINITY, -INFINITY}, sums[2] = {}, out[kDim / 8][4] = {};
  for (int i = first_tile; i < end_tile; ++i) {
    WaitForCopies<0>();
    __syncthreads();  // the tile is there; the one before it, or the queries, are done with
    if (i + 1 < end_tile) load(i + 1);
    CommitCopies();

    float scores[Shape::kKeys / 8][4] = {};
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
      if constexpr (Shape::kQueriesInRegisters) {
        Score<T>(queries[step], key_fragments, tile_at(i), step, scores);
      } else {
        LoadMatrices(query_fragments.At(warp_queries, 0, step), queries[0]);
        Score<T>(queries[0], key_fragments, tile_at(i), step, scores);
      }
    }
    const int token = i * Shape::kKeys;
    const bool all_seen =
        token + Shape::kKeys - 1 <= first_position && token > end_token - 1 - a.window;
    if (!all_seen) {
#pragma unroll
      for (int t = 0; t < Shape::kKeys / 8; ++t) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int key = token + t * 8 + lane % 4 * 2 + j % 2, at = position[j / 2];
          if (key > at || key <= at - a.window) scores[t][j] = -INFINITY;
        }
      }
    }
    SoftmaxStep(a.scale_log2, scores, highest, sums, out);
    AddValues<T>(scores, value_fragments, tile_at(i) + Shape::kTileBytes, out);
  }

  // Through shared memory, to write whole rows. Each warp has its own.
  __syncthreads();
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float factor = 1 / SumOverQuad(sums[r]);
    const int row = warp * 16 + r * 8 + lane / 4;
#pragma unroll
    for (int t = 0; t < kDim / 8; ++t) {
      const uint32_t at = Shape::kQueries + ChunkOffset<Shape>(row, t) + lane % 4 * 4;
      *reinterpret_cast<uint32_t*>(memory + at) =
          PackHalves<T>(out[t][2 * r] * factor, out[t][2 * r + 1] * factor);
    }
  }
  __syncwarp();
  T* to = static_cast<T*>(a.out) + tile.first_row * a.out_stride + head_column;
#pragma unroll
  for (int i = lane; i < 16 * kChunks; i += 32) {
    const int row = warp * 16 + i / kChunks, chunk = i % kChunks;
    if (row < rows && chunk * 8 < a.head_dim) {
      *reinterpret_cast<uint4*>(to + row * a.out_stride + chunk * 8) =
          *reinterpret_cast<const uint4*>(memory + Shape::kQueries +
                                          ChunkOffset<Shape>(row, chunk));
    }
  }
}

template <typename T, int kDim>
void Launch(Stream& stream, const PrefillArguments& arguments, dim3 grid) {
  using Shape = PrefillShape<kDim>;
  const auto kernel = PrefillKernel<T, kDim>;
  stream.Check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    Shape::kSharedBytes),
               "prefill attention's shared memory", grid.y, kDim);
  kernel<<<grid, Shape::kThreads, Shape::kSharedBytes, stream.get()>>>(arguments);
}

}  // namespace

void AttendPrefill(Stream& stream, const DeviceBatch& batch, const AttentionSpec& attention,
                   MatrixView q, KvView kv, MatrixView out, CudaKernels kernels) {
  if (batch.prefill_tile_count == 0) return;
  CheckAttention(attention, q, out);
  const PrefillArguments arguments{.keys = kv.keys,
                                   .values = kv.values,
                                   .q = q.data,
                                   .out = out.data,
                                   .positions = batch.positions,
                                   .row_begin = batch.row_begin,
                                   .block_tables = batch.block_tables,
                                   .tiles = batch.prefill_tiles,
                                   .q_stride = q.stride,
                                   .out_stride = out.stride,
                                   .table_stride = batch.table_stride,
                                   .kv_heads = static_cast<int>(attention.kv_heads),
                                   .group = static_cast<int>(attention.heads / attention.kv_heads),
                                   .head_dim = static_cast<int>(attention.head_dim),
                                   .window = WindowOf(attention),
                                   .scale_log2 = attention.scale * kLog2E};
  if (kernels == CudaKernels::kAuto && batch.longest_prefill >= kHopperFewestTokens &&
      CanUseHopperPrefill(attention)) {
    HopperPrefill(stream, q.dtype, arguments, attention.heads, batch.prefill_tile_count);
    stream.CheckLaunch("prefill attention", q.rows, q.columns);
    return;
  }
  const dim3 grid(static_cast<unsigned>(attention.heads),
                  static_cast<unsigned>(2 * batch.prefill_tile_count));
  WithHalfType(q.dtype, [&]<typename T>() {
    if (attention.head_dim <= 64) {
      Launch<T, 64>(stream, arguments, grid);
    } else if (attention.head_dim <= 128) {
      Launch<T, 128>(stream, arguments, grid);
    } else {
      Launch<T, 256>(stream, arguments, grid);
    }
  });
  stream.CheckLaunch("prefill attention", q.rows, q.columns);
}

}  // namespace nibble::cuda

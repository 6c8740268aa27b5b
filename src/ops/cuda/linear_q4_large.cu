// Tens to hundreds of rows: a block makes 128 outputs of 16, 32 or 64 rows at a time.
//
// Units of (outputs, rows, 128 inputs) are counted through and divided evenly over a fixed number
// of blocks, two to a multiprocessor (stream-K, arXiv:2301.03598), so that all are busy to the end.
// Codes and x come through a ring of stages in shared memory, across the borders of tiles. A tile
// whose units lie with several blocks is added up by a second kernel, always in the same order.
#include <algorithm>

#include "src/ops/cuda/linear_q4_kernels.cuh"
#include "src/ops/cuda/load_matrices.cuh"

namespace nibble::cuda::q4 {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kWarpTiles = 2;  // of 16 outputs
constexpr int kBlockTiles = kWarps * kWarpTiles;
constexpr int kRowChunks = kUnitInputs / 8;  // 16-byte chunks of a row of x in a unit

// kFine: scales for every 32 inputs, else for every 64 or more.
template <bool kFine>
struct LargeTraits {
  static constexpr int kStages = kFine ? 3 : 4;  // 4 would not fit where a block has 99 KiB
  static constexpr int kScales = kFine ? 4 : 2;  // at most, stored for a unit and tile
};

template <bool kFine, int kRows>
struct LargeStage {
  static constexpr int kScales = LargeTraits<kFine>::kScales;
  uint4 codes[kBlockTiles][2][32];
  uint4 x[kRows][kRowChunks];  // chunk c of row r lies at c ^ (r % 8): no bank conflicts
  __half2 scales[kBlockTiles][kScales][8];
  uchar2 zeros[kBlockTiles][kScales][8];
};

struct LargePlan {
  int row_tiles;      // of kRows rows
  int units;          // of a tile
  float4* partials;   // [2 · blocks][fragments][kThreads]
  EvenShares shares;  // of units

  // Where a block's sums of a tile go: its first tile and its last one have a place each.
  __device__ float4* Partial(int block, int tile, int fragments) const {
    const int place = 2 * block + (shares.Begin(block) >= tile * units ? 0 : 1);
    return partials + place * int64_t{kThreads} * fragments;
  }
};

template <bool kFine, int kRows>
__device__ void CopyWeights(LargeStage<kFine, kRows>& stage, const Weights& w, const Place& place) {
  const auto thread = static_cast<int>(threadIdx.x);
  const int first_tile = place.output_tile * kBlockTiles;
#pragma unroll
  for (int i = 0; i < kBlockTiles * 64 / kThreads; ++i) {
    const int at = i * kThreads + thread;
    // A block may reach beyond the last tile; it reads that again.
    const int64_t tile = min(first_tile + at / 64, w.tiles - 1);
    CopyAsync16(SharedAddress(&stage.codes[0][0][0] + at),
                w.codes + (tile * w.units + place.unit) * 64 + at % 64);
  }
  // Two 16-byte chunks of scales, one of zeros, for each tile and scale group.
  const int group = w.ScaleGroup(place.unit);
  const int scale_chunks = 2 * w.scales_per_unit;
  if (thread < kBlockTiles * scale_chunks) {
    const int at = thread % scale_chunks * 4, block_tile = thread / scale_chunks;
    const int64_t tile = min(first_tile + block_tile, w.tiles - 1);
    CopyAsync16(SharedAddress(&stage.scales[block_tile][0][0] + at),
                w.scales + (tile * w.scale_groups + group) * 8 + at);
  }
  if (w.zeros != nullptr && thread < kBlockTiles * w.scales_per_unit) {
    const int at = thread % w.scales_per_unit * 8, block_tile = thread / w.scales_per_unit;
    const int64_t tile = min(first_tile + block_tile, w.tiles - 1);
    CopyAsync16(SharedAddress(&stage.zeros[block_tile][0][0] + at),
                w.zeros + (tile * w.scale_groups + group) * 8 + at);
  }
}

template <typename T, bool kFine, int kRows>
__device__ void CopyRows(LargeStage<kFine, kRows>& stage, const Product<T>& p, const Place& place) {
#pragma unroll
  for (int i = 0; i < kRows * kRowChunks / kThreads; ++i) {
    const int at = i * kThreads + static_cast<int>(threadIdx.x);
    const int r = at / kRowChunks, c = at % kRowChunks;
    const int row = place.row_tile * kRows + r, k = place.unit * kUnitInputs + 8 * c;
    const bool inside = row < p.rows && k < p.in;
    CopyAsync16(SharedAddress(&stage.x[r][c ^ (r % 8)]), inside ? p.x + row * p.x_stride + k : p.x,
                inside);
  }
}

// sums[m][n]: the warp's output tile m by 8 rows.
template <typename T, bool kFine, int kRows>
__device__ void ConsumeStage(float (&sums)[kWarpTiles][kRows / 8][4],
                             const LargeStage<kFine, kRows>& stage, const Weights& w) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int g = lane / 4;
  // Lane 8i + r names row r of chunk i of every four, two steps' operands.
  const uint32_t rows = SharedAddress(stage.x[lane % 8]);
  const int swizzled = lane / 8 ^ lane % 8;
  constexpr int kParts = kFine ? 2 : 1;  // of 64 inputs, by scale
  constexpr int kSteps = 4 / kParts;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    uint4 loaded[kWarpTiles];
#pragma unroll
    for (int m = 0; m < kWarpTiles; ++m) loaded[m] = stage.codes[warp * kWarpTiles + m][half][lane];
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      uint32_t a[kWarpTiles][kSteps][4];
      float scales[kWarpTiles][2];
#pragma unroll
      for (int m = 0; m < kWarpTiles; ++m) {
        const int tile = warp * kWarpTiles + m;
        const int group = kFine ? 2 * half + part : half * (w.scales_per_unit - 1);
        const float2 scale = __half22float2((&stage.scales[tile][0][0])[group * 8 + g]);
        scales[m][0] = scale.x * Codes<T>::kLowUnit;
        scales[m][1] = scale.y * Codes<T>::kHighUnit;
        uchar2 zeros{8, 8};
        if (w.zeros != nullptr) zeros = (&stage.zeros[tile][0][0])[group * 8 + g];
        const uint32_t low = Codes<T>::LowZero(zeros.x), high = Codes<T>::HighZero(zeros.y);
        const uint32_t words[4] = {loaded[m].x, loaded[m].y, loaded[m].z, loaded[m].w};
#pragma unroll
        for (int s = 0; s < kSteps; ++s) {
          Codes<T>::Expand(words[part * kSteps + s], a[m][s]);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            a[m][s][i] = Codes<T>::Subtract(a[m][s][i], i % 2 == 0 ? low : high);
          }
        }
      }
      // Four chains of products at a time, so that they wait less for each other.
#pragma unroll
      for (int first = 0; first < kRows / 8; first += 2) {
        uint32_t x[2][kSteps / 2][4];  // of two steps, the two registers of their B operands each
        float chains[2][kWarpTiles][4] = {};
#pragma unroll
        for (int n = 0; n < 2; ++n) {
#pragma unroll
          for (int c = 0; c < kSteps / 2; ++c) {
            const int chunk = 8 * half + (swizzled ^ (4 * (part + c)));
            LoadMatrices(rows + 16 * (8 * (first + n) * kRowChunks + chunk), x[n][c]);
          }
        }
#pragma unroll
        for (int s = 0; s < kSteps; ++s) {
#pragma unroll
          for (int n = 0; n < 2; ++n) {
            const uint32_t* b = &x[n][s / 2][s % 2 * 2];
#pragma unroll
            for (int m = 0; m < kWarpTiles; ++m) {
              MultiplyAdd<T>(chains[n][m], a[m][s], b[0], b[1], chains[n][m]);
            }
          }
        }
#pragma unroll
        for (int n = 0; n < 2; ++n) {
#pragma unroll
          for (int m = 0; m < kWarpTiles; ++m) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              sums[m][first + n][i] =
                  fmaf(scales[m][i / 2], chains[n][m][i], sums[m][first + n][i]);
            }
          }
        }
      }
    }
  }
}

// A warp's fragment (m, n) of a tile.
template <typename T, int kRows>
__device__ void StoreTileFragment(const Product<T>& p, int output_tile, int row_tile, int m, int n,
                                  int thread, float (&d)[4]) {
  const int tile = output_tile * kBlockTiles + thread / 32 * kWarpTiles + m;
  const int lane = thread % 32, row = row_tile * kRows + 8 * n + lane % 4 * 2;
  float addends[4];
  LoadAddends(p, tile * kTileOutputs, lane / 4, row, addends);
#pragma unroll
  for (int i = 0; i < 4; ++i) d[i] += addends[i];
  StoreFragment<4>(p, tile * kTileOutputs, lane / 4, row, d);
}

template <typename T, bool kFine, int kRows>
__global__ void __launch_bounds__(kThreads, 2)
    LargeKernel(Weights w, Product<T> p, LargePlan plan) {
  constexpr int kStages = LargeTraits<kFine>::kStages;
  constexpr int kFragments = kWarpTiles * kRows / 8;
  extern __shared__ uint4 shared[];
  auto* ring = reinterpret_cast<LargeStage<kFine, kRows>*>(shared);
  const auto block = static_cast<int>(blockIdx.x);
  const int begin = plan.shares.Begin(block), end = plan.shares.Begin(block + 1);

  StartNextKernel();
  Place ahead(begin, w.units, plan.row_tiles);
  Place place = ahead;
  int next = begin;  // the unit to be copied next
  for (int s = 0; s < kStages - 1 && next < end; ++s, ++next) {
    CopyWeights(ring[s], w, ahead);
    ahead.Advance(w.units, plan.row_tiles);
  }
  WaitForLastKernel();
  ahead = place;
  for (int s = 0; s < kStages - 1; ++s) {
    if (begin + s < end) {
      CopyRows(ring[s], p, ahead);
      ahead.Advance(w.units, plan.row_tiles);
    }
    CommitCopies();
  }

  float sums[kWarpTiles][kRows / 8][4] = {};
  int slot = 0;
  for (int index = begin; index < end; ++index) {
    WaitForCopies<kStages - 2>();
    __syncthreads();  // all threads' copies are there, and all are done with the slot before
    if (next < end) {
      auto& stage = ring[slot == 0 ? kStages - 1 : slot - 1];
      CopyWeights(stage, w, ahead);
      CopyRows(stage, p, ahead);
      ahead.Advance(w.units, plan.row_tiles);
      ++next;
    }
    CommitCopies();
    ConsumeStage<T>(sums, ring[slot], w);
    slot = slot + 1 == kStages ? 0 : slot + 1;
    if (place.unit + 1 < w.units && index + 1 < end) {
      place.Advance(w.units, plan.row_tiles);
      continue;
    }

    // The end of the tile, or of this block's share of it.
    const bool is_whole = place.unit + 1 == w.units && index + 1 - w.units >= begin;
    float4* partial =
        plan.Partial(block, place.output_tile * plan.row_tiles + place.row_tile, kFragments) +
        threadIdx.x;
#pragma unroll
    for (int f = 0; f < kFragments; ++f) {
      const int m = f % kWarpTiles, n = f / kWarpTiles;
      float(&d)[4] = sums[m][n];
      if (is_whole) {
        StoreTileFragment<T, kRows>(p, place.output_tile, place.row_tile, m, n,
                                    static_cast<int>(threadIdx.x), d);
      } else {
        __stcg(partial + f * kThreads, float4{d[0], d[1], d[2], d[3]});
      }
      d[0] = d[1] = d[2] = d[3] = 0;
    }
    place.Advance(w.units, plan.row_tiles);
  }
}

// Adds up the tiles that several blocks share. One block a fragment of all warps of a tile.
template <typename T, int kRows>
__global__ void __launch_bounds__(kThreads) AddPartials(Product<T> p, LargePlan plan) {
  constexpr int kFragments = kWarpTiles * kRows / 8;
  const int tile = static_cast<int>(blockIdx.x) / kFragments;
  const int fragment = static_cast<int>(blockIdx.x) % kFragments;
  const int first = plan.shares.BlockOf(tile * plan.units);
  const int last = plan.shares.BlockOf((tile + 1) * plan.units - 1);
  StartNextKernel();
  WaitForLastKernel();
  if (first == last) return;
  float sum[4] = {};
  constexpr int kAtOnce = 8;  // loads in flight
  for (int b = first; b <= last; b += kAtOnce) {
    float4 parts[kAtOnce];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      if (b + j > last) continue;
      parts[j] = __ldcg(plan.Partial(b + j, tile, kFragments) + fragment * kThreads + threadIdx.x);
    }
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      if (b + j > last) continue;
      sum[0] += parts[j].x;
      sum[1] += parts[j].y;
      sum[2] += parts[j].z;
      sum[3] += parts[j].w;
    }
  }
  StoreTileFragment<T, kRows>(p, tile / plan.row_tiles, tile % plan.row_tiles,
                              fragment % kWarpTiles, fragment / kWarpTiles,
                              static_cast<int>(threadIdx.x), sum);
}

constexpr int RowsOfTile(int64_t rows) { return rows <= 16 ? 16 : rows <= 32 ? 32 : 64; }

template <typename T, bool kFine, int kRows>
void LaunchLarge(Stream& stream, const Weights& w, const Product<T>& p, float* partials) {
  const size_t shared = sizeof(LargeStage<kFine, kRows>) * LargeTraits<kFine>::kStages;
  const SharedMemory available = SharedMemory::OfDevice();
  const int per_multiprocessor = available.of_multiprocessor >= 2 * (shared + 1024) ? 2 : 1;
  const int row_tiles = (p.rows + kRows - 1) / kRows;
  const int64_t output_tiles = (w.tiles + kBlockTiles - 1) / kBlockTiles;
  const int64_t total = output_tiles * row_tiles * w.units;
  CHECK(total < int64_t{1} << 31, "{} rows of {} outputs", p.rows, p.outputs);
  // Fewer than two units a block are not worth their addition.
  const int64_t blocks =
      std::clamp<int64_t>(total / 2, 1, int64_t{per_multiprocessor} * stream.multiprocessors());
  const LargePlan plan{.row_tiles = row_tiles,
                       .units = w.units,
                       .partials = reinterpret_cast<float4*>(partials),
                       .shares = EvenShares::Of(total, blocks)};
  LaunchDependent(stream, LargeKernel<T, kFine, kRows>, static_cast<int>(blocks), kThreads, shared,
                  w, p, plan);
  if (total / w.units == blocks && total % blocks == 0) return;  // a tile each
  LaunchDependent(stream, AddPartials<T, kRows>,
                  static_cast<int>(output_tiles * row_tiles * (kWarpTiles * kRows / 8)), kThreads,
                  0, p, plan);
}

template <typename T, bool kFine>
void LaunchLarge(Stream& stream, const Weights& w, const Product<T>& p, float* partials) {
  switch (RowsOfTile(p.rows)) {
    case 16:
      return LaunchLarge<T, kFine, 16>(stream, w, p, partials);
    case 32:
      return LaunchLarge<T, kFine, 32>(stream, w, p, partials);
    default:
      return LaunchLarge<T, kFine, 64>(stream, w, p, partials);
  }
}

}  // namespace

size_t PartialBytes(int multiprocessors, int64_t rows) {
  return size_t{4} * static_cast<size_t>(multiprocessors) * kBlockTiles * kTileOutputs *
         static_cast<size_t>(RowsOfTile(rows)) * sizeof(float);
}

template <typename T>
void LargeProduct(Stream& stream, const Geometry& geometry, const Weights& weights,
                  const Product<T>& product, float* partials) {
  if (geometry.granule == 32) {
    LaunchLarge<T, true>(stream, weights, product, partials);
  } else {
    LaunchLarge<T, false>(stream, weights, product, partials);
  }
}

template void LargeProduct(Stream&, const Geometry&, const Weights&, const Product<__half>&,
                           float*);
template void LargeProduct(Stream&, const Geometry&, const Weights&, const Product<__nv_bfloat16>&,
                           float*);

}  // namespace nibble::cuda::q4

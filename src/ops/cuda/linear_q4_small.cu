// A few rows: the time is that of reading the weights once.
//
// A block owns consecutive tiles of 16 outputs, all of their inputs; there is about one block for
// each multiprocessor. Its warps divide the inputs, the same ones for each tile, so that a warp's
// share of x stays in registers as B operands (with the rows' sums over each group, for the zeros).
// Each warp streams its codes through a ring of its own in shared memory, that only itself waits
// for; it starts before the previous kernel is done. Sums wait in shared memory until all tiles are
// read: then one barrier, and the sums of all warps are added in the warps' order.
#include <algorithm>
#include <cstddef>

#include "src/ops/cuda/linear_q4_kernels.cuh"
#include "src/ops/cuda/load_matrices.cuh"
#include "src/ops/cuda/warp_sum.cuh"

namespace nibble::cuda::q4 {
namespace {

constexpr int kWarps = 16;
constexpr int kThreads = 32 * kWarps;
// Of a ring, one unit each. Sums of two tiles of rows leave no room for more.
template <int kRowTiles>
inline constexpr int kStages = kRowTiles == 1 ? 4 : 3;
// Of them asked for before the last kernel is done: x waits for what is asked for before it.
constexpr int kStagesAhead = 2;

// Units of x in a warp's registers at a time: 16 registers for eight rows, and the sums. Everything
// must fit in 128 registers: spilled ones go past the L1 cache, which the rings leave no room for.
template <int kGranule, int kRowTiles>
inline constexpr int kHeldUnits = kRowTiles == 2 && kGranule < kUnitInputs ? 1 : 2;

// A stage has a unit's codes, and elsewhere its scales (32 bytes each) and then its zeros (16
// each).
template <int kGranule>
inline constexpr int kGridBytes = 48 * (kUnitInputs / kGranule);

// A warp's way through its units: `held` of them at a time, tile after tile.
template <int held>
struct Cursor {
  int unit, tile, held_begin;
  __device__ void Advance(int units_end, int tiles_begin, int tiles_end) {
    if (++unit < min(held_begin + held, units_end)) return;
    if (++tile < tiles_end) {
      unit = held_begin;
    } else {
      held_begin = unit;
      tile = tiles_begin;
    }
  }
};

// What a lane copies of a unit: 32 bytes of its codes; and, if it is one of the first, 16 of its
// scales or its zeros.
struct LaneCopies {
  const uint4* codes;
  const std::byte* grids;
  int grid_bytes;               // from one scale group to the next; 0 for a lane that brings none
  uint32_t codes_to, grids_to;  // in the first stage

  template <int kGranule>
  __device__ static LaneCopies Of(const Weights& w, int lane, uint32_t codes_to,
                                  uint32_t grids_to) {
    constexpr int kScales = kUnitInputs / kGranule;
    LaneCopies copies{w.codes + lane, reinterpret_cast<const std::byte*>(w.scales) + 16 * lane, 0,
                      codes_to + 16 * lane, grids_to + 16 * lane};
    if (lane < 2 * kScales) {
      copies.grid_bytes = 32;
    } else if (lane < 3 * kScales && w.zeros != nullptr) {
      copies.grids = reinterpret_cast<const std::byte*>(w.zeros) + 16 * (lane - 2 * kScales);
      copies.grid_bytes = 16;
    }
    return copies;
  }
  __device__ void Copy(const Weights& w, int tile, int unit, uint32_t stage_codes,
                       uint32_t stage_grids) const {
    const uint4* from = codes + static_cast<uint32_t>((tile * w.units + unit) * 64);
    CopyAsync16(codes_to + stage_codes, from);
    CopyAsync16(codes_to + stage_codes + 512, from + 32);
    if (grid_bytes != 0) {
      const int group = tile * w.scale_groups + w.ScaleGroup(unit);
      CopyAsync16(grids_to + stage_grids, grids + static_cast<uint32_t>(group * grid_bytes));
    }
  }
};

// One unit's share of eight rows of x: for every two steps the four registers of their B operands,
// and what zeros of 1 take from the sums of the two rows of the lane's accumulators.
template <int kGranule>
struct HeldUnit {
  static constexpr int kScales = kUnitInputs / kGranule;
  uint4 x[4];
  float sums[kScales][2];
};

template <typename T, int kGranule>
__device__ void LoadHeld(HeldUnit<kGranule>& held, const Product<T>& p, int first_row, int unit,
                         int lane) {
  // Columns of the operand beyond the rows are never stored; they may hold anything.
  const T* row = p.x + min(first_row + lane / 4, p.rows - 1) * p.x_stride;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int k = unit * kUnitInputs + 32 * i + 8 * (lane % 4);
    held.x[i] = uint4{0, 0, 0, 0};
    if (k < p.in) held.x[i] = *reinterpret_cast<const uint4*>(row + k);
  }
}

// A warp's place in shared memory for its inputs of eight rows at most, as they are in memory, from
// which B operands are loaded. Chunk c of 16 bytes of row r lies at c ^ r: no bank conflicts.
struct Staging {
  uint32_t shared;
  int units, rows;  // no units: there is no room

  __device__ uint32_t Address(int row, int chunk) const {
    return shared + (row * units * (kUnitInputs / 8) + (chunk ^ row)) * 16;
  }
  template <typename T>
  __device__ void BeginFilling(const Product<T>& p, int first_unit, int lane) const {
    // Not unrolled: it runs once, with a chunk or two for a lane.
#pragma unroll 1
    for (int row = 0; row < rows; ++row) {
#pragma unroll 1
      for (int chunk = lane; chunk < units * (kUnitInputs / 8); chunk += 32) {
        const int k = first_unit * kUnitInputs + 8 * chunk;
        const bool inside = k < p.in;
        CopyAsync16(Address(row, chunk), inside ? p.x + row * p.x_stride + k : p.x, inside);
      }
    }
    CommitCopies();
  }
  __device__ void FinishFilling() const {
    WaitForCopies<kStages<1> - kStagesAhead>();  // all but what was asked for since
    __syncwarp();
  }
  // Of the filled units the given one.
  template <int kGranule>
  __device__ void Load(HeldUnit<kGranule>& held, int unit, int lane) const {
    const int row = min(lane % 8, rows - 1);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      uint32_t x[4];
      LoadMatrices(Address(row, unit * (kUnitInputs / 8) + 4 * i + lane / 8), x);
      held.x[i] = uint4{x[0], x[1], x[2], x[3]};
    }
  }
};

template <typename T, int kGranule>
__device__ void SumHeld(HeldUnit<kGranule>& held) {
  constexpr int kScales = HeldUnit<kGranule>::kScales;
  // A weight of ones adds up the rows.
  constexpr uint32_t kOnes = std::is_same_v<T, __half> ? 0x3c003c00u : 0x3f803f80u;
  const uint32_t ones[4] = {kOnes, kOnes, kOnes, kOnes};
#pragma unroll
  for (int s = 0; s < kScales; ++s) {
    float sums[4] = {};
#pragma unroll
    for (int i = s * 4 / kScales; i < (s + 1) * 4 / kScales; ++i) {
      MultiplyAdd<T>(sums, ones, held.x[i].x, held.x[i].y, sums);
      MultiplyAdd<T>(sums, ones, held.x[i].z, held.x[i].w, sums);
    }
    held.sums[s][0] = sums[0] * (-1 / Codes<T>::kLowUnit);
    held.sums[s][1] = sums[1] * (-1 / Codes<T>::kLowUnit);
  }
}

// Makes B operands of what LoadHeld loaded: the lane's inputs 8t + 2j and 8t + 2j + 1 of every 32
// become 8j + 2t and 8j + 2t + 1. Apart from LoadHeld, because the compiler moves no load ahead of
// a shuffle, and all units' loads must be under way together.
template <int kGranule>
__device__ void ArrangeHeld(HeldUnit<kGranule>& held, int lane) {
#pragma unroll
  for (uint4& x : held.x) {
    uint32_t pairs[4] = {x.x, x.y, x.z, x.w};
    TransposeQuad(pairs, lane);
    x = uint4{pairs[0], pairs[1], pairs[2], pairs[3]};
  }
}

// codes: the lane's first 16 bytes of a stage; grids: the stage's.
template <typename T, int kGranule, int kRowTiles>
__device__ void ConsumeUnit(float (&sum)[kRowTiles][4], uint32_t codes, uint32_t grids,
                            bool has_zeros, const HeldUnit<kGranule> (&held)[kRowTiles], int lane) {
  constexpr int kScales = HeldUnit<kGranule>::kScales;
  constexpr int kChunks = 4 / kScales;  // of 32 inputs, two steps each
  constexpr float kHigh = Codes<T>::kLowUnit / Codes<T>::kHighUnit;
  uint4 q;
#pragma unroll
  for (int s = 0; s < kScales; ++s) {
    const float2 scale = LoadSharedScales(grids + 32 * s + lane / 4 * 4);
    float low = 8 + Codes<T>::kOffset, high = low * kHigh;
    if (has_zeros) {
      const uchar2 zeros = LoadSharedZeros(grids + 32 * kScales + 16 * s + lane / 4 * 2);
      low = zeros.x + Codes<T>::kOffset;
      high = (zeros.y + Codes<T>::kOffset) * kHigh;
    }
    // Two chains of products where there is one row tile, so that they wait less for each other.
    constexpr int kChains = kRowTiles == 1 && kChunks > 1 ? 2 : 1;
    float chains[kChains][kRowTiles][4] = {};
#pragma unroll
    for (int n = 0; n < kRowTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) chains[0][n][i] = (i < 2 ? low : high) * held[n].sums[s][i % 2];
    }
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const int chunk = s * kChunks + c;
      if (chunk % 2 == 0) q = LoadShared16(codes + 256 * chunk);
      auto& chain = chains[c % kChains];
      uint32_t a[4];
      Codes<T>::Expand(chunk % 2 == 0 ? q.x : q.z, a);
#pragma unroll
      for (int n = 0; n < kRowTiles; ++n) {
        MultiplyAdd<T>(chain[n], a, held[n].x[chunk].x, held[n].x[chunk].y, chain[n]);
      }
      Codes<T>::Expand(chunk % 2 == 0 ? q.y : q.w, a);
#pragma unroll
      for (int n = 0; n < kRowTiles; ++n) {
        MultiplyAdd<T>(chain[n], a, held[n].x[chunk].z, held[n].x[chunk].w, chain[n]);
      }
    }
#pragma unroll
    for (int n = 0; n < kRowTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float total = chains[0][n][i] + (kChains == 2 ? chains[kChains - 1][n][i] : 0);
        sum[n][i] = fmaf(i < 2 ? scale.x : scale.y, total, sum[n][i]);
      }
    }
  }
}

// Norms that a product takes over: squares are [rows][tiles], a sum for each row of a tile.

// A row's factor of the norm before, in all lanes.
template <typename T>
__device__ float FactorBefore(const Product<T, true>& p, int row, int lane) {
  const int tiles = (p.in + kTileOutputs - 1) / kTileOutputs;
  const float* from = p.before.squares + row * tiles;
  float squares = 0;
#pragma unroll 8
  for (int i = lane; i < tiles; i += 32) squares += from[i];
  return p.Factor(SumOverWarp(squares));
}

// Of outputs g and g + 8 of a tile.
template <typename T>
__device__ void LoadGains(const Product<T, true>& p, int first_output, int g, float (&gains)[2]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int output = first_output + g + 8 * i;
    gains[i] = output < p.outputs ? p.behind.gain[output] * p.behind.scale : 0;
  }
}

// What the norm behind wants of the fragment d that StoreFragment wrote. All lanes of a warp, of
// which eight neighbours have a tile's outputs.
template <typename T>
__device__ void StoreForNorm(const Product<T, true>& p, int tile, int g, int row,
                             const float (&d)[4], const float (&gains)[2]) {
  using H = HalfTraits<T>;
  float squares[2] = {};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int output = tile * kTileOutputs + g + i / 2 * 8, r = row + i % 2;
    if (output >= p.outputs || r >= p.rows) continue;
    const float x = H::ToFloat(H::FromFloat(d[i]));
    p.behind.scaled[r * p.behind.scaled_stride + output] = H::FromFloat(x * gains[i / 2]);
    squares[i % 2] += x * x;
  }
  const int tiles = (p.outputs + kTileOutputs - 1) / kTileOutputs;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int step = 4; step > 0; step /= 2) squares[i] += __shfl_xor_sync(~0u, squares[i], step);
    if (g == 0 && row + i < p.rows) p.behind.squares[(row + i) * tiles + tile] = squares[i];
  }
}

// fragment_pairs: of rows, ceil(rows / 2): the lanes t of a fragment that are kept, of all row
// tiles.
template <typename T, int kGranule, int kRowTiles, bool kLinks>
__global__ void __launch_bounds__(kThreads, 1)
    SmallKernel(Weights w, Product<T, kLinks> p, int fragment_pairs, int staged_units) {
  constexpr int kHeld = kHeldUnits<kGranule, kRowTiles>, kGrids = kGridBytes<kGranule>;
  extern __shared__ uint4 shared[];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  constexpr int kRing = kWarps * kStages<kRowTiles> * (kUnitBytes + kGrids);
  const int staging_bytes = p.rows * staged_units * kUnitInputs * 2;
  const Staging staging{SharedAddress(shared) + kRing + warp * staging_bytes, staged_units, p.rows};
  // [tiles][warps][fragment_pairs][8]: a lane's four sums
  auto* const sums = reinterpret_cast<float4*>(reinterpret_cast<std::byte*>(shared) + kRing +
                                               kWarps * staging_bytes);
  const uint32_t codes = SharedAddress(shared) + warp * kStages<kRowTiles> * kUnitBytes;
  const uint32_t grids =
      SharedAddress(shared) + kStages<kRowTiles> * (kWarps * kUnitBytes + warp * kGrids);
  const int fragments = 8 * fragment_pairs;
  const int tiles_begin = static_cast<int>(blockIdx.x * static_cast<uint32_t>(w.tiles) / gridDim.x);
  const int tiles_end =
      static_cast<int>((blockIdx.x + 1) * static_cast<uint32_t>(w.tiles) / gridDim.x);
  const int units_begin = warp * w.units / kWarps, units_end = (warp + 1) * w.units / kWarps;

  StartNextKernel();
  const LaneCopies copies = LaneCopies::Of<kGranule>(w, lane, codes, grids);
  Cursor<kHeld> ahead{units_begin, tiles_begin, units_begin};
  const auto copy_next = [&](int slot) {
    if (ahead.held_begin < units_end) {
      copies.Copy(w, ahead.tile, ahead.unit, slot * kUnitBytes, slot * kGrids);
      ahead.Advance(units_end, tiles_begin, tiles_end);
    }
    CommitCopies();
  };
#pragma unroll
  for (int slot = 0; slot < kStagesAhead; ++slot) copy_next(slot);
  WaitForLastKernel();

  float4* own[kRowTiles];
  bool is_kept[kRowTiles];  // whether the lane's two rows of this row tile are wanted
#pragma unroll
  for (int n = 0; n < kRowTiles; ++n) {
    const int pair = 4 * n + lane % 4;
    own[n] = sums + warp * fragments + pair * 8 + lane / 4;
    is_kept[n] = pair < fragment_pairs;
  }
  if (staging.units > 0) staging.BeginFilling(p, units_begin, lane);
#pragma unroll
  for (int slot = kStagesAhead; slot < kStages<kRowTiles>; ++slot) copy_next(slot);
  // [rows], behind all tiles' sums
  auto* const factors =
      reinterpret_cast<float*>(sums + (tiles_end - tiles_begin) * kWarps * fragments);
  if constexpr (kLinks) {  // while x comes
    if (p.before.squares != nullptr && warp < p.rows) {
      const float factor = FactorBefore(p, warp, lane);
      if (lane == 0) factors[warp] = factor;
    }
  }
  if (staging.units > 0) staging.FinishFilling();
  int slot = 0, first = units_begin;
  do {  // once where a warp has no units: its sums are zero
    HeldUnit<kGranule> held[kHeld][kRowTiles];
    if (kRowTiles == 1 && staging.units > 0) {
#pragma unroll
      for (int u = 0; u < kHeld; ++u) staging.Load(held[u][0], first - units_begin + u, lane);
    } else {
#pragma unroll
      for (int u = 0; u < kHeld; ++u) {
#pragma unroll
        for (int n = 0; n < kRowTiles; ++n) {
          // A unit of no use is loaded from within x, too.
          LoadHeld(held[u][n], p, 8 * n, min(first + u, w.units - 1), lane);
        }
      }
#pragma unroll
      for (int u = 0; u < kHeld; ++u) {
#pragma unroll
        for (int n = 0; n < kRowTiles; ++n) ArrangeHeld(held[u][n], lane);
      }
    }
#pragma unroll
    for (int u = 0; u < kHeld; ++u) {
#pragma unroll
      for (int n = 0; n < kRowTiles; ++n) SumHeld<T>(held[u][n]);
    }
    for (int i = 0; i < tiles_end - tiles_begin; ++i) {
      float sum[kRowTiles][4] = {};
#pragma unroll
      for (int u = 0; u < kHeld; ++u) {
        if (first + u >= units_end) break;
        WaitForCopies<kStages<kRowTiles> - 1>();
        __syncwarp();  // other lanes brought the scales
        ConsumeUnit<T>(sum, codes + slot * kUnitBytes + 16 * lane, grids + slot * kGrids,
                       w.zeros != nullptr, held[u], lane);
        __syncwarp();  // all have read the scales
        copy_next(slot);
        slot = slot + 1 == kStages<kRowTiles> ? 0 : slot + 1;
      }
#pragma unroll
      for (int n = 0; n < kRowTiles; ++n) {
        if (!is_kept[n]) continue;
        float4& to = own[n][i * kWarps * fragments];
        float4 value{sum[n][0], sum[n][1], sum[n][2], sum[n][3]};
        if (first != units_begin) {
          const float4 before = to;
          value = {before.x + value.x, before.y + value.y, before.z + value.z, before.w + value.w};
        }
        to = value;
      }
    }
    first += kHeld;
  } while (first < units_end);

  __syncthreads();

  const int count = (tiles_end - tiles_begin) * fragments;
  for (int i = static_cast<int>(threadIdx.x); (i & ~31) < count; i += kThreads) {
    const int task = min(i, count - 1);
    const int tile = task / fragments, at = task % fragments;
    const int output = (tiles_begin + tile) * kTileOutputs;
    // A lane past the last task repeats it; it must take part but not store.
    const int row = i < count ? at / 8 * 2 : p.rows;
    float addends[4];
    LoadAddends(p, output, at % 8, row, addends);
    float gains[2];
    if constexpr (kLinks) {
      if (p.behind.gain != nullptr) LoadGains(p, output, at % 8, gains);
    }
    const float4* from = sums + tile * kWarps * fragments + at;
    float total[4] = {};
#pragma unroll
    for (int j = 0; j < kWarps; ++j) {
      const float4 part = from[j * fragments];
      total[0] += part.x;
      total[1] += part.y;
      total[2] += part.z;
      total[3] += part.w;
    }
    if constexpr (kLinks) {
      if (p.before.squares != nullptr) {
#pragma unroll
        for (int j = 0; j < 4; ++j) total[j] *= factors[min(row + j % 2, p.rows - 1)];
      }
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      total[j] = total[j] * (j < 2 ? Codes<T>::kLowUnit : Codes<T>::kHighUnit) + addends[j];
    }
    StoreFragment<1>(p, output, at % 8, row, total);
    if constexpr (kLinks) {
      if (p.behind.gain != nullptr) StoreForNorm(p, tiles_begin + tile, at % 8, row, total, gains);
    }
  }
}

template <typename T, int kGranule, int kRowTiles, bool kLinks>
bool LaunchSmall(Stream& stream, const Weights& w, const Product<T, kLinks>& p) {
  const int fragment_pairs = (p.rows + 1) / 2;
  constexpr size_t kRing =
      size_t{kWarps} * kStages<kRowTiles> * (kUnitBytes + kGridBytes<kGranule>);
  const size_t tile_bytes = sizeof(float4) * kWarps * 8 * static_cast<size_t>(fragment_pairs);
  const size_t factors = kLinks ? sizeof(float) * static_cast<size_t>(p.rows) : 0;
  const size_t available = SharedMemory::OfDevice().of_block - factors;
  if (available < kRing + tile_bytes) return false;
  const int most_tiles = static_cast<int>((available - kRing) / tile_bytes);
  // As many rounds of blocks as it takes to have no more tiles in a block.
  int blocks = std::min(stream.multiprocessors(), w.tiles);
  if ((w.tiles + blocks - 1) / blocks > most_tiles) {
    const int round = stream.multiprocessors() * most_tiles;
    blocks = (w.tiles + round - 1) / round * stream.multiprocessors();
  }
  const int block_tiles = (w.tiles + blocks - 1) / blocks;
  const size_t bytes = kRing + tile_bytes * static_cast<size_t>(block_tiles);
  // Where there is no room for staging, x is arranged by shuffles, which takes longer.
  constexpr int kHeld = kHeldUnits<kGranule, kRowTiles>;
  const size_t unit_bytes = size_t{kWarps} * kUnitInputs * 2 * static_cast<size_t>(p.rows);
  const int warp_units = (w.units + kWarps - 1) / kWarps;
  int staged_units = kRowTiles == 1 ? (warp_units + kHeld - 1) / kHeld * kHeld : 0;
  if (bytes + unit_bytes * static_cast<size_t>(staged_units) > available) staged_units = 0;
  LaunchDependent(stream, SmallKernel<T, kGranule, kRowTiles, kLinks>, blocks, kThreads,
                  bytes + unit_bytes * static_cast<size_t>(staged_units) + factors, w, p,
                  fragment_pairs, staged_units);
  return true;
}

// With two row tiles a lane adds its products in another order than with one.
template <typename T, int kGranule, bool kLinks>
bool LaunchSmall(Stream& stream, const Weights& w, const Product<T, kLinks>& p,
                 CudaKernels kernels) {
  if (p.rows <= 8 && kernels != CudaKernels::kBatchInvariant) {
    return LaunchSmall<T, kGranule, 1>(stream, w, p);
  }
  if constexpr (kLinks) {
    return false;
  } else {
    return LaunchSmall<T, kGranule, 2>(stream, w, p);
  }
}

}  // namespace

template <typename T, bool kLinks>
bool SmallProduct(Stream& stream, const Geometry& geometry, const Weights& weights,
                  const Product<T, kLinks>& product, CudaKernels kernels) {
  switch (geometry.granule) {
    case 32:
      return LaunchSmall<T, 32>(stream, weights, product, kernels);
    case 64:
      return LaunchSmall<T, 64>(stream, weights, product, kernels);
    default:
      return LaunchSmall<T, 128>(stream, weights, product, kernels);
  }
}

template bool SmallProduct(Stream&, const Geometry&, const Weights&, const Product<__half>&,
                           CudaKernels);
template bool SmallProduct(Stream&, const Geometry&, const Weights&, const Product<__nv_bfloat16>&,
                           CudaKernels);
template bool SmallProduct(Stream&, const Geometry&, const Weights&, const Product<__half, true>&,
                           CudaKernels);
template bool SmallProduct(Stream&, const Geometry&, const Weights&,
                           const Product<__nv_bfloat16, true>&, CudaKernels);

}  // namespace nibble::cuda::q4

#include <algorithm>

#include "src/ops/cuda/linear_q4_kernels.cuh"

namespace nibble::cuda {
namespace q4 {
namespace {

constexpr size_t kAlignment = 256;
constexpr int kThreads = 256;

size_t Aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }
int64_t RoundedUp(int64_t n, int64_t step) { return (n + step - 1) / step * step; }
unsigned Blocks(int64_t threads) {
  return static_cast<unsigned>((threads + kThreads - 1) / kThreads);
}

// The input that packed column k stands for, or -1 for none.
__device__ int InputOf(const Geometry& g, int k) {
  if (!g.spreads) return k < g.in_features ? k : -1;
  const int group = k / g.padded_group, offset = k % g.padded_group;
  const int input = group * g.group_length + offset;
  return offset < g.group_length && input < g.in_features ? input : -1;
}

// The packed column of input i = 0 … 3 of one lane's step.
__device__ int ColumnOf(int unit, int half, int lane, int step, int i) {
  return unit * kUnitInputs + 64 * half + 16 * step + 2 * (lane % 4) + 8 * (i / 2) + i % 2;
}
// Which nibble of a word has input i of output g + 8 · high.
__device__ int NibbleOf(int i, int high) { return 4 * (i % 2) + 2 * (i / 2) + high; }

// The rows that a call packs: source row r is output first + r · step.
struct RowRange {
  int count, first, step;
  __device__ int SourceOf(int output) const {
    const int offset = output - first;
    if (offset < 0 || offset % step != 0 || offset / step >= count) return -1;
    return offset / step;
  }
};

// One thread a word. The word's other output may belong to another call, hence the read.
__global__ void PackCodes(Geometry g, RowRange rows, int first_tile, int64_t words,
                          const uint8_t* codes, uint32_t* packed) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= words) return;
  const int step = static_cast<int>(index % 4), lane = static_cast<int>(index / 4 % 32);
  const int half = static_cast<int>(index / 128 % 2);
  const auto unit = static_cast<int>(index / 256 % g.units);
  const auto tile = first_tile + static_cast<int>(index / 256 / g.units);
  const int64_t at = static_cast<int64_t>(first_tile) * g.units * 256 + index;
  uint32_t word = packed[at];
  for (int high = 0; high < 2; ++high) {
    const int row = rows.SourceOf(tile * kTileOutputs + lane / 4 + 8 * high);
    if (row < 0) continue;
    const uint8_t* from = codes + static_cast<int64_t>(row) * (g.in_features / 2);
    for (int i = 0; i < 4; ++i) {
      const int input = InputOf(g, ColumnOf(unit, half, lane, step, i));
      const uint32_t code = input < 0 ? 0u : (from[input / 2] >> (4 * (input % 2))) & 15u;
      const int shift = 4 * NibbleOf(i, high);
      word = (word & ~(15u << shift)) | code << shift;
    }
  }
  packed[at] = word;
}

// One thread a row and stored scale group. `packed_zeros` is null for symmetric weights.
__global__ void PackScales(Geometry g, RowRange rows, const uint16_t* scales, const uint8_t* zeros,
                           uint16_t* packed_scales, uint8_t* packed_zeros, uint32_t* largest) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const auto row = static_cast<int>(index / g.scale_groups);
  const auto stored = static_cast<int>(index % g.scale_groups);
  uint32_t magnitude = 0;
  if (row < rows.count) {
    const int groups = g.in_features / g.group_length;
    const int group = stored * g.units_per_scale * g.granule / g.padded_group;
    const int output = rows.first + row * rows.step;
    const int tile = output / kTileOutputs, o = output % kTileOutputs;
    const int64_t at =
        (static_cast<int64_t>(tile) * g.scale_groups + stored) * kTileOutputs + o % 8 * 2 + o / 8;
    const int64_t from = static_cast<int64_t>(row) * groups + group;
    const uint16_t scale = group < groups ? scales[from] : uint16_t{0};
    packed_scales[at] = scale;
    if (packed_zeros != nullptr) packed_zeros[at] = group < groups ? zeros[from] : uint8_t{0};
    magnitude = scale & 0x7fffu;
  }
  magnitude = __reduce_max_sync(~0u, magnitude);
  if (threadIdx.x % 32 == 0) atomicMax(largest, magnitude);
}

// A kernel that started early (StartNextKernel) may let its successor read weights before the
// kernels before it are done; it cannot overtake this one, which starts when packing is done.
__global__ void Fence() {}

// One thread loads 16 bytes of codes, and makes 16 inputs of two outputs. out: [rows from that of
// first_tile, in].
template <typename T>
__global__ void Dequantize(Geometry g, Weights w, int first_tile, int64_t rows, T* out) {
  const int64_t index = first_tile * int64_t{g.units} * 64 +
                        static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const auto lane = static_cast<int>(index % 32), half = static_cast<int>(index / 32 % 2);
  const auto unit = static_cast<int>(index / 64 % g.units);
  const int64_t tile = index / 64 / g.units;
  if (tile >= g.tiles) return;  // the whole warp
  const uint4 loaded = w.codes[index];
  // pairs[j]: the bytes of inputs 8j + 2t and 8j + 2t + 1 of the first 32, then of the other 32.
  // Transposed, of inputs 8t + 2j and 8t + 2j + 1: eight that follow each other, twice.
  uint32_t pairs[4] = {
      __byte_perm(loaded.x, loaded.z, 0x6420), __byte_perm(loaded.x, loaded.z, 0x7531),
      __byte_perm(loaded.y, loaded.w, 0x6420), __byte_perm(loaded.y, loaded.w, 0x7531)};
  TransposeQuad(pairs, lane);
#pragma unroll
  for (int chunk = 0; chunk < 2; ++chunk) {
    const int column = unit * kUnitInputs + 64 * half + 32 * chunk + 8 * (lane % 4);
    const int stored = w.ScaleGroup(unit) + column % kUnitInputs / g.granule;
    const int64_t pair = (tile * g.scale_groups + stored) * 8 + lane / 4;
    const float2 scales = __half22float2(w.scales[pair]);
    const uchar2 zeros = w.zeros != nullptr ? w.zeros[pair] : uchar2{8, 8};
#pragma unroll
    for (int high = 0; high < 2; ++high) {
      const int64_t output = (tile - first_tile) * kTileOutputs + lane / 4 + 8 * high;
      if (output >= rows) continue;
      T values[8];
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int shift = 16 * chunk + 8 * (i % 2) + 4 * high;
        const int code = static_cast<int>((pairs[i / 2] >> shift) & 15u);
        const int difference = code - (high != 0 ? zeros.y : zeros.x);
        values[i] = HalfTraits<T>::FromFloat((high != 0 ? scales.y : scales.x) *
                                             static_cast<float>(difference));
      }
      T* row = out + output * g.in_features;
      if (!g.spreads) {  // then 8 divides in_features
        if (column < g.in_features) {
          *reinterpret_cast<uint4*>(row + column) = *reinterpret_cast<const uint4*>(values);
        }
        continue;
      }
      for (int i = 0; i < 8; ++i) {
        const int input = InputOf(g, column + i);
        if (input >= 0) row[input] = values[i];
      }
    }
  }
}

}  // namespace

Geometry Geometry::Of(int64_t out_features, int64_t in_features, int64_t group_length) {
  CHECK(out_features > 0 && in_features > 0 && in_features % 2 == 0 && group_length > 0 &&
            in_features % group_length == 0,
        "a weight of [{}, {}] in groups of {}", out_features, in_features, group_length);
  int64_t padded_group, granule;
  if (group_length == in_features) {
    padded_group = RoundedUp(in_features, kUnitInputs);
    granule = kUnitInputs;
  } else if (group_length % 32 == 0) {
    padded_group = group_length;
    granule = group_length % 128 == 0 ? 128 : group_length % 64 == 0 ? 64 : 32;
  } else {
    padded_group = group_length < 32   ? 32
                   : group_length < 64 ? 64
                                       : RoundedUp(group_length, kUnitInputs);
    granule = std::min<int64_t>(padded_group, kUnitInputs);
  }
  const int64_t units =
      RoundedUp(in_features / group_length * padded_group, kUnitInputs) / kUnitInputs;
  CHECK(units <= 1024 && out_features <= int64_t{1} << 24, "a weight of [{}, {}] in groups of {}",
        out_features, in_features, group_length);
  const int64_t units_per_scale = granule == kUnitInputs ? padded_group / kUnitInputs : 1;
  return {.out_features = static_cast<int>(out_features),
          .in_features = static_cast<int>(in_features),
          .group_length = static_cast<int>(group_length),
          .padded_group = static_cast<int>(padded_group),
          .granule = static_cast<int>(granule),
          .tiles = static_cast<int>(RoundedUp(out_features, kTileOutputs) / kTileOutputs),
          .units = static_cast<int>(units),
          .scale_groups = static_cast<int>(units * (kUnitInputs / granule) / units_per_scale),
          .units_per_scale = static_cast<int>(units_per_scale),
          .spreads = in_features % 8 != 0 ||
                     (padded_group != group_length && group_length != in_features)};
}

Weights WeightsOf(const Geometry& geometry, const Q4Layout& layout, const void* packed) {
  const auto* bytes = static_cast<const std::byte*>(packed);
  const auto divisor = static_cast<uint32_t>(geometry.units_per_scale);
  return {.codes = reinterpret_cast<const uint4*>(bytes + layout.codes_offset),
          .scales = reinterpret_cast<const __half2*>(bytes + layout.scales_offset),
          .zeros = layout.symmetric ? nullptr
                                    : reinterpret_cast<const uchar2*>(bytes + layout.zeros_offset),
          .largest = reinterpret_cast<const uint32_t*>(bytes + layout.largest_offset),
          .tiles = geometry.tiles,
          .units = geometry.units,
          .scale_groups = geometry.scale_groups,
          .scales_per_unit = geometry.scales_per_unit(),
          .scale_of_unit = ((1u << 20) + divisor - 1) / divisor};
}

}  // namespace q4

using q4::Geometry;
using q4::kThreads;

Q4Layout Q4Layout::Of(int64_t out_features, int64_t in_features, const QuantSpec& spec) {
  Q4Layout layout{.out_features = out_features,
                  .in_features = in_features,
                  .group_length = spec.GroupLength(in_features),
                  .symmetric = spec.grid != Grid::kAsymmetric};
  const Geometry g = Geometry::Of(out_features, in_features, layout.group_length);
  const size_t code_bytes =
      static_cast<size_t>(g.tiles) * static_cast<size_t>(g.units) * q4::kUnitBytes;
  const size_t scales =
      static_cast<size_t>(g.tiles) * static_cast<size_t>(g.scale_groups) * q4::kTileOutputs;
  layout.scales_offset = q4::Aligned(code_bytes);
  layout.zeros_offset = layout.scales_offset + q4::Aligned(2 * scales);
  layout.largest_offset = layout.zeros_offset + (layout.symmetric ? 0 : q4::Aligned(scales));
  layout.total_bytes = layout.largest_offset + q4::kAlignment;
  return layout;
}

void PackQ4(Stream& stream, const Q4Layout& layout, DType /*activations*/, const uint8_t* codes,
            const uint16_t* scales, const uint8_t* zeros, int64_t rows, int64_t first_row,
            int64_t row_step, void* packed) {
  if (rows == 0) return;
  CHECK(first_row >= 0 && row_step > 0 && first_row + (rows - 1) * row_step < layout.out_features,
        "{} rows from {} by {} of {}", rows, first_row, row_step, layout.out_features);
  const Geometry g = Geometry::Of(layout.out_features, layout.in_features, layout.group_length);
  const q4::RowRange range{static_cast<int>(rows), static_cast<int>(first_row),
                           static_cast<int>(row_step)};
  auto* bytes = static_cast<std::byte*>(packed);
  const int64_t first_tile = first_row / q4::kTileOutputs;
  const int64_t last_tile = (first_row + (rows - 1) * row_step) / q4::kTileOutputs;
  const int64_t words = (last_tile - first_tile + 1) * g.units * (q4::kUnitBytes / 4);
  q4::PackCodes<<<q4::Blocks(words), kThreads, 0, stream.get()>>>(
      g, range, static_cast<int>(first_tile), words, codes,
      reinterpret_cast<uint32_t*>(bytes + layout.codes_offset));
  stream.CheckLaunch("packing 4-bit codes", rows, layout.in_features);
  q4::PackScales<<<q4::Blocks(rows * g.scale_groups), kThreads, 0, stream.get()>>>(
      g, range, scales, zeros, reinterpret_cast<uint16_t*>(bytes + layout.scales_offset),
      layout.symmetric ? nullptr : reinterpret_cast<uint8_t*>(bytes + layout.zeros_offset),
      reinterpret_cast<uint32_t*>(bytes + layout.largest_offset));
  stream.CheckLaunch("packing scales", rows, g.scale_groups);
  q4::Fence<<<1, 1, 0, stream.get()>>>();
  stream.CheckLaunch("packing 4-bit weights", rows, layout.in_features);
}

void DequantizeQ4(Stream& stream, const Q4Layout& layout, const void* packed, DType dtype,
                  int64_t first_row, int64_t rows, void* out) {
  CHECK(first_row % q4::kTileOutputs == 0 && first_row + rows <= layout.out_features,
        "{} rows from {} of {}", rows, first_row, layout.out_features);
  if (rows == 0) return;
  const Geometry g = Geometry::Of(layout.out_features, layout.in_features, layout.group_length);
  const int64_t tiles = (rows + q4::kTileOutputs - 1) / q4::kTileOutputs;
  WithHalfType(dtype, [&]<typename T>() {
    q4::Dequantize<T>
        <<<q4::Blocks(tiles * g.units * (q4::kUnitBytes / 16)), kThreads, 0, stream.get()>>>(
            g, q4::WeightsOf(g, layout, packed), static_cast<int>(first_row / q4::kTileOutputs),
            rows, static_cast<T*>(out));
  });
  stream.CheckLaunch("dequantizing", rows, layout.in_features);
}

}  // namespace nibble::cuda

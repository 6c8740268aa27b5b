#include "src/ops/cpu/linear_q4.h"

#include "src/ops/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/ops/cpu/linear_q4.cc"
#include <array>
#include <cmath>
#include <limits>

#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
#include "src/ops/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace nibble::cpu::HWY_NAMESPACE {
namespace {

// acc += lo(w) · lo(x) + hi(w) · hi(x) for the two 16-bit halves of each lane.
//
// Cannot overflow: |x| ≤ 32767, codes and zeros ≤ 15, a segment has at most 128 columns, so the sum
// of code · x and of zero · x are each below 128 · 15 · 32767 < 2^26.
HWY_INLINE VecI MulAddPairs(VecI w, VecI x, VecI acc) {
  const I32 d;
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_SSE4
  const hn::Repartition<int16_t, I32> d16;
  VecI unused = acc;
  return hn::ReorderWidenMulAccumulate(d, hn::BitCast(d16, w), hn::BitCast(d16, x), acc, unused);
#else
  // Elsewhere the widening product may add other lanes together.
  const VecI w_low = hn::And(w, hn::Set(d, 0xFFFF));
  const VecI w_high = hn::ShiftRight<16>(w);
  const VecI x_low = hn::ShiftRight<16>(hn::ShiftLeft<16>(x));
  const VecI x_high = hn::ShiftRight<16>(x);
  return hn::Add(acc, hn::Add(hn::Mul(w_low, x_low), hn::Mul(w_high, x_high)));
#endif
}

struct Q4Panel {
  const int32_t* words;
  const hwy::float16_t* scales;
  const uint8_t* zeros;
};

// sums[T][16] = x · panel for one tile. kZeros: whether zeros are stored; they are 8 otherwise.
template <bool kZeros, int T>
HWY_INLINE void RunTile(const Segments& segments, const Q4Panel& panel,
                        const int32_t* HWY_RESTRICT x, const float* HWY_RESTRICT x_scales,
                        const int32_t* HWY_RESTRICT x_negated_sums, float* HWY_RESTRICT sums,
                        int64_t sums_stride) {
  const F32 df;
  const I32 di;
  const VecI mask = hn::Set(di, 0x000F000F);
  for (int t = 0; t < T; ++t) {
    for (int v = 0; v < kPanelVecs; ++v) {
      hn::StoreU(hn::Zero(df), df, sums + t * sums_stride + v * kLanes);
    }
  }
  const int32_t* HWY_RESTRICT words = panel.words;
  for (int64_t g = 0; g < segments.groups; ++g) {
    VecF scale[kPanelVecs];
    VecI zero[kPanelVecs];
#pragma GCC unroll 16
    for (int v = 0; v < kPanelVecs; ++v) {
      const int64_t at = g * kPanelRows + v * kLanes;
      scale[v] = LoadAsFloat(panel.scales + at);
      if constexpr (kZeros) {
        zero[v] = hn::PromoteTo(di, hn::LoadU(hn::Rebind<uint8_t, I32>(), panel.zeros + at));
      } else {
        zero[v] = hn::Set(di, 8);
      }
    }
    for (int64_t i = 0; i < segments.per_group; ++i) {
      const int64_t blocks = segments.At(g, i).blocks;
      VecI acc[T][kPanelVecs];
#pragma GCC unroll 16
      for (int t = 0; t < T; ++t) {
        const VecI negated_sum = hn::Set(di, x_negated_sums[t]);
#pragma GCC unroll 16
        for (int v = 0; v < kPanelVecs; ++v) acc[t][v] = hn::Mul(zero[v], negated_sum);
      }
      for (int64_t b = 0; b < blocks; ++b) {
        VecI w[kPanelVecs];
#pragma GCC unroll 16
        for (int v = 0; v < kPanelVecs; ++v) w[v] = hn::Load(di, words + v * kLanes);
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
          VecI pair[kPanelVecs];
#pragma GCC unroll 16
          for (int v = 0; v < kPanelVecs; ++v) {
            pair[v] = hn::And(w[v], mask);
            w[v] = hn::ShiftRight<4>(w[v]);
          }
#pragma GCC unroll 16
          for (int t = 0; t < T; ++t) {
            const VecI xt = hn::Set(di, x[j * T + t]);
#pragma GCC unroll 16
            for (int v = 0; v < kPanelVecs; ++v) acc[t][v] = MulAddPairs(pair[v], xt, acc[t][v]);
          }
        }
        words += kPanelRows;
        x += 4 * T;
      }
#pragma GCC unroll 16
      for (int t = 0; t < T; ++t) {
        const VecF x_scale = hn::Set(df, x_scales[t]);
#pragma GCC unroll 16
        for (int v = 0; v < kPanelVecs; ++v) {
          float* sum = sums + t * sums_stride + v * kLanes;
          hn::StoreU(hn::MulAdd(hn::ConvertTo(df, acc[t][v]), hn::Mul(scale[v], x_scale),
                                hn::LoadU(df, sum)),
                     df, sum);
        }
      }
      x_scales += T;
      x_negated_sums += T;
    }
  }
}

template <bool kZeros>
void RunTileOf(int64_t rows, const Segments& segments, const Q4Panel& panel, const int32_t* x,
               const float* x_scales, const int32_t* x_negated_sums, float* sums) {
  constexpr int64_t kStride = kGroupPanels * kPanelRows;
  switch (rows) {
    case 1:
      return RunTile<kZeros, 1>(segments, panel, x, x_scales, x_negated_sums, sums, kStride);
    case 2:
      return RunTile<kZeros, 2>(segments, panel, x, x_scales, x_negated_sums, sums, kStride);
    case 3:
      return RunTile<kZeros, 3>(segments, panel, x, x_scales, x_negated_sums, sums, kStride);
    case 4:
      return RunTile<kZeros, 4>(segments, panel, x, x_scales, x_negated_sums, sums, kStride);
    case 5:
      return RunTile<kZeros, 5>(segments, panel, x, x_scales, x_negated_sums, sums, kStride);
    default:
      return RunTile<kZeros, 6>(segments, panel, x, x_scales, x_negated_sums, sums, kStride);
  }
}

void RunQ4(const LinearTask& task, int64_t panel_begin, int64_t panel_end, int thread) {
  float* sums = task.scratch.sums + thread * LinearScratch::kSumsPerThread;
  const CpuLinear& weight = *task.weight;
  const Segments& segments = weight.layout().segments;
  const Tiling& tiling = task.tiling;
  for (int64_t group = panel_begin; group < panel_end; group += kGroupPanels) {
    const int64_t end = std::min(group + kGroupPanels, panel_end);
    for (int64_t tile = 0; tile < tiling.tiles(); ++tile) {
      const int64_t row = tiling.begin(tile);
      const int32_t* x = task.packed_pairs() + row * segments.pairs();
      const float* scales = task.packed_scales() + row * segments.count();
      const int32_t* negated_sums = task.packed_negated_sums() + row * segments.count();
      for (int64_t p = group; p < end; ++p) {
        const Q4Panel panel{reinterpret_cast<const int32_t*>(weight.panel(p)),
                            reinterpret_cast<const hwy::float16_t*>(weight.scales(p)),
                            weight.zeros(p)};
        float* to = sums + (p - group) * kPanelRows;
        if (weight.layout().has_zeros) {
          RunTileOf<true>(tiling.size(tile), segments, panel, x, scales, negated_sums, to);
        } else {
          RunTileOf<false>(tiling.size(tile), segments, panel, x, scales, negated_sums, to);
        }
      }
      StoreGroup(task, group, end, row, tiling.size(tile), sums);
    }
  }
}

// x[0, count) to integers out[0, count), which is padded with zeros to `padded` (a multiple of 8,
// at most 128). Returns the step; `sum` is the integers' sum.
float QuantizeSegment(const float* HWY_RESTRICT x, int64_t count, int64_t padded,
                      int32_t* HWY_RESTRICT out, int32_t& sum) {
  const F32 df;
  const I32 di;
  HWY_ALIGN float values[Segments::kMaxColumns];
  const int64_t end = RoundUp<int64_t>(padded, kLanes);
  std::copy_n(x, count, values);
  std::fill(values + count, values + end, 0.0f);
  // Compared as integers, magnitudes order as floats do, with infinity and then NaN above all.
  VecI highest = hn::Zero(di);
  for (int64_t k = 0; k < end; k += kLanes) {
    highest = hn::Max(highest, hn::BitCast(di, hn::Abs(hn::Load(df, values + k))));
  }
  const float magnitude = hn::GetLane(hn::BitCast(df, hn::MaxOfLanes(di, highest)));
  const float step = magnitude / 32767.0f;
  // Not finite: every product becomes NaN. So small that 1 / step overflows: nothing but zeros, an
  // error below 1e-33.
  const bool finite = magnitude <= std::numeric_limits<float>::max();
  if (!finite || step < std::numeric_limits<float>::min()) {
    std::fill_n(out, padded, 0);
    sum = 0;
    return finite ? 0.0f : std::numeric_limits<float>::quiet_NaN();
  }
  const VecF inverse = hn::Set(df, 1.0f / step);
  const VecI limit = hn::Set(di, 32767);
  VecI total = hn::Zero(di);
  for (int64_t k = 0; k < end; k += kLanes) {
    VecI i = hn::NearestInt(hn::Mul(hn::Load(df, values + k), inverse));
    i = hn::Max(hn::Min(i, limit), hn::Neg(limit));  // 1 / step is rounded
    total = hn::Add(total, i);
    hn::StoreU(i, di, out + k);
  }
  sum = hn::GetLane(hn::SumOfLanes(di, total));
  return step;
}

void Quantize(const LinearTask& task, int64_t tile_begin, int64_t tile_end) {
  const Segments& segments = task.weight->layout().segments;
  for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
    const int64_t begin = task.tiling.begin(tile);
    const int64_t size = task.tiling.size(tile);
    int32_t* pairs = task.packed_pairs() + begin * segments.pairs();
    float* scales = task.packed_scales() + begin * segments.count();
    int32_t* negated_sums = task.packed_negated_sums() + begin * segments.count();
    for (int64_t t = 0; t < size; ++t) {
      const float* x = task.x.row<float>(begin + t);
      for (int64_t s = 0; s < segments.count(); ++s) {
        const auto segment = segments.At(s / segments.per_group, s % segments.per_group);
        HWY_ALIGN std::array<int32_t, Segments::kMaxColumns> integers;
        int32_t sum = 0;
        scales[s * size + t] =
            QuantizeSegment(x + segment.column, segment.columns,
                            segment.blocks * Segments::kBlockColumns, integers.data(), sum);
        negated_sums[s * size + t] = -sum;
        int32_t* to = pairs + segment.block * 4 * size + t;
        for (int64_t i = 0; i < segment.blocks * 4; ++i) {
          const auto at = static_cast<size_t>(2 * i);
          to[i * size] = static_cast<int32_t>((static_cast<uint32_t>(integers[at]) & 0xFFFFu) |
                                              static_cast<uint32_t>(integers[at + 1]) << 16);
        }
      }
    }
  }
}

}  // namespace
}  // namespace nibble::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble::cpu {

HWY_EXPORT(RunQ4);
HWY_EXPORT(Quantize);

void RunQ4Panels(const LinearTask& task, int64_t panel_begin, int64_t panel_end, int thread) {
  HWY_DYNAMIC_DISPATCH(RunQ4)(task, panel_begin, panel_end, thread);
}

void QuantizeTiles(const LinearTask& task, int64_t tile_begin, int64_t tile_end) {
  HWY_DYNAMIC_DISPATCH(Quantize)(task, tile_begin, tile_end);
}

}  // namespace nibble::cpu
#endif  // HWY_ONCE

#include "src/ops/cpu/linear_q4.h"

#include "src/ops/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/ops/cpu/linear_q4.cc"
#include <array>
#include <cmath>
#include <limits>
#include <utility>

#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
#include "src/ops/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace nibble::cpu::HWY_NAMESPACE {
namespace {

// acc += lo(w) · lo(x) + hi(w) · hi(x) for the two 16-bit halves of each lane.
//
// Cannot overflow: |x| ≤ 32767, codes and zeros ≤ 15, a segment has at most 128
// columns, so the sum of code · x and of zero · x are each below 128 · 15 ·
// 32767 < 2^26.
HWY_INLINE void MulAddPairs(VecI w, VecI x, VecI& acc) {
  const I32 d;
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_SSE4
  const hn::Repartition<int16_t, I32> d16;
  VecI unused = acc;
  acc = hn::ReorderWidenMulAccumulate(d, hn::BitCast(d16, w), hn::BitCast(d16, x), acc, unused);
  // Compilers like to sum the products of a block before adding them to `acc`,
  // which takes more registers than there are. To them, this changes `acc`.
#if HWY_TARGET <= HWY_AVX3
  asm("" : "+v"(acc.raw));
#else
  asm("" : "+x"(acc.raw));
#endif
#else
  // Elsewhere the widening product may add other lanes together.
  const VecI w_low = hn::And(w, hn::Set(d, 0xFFFF));
  const VecI w_high = hn::ShiftRight<16>(w);
  const VecI x_low = hn::ShiftRight<16>(hn::ShiftLeft<16>(x));
  const VecI x_high = hn::ShiftRight<16>(x);
  acc = hn::Add(acc, hn::Add(hn::Mul(w_low, x_low), hn::Mul(w_high, x_high)));
#endif
}

// f(0) … f(count - 1), unrolled before the compiler takes arrays apart: elements at constant places
// stay in registers, also through a loop around this one. After `#pragma GCC unroll`, which comes
// later, the accumulators went to memory and back for every block.
template <typename F, int... i>
HWY_INLINE void CallEach(const F& f, std::integer_sequence<int, i...>) {
  (f(std::integral_constant<int, i>()), ...);
}
template <int count, typename F>
HWY_INLINE void ForEach(const F& f) {
  if constexpr (kUnroll > 1) {
    CallEach(f, std::make_integer_sequence<int, count>());
  } else {
    for (int i = 0; i < count; ++i) f(i);
  }
}
#define NIBBLE_INLINE_LAMBDA HWY_ATTR __attribute__((always_inline))

// Pair j of a block's words: columns j and j + 4.
template <int j>
HWY_INLINE VecI CodePair(VecI words) {
  const I32 d;
#if HWY_TARGET != HWY_SCALAR  // which has no 16-bit lanes within 32
  const hn::Repartition<uint16_t, I32> d16;
  if constexpr (j == 3) return hn::BitCast(d, hn::ShiftRight<12>(hn::BitCast(d16, words)));
#endif
  return hn::And(hn::ShiftRight<4 * j>(words), hn::Set(d, 0x000F000F));
}

// Consecutive panels, and how far apart they are.
struct Q4Panels {
  const int32_t* words;
  const hwy::float16_t* scales;
  const uint8_t* zeros;
  int64_t words_stride;
  int64_t scales_stride;  // of the zeros too

  Q4Panels(const CpuLinear& weight, int64_t panel)
      : words(reinterpret_cast<const int32_t*>(weight.panel(panel))),
        scales(reinterpret_cast<const hwy::float16_t*>(weight.scales(panel))),
        zeros(weight.zeros(panel)),
        words_stride(weight.layout().segments.blocks() * kPanelRows),
        scales_stride(weight.layout().segments.groups * kPanelRows) {}

  Q4Panels From(int64_t panel) const {
    Q4Panels panels = *this;
    panels.words += panel * words_stride;
    panels.scales += panel * scales_stride;
    panels.zeros += panel * scales_stride;
    return panels;
  }
};

// A tile of quantized activations.
struct Q4Tile {
  const int32_t* pairs;         // [pairs][T]
  const float* scales;          // [segments][T]
  const int32_t* negated_sums;  // [segments][T]

  Q4Tile(const LinearTask& task, int64_t row)
      : pairs(task.packed_pairs() + row * task.weight->layout().segments.pairs()),
        scales(task.packed_scales() + row * task.weight->layout().segments.count()),
        negated_sums(task.packed_negated_sums() + row * task.weight->layout().segments.count()) {}
};

// What the panels after these need, into the second-level cache: the processor's own prefetching
// loses its streams at a panel's end. Past the last panel the address is of no use and no harm.
HWY_INLINE void PrefetchSoon(const void* p) { __builtin_prefetch(p, 0, 2); }

// acc[T][panels p … P - 1] += pair j of their codes · the T activations of that pair
template <int j, int p, int T, int P>
HWY_INLINE void AddPair(const int32_t* HWY_RESTRICT words, int64_t words_stride,
                        const int32_t* HWY_RESTRICT x, VecI (&acc)[T][P * kPanelVecs]) {
  VecI pair[kPanelVecs];
  ForEach<kPanelVecs>([&](int v) NIBBLE_INLINE_LAMBDA {
    pair[v] = CodePair<j>(hn::Load(I32(), words + p * words_stride + v * kLanes));
  });
  ForEach<T * kPanelVecs>([&](int i) NIBBLE_INLINE_LAMBDA {
    const int t = i / kPanelVecs, v = i % kPanelVecs;
    MulAddPairs(pair[v], hn::Set(I32(), x[j * T + t]), acc[t][p * kPanelVecs + v]);
  });
  if constexpr (p + 1 < P) AddPair<j, p + 1, T, P>(words, words_stride, x, acc);
}

// acc += a block's codes · its activations
template <int T, int P>
HWY_INLINE void AddBlock(const int32_t* HWY_RESTRICT words, int64_t words_stride,
                         const int32_t* HWY_RESTRICT x, VecI (&acc)[T][P * kPanelVecs]) {
  if constexpr (T > 1) {
    // The words are loaded again for each pair: their registers hold
    // accumulators.
    AddPair<0, 0, T, P>(words, words_stride, x, acc);
    AddPair<1, 0, T, P>(words, words_stride, x, acc);
    AddPair<2, 0, T, P>(words, words_stride, x, acc);
    AddPair<3, 0, T, P>(words, words_stride, x, acc);
  } else {
    const I32 d;
    const VecI x0 = hn::Set(d, x[0]);
    const VecI x1 = hn::Set(d, x[1]);
    const VecI x2 = hn::Set(d, x[2]);
    const VecI x3 = hn::Set(d, x[3]);
#pragma GCC unroll kUnroll
    for (int v = 0; v < P * kPanelVecs; ++v) {
      const int32_t* at = words + (v / kPanelVecs) * words_stride + (v % kPanelVecs) * kLanes;
      if (v % kPanelVecs == 0) PrefetchSoon(at + P * words_stride);
      const VecI w = hn::Load(d, at);
      VecI sum = acc[0][v];
      MulAddPairs(CodePair<0>(w), x0, sum);
      MulAddPairs(CodePair<1>(w), x1, sum);
      MulAddPairs(CodePair<2>(w), x2, sum);
      MulAddPairs(CodePair<3>(w), x3, sum);
      acc[0][v] = sum;
    }
  }
}

// acc = -zero · sum of the segment's activations
template <bool kZeros, int T, int P>
HWY_INLINE void StartSegment(const Q4Panels& panels, int64_t group,
                             const int32_t* HWY_RESTRICT negated_sums,
                             VecI (&acc)[T][P * kPanelVecs]) {
  const I32 d;
  VecI zero[P * kPanelVecs];
  ForEach<P * kPanelVecs>([&](int v) NIBBLE_INLINE_LAMBDA {
    zero[v] = hn::Zero(d);
    if constexpr (kZeros) {
      const uint8_t* zeros = panels.zeros + (v / kPanelVecs) * panels.scales_stride;
      zero[v] = hn::PromoteTo(d, hn::LoadU(hn::Rebind<uint8_t, I32>(),
                                           zeros + group * kPanelRows + (v % kPanelVecs) * kLanes));
    }
  });
  ForEach<T * P * kPanelVecs>([&](int i) NIBBLE_INLINE_LAMBDA {
    const int t = i / (P * kPanelVecs), v = i % (P * kPanelVecs);
    acc[t][v] =
        kZeros ? hn::Mul(zero[v], hn::Set(d, negated_sums[t])) : hn::Set(d, 8 * negated_sums[t]);
  });
}

// sums += acc · the weight's scale · the activations' scale
template <int T, int P>
HWY_INLINE void EndSegment(const Q4Panels& panels, int64_t group, const float* HWY_RESTRICT scales,
                           const VecI (&acc)[T][P * kPanelVecs], float* HWY_RESTRICT sums) {
  const F32 d;
  VecF scale[P * kPanelVecs];
  ForEach<P * kPanelVecs>([&](int v) NIBBLE_INLINE_LAMBDA {
    scale[v] = LoadAsFloat(panels.scales + (v / kPanelVecs) * panels.scales_stride +
                           group * kPanelRows + (v % kPanelVecs) * kLanes);
  });
  ForEach<T * P * kPanelVecs>([&](int i) NIBBLE_INLINE_LAMBDA {
    const int t = i / (P * kPanelVecs), v = i % (P * kPanelVecs);
    float* sum = sums + t * kSumsStride + v * kLanes;
    hn::StoreU(hn::MulAdd(hn::ConvertTo(d, acc[t][v]), hn::Mul(scale[v], hn::Set(d, scales[t])),
                          hn::LoadU(d, sum)),
               d, sum);
  });
}

// sums[T][P panels] = x · panels for one tile. kZeros: whether zeros are
// stored; they are 8 if not.
template <bool kZeros, int T, int P>
HWY_INLINE void RunPanels(const Segments& segments, const Q4Panels& panels, Q4Tile x,
                          float* HWY_RESTRICT sums) {
  for (int t = 0; t < T; ++t) {
    for (int v = 0; v < P * kPanelVecs; ++v) {
      hn::StoreU(hn::Zero(F32()), F32(), sums + t * kSumsStride + v * kLanes);
    }
  }
  const int32_t* HWY_RESTRICT words = panels.words;
  for (int64_t g = 0; g < segments.groups; ++g) {
    for (int p = P; T == 1 && p < 2 * P; ++p) {
      PrefetchSoon(panels.scales + p * panels.scales_stride + g * kPanelRows);
      if (kZeros) PrefetchSoon(panels.zeros + p * panels.scales_stride + g * kPanelRows);
    }
    for (int64_t i = 0; i < segments.per_group; ++i) {
      VecI acc[T][P * kPanelVecs];
      StartSegment<kZeros, T, P>(panels, g, x.negated_sums, acc);
      for (int64_t blocks = segments.BlocksOf(i); blocks > 0; --blocks) {
        AddBlock<T, P>(words, panels.words_stride, x.pairs, acc);
        words += kPanelRows;
        x.pairs += 4 * T;
      }
      EndSegment<T, P>(panels, g, x.scales, acc, sums);
      x.scales += T;
      x.negated_sums += T;
    }
  }
}

// Panels at a time. For one row, two vectors' words of each stream and few
// streams: memory is the limit, and 4 accumulators are enough.
constexpr int Q4PanelsFor(int rows) {
  return rows > 1 ? PanelsFor(rows) : kPanelVecs < 4 ? 4 / kPanelVecs : 1;
}

template <bool kZeros, int T>
void RunTile(const Segments& segments, const Q4Panels& panels, int64_t count, const Q4Tile& x,
             float* sums) {
  constexpr int kStep = Q4PanelsFor(T);
  int64_t p = 0;
  for (; p + kStep <= count; p += kStep) {
    RunPanels<kZeros, T, kStep>(segments, panels.From(p), x, sums + p * kPanelRows);
  }
  if constexpr (kStep > 1) {
    for (; p < count; ++p) {
      RunPanels<kZeros, T, 1>(segments, panels.From(p), x, sums + p * kPanelRows);
    }
  }
}

template <bool kZeros>
void RunTileOf(int64_t rows, const Segments& segments, const Q4Panels& panels, int64_t count,
               const Q4Tile& x, float* sums) {
  switch (rows) {
    case 1:
      return RunTile<kZeros, 1>(segments, panels, count, x, sums);
    case 2:
      return RunTile<kZeros, 2>(segments, panels, count, x, sums);
    case 3:
      return RunTile<kZeros, 3>(segments, panels, count, x, sums);
    case 4:
      return RunTile<kZeros, 4>(segments, panels, count, x, sums);
    case 5:
      return RunTile<kZeros, 5>(segments, panels, count, x, sums);
    default:
      return RunTile<kZeros, 6>(segments, panels, count, x, sums);
  }
}

void RunQ4(const LinearTask& task, int64_t panel_begin, int64_t panel_end, int thread) {
  float* sums = task.scratch.sums + thread * LinearScratch::kSumsPerThread;
  const LinearLayout& layout = task.weight->layout();
  const Tiling& tiling = task.tiling;
  for (int64_t group = panel_begin; group < panel_end; group += kGroupPanels) {
    const int64_t end = std::min(group + kGroupPanels, panel_end);
    const Q4Panels panels(*task.weight, group);
    for (int64_t tile = 0; tile < tiling.tiles(); ++tile) {
      const int64_t row = tiling.begin(tile);
      const int64_t rows = tiling.size(tile);
      if (layout.has_zeros) {
        RunTileOf<true>(rows, layout.segments, panels, end - group, Q4Tile(task, row), sums);
      } else {
        RunTileOf<false>(rows, layout.segments, panels, end - group, Q4Tile(task, row), sums);
      }
      StoreGroup(task, group, end, row, rows, sums);
    }
  }
}

// Columns [column, column + count) of the activations x to integers
// out[0, count), which is padded with zeros to `padded` (a multiple of 8, at
// most 128). Returns the step; `sum` is the integers' sum.
float QuantizeSegment(const float* HWY_RESTRICT x, const int32_t* HWY_RESTRICT order,
                      int64_t column, int64_t count, int64_t padded, int32_t* HWY_RESTRICT out,
                      int32_t& sum) {
  const F32 df;
  const I32 di;
  HWY_ALIGN float values[Segments::kMaxColumns];
  const int64_t end = RoundUp<int64_t>(padded, kLanes);
  if (order == nullptr) {
    std::copy_n(x + column, count, values);
  } else {
    for (int64_t k = 0; k < count; ++k) values[k] = x[order[column + k]];
  }
  std::fill(values + count, values + end, 0.0f);
  // Compared as integers, magnitudes order as floats do, with infinity and then
  // NaN above all.
  VecI highest = hn::Zero(di);
  for (int64_t k = 0; k < end; k += kLanes) {
    highest = hn::Max(highest, hn::BitCast(di, hn::Abs(hn::Load(df, values + k))));
  }
  const float magnitude = hn::GetLane(hn::BitCast(df, hn::MaxOfLanes(di, highest)));
  const float step = magnitude / 32767.0f;
  // Not finite: every product becomes NaN. So small that 1 / step overflows:
  // nothing but zeros, an error below 1e-33.
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
            QuantizeSegment(x, task.weight->order(), segment.column, segment.columns,
                            segment.blocks * Segments::kBlockColumns, integers.data(), sum);
        negated_sums[s * size + t] = -sum;
        int32_t* to = pairs + segment.block * 4 * size + t;
        for (int64_t block = 0; block < segment.blocks; ++block) {
          const int32_t* from = integers.data() + block * Segments::kBlockColumns;
          for (int j = 0; j < 4; ++j) {
            to[j * size] = static_cast<int32_t>((static_cast<uint32_t>(from[j]) & 0xFFFFu) |
                                                static_cast<uint32_t>(from[j + 4]) << 16);
          }
          to += 4 * size;
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

// What the kernel files share, compiled for each target.
#if defined(NIBBLE_OPS_CPU_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef NIBBLE_OPS_CPU_SIMD_INL_H_
#undef NIBBLE_OPS_CPU_SIMD_INL_H_
#else
#define NIBBLE_OPS_CPU_SIMD_INL_H_
#endif

#include <algorithm>
#include <cstdint>

#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"
#include "src/ops/cpu/linear_task.h"

HWY_BEFORE_NAMESPACE();
namespace nibble::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Vectors of at most a panel's 16 rows.
using F32 = hn::CappedTag<float, 16>;
using I32 = hn::RebindToSigned<F32>;
using VecF = hn::Vec<F32>;
using VecI = hn::Vec<I32>;
inline constexpr int kLanes = static_cast<int>(hn::MaxLanes(F32()));
inline constexpr int kPanelVecs = 16 / kLanes;

// How far loops over a tile's registers are unrolled: wholly, but for the scalar target, which has
// sixteen times as many steps, no registers to win, and took longer to compile than all the others.
#ifdef NIBBLE_SANITIZED  // every step is several checks
inline constexpr int kUnroll = 1;
#else
inline constexpr int kUnroll = HWY_TARGET == HWY_SCALAR ? 1 : 16;
#endif

// Panels at a time for a tile of `rows`: as many as leave 12 accumulators, for
// few rows have too few of their own to keep the multipliers busy.
constexpr int PanelsFor(int rows) {
  const int most = 12 / (rows * kPanelVecs);
  return most >= 4 ? 4 : most >= 2 ? 2 : 1;
}

// A vector of weights or cached values as float32.
HWY_INLINE VecF LoadAsFloat(const float* p) { return hn::LoadU(F32(), p); }
HWY_INLINE VecF LoadAsFloat(const hwy::float16_t* p) {
  return hn::PromoteTo(F32(), hn::LoadU(hn::Rebind<hwy::float16_t, F32>(), p));
}
HWY_INLINE VecF LoadAsFloat(const hwy::bfloat16_t* p) {
  return hn::PromoteTo(F32(), hn::LoadU(hn::Rebind<hwy::bfloat16_t, F32>(), p));
}

// e^x, NaN for NaN (Highway's gives 0), at most e^88.
HWY_INLINE VecF ExpOrNaN(VecF x) {
  const F32 d;
  const VecF e = hn::Exp(d, hn::Min(x, hn::Set(d, 88.0f)));
  return hn::IfThenElse(hn::Eq(x, x), e, x);
}

HWY_INLINE VecF SiluMul(VecF gate, VecF up) {
  const F32 d;
  const VecF sigmoid_inverse = hn::Add(hn::Set(d, 1.0f), ExpOrNaN(hn::Neg(gate)));
  return hn::Mul(hn::Div(gate, sigmoid_inverse), up);
}

// sums[T][P panels] += x[depth][T] · panels[P], of elements [depth][16], each
// output in the order of `depth`; from zero unless `resume`.
template <typename W, int T, int P>
HWY_INLINE void AccumulateDense(const W* const* panels, const float* HWY_RESTRICT x, int64_t depth,
                                float* HWY_RESTRICT sums, int64_t sums_stride, bool resume) {
  const F32 d;
  constexpr int kVecs = P * kPanelVecs;
  const W* at[P];
#pragma GCC unroll kUnroll
  for (int p = 0; p < P; ++p) at[p] = panels[p];
  VecF acc[T][kVecs];
#pragma GCC unroll kUnroll
  for (int t = 0; t < T; ++t) {
#pragma GCC unroll kUnroll
    for (int v = 0; v < kVecs; ++v) {
      acc[t][v] = resume ? hn::LoadU(d, sums + t * sums_stride + v * kLanes) : hn::Zero(d);
    }
  }
  for (int64_t k = 0; k < depth; ++k) {
#pragma GCC unroll kUnroll
    for (int p = 0; p < P; ++p) {
      VecF w[kPanelVecs];
#pragma GCC unroll kUnroll
      for (int v = 0; v < kPanelVecs; ++v) {
        w[v] = LoadAsFloat(at[p] + k * kPanelRows + v * kLanes);
      }
#pragma GCC unroll kUnroll
      for (int t = 0; t < T; ++t) {
        const VecF xt = hn::Set(d, x[k * T + t]);
#pragma GCC unroll kUnroll
        for (int v = 0; v < kPanelVecs; ++v) {
          acc[t][p * kPanelVecs + v] = hn::MulAdd(w[v], xt, acc[t][p * kPanelVecs + v]);
        }
      }
      // With 12 accumulators there is no room for two panels' weights at a
      // time; without this the compiler loads them all first, and spills.
      if constexpr (P > 1 && T * P * kPanelVecs > 8) HWY_FENCE;
    }
  }
#pragma GCC unroll kUnroll
  for (int t = 0; t < T; ++t) {
#pragma GCC unroll kUnroll
    for (int v = 0; v < kVecs; ++v) {
      hn::StoreU(acc[t][v], d, sums + t * sums_stride + v * kLanes);
    }
  }
}

// 16 outputs of one row: sums → out[first, first + 16), or as many as there
// are.
HWY_INLINE void StorePanel(const LinearTask& task, int64_t panel, const float* sums, float* out_row,
                           int64_t columns) {
  const F32 d;
  const bool gate_up = task.epilogue == Epilogue::kSiluMul;
  const int64_t first = (gate_up ? panel / 2 : panel) * kPanelRows;
  const int64_t count = std::min(kPanelRows, columns - first);
  const float* bias = task.weight->bias(panel);
  float* out = out_row + first;
  HWY_ALIGN float partial[kPanelRows];
  float* to = out;
  if (count < kPanelRows) {
    to = partial;
    if (task.epilogue == Epilogue::kAdd) std::copy_n(out, count, partial);
    std::fill(partial + (task.epilogue == Epilogue::kAdd ? count : 0), partial + kPanelRows, 0.0f);
  }
  for (int v = 0; v < kPanelVecs; ++v) {
    const int64_t at = v * kLanes;
    VecF y = hn::LoadU(d, sums + at);
    if (bias != nullptr) y = hn::Add(y, hn::LoadU(d, bias + at));
    if (gate_up) {
      VecF up = hn::LoadU(d, sums + kPanelRows + at);
      if (bias != nullptr) up = hn::Add(up, hn::LoadU(d, bias + kPanelRows + at));
      y = SiluMul(y, up);
    } else if (task.epilogue == Epilogue::kAdd) {
      y = hn::Add(y, hn::LoadU(d, to + at));
    }
    hn::StoreU(y, d, to + at);
  }
  if (count < kPanelRows) std::copy_n(partial, count, out);
}

// The epilogue of rows [row, row + rows) and a group of panels; sums:
// [rows][kGroupPanels · 16].
HWY_INLINE void StoreGroup(const LinearTask& task, int64_t panel_begin, int64_t panel_end,
                           int64_t row, int64_t rows, const float* sums) {
  const int64_t step = task.epilogue == Epilogue::kSiluMul ? 2 : 1;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t p = panel_begin; p < panel_end; p += step) {
      StorePanel(task, p, sums + r * kSumsStride + (p - panel_begin) * kPanelRows,
                 task.out.row<float>(row + r), task.out.columns);
    }
  }
}

}  // namespace nibble::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif

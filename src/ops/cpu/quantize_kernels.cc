#include "src/ops/cpu/quantize_kernels.h"

#include "src/ops/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/ops/cpu/quantize_kernels.cc"
#include <algorithm>
#include <cmath>
#include <limits>

#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
#include "src/ops/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace nibble::cpu::HWY_NAMESPACE {
namespace {

static_assert(kTileRows % kLanes == 0);

// The nearest code as a float: clamped before rounding, so that no value is too large to convert.
HWY_INLINE VecF CodeOf(VecF value, VecF scale, VecF zero) {
  const F32 d;
  const VecF steps = hn::Div(value, scale);
  const VecF low = hn::Neg(zero), high = hn::Sub(hn::Set(d, kMaxCode), zero);
  return hn::Add(hn::Round(hn::Min(hn::Max(steps, low), high)), zero);
}

void Extremes(const float* HWY_RESTRICT tile, int64_t columns, float* HWY_RESTRICT low,
              float* HWY_RESTRICT high) {
  const F32 d;
  for (int64_t r = 0; r < kTileRows; r += kLanes) {
    VecF least = hn::Zero(d), most = hn::Zero(d);  // the range includes zero
    for (int64_t k = 0; k < columns; ++k) {
      const VecF w = hn::Load(d, tile + k * kTileRows + r);
      least = hn::Min(least, w);
      most = hn::Max(most, w);
    }
    hn::Store(least, d, low + r);
    hn::Store(most, d, high + r);
  }
}

void Losses(const float* HWY_RESTRICT tile, int64_t columns, ScaleSearch search,
            const float* HWY_RESTRICT importance, const TileGrid& grid,
            float* HWY_RESTRICT losses) {
  const F32 d;
  for (int64_t r = 0; r < kTileRows; r += kLanes) {
    const VecF scale = hn::LoadU(d, grid.scales + r), zero = hn::LoadU(d, grid.zeros + r);
    VecF loss = hn::Zero(d);
    for (int64_t k = 0; k < columns; ++k) {
      const VecF w = hn::Load(d, tile + k * kTileRows + r);
      const VecF error = hn::NegMulAdd(scale, hn::Sub(CodeOf(w, scale, zero), zero), w);
      const VecF square = hn::Mul(error, error);
      if (search == ScaleSearch::kHessian) {
        loss = hn::MulAdd(square, hn::Set(d, importance[k]), loss);
      } else {
        // |e|^2.4 = (e²)^1.2
        const VecF above = hn::Max(square, hn::Set(d, 1e-30f));
        loss = hn::Add(loss, hn::Exp(d, hn::Mul(hn::Set(d, 1.2f), hn::Log(d, above))));
      }
    }
    hn::Store(loss, d, losses + r);
  }
}

void Round(const float* HWY_RESTRICT tile, int64_t columns, const TileGrid& grid,
           uint8_t* HWY_RESTRICT codes, float* HWY_RESTRICT values) {
  const F32 d;
  const hn::Rebind<uint8_t, F32> d8;
  for (int64_t r = 0; r < kTileRows; r += kLanes) {
    const VecF scale = hn::LoadU(d, grid.scales + r), zero = hn::LoadU(d, grid.zeros + r);
    for (int64_t k = 0; k < columns; ++k) {
      const VecF code = CodeOf(hn::Load(d, tile + k * kTileRows + r), scale, zero);
      hn::StoreU(hn::DemoteTo(d8, hn::ConvertTo(I32(), code)), d8, codes + k * kTileRows + r);
      if (values != nullptr) {
        hn::Store(hn::Mul(scale, hn::Sub(code, zero)), d, values + k * kTileRows + r);
      }
    }
  }
}

void Sweep(float* HWY_RESTRICT tile, int64_t column, int64_t columns, const TileGrid& grid,
           const float* HWY_RESTRICT factor, uint8_t* HWY_RESTRICT codes,
           float* HWY_RESTRICT errors) {
  const F32 d;
  const hn::Rebind<uint8_t, F32> d8;
  const VecF inverse = hn::Set(d, 1.0f / factor[0]);
  for (int64_t r = 0; r < kTileRows; r += kLanes) {
    const VecF scale = hn::LoadU(d, grid.scales + r), zero = hn::LoadU(d, grid.zeros + r);
    const VecF w = hn::Load(d, tile + column * kTileRows + r);
    const VecF code = CodeOf(w, scale, zero);
    hn::StoreU(hn::DemoteTo(d8, hn::ConvertTo(I32(), code)), d8, codes + r);
    const VecF error = hn::Mul(hn::NegMulAdd(scale, hn::Sub(code, zero), w), inverse);
    hn::Store(error, d, errors + r);
    for (int64_t j = column + 1; j < columns; ++j) {
      float* to = tile + j * kTileRows + r;
      hn::Store(hn::NegMulAdd(error, hn::Set(d, factor[j - column]), hn::Load(d, to)), d, to);
    }
  }
}

void QuadraticForm(const float* HWY_RESTRICT deltas, int64_t columns,
                   const float* HWY_RESTRICT gram, int64_t stride, float* HWY_RESTRICT losses) {
  const F32 d;
  for (int64_t r = 0; r < kTileRows; r += kLanes) {
    VecF loss = hn::Load(d, losses + r);
    for (int64_t j = 0; j < columns; ++j) {
      VecF product = hn::Zero(d);
      for (int64_t k = 0; k < columns; ++k) {
        product = hn::MulAdd(hn::Load(d, deltas + k * kTileRows + r),
                             hn::Set(d, gram[j * stride + k]), product);
      }
      loss = hn::MulAdd(product, hn::Load(d, deltas + j * kTileRows + r), loss);
    }
    hn::Store(loss, d, losses + r);
  }
}

// Row after row of a few columns, whose sums stay in registers.
void Magnitudes(const float* HWY_RESTRICT x, int64_t stride, int64_t rows, int64_t columns,
                double* HWY_RESTRICT sums) {
  const hn::CappedTag<double, 8> d;
  const hn::Rebind<float, decltype(d)> d32;
  constexpr int64_t kVecs = 8;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t k = 0;
  for (; k + kVecs * lanes <= columns; k += kVecs * lanes) {
    hn::Vec<decltype(d)> sum[kVecs];
#pragma GCC unroll kUnroll
    for (int64_t v = 0; v < kVecs; ++v) sum[v] = hn::LoadU(d, sums + k + v * lanes);
    const float* row = x + k;
    for (int64_t r = 0; r < rows; ++r, row += stride) {
#pragma GCC unroll kUnroll
      for (int64_t v = 0; v < kVecs; ++v) {
        sum[v] = hn::Add(sum[v], hn::PromoteTo(d, hn::Abs(hn::LoadU(d32, row + v * lanes))));
      }
    }
#pragma GCC unroll kUnroll
    for (int64_t v = 0; v < kVecs; ++v) hn::StoreU(sum[v], d, sums + k + v * lanes);
  }
  for (; k < columns; ++k) {
    for (int64_t r = 0; r < rows; ++r) sums[k] += std::abs(x[r * stride + k]);
  }
}

}  // namespace
}  // namespace nibble::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble::cpu {

HWY_EXPORT(Extremes);
HWY_EXPORT(Losses);
HWY_EXPORT(Round);
HWY_EXPORT(Sweep);
HWY_EXPORT(QuadraticForm);
HWY_EXPORT(Magnitudes);

void FindTileGrid(const float* tile, int64_t columns, const GridOptions& options,
                  const float* importance, TileGrid& grid) {
  alignas(64) float low[kTileRows], high[kTileRows], losses[kTileRows];
  HWY_DYNAMIC_DISPATCH(Extremes)(tile, columns, low, high);
  const auto shrunk = [&](float share, TileGrid& out) {
    for (int64_t r = 0; r < kTileRows; ++r) {
      const GroupGrid found =
          GridOfRange(share * low[r], share * high[r], options.spec.grid, options.rounding);
      out.scales[r] = found.scale;
      out.zeros[r] = static_cast<float>(found.zero);
    }
  };
  shrunk(1, grid);
  if (options.search == ScaleSearch::kNone) return;
  constexpr int kShares = 80;
  float best[kTileRows];
  std::fill(best, best + kTileRows, std::numeric_limits<float>::infinity());
  for (int i = 0; i < kShares; ++i) {
    TileGrid trial;
    shrunk(1 - static_cast<float>(i) / 100, trial);
    HWY_DYNAMIC_DISPATCH(Losses)(tile, columns, options.search, importance, trial, losses);
    for (int64_t r = 0; r < kTileRows; ++r) {
      if (losses[r] < best[r]) {
        best[r] = losses[r];
        grid.scales[r] = trial.scales[r];
        grid.zeros[r] = trial.zeros[r];
      }
    }
  }
}

void RoundTile(const float* tile, int64_t columns, const TileGrid& grid, uint8_t* codes,
               float* values) {
  HWY_DYNAMIC_DISPATCH(Round)(tile, columns, grid, codes, values);
}

void SweepColumn(float* tile, int64_t column, int64_t columns, const TileGrid& grid,
                 const float* factor, uint8_t* codes, float* errors) {
  HWY_DYNAMIC_DISPATCH(Sweep)(tile, column, columns, grid, factor, codes, errors);
}

void AddQuadraticForm(const float* deltas, int64_t columns, const float* gram, int64_t stride,
                      float* losses) {
  HWY_DYNAMIC_DISPATCH(QuadraticForm)(deltas, columns, gram, stride, losses);
}

void AddMagnitudes(const float* x, int64_t stride, int64_t rows, int64_t columns, double* sums) {
  HWY_DYNAMIC_DISPATCH(Magnitudes)(x, stride, rows, columns, sums);
}

}  // namespace nibble::cpu
#endif  // HWY_ONCE

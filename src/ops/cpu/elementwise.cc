#include "src/ops/cpu/elementwise.h"

#include "src/ops/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/ops/cpu/elementwise.cc"
#include <cmath>

#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
#include "src/ops/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace nibble::cpu::HWY_NAMESPACE {
namespace {

void Normalize(const float* x, const float* gain, int64_t n, float epsilon, float* out) {
  const F32 d;
  constexpr int64_t kStep = 4 * kLanes;  // four sums, to hide the latency of an addition
  VecF squares[4] = {hn::Zero(d), hn::Zero(d), hn::Zero(d), hn::Zero(d)};
  int64_t i = 0;
  for (; i + kStep <= n; i += kStep) {
    for (int j = 0; j < 4; ++j) {
      const VecF v = hn::LoadU(d, x + i + j * kLanes);
      squares[j] = hn::MulAdd(v, v, squares[j]);
    }
  }
  float sum = hn::GetLane(
      hn::SumOfLanes(d, hn::Add(hn::Add(squares[0], squares[1]), hn::Add(squares[2], squares[3]))));
  for (; i < n; ++i) sum += x[i] * x[i];
  const float factor = 1.0f / std::sqrt(sum / static_cast<float>(n) + epsilon);
  const VecF factors = hn::Set(d, factor);
  i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const VecF y = hn::Mul(hn::Mul(hn::LoadU(d, x + i), factors), hn::LoadU(d, gain + i));
    hn::StoreU(y, d, out + i);
  }
  for (; i < n; ++i) out[i] = x[i] * factor * gain[i];
}

void Turn(const float* cosines, const float* sines, int64_t half, float* x) {
  const F32 d;
  int64_t i = 0;
  for (; i + kLanes <= half; i += kLanes) {
    const VecF a = hn::LoadU(d, x + i);
    const VecF b = hn::LoadU(d, x + half + i);
    const VecF cosine = hn::LoadU(d, cosines + i);
    const VecF sine = hn::LoadU(d, sines + i);
    hn::StoreU(hn::Sub(hn::Mul(a, cosine), hn::Mul(b, sine)), d, x + i);
    hn::StoreU(hn::Add(hn::Mul(b, cosine), hn::Mul(a, sine)), d, x + half + i);
  }
  for (; i < half; ++i) {
    const float a = x[i];
    const float b = x[half + i];
    x[i] = a * cosines[i] - b * sines[i];
    x[half + i] = b * cosines[i] + a * sines[i];
  }
}

const char* Target() { return hwy::TargetName(HWY_TARGET); }

}  // namespace
}  // namespace nibble::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble::cpu {

HWY_EXPORT(Normalize);
HWY_EXPORT(Turn);
HWY_EXPORT(Target);

namespace {

uint16_t To16(DType type, float value) {
  return type == DType::kF16 ? F16FromFloat(value) : BF16FromFloat(value);
}

}  // namespace

void NormalizeRow(const float* x, const float* gain, int64_t n, float epsilon, float* out) {
  HWY_DYNAMIC_DISPATCH(Normalize)(x, gain, n, epsilon, out);
}

void TurnHead(const float* cosines, const float* sines, int64_t half, float* x) {
  HWY_DYNAMIC_DISPATCH(Turn)(cosines, sines, half, x);
}

void RopeAngles(int32_t position, std::span<const float> frequencies, float* cosines,
                float* sines) {
  for (size_t i = 0; i < frequencies.size(); ++i) {
    const auto angle = static_cast<double>(static_cast<float>(position) * frequencies[i]);
    cosines[i] = static_cast<float>(std::cos(angle));
    sines[i] = static_cast<float>(std::sin(angle));
  }
}

void StoreToken(const CpuKvCache& cache, int64_t layer, int64_t block, int64_t slot,
                const float* keys, const float* values) {
  const KvLayout& layout = cache.layout();
  const int64_t d = layout.head_dim;
  for (int64_t head = 0; head < layout.kv_heads; ++head) {
    std::byte* key_block = cache.keys(layer, block, head);
    std::byte* value_block = cache.values(layer, block, head);
    if (layout.dtype == DType::kF32) {
      auto* to_keys = reinterpret_cast<float*>(key_block) + slot;
      auto* to_values = reinterpret_cast<float*>(value_block) + slot * d;
      for (int64_t i = 0; i < d; ++i) {
        to_keys[i * kBlockTokens] = keys[head * d + i];
        to_values[i] = values[head * d + i];
      }
    } else {
      auto* to_keys = reinterpret_cast<uint16_t*>(key_block) + slot;
      auto* to_values = reinterpret_cast<uint16_t*>(value_block) + slot * d;
      for (int64_t i = 0; i < d; ++i) {
        to_keys[i * kBlockTokens] = To16(layout.dtype, keys[head * d + i]);
        to_values[i] = To16(layout.dtype, values[head * d + i]);
      }
    }
  }
}

void EmbedRow(const CpuLinear& table, int64_t row, float* out) {
  const int32_t* order = table.order();
  for (int64_t k = 0; k < table.in_features(); ++k) {
    out[order == nullptr ? k : order[k]] = table.At(row, k);
  }
}

std::string_view TargetName() { return HWY_DYNAMIC_DISPATCH(Target)(); }

}  // namespace nibble::cpu
#endif  // HWY_ONCE

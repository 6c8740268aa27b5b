// What the tests of the CPU backend share.
#ifndef NIBBLE_OPS_CPU_TEST_UTIL_H_
#define NIBBLE_OPS_CPU_TEST_UTIL_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "src/base/must.h"
#include "src/base/random.h"
#include "src/ops/backend.h"
#include "src/ops/cpu/cpu_backend.h"

namespace nibble::cpu {

inline constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

inline std::unique_ptr<Backend> MakeCpu(int threads) {
  auto backend = MakeCpuBackend({.threads = threads});
  CHECK(backend.has_value());
  return std::move(*backend);
}

// A strided float32 matrix, poisoned with NaN, with canaries around it and
// between its rows.
class GuardedMatrix {
 public:
  GuardedMatrix(int64_t rows, int64_t columns, int64_t gap = 5)
      : rows_(rows),
        columns_(columns),
        stride_(columns + gap),
        values_(static_cast<size_t>(kMargin + rows * stride_ + kMargin), kCanary) {
    for (int64_t r = 0; r < rows; ++r) std::fill_n(row(r), columns, kNaN);
  }
  static GuardedMatrix Normal(int64_t rows, int64_t columns, Random& random, int64_t gap = 5) {
    GuardedMatrix matrix(rows, columns, gap);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < columns; ++c) matrix.row(r)[c] = static_cast<float>(random.Normal());
    }
    return matrix;
  }

  float* row(int64_t r) { return values_.data() + kMargin + r * stride_; }
  const float* row(int64_t r) const { return values_.data() + kMargin + r * stride_; }
  int64_t rows() const { return rows_; }
  int64_t columns() const { return columns_; }
  MatrixView view() { return {row(0), DType::kF32, rows_, columns_, stride_}; }

  bool Intact() const {  // whether nothing was written outside the matrix
    for (int64_t i = 0; i < static_cast<int64_t>(values_.size()); ++i) {
      const int64_t at = i - kMargin;
      const bool inside = at >= 0 && at < rows_ * stride_ && at % stride_ < columns_;
      if (!inside && values_[static_cast<size_t>(i)] != kCanary) return false;
    }
    return true;
  }

 private:
  static constexpr int64_t kMargin = 32;
  static constexpr float kCanary = 12345.678f;

  int64_t rows_, columns_, stride_;
  std::vector<float> values_;
};

inline bool SameBits(const float* a, const float* b, int64_t count) {
  return std::memcmp(a, b, static_cast<size_t>(count) * sizeof(float)) == 0;
}

// Σ (got - want)² / Σ want²
inline double NormalizedSquareError(const GuardedMatrix& got, const GuardedMatrix& want) {
  double error = 0, total = 1e-300;
  for (int64_t r = 0; r < want.rows(); ++r) {
    for (int64_t c = 0; c < want.columns(); ++c) {
      const double difference = static_cast<double>(got.row(r)[c]) - want.row(r)[c];
      error += difference * difference;
      total += static_cast<double>(want.row(r)[c]) * want.row(r)[c];
    }
  }
  return error / total;
}

// A dense weight of normal random numbers that owns its bytes.
inline Weight RandomDense(DType dtype, int64_t rows, int64_t columns, Random& random,
                          double deviation = 1.0) {
  const auto count = static_cast<size_t>(rows * columns);
  auto bytes = std::make_shared<std::vector<std::byte>>(count * BytesOf(dtype));
  for (size_t i = 0; i < count; ++i) {
    const auto value = static_cast<float>(random.Normal() * deviation);
    if (dtype == DType::kF32) {
      std::memcpy(bytes->data() + 4 * i, &value, 4);
    } else {
      const uint16_t bits = dtype == DType::kF16 ? F16FromFloat(value) : BF16FromFloat(value);
      std::memcpy(bytes->data() + 2 * i, &bits, 2);
    }
  }
  return DenseWeight{
      .dtype = dtype, .rows = rows, .columns = columns, .data = bytes->data(), .owner = bytes};
}

// A 4-bit weight of random codes, scales and (on the asymmetric grid) zeros.
inline Weight RandomQuantized(const QuantSpec& spec, int64_t rows, int64_t columns,
                              Random& random) {
  QuantizedWeight weight = QuantizedWeight::Empty(spec, rows, columns);
  for (uint8_t& pair : weight.codes) pair = static_cast<uint8_t>(random.Below(256));
  for (uint16_t& scale : weight.scales) {
    const double sign = spec.grid == Grid::kSymmetricFull && random.Below(2) != 0 ? -1 : 1;
    scale = F16FromFloat(static_cast<float>(sign * (0.02 + 0.2 * random.Uniform())));
  }
  for (uint8_t& zero : weight.zeros) {
    zero = spec.grid == Grid::kAsymmetric ? static_cast<uint8_t>(random.Below(16)) : uint8_t{8};
  }
  if (spec.order == GroupOrder::kIndexed) {
    for (size_t k = weight.column_of_input.size(); k > 1; --k) {
      std::swap(weight.column_of_input[k - 1], weight.column_of_input[random.Below(k)]);
    }
  }
  return weight;
}

}  // namespace nibble::cpu

#endif  // NIBBLE_OPS_CPU_TEST_UTIL_H_

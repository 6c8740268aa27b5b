#include "src/ops/host_quantize.h"

#include <atomic>
#include <cmath>
#include <numeric>
#include <vector>

#include "src/format/grid.h"
#include "src/tensor/host_floats.h"

namespace nibble {
namespace {

constexpr int64_t kRowsAtOnce = 16;

}  // namespace

Result<Matrix> HostQuantizeOps::AllocateMatrix(int64_t rows, int64_t columns) {
  NIBBLE_ASSIGN_OR_RETURN(Buffer buffer,
                          AllocateHost(memory_, MemoryClass::kWorkspace,
                                       static_cast<size_t>(rows * columns) * sizeof(float)));
  return Matrix(std::move(buffer), DType::kF32, rows, columns);
}

Result<Matrix> HostQuantizeOps::Load(const DenseWeight& weight) {
  NIBBLE_ASSIGN_OR_RETURN(Matrix matrix, AllocateMatrix(weight.rows, weight.columns));
  std::atomic<int64_t> bad_row{-1};
  ForEach(weight.rows, kRowsAtOnce, [&](int64_t n) {
    float* const row = matrix.view().row<float>(n);
    bool finite = true;
    for (int64_t k = 0; k < weight.columns; ++k) {
      row[k] = weight.At(n, k);
      finite &= std::isfinite(row[k]);
    }
    if (!finite) bad_row = n;
  });
  if (bad_row >= 0) return BadInput("row {} is not finite", bad_row.load());
  return matrix;
}

void HostQuantizeOps::Dequantize(const QuantizedWeight& weight, MatrixView out) {
  const int64_t length = weight.group_length();
  ForEach(weight.rows, kRowsAtOnce, [&](int64_t n) {
    float* const row = out.row<float>(n);
    for (int64_t g = 0; g < weight.groups(); ++g) {
      const auto at = static_cast<size_t>(n * weight.groups() + g);
      const GroupGrid grid{FloatFromF16(weight.scales[at]), weight.zeros[at]};
      for (int64_t k = g * length; k < (g + 1) * length; ++k) {
        row[k] = grid.Value(weight.Code(n, k));
      }
    }
  });
}

void HostQuantizeOps::Scale(MatrixView weight, std::span<const float> rows,
                            std::span<const float> columns, MatrixView out) {
  ForEach(weight.rows, kRowsAtOnce, [&](int64_t n) {
    const float* const from = weight.row<float>(n);
    float* const to = out.row<float>(n);
    const float by = rows.empty() ? 1.0f : rows[static_cast<size_t>(n)];
    for (int64_t k = 0; k < weight.columns; ++k) {
      to[k] = from[k] * (columns.empty() ? by : by * columns[static_cast<size_t>(k)]);
    }
  });
}

template <typename OfRow>
double HostQuantizeOps::SumOverRows(int64_t rows, const OfRow& of_row) {
  std::vector<double> sums(static_cast<size_t>(rows));
  ForEach(rows, kRowsAtOnce, [&](int64_t r) { sums[static_cast<size_t>(r)] = of_row(r); });
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

double HostQuantizeOps::SumOfSquares(MatrixView a) {
  return SumOverRows(a.rows, [&](int64_t r) {
    double sum = 0;
    for (int64_t k = 0; k < a.columns; ++k) {
      const double value = a.row<float>(r)[k];
      sum += value * value;
    }
    return sum;
  });
}

double HostQuantizeOps::SquaredDifference(MatrixView a, MatrixView b) {
  return SumOverRows(a.rows, [&](int64_t r) {
    double sum = 0;
    for (int64_t k = 0; k < a.columns; ++k) {
      const double difference = FloatAt(a, r, k) - FloatAt(b, r, k);
      sum += difference * difference;
    }
    return sum;
  });
}

Result<Weight> HostQuantizeOps::Trial(MatrixView weight, const GridOptions& options,
                                      std::span<const float> scales, MatrixView memory) {
  Scale(weight, {}, scales, memory);
  NIBBLE_ASSIGN_OR_RETURN(QuantizedWeight rounded, Round(memory, options, nullptr));
  return rounded;
}

}  // namespace nibble

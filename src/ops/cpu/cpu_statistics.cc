#include "src/ops/cpu/cpu_statistics.h"

#include <cblas.h>

#include <cmath>

namespace nibble {
namespace {

struct SquareBuffers {
  Buffer sums, product;
};
// Zeros as double, and scratch as float32, [columns, columns].
Result<SquareBuffers> AllocateSquares(int64_t columns, MemoryTracker& memory) {
  const auto count = static_cast<size_t>(columns * columns);
  SquareBuffers buffers;
  NIBBLE_ASSIGN_OR_RETURN(buffers.sums,
                          AllocateHost(memory, MemoryClass::kWorkspace, count * sizeof(double)));
  NIBBLE_ASSIGN_OR_RETURN(buffers.product,
                          AllocateHost(memory, MemoryClass::kWorkspace, count * sizeof(float)));
  std::fill_n(buffers.sums.as<double>(), count, 0.0);
  return buffers;
}

}  // namespace

Result<std::unique_ptr<CpuStatistics>> CpuStatistics::Create(int64_t columns,
                                                             MemoryTracker& memory) {
  NIBBLE_ASSIGN_OR_RETURN(SquareBuffers buffers, AllocateSquares(columns, memory));
  return std::unique_ptr<CpuStatistics>(
      new CpuStatistics(columns, std::move(buffers.sums), std::move(buffers.product)));
}

void CpuStatistics::Add(MatrixView x, ThreadPool& pool) {
  CHECK(x.columns == columns_ && x.dtype == DType::kF32);
  const auto n = static_cast<blasint>(columns_);
  openblas_set_num_threads(pool.threads());
  // A step's tokens in float32, the steps' sum in double.
  cblas_ssyrk(CblasRowMajor, CblasUpper, CblasTrans, n, static_cast<blasint>(x.rows), 1.0f,
              x.row<float>(0), static_cast<blasint>(x.stride), 0.0f, product(), n);
  pool.ParallelFor(columns_, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t j = i; j < columns_; ++j) {
        gram()[i * columns_ + j] += product()[i * columns_ + j];
      }
    }
  });
  // Row after row of a few columns, which stay in the first-level cache.
  pool.ParallelFor(columns_, 64, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = 0; r < x.rows; ++r) {
      const float* const row = x.row<float>(r);
      for (int64_t k = begin; k < end; ++k) {
        magnitudes_[static_cast<size_t>(k)] += std::abs(row[k]);
      }
    }
  });
  tokens_ += x.rows;
}

Result<std::unique_ptr<CpuDrift>> CpuDrift::Create(int64_t columns, MemoryTracker& memory) {
  NIBBLE_ASSIGN_OR_RETURN(SquareBuffers buffers, AllocateSquares(columns, memory));
  return std::unique_ptr<CpuDrift>(
      new CpuDrift(columns, std::move(buffers.sums), std::move(buffers.product)));
}

void CpuDrift::Add(MatrixView unquantized, std::span<const float> scales, MatrixView x,
                   ThreadPool& pool) {
  CHECK(x.columns == columns_ && x.dtype == DType::kF32);
  CHECK(unquantized.rows == x.rows && unquantized.columns == columns_);
  difference_.resize(static_cast<size_t>(x.rows * columns_));
  pool.ParallelFor(x.rows, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t k = 0; k < columns_; ++k) {
        difference_[static_cast<size_t>(r * columns_ + k)] =
            unquantized.row<float>(r)[k] / scales[static_cast<size_t>(k)] - x.row<float>(r)[k];
      }
    }
  });
  const auto n = static_cast<blasint>(columns_);
  openblas_set_num_threads(pool.threads());
  cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, n, n, static_cast<blasint>(x.rows), 1.0f,
              difference_.data(), n, x.row<float>(0), static_cast<blasint>(x.stride), 0.0f,
              product_.as<float>(), n);
  pool.ParallelFor(columns_ * columns_, 4096, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) sums_.as<double>()[i] += product_.as<float>()[i];
  });
  tokens_ += x.rows;
}

}  // namespace nibble

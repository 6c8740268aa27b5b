#include "src/ops/cpu/cpu_statistics.h"

#include "src/ops/cpu/product_blocks.h"
#include "src/ops/cpu/quantize_kernels.h"

namespace nibble {
namespace {

// Of double, which the first step writes.
Result<Buffer> AllocateSums(int64_t rows, int64_t columns, MemoryTracker& memory) {
  return AllocateHost(memory, MemoryClass::kWorkspace,
                      static_cast<size_t>(rows * columns) * sizeof(double));
}

// sums += aᵀb, or = for the first step: a step's tokens in float32, the steps' sum in double.
void AddProduct(MatrixView a, MatrixView b, cpu::ProductPart part, bool first, float* scratch,
                double* sums, ThreadPool& pool) {
  cpu::ForProductBlocks(a, b, part, scratch, pool, [&](int64_t, const cpu::ProductBlock& block) {
    const bool triangle = part == cpu::ProductPart::kUpperTriangle && block.row == block.column;
    for (int64_t i = 0; i < block.rows; ++i) {
      double* const to = sums + (block.row + i) * b.columns + block.column;
      const float* const from = block.values + i * cpu::kProductBlock;
      for (int64_t j = triangle ? i : 0; j < block.columns; ++j) {
        to[j] = first ? from[j] : to[j] + from[j];
      }
    }
  });
}

}  // namespace

Result<std::unique_ptr<CpuStatistics>> CpuStatistics::Create(int64_t columns,
                                                             MemoryTracker& memory) {
  NIBBLE_ASSIGN_OR_RETURN(Buffer sums, AllocateSums(columns, columns, memory));
  return std::unique_ptr<CpuStatistics>(new CpuStatistics(columns, std::move(sums)));
}

void CpuStatistics::Add(MatrixView x, float* scratch, ThreadPool& pool) {
  CHECK(x.columns == columns_ && x.dtype == DType::kF32);
  AddProduct(x, x, cpu::ProductPart::kUpperTriangle, tokens_ == 0, scratch, gram(), pool);
  pool.ParallelFor(columns_, 64, [&](int64_t begin, int64_t end, int) {
    cpu::AddMagnitudes(x.row<float>(0) + begin, x.stride, x.rows, end - begin,
                       &magnitudes_[static_cast<size_t>(begin)]);
  });
  tokens_ += x.rows;
}

Result<std::unique_ptr<CpuDrift>> CpuDrift::Create(std::span<const MatrixView> weights,
                                                   MemoryTracker& memory) {
  const MatrixView first = weights.front();
  std::unique_ptr<CpuDrift> drift(new CpuDrift(first.columns));
  // Two products of the weight's size are less work than one of columns by columns.
  if (weights.size() == 1 && 2 * first.rows < first.columns) drift->weight_ = first;
  NIBBLE_ASSIGN_OR_RETURN(drift->sums_, AllocateSums(drift->rows(), first.columns, memory));
  return drift;
}

void CpuDrift::Add(MatrixView difference, MatrixView x, float* scratch, ThreadPool& pool) {
  CHECK(x.columns == columns_ && x.dtype == DType::kF32);
  CHECK(difference.rows == x.rows && difference.columns == columns_);
  MatrixView left = difference;
  if (has_weight()) {
    outputs_.resize(static_cast<size_t>(x.rows * weight_.rows));
    left = {outputs_.data(), DType::kF32, x.rows, weight_.rows, weight_.rows};
    cpu::ForRowParts(x.rows, pool, [&](int64_t begin, int64_t count) {
      cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, static_cast<blasint>(count),
                  static_cast<blasint>(weight_.rows), static_cast<blasint>(columns_), 1.0f,
                  difference.row<float>(begin), static_cast<blasint>(difference.stride),
                  weight_.row<float>(0), static_cast<blasint>(weight_.stride), 0.0f,
                  left.row<float>(begin), static_cast<blasint>(left.stride));
    });
  }
  AddProduct(left, x, cpu::ProductPart::kAll, tokens_ == 0, scratch, sums_.as<double>(), pool);
  tokens_ += x.rows;
}

}  // namespace nibble

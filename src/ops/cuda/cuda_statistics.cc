#include "src/ops/cuda/cuda_statistics.h"

#include <algorithm>

#include "src/ops/cuda/device_memory.h"
#include "src/ops/cuda/quantize_kernels.h"

namespace nibble::cuda {
namespace {

Result<Buffer> AllocateSums(int64_t columns, MemoryTracker& memory) {
  return AllocateDevice(memory, MemoryClass::kWorkspace,
                        static_cast<size_t>(columns * columns) * sizeof(float));
}

// add(first, count, how) for parts of the rows, few enough that a sum of so many is accurate.
template <typename AddRows>
void AddInParts(int64_t rows, int64_t tokens, const AddRows& add) {
  using Sum = QuantizeAlgebra::Sum;
  constexpr int64_t kRows = 2048;
  for (int64_t row = 0; row < rows; row += kRows) {
    add(row, std::min(kRows, rows - row), tokens + row == 0 ? Sum::kReplace : Sum::kAdd);
  }
}

}  // namespace

Result<std::unique_ptr<CudaStatistics>> CudaStatistics::Create(int64_t columns,
                                                               MemoryTracker& memory,
                                                               Stream& stream) {
  NIBBLE_ASSIGN_OR_RETURN(Buffer gram, AllocateSums(columns, memory));
  const size_t bytes = static_cast<size_t>(columns) * sizeof(double);
  NIBBLE_ASSIGN_OR_RETURN(Buffer magnitudes,
                          AllocateDevice(memory, MemoryClass::kWorkspace, bytes));
  stream.Check(cudaMemsetAsync(magnitudes.data(), 0, bytes, stream.get()), "clearing statistics", 1,
               columns);
  return std::unique_ptr<CudaStatistics>(
      new CudaStatistics(columns, stream, std::move(gram), std::move(magnitudes)));
}

void CudaStatistics::Add(MatrixView x, QuantizeAlgebra& algebra) {
  CHECK(x.columns == columns_);
  AddInParts(x.rows, tokens_, [&](int64_t row, int64_t rows, QuantizeAlgebra::Sum sum) {
    algebra.GramProduct(x.Rows(row, rows), sum, gram_.as<float>());
  });
  AddMagnitudes(stream_, x, magnitudes_.as<double>());
  is_full_ = false;
  tokens_ += x.rows;
}

float* CudaStatistics::full_gram() const {
  if (!is_full_) Mirror(stream_, gram_.as<float>(), columns_);
  is_full_ = true;
  return gram_.as<float>();
}

Result<std::unique_ptr<CudaDrift>> CudaDrift::Create(int64_t columns, MemoryTracker& memory) {
  NIBBLE_ASSIGN_OR_RETURN(Buffer sums, AllocateSums(columns, memory));
  return std::unique_ptr<CudaDrift>(new CudaDrift(columns, std::move(sums)));
}

void CudaDrift::Add(MatrixView difference, MatrixView x, QuantizeAlgebra& algebra) {
  CHECK(x.columns == columns_ && difference.columns == columns_ && difference.rows == x.rows);
  AddInParts(x.rows, tokens_, [&](int64_t row, int64_t rows, QuantizeAlgebra::Sum sum) {
    algebra.TransposedProduct(difference.Rows(row, rows), x.Rows(row, rows), sum,
                              sums_.as<float>());
  });
  tokens_ += x.rows;
}

}  // namespace nibble::cuda

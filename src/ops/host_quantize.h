// What QuantizeOps of host memory share, whatever their arithmetic.
#ifndef NIBBLE_OPS_HOST_QUANTIZE_H_
#define NIBBLE_OPS_HOST_QUANTIZE_H_

#include "src/base/thread_pool.h"
#include "src/ops/quantize_ops.h"
#include "src/tensor/memory.h"

namespace nibble {

// Sums are the same bits whatever the number of threads.
class HostQuantizeOps : public QuantizeOps {
 public:
  // Borrows both; `memory` counts what is allocated, as workspace.
  HostQuantizeOps(ThreadPool& pool, MemoryTracker& memory) : pool_(pool), memory_(memory) {}

  Result<Matrix> Load(const DenseWeight& weight) override;
  void Dequantize(const QuantizedWeight& weight, MatrixView out) override;
  void Scale(MatrixView weight, std::span<const float> rows, std::span<const float> columns,
             MatrixView out) override;
  double SumOfSquares(MatrixView a) override;
  double SquaredDifference(MatrixView a, MatrixView b) override;
  Result<Weight> Trial(MatrixView weight, const GridOptions& options, std::span<const float> scales,
                       MatrixView memory) override;

 protected:
  Result<Matrix> AllocateMatrix(int64_t rows, int64_t columns);
  template <typename Work>
  void ForEach(int64_t count, int64_t grain, const Work& work) {
    const auto body = [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) work(i);
    };
    pool_.ParallelFor(count, grain, std::ref(body));
  }

  ThreadPool& pool_;
  MemoryTracker& memory_;

 private:
  // of_row(r) for every row, added in order.
  template <typename OfRow>
  double SumOverRows(int64_t rows, const OfRow& of_row);
};

}  // namespace nibble

#endif  // NIBBLE_OPS_HOST_QUANTIZE_H_

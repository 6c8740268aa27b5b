// What backends that compute in the host's memory share, whatever their arithmetic.
#ifndef NIBBLE_OPS_HOST_BACKEND_H_
#define NIBBLE_OPS_HOST_BACKEND_H_

#include "src/base/thread_pool.h"
#include "src/ops/backend.h"
#include "src/tensor/memory.h"

namespace nibble {

// Activations are float32 unless it says otherwise, and an operation is done when its call returns.
class HostBackend : public Backend {
 public:
  explicit HostBackend(int threads) : pool_(threads) {}

  DType activation_type() const override { return DType::kF32; }
  int64_t step_rows() const override { return 512; }
  MemoryTracker& memory() override { return memory_; }
  uint64_t MemoryBytes() const override;
  uint64_t AvailableBytes() const override;
  uint64_t SystemBytes() const override;
  Result<Matrix> Allocate(MemoryClass memory_class, DType dtype, int64_t rows,
                          int64_t columns) override;
  Result<Matrix> Upload(std::span<const float> values) override;
  Result<Matrix> AllocateBeside(const std::string& directory, DType dtype, int64_t rows,
                                int64_t columns) override;
  void Issue(BatchPlan&, const std::function<void()>& operations) override { operations(); }
  bool queues_steps() const override { return false; }
  Result<MatrixView> ToHost(MatrixView matrix) override { return matrix; }

 protected:
  ThreadPool pool_;
  MemoryTracker memory_;
};

}  // namespace nibble

#endif  // NIBBLE_OPS_HOST_BACKEND_H_

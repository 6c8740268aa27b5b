// A step's description and all the scratch memory of its operations, in one allocation, and the
// graphs that were captured of its steps.
#ifndef NIBBLE_OPS_CUDA_CUDA_PLAN_H_
#define NIBBLE_OPS_CUDA_CUDA_PLAN_H_

#include <cuda_runtime_api.h>

#include <array>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <tuple>
#include <vector>

#include "src/ops/backend.h"
#include "src/ops/cuda/cuda_backend.h"
#include "src/ops/cuda/device_batch.h"
#include "src/ops/cuda/stream.h"
#include "src/ops/cuda/token_queue.h"

namespace nibble::cuda {

// Offsets in bytes into the plan's device memory.
struct PlanLayout {
  StepLimits limits;
  int64_t max_blocks = 0;  // of a sequence
  int64_t half_dim = 0;
  AttentionSpec attention;  // but for its scale; with the window of the layers that have one
  int64_t decode_blocks = 0;
  int64_t wide_rows = 0;  // of `wide`
  size_t batch, batch_bytes;    // the batch's integers, packed anew for each step
  size_t chosen;                // int32 [logit_rows], the tokens that were chosen last
  size_t rope_frequencies;      // float32 [half_dim]
  size_t rope_table;            // float32 [rows][half_dim][cos, sin]
  size_t decode;                // AttendDecode's
  size_t fused_layers;          // RunFusedLayers'
  size_t linked_layers;         // RunLinkedLayers'
  size_t linear_q4;             // LinearQ4's
  size_t wide, wide_bytes;      // the widest outputs before their epilogue, 16-bit
  size_t dequantized, dequantized_bytes;  // 4-bit weights on their way through cuBLASLt, 16-bit
  size_t gathered, gathered_bytes;        // activations in the order of a weight's columns
  size_t matrix_product;        // cuBLASLt's, kMatrixProductBytes
  size_t total_bytes = 0;

  static constexpr size_t kMatrixProductBytes = size_t{32} << 20;

  static PlanLayout Of(const StepLimits& limits, const ModelExtents& model, int multiprocessors);
};

class CudaPlan final : public BatchPlan {
 public:
  static Result<std::unique_ptr<CudaPlan>> Create(const PlanLayout& layout, Buffer memory,
                                                  CudaKernels kernels, Stream& stream);
  ~CudaPlan() override;

  // Copies the batch to the device; returns before it is there.
  void SetBatch(const Batch& batch);
  const DeviceBatch& batch() const { return batch_; }
  int64_t logit_rows() const { return logit_rows_; }
  const PlanLayout& layout() const { return layout_; }

  // See Backend.
  void ChooseTokens(MatrixView logits);
  Result<std::span<const int32_t>> ReceiveTokens() { return tokens_->Receive(); }

  // Issues a step's operations. Those of a batch that only decodes are captured when its shape comes
  // a second time (the first loads the kernels, which a capture must not) and replayed from then on.
  void Issue(const std::function<void()>& operations);

  // The angles' cos and sin are the same in every layer, so the first layer of a step computes them:
  // NeedsRope says that it must, and counts it as done. Copies the frequencies where they are new.
  bool NeedsRope(std::span<const float> frequencies) const;

  template <typename T>
  T* at(size_t offset) const {
    return reinterpret_cast<T*>(memory_.as<std::byte>() + offset);
  }

 private:
  // What a graph's kernels and their arguments depend on.
  using StepShape = std::tuple<int64_t, int64_t, int64_t>;  // rows, sequences, logit rows
  struct Recording {
    cudaGraphExec_t graph = nullptr;
    bool seen = false;
  };
  // Page-locked, so that it is read while the host goes on; used in turns.
  struct Staging {
    Buffer memory;
    cudaEvent_t copied = nullptr;
  };

  CudaPlan(const PlanLayout& layout, Buffer memory, CudaKernels kernels, Stream& stream)
      : layout_(layout), memory_(std::move(memory)), kernels_(kernels), stream_(stream) {}

  PlanLayout layout_;
  Buffer memory_;
  CudaKernels kernels_;
  Stream& stream_;
  DeviceBatch batch_;
  int64_t logit_rows_ = 0;
  const TokenChoice* choices_ = nullptr;  // [logit_rows] on the device; null: the most probable
  std::unique_ptr<TokenQueue> tokens_;
  std::array<Staging, 2> staging_;
  size_t staging_in_use_ = 0;
  std::map<StepShape, Recording> recordings_;
  Recording* recording_ = nullptr;  // of steps like the batch's; null where they are not recorded
  mutable std::vector<float> frequencies_;  // those on the device
  mutable bool has_rope_ = false;
};

}  // namespace nibble::cuda

#endif  // NIBBLE_OPS_CUDA_CUDA_PLAN_H_

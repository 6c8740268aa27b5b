// For tests: a CPU backend that claims to queue steps, so that what runs ahead of the tokens on a
// GPU runs ahead here.
#ifndef NIBBLE_ENGINE_LATE_BACKEND_H_
#define NIBBLE_ENGINE_LATE_BACKEND_H_

#include <memory>
#include <string>
#include <utility>

#include "src/ops/backend.h"

namespace nibble {

class LateBackend final : public Backend {
 public:
  explicit LateBackend(std::unique_ptr<Backend> on_time) : on_time_(std::move(on_time)) {}

  bool queues_steps() const override { return true; }

  std::string name() const override { return on_time_->name(); }
  std::string description() const override { return on_time_->description(); }
  DType activation_type() const override { return on_time_->activation_type(); }
  int64_t kv_block_tokens() const override { return on_time_->kv_block_tokens(); }
  int64_t step_rows() const override { return on_time_->step_rows(); }
  MemoryTracker& memory() override { return on_time_->memory(); }
  uint64_t MemoryBytes() const override { return on_time_->MemoryBytes(); }
  uint64_t AvailableBytes() const override { return on_time_->AvailableBytes(); }
  uint64_t SystemBytes() const override { return on_time_->SystemBytes(); }
  Result<Matrix> Allocate(MemoryClass memory_class, DType dtype, int64_t rows,
                          int64_t columns) override {
    return on_time_->Allocate(memory_class, dtype, rows, columns);
  }
  Result<Matrix> Upload(std::span<const float> values) override { return on_time_->Upload(values); }
  Result<Matrix> AllocateBeside(const std::string& directory, DType dtype, int64_t rows,
                                int64_t columns) override {
    return on_time_->AllocateBeside(directory, dtype, rows, columns);
  }
  Result<std::unique_ptr<PreparedLinear>> Prepare(std::span<const LinearSource> sources,
                                                  Interleave interleave) override {
    return on_time_->Prepare(sources, interleave);
  }
  uint64_t PreparedBytes(int64_t out_features, int64_t in_features, DType dtype,
                         const QuantSpec* quant, bool bias) const override {
    return on_time_->PreparedBytes(out_features, in_features, dtype, quant, bias);
  }
  Result<std::unique_ptr<KvCache>> CreateKvCache(const KvLayout& layout, int64_t blocks) override {
    return on_time_->CreateKvCache(layout, blocks);
  }
  void CopyKvBlock(KvCache& cache, int64_t from, int64_t to) override {
    on_time_->CopyKvBlock(cache, from, to);
  }
  Result<std::unique_ptr<BatchPlan>> CreatePlan(const StepLimits& limits,
                                                const ModelExtents& model) override {
    return on_time_->CreatePlan(limits, model);
  }
  uint64_t PlanBytes(const StepLimits& limits, const ModelExtents& model) const override {
    return on_time_->PlanBytes(limits, model);
  }
  void SetBatch(BatchPlan& plan, const Batch& batch) override { on_time_->SetBatch(plan, batch); }
  void Issue(BatchPlan& plan, const std::function<void()>& operations) override {
    on_time_->Issue(plan, operations);
  }
  void Embed(const BatchPlan& plan, const PreparedLinear& table, MatrixView out) override {
    on_time_->Embed(plan, table, out);
  }
  void RmsNorm(MatrixView x, MatrixView gain, float epsilon, MatrixView out) override {
    on_time_->RmsNorm(x, gain, epsilon, out);
  }
  void Linear(BatchPlan& plan, const PreparedLinear& weight, MatrixView x, Epilogue epilogue,
              MatrixView out) override {
    on_time_->Linear(plan, weight, x, epilogue, out);
  }
  void RopeAndStoreKv(const BatchPlan& plan, const RopeSpec& rope, const AttentionSpec& attention,
                      int64_t layer, MatrixView qkv, KvCache& cache) override {
    on_time_->RopeAndStoreKv(plan, rope, attention, layer, qkv, cache);
  }
  void Attend(BatchPlan& plan, const AttentionSpec& attention, int64_t layer, MatrixView q,
              const KvCache& cache, MatrixView out) override {
    on_time_->Attend(plan, attention, layer, q, cache, out);
  }
  void GatherLogitRows(const BatchPlan& plan, MatrixView x, MatrixView out) override {
    on_time_->GatherLogitRows(plan, x, out);
  }
  void ChooseTokens(BatchPlan& plan, MatrixView logits) override {
    on_time_->ChooseTokens(plan, logits);
  }
  Result<std::span<const int32_t>> ReceiveTokens(BatchPlan& plan) override {
    return on_time_->ReceiveTokens(plan);
  }
  Result<std::unique_ptr<QuantizeOps>> CreateQuantizeOps() override {
    return on_time_->CreateQuantizeOps();
  }

  Result<MatrixView> ToHost(MatrixView matrix) override { return on_time_->ToHost(matrix); }

 private:
  std::unique_ptr<Backend> on_time_;
};

}  // namespace nibble

#endif  // NIBBLE_ENGINE_LATE_BACKEND_H_

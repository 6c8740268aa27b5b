// For tests: a backend that has another one do everything. What a test wants to see or to change,
// it overrides.
#ifndef NIBBLE_OPS_DELEGATING_BACKEND_H_
#define NIBBLE_OPS_DELEGATING_BACKEND_H_

#include <memory>
#include <string>
#include <utility>

#include "src/ops/backend.h"

namespace nibble {

class DelegatingBackend : public Backend {
 public:
  explicit DelegatingBackend(std::unique_ptr<Backend> backend) : backend_(std::move(backend)) {}

  std::string name() const override { return backend_->name(); }
  std::string description() const override { return backend_->description(); }
  DType activation_type() const override { return backend_->activation_type(); }
  int64_t kv_block_tokens() const override { return backend_->kv_block_tokens(); }
  int64_t step_rows() const override { return backend_->step_rows(); }
  MemoryTracker& memory() override { return backend_->memory(); }
  uint64_t MemoryBytes() const override { return backend_->MemoryBytes(); }
  uint64_t AvailableBytes() const override { return backend_->AvailableBytes(); }
  uint64_t SystemBytes() const override { return backend_->SystemBytes(); }
  Result<Matrix> Allocate(MemoryClass memory_class, DType dtype, int64_t rows,
                          int64_t columns) override {
    return backend_->Allocate(memory_class, dtype, rows, columns);
  }
  Result<Matrix> Upload(std::span<const float> values) override { return backend_->Upload(values); }
  Result<Matrix> AllocateBeside(const std::string& directory, DType dtype, int64_t rows,
                                int64_t columns) override {
    return backend_->AllocateBeside(directory, dtype, rows, columns);
  }
  Result<std::unique_ptr<PreparedLinear>> Prepare(std::span<const LinearSource> sources,
                                                  Interleave interleave) override {
    return backend_->Prepare(sources, interleave);
  }
  uint64_t PreparedBytes(int64_t out_features, int64_t in_features, DType dtype,
                         const QuantSpec* quant, bool bias) const override {
    return backend_->PreparedBytes(out_features, in_features, dtype, quant, bias);
  }
  Result<std::unique_ptr<KvCache>> CreateKvCache(const KvLayout& layout, int64_t blocks) override {
    return backend_->CreateKvCache(layout, blocks);
  }
  void CopyKvBlock(KvCache& cache, int64_t from, int64_t to) override {
    backend_->CopyKvBlock(cache, from, to);
  }
  Result<std::unique_ptr<BatchPlan>> CreatePlan(const StepLimits& limits,
                                                const ModelExtents& model) override {
    return backend_->CreatePlan(limits, model);
  }
  uint64_t PlanBytes(const StepLimits& limits, const ModelExtents& model) const override {
    return backend_->PlanBytes(limits, model);
  }
  void SetBatch(BatchPlan& plan, const Batch& batch) override { backend_->SetBatch(plan, batch); }
  void Issue(BatchPlan& plan, const std::function<void()>& operations) override {
    backend_->Issue(plan, operations);
  }
  void Embed(const BatchPlan& plan, const PreparedLinear& table, MatrixView out) override {
    backend_->Embed(plan, table, out);
  }
  void RmsNorm(MatrixView x, MatrixView gain, float epsilon, MatrixView out) override {
    backend_->RmsNorm(x, gain, epsilon, out);
  }
  void Linear(BatchPlan& plan, const PreparedLinear& weight, MatrixView x, Epilogue epilogue,
              MatrixView out) override {
    backend_->Linear(plan, weight, x, epilogue, out);
  }
  void RopeAndStoreKv(const BatchPlan& plan, const RopeSpec& rope, const AttentionSpec& attention,
                      int64_t layer, MatrixView qkv, KvCache& cache) override {
    backend_->RopeAndStoreKv(plan, rope, attention, layer, qkv, cache);
  }
  void Attend(BatchPlan& plan, const AttentionSpec& attention, int64_t layer, MatrixView q,
              const KvCache& cache, MatrixView out) override {
    backend_->Attend(plan, attention, layer, q, cache, out);
  }
  void RopeAndAttend(BatchPlan& plan, const RopeSpec& rope, const AttentionSpec& attention,
                     int64_t layer, MatrixView qkv, KvCache& cache, MatrixView out) override {
    backend_->RopeAndAttend(plan, rope, attention, layer, qkv, cache, out);
  }
  bool RunLayers(BatchPlan& plan, std::span<const DecoderLayer> layers, const RopeSpec& rope,
                 float epsilon, KvCache& cache, const LayerActivations& activations) override {
    return backend_->RunLayers(plan, layers, rope, epsilon, cache, activations);
  }
  void NormLogitRows(const BatchPlan& plan, MatrixView x, MatrixView gain, float epsilon,
                     MatrixView out) override {
    backend_->NormLogitRows(plan, x, gain, epsilon, out);
  }
  void ChooseTokens(BatchPlan& plan, MatrixView logits) override {
    backend_->ChooseTokens(plan, logits);
  }
  Result<std::span<const int32_t>> ReceiveTokens(BatchPlan& plan) override {
    return backend_->ReceiveTokens(plan);
  }
  bool queues_steps() const override { return backend_->queues_steps(); }
  Result<std::unique_ptr<QuantizeOps>> CreateQuantizeOps() override {
    return backend_->CreateQuantizeOps();
  }
  Result<MatrixView> ToHost(MatrixView matrix) override { return backend_->ToHost(matrix); }

 private:
  std::unique_ptr<Backend> backend_;
};

}  // namespace nibble

#endif  // NIBBLE_OPS_DELEGATING_BACKEND_H_

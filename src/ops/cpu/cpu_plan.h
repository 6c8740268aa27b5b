// A step's description and all the scratch memory of its operations, in one
// allocation.
#ifndef NIBBLE_OPS_CPU_CPU_PLAN_H_
#define NIBBLE_OPS_CPU_CPU_PLAN_H_

#include <cstdint>
#include <span>

#include "src/ops/backend.h"
#include "src/ops/cpu/attention.h"
#include "src/ops/cpu/linear_task.h"

namespace nibble::cpu {

// Offsets in bytes into the plan's memory.
struct PlanLayout {
  StepLimits limits;
  int64_t max_blocks = 0;  // of a sequence
  int64_t half_dim = 0;
  size_t tokens, positions, row_begin, context_lengths, block_tables, logit_rows, row_sequence,
      tile_begin;
  size_t rope_frequencies, rope_table;
  size_t packed, sums, attention;
  AttentionScratch attention_scratch;
  size_t total_bytes = 0;

  static PlanLayout Of(const StepLimits& limits, const ModelExtents& model, int threads);
};

class CpuPlan final : public BatchPlan {
 public:
  CpuPlan(const PlanLayout& layout, Buffer memory);

  void SetBatch(const Batch& batch);

  const Batch& batch() const { return batch_; }
  std::span<const int32_t> row_sequence() const { return row_sequence_; }  // [rows]
  const PlanLayout& layout() const { return layout_; }
  HostTokens& chosen() { return chosen_; }

  LinearScratch linear_scratch() const {
    return {.packed = at<std::byte>(layout_.packed), .sums = at<float>(layout_.sums)};
  }
  std::byte* attention_scratch(int thread) const {
    return at<std::byte>(layout_.attention) +
           static_cast<size_t>(thread) * layout_.attention_scratch.bytes();
  }
  std::span<int32_t> tile_begin() const {  // [sequences + 1]
    return {at<int32_t>(layout_.tile_begin), static_cast<size_t>(batch_.sequences() + 1)};
  }

  // cos and sin of each row's angles, [rows][2][half_dim]. They are the same in
  // every layer, so the first layer of a step computes them: NeedsRope says
  // that it must, and counts it as done.
  bool NeedsRope(std::span<const float> frequencies) const;
  float* rope_cos(int64_t row) const {
    return at<float>(layout_.rope_table) + row * 2 * layout_.half_dim;
  }
  float* rope_sin(int64_t row) const { return rope_cos(row) + layout_.half_dim; }

 private:
  template <typename T>
  T* at(size_t offset) const {
    return reinterpret_cast<T*>(memory_.as<std::byte>() + offset);
  }

  PlanLayout layout_;
  Buffer memory_;
  Batch batch_;  // spans of memory_
  HostTokens chosen_;
  std::span<const int32_t> row_sequence_;
  mutable bool has_rope_ = false;
};

}  // namespace nibble::cpu

#endif  // NIBBLE_OPS_CPU_CPU_PLAN_H_

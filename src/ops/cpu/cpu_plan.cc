#include "src/ops/cpu/cpu_plan.h"

#include <algorithm>

#include "src/base/checked.h"
#include "src/ops/check_batch.h"
#include "src/ops/cpu/cpu_kv_cache.h"

namespace nibble::cpu {

PlanLayout PlanLayout::Of(const StepLimits& limits, const ModelExtents& model, int threads) {
  PlanLayout layout{.limits = limits,
                    .max_blocks = CeilDiv(limits.context, kBlockTokens),
                    .half_dim = model.head_dim / 2};
  size_t end = 0;
  const auto add = [&end](int64_t count, size_t element_bytes) {
    const size_t begin = end;
    end += RoundUp<size_t>(static_cast<size_t>(count) * element_bytes, 64);
    return begin;
  };
  layout.tokens = add(limits.rows, sizeof(int32_t));
  layout.positions = add(limits.rows, sizeof(int32_t));
  layout.row_begin = add(limits.sequences + 1, sizeof(int32_t));
  layout.context_lengths = add(limits.sequences, sizeof(int32_t));
  layout.block_tables = add(limits.sequences * layout.max_blocks, sizeof(int32_t));
  layout.logit_rows = add(limits.logit_rows, sizeof(int32_t));
  layout.row_sequence = add(limits.rows, sizeof(int32_t));
  layout.tile_begin = add(limits.sequences + 1, sizeof(int32_t));
  layout.rope_frequencies = add(layout.half_dim, sizeof(float));
  layout.rope_table = add(limits.rows * 2 * layout.half_dim, sizeof(float));
  const int64_t columns =
      std::max({model.hidden, model.intermediate, model.heads * model.head_dim});
  layout.packed = add(
      static_cast<int64_t>(LinearScratch::PackedBytes(std::min(limits.rows, kPackedRows), columns)),
      1);
  layout.sums = add(threads * LinearScratch::kSumsPerThread, sizeof(float));
  layout.attention_scratch = AttentionScratch::Of(model.heads / model.kv_heads, model.head_dim);
  layout.attention = add(threads, layout.attention_scratch.bytes());
  layout.total_bytes = end;
  return layout;
}

CpuPlan::CpuPlan(const PlanLayout& layout, Buffer memory)
    : layout_(layout), memory_(std::move(memory)) {}

void CpuPlan::SetBatch(const Batch& batch) {
  CheckBatch(batch, layout_.limits, layout_.max_blocks);
  batch_.max_blocks = batch.max_blocks;
  const auto copy = [this](std::span<const int32_t> from, size_t to) -> std::span<const int32_t> {
    std::copy(from.begin(), from.end(), at<int32_t>(to));
    return {at<int32_t>(to), from.size()};
  };
  batch_.tokens = copy(batch.tokens, layout_.tokens);
  chosen_.SetBatch(batch.choices, batch.chosen_rows,
                   {at<int32_t>(layout_.tokens), batch.tokens.size()});
  batch_.positions = copy(batch.positions, layout_.positions);
  batch_.row_begin = copy(batch.row_begin, layout_.row_begin);
  batch_.context_lengths = copy(batch.context_lengths, layout_.context_lengths);
  batch_.block_tables = copy(batch.block_tables, layout_.block_tables);
  batch_.logit_rows = copy(batch.logit_rows, layout_.logit_rows);
  int32_t* row_sequence = at<int32_t>(layout_.row_sequence);
  for (size_t s = 0; s + 1 < batch.row_begin.size(); ++s) {
    std::fill(row_sequence + batch.row_begin[s], row_sequence + batch.row_begin[s + 1],
              static_cast<int32_t>(s));
  }
  row_sequence_ = {row_sequence, batch.tokens.size()};
  has_rope_ = false;
}

bool CpuPlan::NeedsRope(std::span<const float> frequencies) const {
  float* known = at<float>(layout_.rope_frequencies);
  if (has_rope_ && std::equal(frequencies.begin(), frequencies.end(), known)) return false;
  std::copy(frequencies.begin(), frequencies.end(), known);
  has_rope_ = true;
  return true;
}

}  // namespace nibble::cpu

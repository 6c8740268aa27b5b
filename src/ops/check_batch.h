// What every plan that takes a batch relies on.
#ifndef NIBBLE_OPS_CHECK_BATCH_H_
#define NIBBLE_OPS_CHECK_BATCH_H_

#include "src/ops/backend.h"

namespace nibble {

// Ends the program where the batch is not within the limits or its parts contradict each other.
inline void CheckBatch(const Batch& batch, const StepLimits& limits, int64_t max_blocks) {
  CHECK(batch.rows() <= limits.rows && batch.sequences() <= limits.sequences &&
            static_cast<int64_t>(batch.logit_rows.size()) <= limits.logit_rows,
        "a step of {} rows, {} sequences and {} logit rows; the plan is for {}, {} and {}",
        batch.rows(), batch.sequences(), batch.logit_rows.size(), limits.rows, limits.sequences,
        limits.logit_rows);
  CHECK(batch.max_blocks <= max_blocks, "{} blocks a sequence; the plan is for {}",
        batch.max_blocks, max_blocks);
  CHECK(batch.row_begin.size() == batch.context_lengths.size() + 1 &&
        batch.positions.size() == batch.tokens.size());
  CHECK(batch.chosen_rows.empty() || batch.chosen_rows.size() == batch.tokens.size());
  CHECK(batch.choices.empty() || batch.choices.size() == batch.logit_rows.size());
}

}  // namespace nibble

#endif  // NIBBLE_OPS_CHECK_BATCH_H_

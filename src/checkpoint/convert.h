// A checkpoint of any kind copied into a directory in Hugging Face layout: GGUF expanded to 16
// bits, a synthetic model made real (and marked so), shards arranged anew, quantized layers moved
// from one published layout to another.
//
// Nothing is rounded: codes, scales and zeros are the same in every layout, and a layout that
// cannot express them is refused.
#ifndef NIBBLE_CHECKPOINT_CONVERT_H_
#define NIBBLE_CHECKPOINT_CONVERT_H_

#include <cstdint>
#include <optional>
#include <string>

#include "src/base/cancel.h"
#include "src/base/error.h"
#include "src/base/progress.h"
#include "src/checkpoint/checkpoint.h"

namespace nibble {

struct ConvertOptions {
  // For the quantized layers; the source's own where none is given.
  std::optional<QuantLayout> layout;
  std::string model_card;  // README.md; the source's own, if any, where it is empty
  uint64_t max_shard_bytes = 5'000'000'000;
  ProgressStyle progress = ProgressStyle::kQuiet;
  const CancelToken* cancel = nullptr;  // looked at between tensors
};

// Tensors keep their values, names and delivered types. One tensor, or one quantized layer, is in
// memory at a time. Fails with kUsage where a layout is given for a model that is not quantized.
Status ConvertToDirectory(const Checkpoint& source, const std::string& output,
                          const ConvertOptions& options);

}  // namespace nibble

#endif  // NIBBLE_CHECKPOINT_CONVERT_H_

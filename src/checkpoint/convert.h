// A checkpoint of any kind copied into a directory in Hugging Face layout: GGUF expanded to 16
// bits, a synthetic model made real (and marked so), shards arranged anew.
#ifndef NIBBLE_CHECKPOINT_CONVERT_H_
#define NIBBLE_CHECKPOINT_CONVERT_H_

#include <cstdint>
#include <string>

#include "src/base/cancel.h"
#include "src/base/error.h"
#include "src/base/progress.h"
#include "src/checkpoint/checkpoint.h"

namespace nibble {

struct ConvertOptions {
  std::string model_card;  // README.md; not written where it is empty
  uint64_t max_shard_bytes = 5'000'000'000;
  ProgressStyle progress = ProgressStyle::kQuiet;
  const CancelToken* cancel = nullptr;  // looked at between tensors
};

// Tensors keep their values, names and delivered types. One tensor is in memory at a time.
Status ConvertToDirectory(const Checkpoint& source, const std::string& output,
                          const ConvertOptions& options);

}  // namespace nibble

#endif  // NIBBLE_CHECKPOINT_CONVERT_H_

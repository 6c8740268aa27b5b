// Synthetic models: the shapes of known ones with weights that mean nothing, for measuring speed
// and memory where the real files are not at hand.
//
// "random:PRESET" has float16 weights of the spread of a usual initialization and with the heavy tails of
// trained ones, and norms whose gains make one channel in 128 an outlier;
// "random:PRESET:METHOD" has the linear layers of the blocks quantized as METHOD says: NAME[-gN]
// [-asym|-sym|-sym-full] with NAME rtn, gptq, awq or awq+gptq; asymmetric in AWQ's layout,
// symmetric in GPTQ's. Tensors depend on nothing but their names and shapes and are made when read.
#ifndef NIBBLE_CHECKPOINT_RANDOM_CHECKPOINT_H_
#define NIBBLE_CHECKPOINT_RANDOM_CHECKPOINT_H_

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "src/base/error.h"
#include "src/base/json.h"
#include "src/checkpoint/checkpoint.h"

namespace nibble {

Result<std::unique_ptr<Checkpoint>> OpenRandomCheckpoint(const std::string& model);

// "llama-2-7b", …
std::vector<std::string_view> RandomPresets();
// The preset's config.json; null where there is no such preset.
Json RandomPresetConfig(std::string_view preset);

}  // namespace nibble

#endif  // NIBBLE_CHECKPOINT_RANDOM_CHECKPOINT_H_

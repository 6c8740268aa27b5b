// A directory in Hugging Face layout: config.json, model.safetensors or its shards, the tokenizer's
// files.
#ifndef NIBBLE_CHECKPOINT_HF_CHECKPOINT_H_
#define NIBBLE_CHECKPOINT_HF_CHECKPOINT_H_

#include <memory>
#include <string>

#include "src/base/error.h"
#include "src/checkpoint/checkpoint.h"

namespace nibble {

Result<std::unique_ptr<Checkpoint>> OpenHfCheckpoint(const std::string& directory);

// The chat templates among a tokenizer's settings (tokenizer_config.json): a string, which is then
// called "default", or a list of {"name", "template"}. `source` names the file in errors.
Result<std::vector<NamedChatTemplate>> ChatTemplatesOf(const Json& tokenizer_config,
                                                       std::string_view source);

}  // namespace nibble

#endif  // NIBBLE_CHECKPOINT_HF_CHECKPOINT_H_

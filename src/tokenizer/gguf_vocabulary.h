// The tokenizer that a GGUF file carries in its metadata (`tokenizer.ggml.*`), turned into the two
// files of a Hugging Face checkpoint. A GGUF model is tokenized by loading what is made here, so
// the written files and the ids that nibble uses cannot disagree.
//
// Source: the GGUF specification (ggml/docs/gguf.md) and llama.cpp's pre-tokenizer names.
#ifndef NIBBLE_TOKENIZER_GGUF_VOCABULARY_H_
#define NIBBLE_TOKENIZER_GGUF_VOCABULARY_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "src/base/error.h"
#include "src/base/json.h"

namespace nibble {

// Members are named for the metadata keys; what the file lacks is left empty.
struct GgufVocabulary {
  std::string model;  // "llama" (SentencePiece BPE) or "gpt2" (byte-level BPE)
  std::string pre;    // for "gpt2": "default", "gpt-2", "smollm", "llama-bpe", "qwen2"
  std::vector<std::string> tokens;  // by id
  std::vector<std::string> merges;  // "left right", by rank; for "gpt2"
  std::vector<float> scores;        // one a token; for "llama"
  std::vector<int32_t> types;       // one a token: 1 normal, 2 unknown, 3 control, 4 user-defined,
                                    // 5 unused, 6 byte
  std::optional<int64_t> bos_token_id;
  std::optional<int64_t> eos_token_id;
  std::optional<int64_t> unknown_token_id;
  std::optional<int64_t> padding_token_id;
  std::optional<bool> add_bos_token;
  std::optional<bool> add_eos_token;
  std::optional<bool> add_space_prefix;
  std::string chat_template;
};

struct HfTokenizerFiles {
  Json tokenizer_json;    // tokenizer.json
  Json tokenizer_config;  // tokenizer_config.json, with the chat template
};

// `source` names the GGUF file in errors. Other models and pre-tokenizers are refused by name.
Result<HfTokenizerFiles> TokenizerFilesFromGguf(const GgufVocabulary& vocabulary,
                                                std::string_view source);

}  // namespace nibble

#endif  // NIBBLE_TOKENIZER_GGUF_VOCABULARY_H_

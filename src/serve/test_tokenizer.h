// For tests: a byte-level tokenizer of single bytes.
#ifndef NIBBLE_SERVE_TEST_TOKENIZER_H_
#define NIBBLE_SERVE_TEST_TOKENIZER_H_

#include <memory>

#include "src/tokenizer/tokenizer.h"

namespace nibble {

// `vocabulary`: {TEXT: ID}, bytes in GPT-2's printable spelling. "<s>" is a special token, the id
// after all of them.
inline std::unique_ptr<Tokenizer> MakeByteTokenizer(const Json& vocabulary) {
  Json json = Json::parse(R"({"version": "1.0", "truncation": null, "padding": null,
      "added_tokens": [{"id": 0, "content": "<s>", "special": true, "single_word": false,
                        "lstrip": false, "rstrip": false, "normalized": false}],
      "normalizer": null,
      "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                        "use_regex": true},
      "post_processor": null, "decoder": {"type": "ByteLevel", "add_prefix_space": true,
                        "trim_offsets": true, "use_regex": true},
      "model": {"type": "BPE", "dropout": null, "unk_token": null,
                "continuing_subword_prefix": null, "end_of_word_suffix": null,
                "fuse_unk": false, "byte_fallback": false, "merges": []}})");
  json["added_tokens"][0]["id"] = vocabulary.size();
  json["model"]["vocab"] = vocabulary;
  return TokenizerFromJson(json, Json::object(), "test").value();
}

}  // namespace nibble

#endif  // NIBBLE_SERVE_TEST_TOKENIZER_H_

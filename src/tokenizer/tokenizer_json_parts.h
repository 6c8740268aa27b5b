// The members of tokenizer.json around its model. Only the folder's own files use this.
#ifndef NIBBLE_TOKENIZER_TOKENIZER_JSON_PARTS_H_
#define NIBBLE_TOKENIZER_TOKENIZER_JSON_PARTS_H_

#include <string_view>
#include <vector>

#include "src/base/error.h"
#include "src/base/json.h"
#include "src/tokenizer/pipeline.h"

namespace nibble {

// Each reads one member, which may be null, and refuses by name what would change the result and is
// not supported.
Result<std::vector<NormalizerStep>> ReadNormalizer(const Json& json, std::string_view source);

struct PreTokenizerParts {
  std::vector<PreTokenizerStep> steps;
  bool byte_level = false;
};
Result<PreTokenizerParts> ReadPreTokenizer(const Json& json, std::string_view source);

struct PostProcessorParts {
  std::vector<TokenId> prefix;
  std::vector<TokenId> suffix;
};
Result<PostProcessorParts> ReadPostProcessor(const Json& json, std::string_view source);

Result<Decoding> ReadDecoder(const Json& json, std::string_view source);

}  // namespace nibble

#endif  // NIBBLE_TOKENIZER_TOKENIZER_JSON_PARTS_H_

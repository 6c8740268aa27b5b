// Any bytes as a tokenizer.model: loading fails with an error, or the tokenizer encodes and
// decodes.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <string_view>

#include "src/tokenizer/tokenizer.h"
#include "src/tokenizer/utf8.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace nibble;
  const auto tokenizer =
      TokenizerFromSentencePiece(std::as_bytes(std::span(data, size)), Json::object(), "fuzz");
  if (!tokenizer) return 0;
  // What the file holds is itself a text that its tokens occur in.
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  for (const std::string_view input :
       {std::string_view(
            "Hello  world, it's 2024!\n\xE2\x96\x81 é\xCC\x81 \xF0\x9F\x99\x82 <s>\xFF"),
        text.substr(0, 512)}) {
    const auto tokens = (*tokenizer)->Encode(input, SpecialTokens::kAdd);
    for (const SpecialText special_text : {SpecialText::kKeep, SpecialText::kSkip}) {
      if (!IsValidUtf8((*tokenizer)->Decode(tokens, special_text))) std::abort();
    }
    for (const TokenId token : tokens) (*tokenizer)->TokenBytes(token);
  }
  return 0;
}

// Text to token ids and back, as a checkpoint's own tokenizer does it.
//
// Two families: SentencePiece BPE (`tokenizer.model`; the reference is the SentencePiece library)
// and what `tokenizer.json` describes (the reference is the `tokenizers` library): BPE with byte
// fallback as of Llama 2, byte-level BPE as of GPT-2, Llama 3, Qwen2 and SmolLM2. A setting that
// would change the ids and is not understood is refused by name. Truncation and padding are not the
// tokenizer's business here, whatever tokenizer.json says of them.
//
// Text may be any bytes. Malformed UTF-8 is replaced before anything else: each maximal subpart of
// an ill-formed sequence becomes one U+FFFD (Unicode 15, section 3.9, as Python's
// bytes.decode(errors="replace")).
#ifndef NIBBLE_TOKENIZER_TOKENIZER_H_
#define NIBBLE_TOKENIZER_TOKENIZER_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "src/base/error.h"
#include "src/base/json.h"

namespace nibble {

using TokenId = int32_t;

// Larger vocabularies, and ids beyond, are refused.
inline constexpr int64_t kMaxVocabularySize = int64_t{1} << 20;

// Whether Encode adds BOS, EOS or whatever else the tokenizer's own post-processing adds.
enum class SpecialTokens { kAdd, kOmit };
// Whether text such as "<|im_start|>" becomes the special token it names, or is only characters.
// Added tokens that are not special are matched either way.
enum class ParseSpecial { kYes, kNo };
// What decoding does with special tokens.
enum class SpecialText { kKeep, kSkip };

struct TokenizerPipeline;

// Immutable; may be used by several threads at a time.
class Tokenizer {
 public:
  explicit Tokenizer(std::unique_ptr<const TokenizerPipeline> pipeline);
  ~Tokenizer();
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  std::vector<TokenId> Encode(std::string_view text, SpecialTokens special_tokens,
                              ParseSpecial parse_special = ParseSpecial::kYes) const;

  // Always valid UTF-8. Ids outside the vocabulary contribute nothing.
  std::string Decode(std::span<const TokenId> tokens,
                     SpecialText special_text = SpecialText::kSkip) const;

  // One more than the largest id.
  int64_t vocabulary_size() const;
  std::optional<TokenId> bos() const;
  std::optional<TokenId> eos() const;
  std::optional<TokenId> unknown() const;
  std::optional<TokenId> padding() const;
  // Whether Encode(text, SpecialTokens::kAdd) starts with bos() / ends with eos().
  bool adds_bos() const;
  bool adds_eos() const;
  bool IsSpecial(TokenId token) const;

  // The token as the vocabulary spells it ("Ġthe", "▁the", "<0x0A>"); empty for an unused id. The
  // view lives as long as the tokenizer.
  std::string_view TokenText(TokenId token) const;
  // The bytes that the token adds in the middle of a text (" the", "\n"): for display. They need
  // not be whole characters.
  std::string TokenBytes(TokenId token) const;
  // By the vocabulary's spelling, special and added tokens included.
  std::optional<TokenId> FindToken(std::string_view text) const;

 private:
  friend class StreamingDecoder;
  std::unique_ptr<const TokenizerPipeline> pipeline_;
};

// Decodes token by token. What Push and Finish return is whole characters, and all of it together
// equals Tokenizer::Decode of all the tokens. A token is held back for as long as what follows may
// change its text: an unfinished character, and with the ByteFallback decoder of tokenizer.json a
// run of byte tokens until it ends.
class StreamingDecoder {
 public:
  // `tokenizer` is borrowed.
  explicit StreamingDecoder(const Tokenizer& tokenizer,
                            SpecialText special_text = SpecialText::kSkip);
  ~StreamingDecoder();
  StreamingDecoder(StreamingDecoder&&) noexcept;
  StreamingDecoder& operator=(StreamingDecoder&&) noexcept;

  std::string Push(TokenId token);
  // What was held back, with U+FFFD for what never became a character; ready for a new text after.
  std::string Finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Reads `tokenizer.json`, or `tokenizer.model` where there is none, and `tokenizer_config.json`
// (add_bos_token, add_eos_token, bos_token, eos_token, unk_token, pad_token, added_tokens_decoder,
// legacy) where there is one.
Result<std::unique_ptr<Tokenizer>> LoadTokenizer(const std::string& model_directory);

// `tokenizer_config` may be an empty object. `source` names the file in errors.
Result<std::unique_ptr<Tokenizer>> TokenizerFromJson(const Json& tokenizer_json,
                                                     const Json& tokenizer_config,
                                                     std::string_view source);

// `model` is the content of a `tokenizer.model`.
Result<std::unique_ptr<Tokenizer>> TokenizerFromSentencePiece(std::span<const std::byte> model,
                                                              const Json& tokenizer_config,
                                                              std::string_view source);

}  // namespace nibble

#endif  // NIBBLE_TOKENIZER_TOKENIZER_H_

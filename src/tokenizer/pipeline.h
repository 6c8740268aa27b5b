// The parts that a tokenizer is put together from. Only the folder's own files use this.
#ifndef NIBBLE_TOKENIZER_PIPELINE_H_
#define NIBBLE_TOKENIZER_PIPELINE_H_

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "src/tokenizer/added_tokens.h"
#include "src/tokenizer/bpe.h"
#include "src/tokenizer/decoder.h"
#include "src/tokenizer/normalizer.h"
#include "src/tokenizer/pre_tokenizer.h"
#include "src/tokenizer/sentencepiece.h"
#include "src/tokenizer/string_map.h"
#include "src/tokenizer/tokenizer.h"

namespace nibble {

// Every token by id: those of the model, and the added ones.
class Vocabulary {
 public:
  struct Entry {
    bool used = false;
    bool special = false;
    TokenKind kind = TokenKind::kText;
    std::string text;     // as the vocabulary spells it
    std::string decoded;  // what decoding starts from, where that is something else
  };
  // `id`, from 0 to kMaxVocabularySize - 1, and `text` must both be new.
  Entry& Add(TokenId id, std::string_view text);
  Entry* Get(TokenId id);              // null where there is none
  const Entry* Get(TokenId id) const;  // null where there is none
  std::optional<TokenId> Find(std::string_view text) const;
  TokenId size() const { return static_cast<TokenId>(entries_.size()); }  // largest id + 1
  TokenId count() const { return static_cast<TokenId>(ids_.size()); }

 private:
  std::vector<Entry> entries_;
  StringMap<TokenId> ids_;
};

// What tokenizer.json calls pre-tokenizer and model.
struct HfModel {
  std::vector<PreTokenizerStep> pre_tokenizer;
  bool byte_level = false;  // pieces are spelled as printable bytes for the model
  BpeModel bpe;
};

struct SpModel {
  SentencePieceModel model;
  // Text after an added token gets a dummy prefix as well.
  bool prefix_everywhere = true;
};

struct TokenizerPipeline {
  Vocabulary vocabulary;
  std::map<TokenId, AddedToken> added_tokens;
  AddedTokenSplitter added;             // looked for in the text as given
  AddedTokenSplitter added_normalized;  // and in what the normalizer made of it
  std::vector<NormalizerStep> normalizer;
  std::variant<HfModel, SpModel> model;
  std::vector<TokenId> prefix;  // what SpecialTokens::kAdd puts before
  std::vector<TokenId> suffix;  // and after
  Decoding decoding;
  std::optional<TokenId> bos;
  std::optional<TokenId> eos;
  std::optional<TokenId> unknown;
  std::optional<TokenId> padding;
};

// What tokenizer_config.json says, as far as it bears on ids.
struct TokenizerConfig {
  std::optional<std::string> bos;
  std::optional<std::string> eos;
  std::optional<std::string> unknown;
  std::optional<std::string> padding;
  std::optional<bool> add_bos;
  std::optional<bool> add_eos;
  std::optional<bool> legacy;
  std::vector<AddedToken> added_tokens;  // by id
};
Result<TokenizerConfig> ReadTokenizerConfig(const Json& json, std::string_view source);

// Makes `token` one that splits texts, or changes how it does. Its id must be the one that the
// reference would give it: what the vocabulary has under its text, or else the next.
Status AddToken(const AddedToken& token, std::string_view source, TokenizerPipeline& pipeline);

// Adds the configuration's tokens; sets bos, eos, unknown and padding where it names them, and
// makes them special. Where it says add_bos_token or add_eos_token, that decides what is added to
// texts.
Status ApplyConfig(const TokenizerConfig& config, std::string_view source,
                   TokenizerPipeline& pipeline);

// Builds what finds the added tokens. Last.
void FinishAddedTokens(TokenizerPipeline& pipeline);

// An id from 0 to kMaxVocabularySize - 1; nothing where `json` is something else.
std::optional<TokenId> ReadTokenId(const Json& json);

// A member of "added_tokens" or "added_tokens_decoder".
Result<AddedToken> ReadAddedToken(const Json& json, TokenId id, std::string_view source);

}  // namespace nibble

#endif  // NIBBLE_TOKENIZER_PIPELINE_H_

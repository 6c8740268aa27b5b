// Byte pair encoding with ranked merges, as `model` of tokenizer.json describes it. The reference
// is `tokenizers`' BPE.
#ifndef NIBBLE_TOKENIZER_BPE_H_
#define NIBBLE_TOKENIZER_BPE_H_

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "src/base/error.h"
#include "src/tokenizer/string_map.h"
#include "src/tokenizer/tokenizer.h"

namespace nibble {

inline constexpr std::string_view kMetaspace = "\xE2\x96\x81";  // U+2581, "▁"

// "<0x0A>" for 10.
std::string ByteTokenText(uint8_t byte);
// 10 for "<0x0A>".
std::optional<uint8_t> ParseByteToken(std::string_view text);

class BpeModel {
 public:
  struct Settings {
    StringMap<TokenId> vocabulary;                            // distinct ids, none negative
    std::vector<std::pair<std::string, std::string>> merges;  // best first
    std::optional<std::string> unknown;  // the token for a character that is not in the vocabulary
    bool fuse_unknown = false;           // a run of such characters is one token
    bool byte_fallback = false;          // or the tokens of its bytes, where there are such
    bool ignore_merges = false;          // a whole piece that is a token stays whole
  };
  // Fails where a merge's parts or its result are not in the vocabulary.
  static Result<BpeModel> Create(Settings settings, std::string_view source);

  // Appends the tokens of one piece, which is valid UTF-8. Time is n log n in its length.
  void Encode(std::string_view piece, std::vector<TokenId>& tokens) const;

  // Whether a piece may be cut before each "▁" that follows another character without changing its
  // tokens: no merge reaches across.
  bool cuts_at_metaspace() const { return cuts_at_metaspace_; }

  const StringMap<TokenId>& vocabulary() const { return settings_.vocabulary; }
  // Whether no character is without a token, because every byte has one to fall back to.
  bool covers_all_characters() const { return settings_.byte_fallback && has_all_bytes_; }
  // Whether the token for unknown characters is itself not in the vocabulary.
  bool lacks_unknown() const { return settings_.unknown.has_value() && !unknown_.has_value(); }

 private:
  struct Merge {
    uint32_t rank;
    TokenId result;
  };
  struct PairHash {
    size_t operator()(uint64_t pair) const {
      pair *= 0x9E3779B97F4A7C15u;
      return pair ^ pair >> 32;
    }
  };
  struct Symbol {
    TokenId id;
    int32_t previous;
    int32_t next;  // -1 at the end
  };

  explicit BpeModel(Settings settings) : settings_(std::move(settings)) {}
  const Merge* FindMerge(TokenId left, TokenId right) const;
  std::optional<TokenId> Find(std::string_view text) const;
  std::vector<Symbol> Characters(std::string_view piece) const;
  void MergeAll(std::vector<Symbol>& symbols) const;

  Settings settings_;
  std::unordered_map<uint64_t, Merge, PairHash> merges_;
  std::array<std::optional<TokenId>, 256> byte_tokens_;
  std::optional<TokenId> unknown_;
  bool has_all_bytes_ = false;
  bool cuts_at_metaspace_ = false;
};

}  // namespace nibble

#endif  // NIBBLE_TOKENIZER_BPE_H_

// Added tokens: texts that become one token wherever they occur, before the tokenizer's model sees
// anything. The reference is `tokenizers`' AddedVocabulary.
#ifndef NIBBLE_TOKENIZER_ADDED_TOKENS_H_
#define NIBBLE_TOKENIZER_ADDED_TOKENS_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "src/tokenizer/tokenizer.h"

namespace nibble {

inline constexpr size_t kMaxAddedTokenBytes = 4096;

struct AddedToken {
  TokenId id = 0;
  std::string content;
  bool special = false;
  bool normalized = false;   // looked for in the normalized text
  bool single_word = false;  // only where no word character adjoins
  bool strip_left = false;   // takes the white space before it along
  bool strip_right = false;  // and after it
};

// A piece of text, or an added token found in it.
struct Segment {
  size_t begin;
  size_t end;
  std::optional<TokenId> token;
};

// Finds the longest of a set of strings at a place.
class PrefixTrie {
 public:
  void Add(std::string_view text, size_t value);
  bool empty() const { return children_.empty(); }
  struct Match {
    size_t bytes;
    size_t value;
  };
  std::optional<Match> Longest(std::string_view text) const;

 private:
  // (node, byte) to node; the root is node 0.
  std::unordered_map<uint64_t, uint32_t> children_;
  std::unordered_map<uint32_t, size_t> values_;  // of the nodes where a string ends
  std::vector<bool> starts_ = std::vector<bool>(256);
};

// Splits a text at added tokens: at each place the longest, from left to right.
class AddedTokenSplitter {
 public:
  // `pattern` is the content, or what the normalizer makes of it.
  void Add(const AddedToken& token, std::string_view pattern);

  // The segments cover `text`, which must be valid UTF-8, in order; text segments are not empty.
  std::vector<Segment> Split(std::string_view text, ParseSpecial parse_special) const;

 private:
  PrefixTrie trie_;
  std::vector<AddedToken> tokens_;
};

}  // namespace nibble

#endif  // NIBBLE_TOKENIZER_ADDED_TOKENS_H_

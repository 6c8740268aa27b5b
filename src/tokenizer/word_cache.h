// A text's words repeat: each is tokenized once, and its tokens are copied after that.
#ifndef NIBBLE_TOKENIZER_WORD_CACHE_H_
#define NIBBLE_TOKENIZER_WORD_CACHE_H_

#include <algorithm>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "src/tokenizer/bpe.h"
#include "src/tokenizer/tokenizer.h"

namespace nibble {

// Lives as long as one text and its vector of tokens, both of which it refers to.
class WordCache {
 public:
  explicit WordCache(std::vector<TokenId>& tokens) : tokens_(tokens) {}

  // encode(word, tokens) appends the tokens of a word that is new.
  template <typename Encode>
  void Append(std::string_view word, const Encode& encode) {
    if (word.size() > kMaxCachedBytes) {
      encode(word, tokens_);
      return;
    }
    const auto [known, is_new] = places_.try_emplace(word, Place{tokens_.size(), 0});
    Place& place = known->second;
    if (is_new) {
      encode(word, tokens_);
      place.count = tokens_.size() - place.begin;
      return;
    }
    const size_t end = tokens_.size();
    tokens_.resize(end + place.count);
    std::copy_n(tokens_.begin() + static_cast<ptrdiff_t>(place.begin), place.count,
                tokens_.begin() + static_cast<ptrdiff_t>(end));
  }

 private:
  static constexpr size_t kMaxCachedBytes = 256;
  struct Place {
    size_t begin;  // in tokens_
    size_t count;
  };
  std::vector<TokenId>& tokens_;
  std::unordered_map<std::string_view, Place> places_;
};

// Calls chunk(part) for the parts of `text` cut before each "▁" that follows another character.
template <typename Chunk>
void CutAtMetaspace(std::string_view text, const Chunk& chunk) {
  size_t begin = 0;
  size_t at = text.find(kMetaspace, 1);
  while (at != std::string_view::npos) {
    if (!text.substr(begin, at - begin).ends_with(kMetaspace)) {
      chunk(text.substr(begin, at - begin));
      begin = at;
    }
    at = text.find(kMetaspace, at + kMetaspace.size());
  }
  if (begin < text.size()) chunk(text.substr(begin));
}

}  // namespace nibble

#endif  // NIBBLE_TOKENIZER_WORD_CACHE_H_

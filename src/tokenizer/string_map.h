// A hash map from strings that is searched by string_view.
#ifndef NIBBLE_TOKENIZER_STRING_MAP_H_
#define NIBBLE_TOKENIZER_STRING_MAP_H_

#include <functional>
#include <string>
#include <string_view>
#include <unordered_map>

namespace nibble {

struct StringHash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
};

template <typename Value>
using StringMap = std::unordered_map<std::string, Value, StringHash, std::equal_to<>>;

}  // namespace nibble

#endif  // NIBBLE_TOKENIZER_STRING_MAP_H_

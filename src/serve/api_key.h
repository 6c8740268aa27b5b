// The comparison of secrets.
#ifndef NIBBLE_SERVE_API_KEY_H_
#define NIBBLE_SERVE_API_KEY_H_

#include <string_view>

namespace nibble {

// Takes the same time wherever the two differ. `key` is not empty.
bool SameKey(std::string_view given, std::string_view key);

}  // namespace nibble

#endif  // NIBBLE_SERVE_API_KEY_H_

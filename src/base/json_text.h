// JSON as requests, answers and messages have it: on one line.
#ifndef NIBBLE_BASE_JSON_TEXT_H_
#define NIBBLE_BASE_JSON_TEXT_H_

#include <string>

#include "src/base/json.h"

namespace nibble {

// Valid UTF-8 always: bytes in it that are not become U+FFFD.
inline std::string JsonText(const Json& value) {
  return value.dump(-1, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace);
}

}  // namespace nibble

#endif  // NIBBLE_BASE_JSON_TEXT_H_

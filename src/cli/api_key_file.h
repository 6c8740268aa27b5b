// --api-key-file, of a server and of its client.
#ifndef NIBBLE_CLI_API_KEY_FILE_H_
#define NIBBLE_CLI_API_KEY_FILE_H_

#include <string>

#include "src/base/file.h"

namespace nibble {

// The file's content without the end of its line; empty for an empty path.
inline Result<std::string> ReadApiKey(const std::string& path) {
  constexpr uint64_t kMaxKeyBytes = 4096;
  if (path.empty()) return std::string();
  NIBBLE_ASSIGN_OR_RETURN(std::string key, ReadFile(path, kMaxKeyBytes));
  while (!key.empty() && (key.back() == '\n' || key.back() == '\r')) key.pop_back();
  if (key.empty()) return BadInput("{}: want a key, got nothing", path);
  if (key.find_first_of("\r\n") != std::string::npos) {
    return BadInput("{}: want a key of one line", path);
  }
  return key;
}

}  // namespace nibble

#endif  // NIBBLE_CLI_API_KEY_FILE_H_

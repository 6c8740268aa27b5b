// The server that a load test is for.
#ifndef NIBBLE_LOAD_TARGET_H_
#define NIBBLE_LOAD_TARGET_H_

#include <cstdint>
#include <string>
#include <string_view>

#include "src/base/error.h"

namespace nibble {

struct LoadTarget {
  std::string host;  // a name or an address, IPv6 without brackets
  uint16_t port = 80;
  std::string path;  // before "/v1": "" or "/proxy"
  std::string api_key;

  std::string authority() const;  // what the header Host says
};

// "http://host", "http://[::1]:8000/", "http://host:8000/proxy/v1". kUsage for others, https among
// them.
Result<LoadTarget> ParseLoadTarget(std::string_view url);

}  // namespace nibble

#endif  // NIBBLE_LOAD_TARGET_H_

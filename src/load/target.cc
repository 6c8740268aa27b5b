#include "src/load/target.h"

#include <algorithm>
#include <charconv>

namespace nibble {

std::string LoadTarget::authority() const {
  const std::string name = host.find(':') == std::string::npos ? host : "[" + host + "]";
  return fmt::format("{}:{}", name, port);
}

Result<LoadTarget> ParseLoadTarget(std::string_view url) {
  constexpr std::string_view kScheme = "http://";
  const auto refused = [&](std::string_view why) {
    return WrongUsage("{}: want http://HOST[:PORT][/PATH]; {}", url, why);
  };
  if (url.starts_with("https://")) return refused("TLS is not spoken here");
  if (!url.starts_with(kScheme)) return refused("the scheme is missing");
  // What would end a line of the request, or change its meaning.
  const bool plain =
      std::all_of(url.begin(), url.end(), [](char c) { return c > ' ' && c <= '~'; });
  if (!plain || url.find_first_of("@?#\\") != std::string_view::npos) {
    return refused("a user, a query or an unusual character is in it");
  }
  std::string_view rest = url.substr(kScheme.size());
  const size_t slash = std::min(rest.find('/'), rest.size());
  std::string_view authority = rest.substr(0, slash);
  std::string_view path = rest.substr(slash);
  while (path.ends_with('/')) path.remove_suffix(1);
  if (path == "/v1" || path.ends_with("/v1")) path.remove_suffix(3);

  LoadTarget target;
  target.path = path;
  std::string_view port;
  if (authority.starts_with('[')) {
    const size_t end = authority.find(']');
    if (end == std::string_view::npos) return refused("the address has no end");
    target.host = authority.substr(1, end - 1);
    port = authority.substr(end + 1);
  } else {
    const size_t colon = std::min(authority.find(':'), authority.size());
    target.host = authority.substr(0, colon);
    port = authority.substr(colon);
  }
  if (target.host.empty()) return refused("the host is missing");
  if (!port.empty()) {
    port.remove_prefix(1);
    const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), target.port);
    if (error != std::errc() || end != port.data() + port.size() || target.port == 0) {
      return refused("the port is no number from 1 to 65535");
    }
  }
  return target;
}

}  // namespace nibble

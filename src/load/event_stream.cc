#include "src/load/event_stream.h"

namespace nibble {

bool EventStream::Push(std::string_view bytes, std::vector<std::string>& events) {
  constexpr std::string_view kData = "data:";
  while (!bytes.empty()) {
    const size_t end = bytes.find('\n');
    line_ += bytes.substr(0, end);
    if (line_.size() > kMaxEventBytes) return false;
    if (end == std::string_view::npos) return true;
    bytes.remove_prefix(end + 1);
    std::string_view line = line_;
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.starts_with(kData)) {
      line.remove_prefix(kData.size());
      if (line.starts_with(' ')) line.remove_prefix(1);
      events.emplace_back(line);
    }
    line_.clear();
  }
  return true;
}

}  // namespace nibble

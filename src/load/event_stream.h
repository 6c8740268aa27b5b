// A server-sent event stream (WHATWG HTML 9.2) as it arrives: its bytes, in any pieces, become the
// data of its events. Each line of data is one event here, as OpenAI's API sends them.
#ifndef NIBBLE_LOAD_EVENT_STREAM_H_
#define NIBBLE_LOAD_EVENT_STREAM_H_

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

inline constexpr size_t kMaxEventBytes = 1 << 20;

class EventStream {
 public:
  // The data of the events that these bytes complete. False where a line exceeds kMaxEventBytes;
  // nothing may be pushed after that.
  bool Push(std::string_view bytes, std::vector<std::string>& events);

 private:
  std::string line_;  // not complete
};

}  // namespace nibble

#endif  // NIBBLE_LOAD_EVENT_STREAM_H_

// A request to stop, made by a signal handler or another thread, seen by long-running work between
// its steps.
#ifndef NIBBLE_BASE_CANCEL_H_
#define NIBBLE_BASE_CANCEL_H_

#include <atomic>

#include "src/base/error.h"

namespace nibble {

class CancelToken {
 public:
  void Request() { requested_.store(true, std::memory_order_relaxed); }  // async-signal-safe
  bool requested() const { return requested_.load(std::memory_order_relaxed); }

  // An error with ErrorCode::kInterrupted once a stop was requested.
  Status Check() const {
    if (requested()) return Fail(ErrorCode::kInterrupted, "interrupted");
    return {};
  }

 private:
  std::atomic<bool> requested_{false};
};

}  // namespace nibble

#endif  // NIBBLE_BASE_CANCEL_H_

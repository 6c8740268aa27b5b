// For tests and benchmarks, which cannot go on without a result.
#ifndef NIBBLE_BASE_MUST_H_
#define NIBBLE_BASE_MUST_H_

#include <utility>

#include "src/base/error.h"

namespace nibble {

// The value; ends the process, saying why, where there is none.
template <typename T>
T Must(Result<T> result) {
  CHECK(result.has_value(), "{}", result.error().message());
  return *std::move(result);
}
inline void Must(const Status& status) {
  CHECK(status.has_value(), "{}", status.error().message());
}

}  // namespace nibble

#endif  // NIBBLE_BASE_MUST_H_

// Counts recursion, so that it ends in an error before it ends the stack.
#ifndef NIBBLE_TOKENIZER_JINJA_DEPTH_H_
#define NIBBLE_TOKENIZER_JINJA_DEPTH_H_

#include <utility>

#include "src/base/error.h"

namespace nibble::jinja {

class DepthGuard {
 public:
  // `depth` must outlive the guard.
  static Result<DepthGuard> Enter(int* depth, int max) {
    if (*depth >= max) return BadInput("nested or recursing deeper than {} levels", max);
    return DepthGuard(depth);
  }
  DepthGuard(DepthGuard&& other) noexcept : depth_(std::exchange(other.depth_, nullptr)) {}
  DepthGuard& operator=(DepthGuard&&) = delete;
  ~DepthGuard() {
    if (depth_ != nullptr) --*depth_;
  }

 private:
  explicit DepthGuard(int* depth) : depth_(depth) { ++*depth_; }
  int* depth_;
};

}  // namespace nibble::jinja

#endif  // NIBBLE_TOKENIZER_JINJA_DEPTH_H_

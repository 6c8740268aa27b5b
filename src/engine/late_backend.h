// For tests: a CPU backend that claims to queue steps, so that what runs ahead of the tokens on a
// GPU runs ahead here.
#ifndef NIBBLE_ENGINE_LATE_BACKEND_H_
#define NIBBLE_ENGINE_LATE_BACKEND_H_

#include "src/ops/delegating_backend.h"

namespace nibble {

class LateBackend final : public DelegatingBackend {
 public:
  using DelegatingBackend::DelegatingBackend;
  bool queues_steps() const override { return true; }
};

}  // namespace nibble

#endif  // NIBBLE_ENGINE_LATE_BACKEND_H_

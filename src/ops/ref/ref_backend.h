// The scalar backend: every operation as its definition reads, sums in double, activations in
// float32. The oracle that the other backends are tested against; slow.
#ifndef NIBBLE_OPS_REF_REF_BACKEND_H_
#define NIBBLE_OPS_REF_REF_BACKEND_H_

#include <memory>

#include "src/ops/backend.h"

namespace nibble {

// Work on independent rows and outputs is shared by `threads` (≥ 1) threads; results do not depend
// on their number.
std::unique_ptr<Backend> MakeRefBackend(int threads);

}  // namespace nibble

#endif  // NIBBLE_OPS_REF_REF_BACKEND_H_

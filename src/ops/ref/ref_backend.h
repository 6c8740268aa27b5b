// The scalar backend: every operation as its definition reads, sums in double. The oracle that the
// other backends are tested against; slow.
//
// Activations are float32, or of 16 bits, rounded where a GPU rounds them in steps of many rows:
// what an operation writes, but for logits, and within it the weights (4-bit ones expanded), a
// gate's and an up projection's outputs before SiLU·mul, and softmax's weights before they multiply
// the values. In steps of few rows a GPU keeps 4-bit weights exact, and gate and up in float32.
#ifndef NIBBLE_OPS_REF_REF_BACKEND_H_
#define NIBBLE_OPS_REF_REF_BACKEND_H_

#include <memory>

#include "src/ops/backend.h"

namespace nibble {

// Work on independent rows and outputs is shared by `threads` (≥ 1) threads; results do not depend
// on their number. activations: kF32, kF16 or kBF16.
std::unique_ptr<Backend> MakeRefBackend(int threads, DType activations = DType::kF32);

}  // namespace nibble

#endif  // NIBBLE_OPS_REF_REF_BACKEND_H_

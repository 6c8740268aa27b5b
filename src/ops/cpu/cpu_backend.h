// The backend for CPUs: SIMD kernels chosen at run time (Highway), shared by
// threads.
//
// Activations are float32 between operations. Dense weights keep their type in
// memory and are converted in registers; sums are float32, one accumulator per
// output in the order of the columns, so a row's bits depend neither on the
// batch nor on the number of threads: this backend is always batch-invariant.
//
// 4-bit weights are multiplied as integers. A row of activations is quantized,
// within each group of columns that shares a scale (and at most 128 columns),
// to 16 bits: x ≈ s · i with s = max|x| / 32767. The error of an element is at
// most max|x| / 65534 (half a step), about that of rounding the group's largest
// element to float16; the products and sums of a group are exact.
//
// A NaN or an infinity in a row's activations makes that row's outputs NaN or
// infinite.
#ifndef NIBBLE_OPS_CPU_CPU_BACKEND_H_
#define NIBBLE_OPS_CPU_CPU_BACKEND_H_

#include <memory>

#include "src/ops/backend.h"

namespace nibble {

struct CpuOptions {
  int threads = 1;  // that share an operation's work, the caller's included
};

// Fails with ErrorCode::kUsage if there is not at least one thread.
Result<std::unique_ptr<Backend>> MakeCpuBackend(const CpuOptions& options);

}  // namespace nibble

#endif  // NIBBLE_OPS_CPU_CPU_BACKEND_H_

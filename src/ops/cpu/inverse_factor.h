// The factor that GPTQ's sweep reads.
#ifndef NIBBLE_OPS_CPU_INVERSE_FACTOR_H_
#define NIBBLE_OPS_CPU_INVERSE_FACTOR_H_

#include <cstdint>

#include "src/base/thread_pool.h"

namespace nibble::cpu {

// Columns of the inverse that a thread computes at a time.
inline constexpr int64_t kInverseColumns = 64;

// The upper Cholesky factor U of H⁻¹ = UᵀU into `factor`, [n, n]. `h`, [n, n]: the lower triangle
// of H, rows and columns in reverse order; overwritten. `scratch`: [threads][kInverseColumns · n].
// Returns whether H is positive definite. The same bits whatever the number of threads.
bool FactorizeInverse(double* h, int64_t n, double* scratch, float* factor, ThreadPool& pool);

}  // namespace nibble::cpu

#endif  // NIBBLE_OPS_CPU_INVERSE_FACTOR_H_

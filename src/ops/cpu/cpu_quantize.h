// QuantizeOps on CPUs: OpenBLAS for the products and the factorization (in double), SIMD kernels
// for grids, rounding and the sweep.
#ifndef NIBBLE_OPS_CPU_CPU_QUANTIZE_H_
#define NIBBLE_OPS_CPU_CPU_QUANTIZE_H_

#include <memory>

#include "src/base/thread_pool.h"
#include "src/ops/quantize_ops.h"

namespace nibble {

// Borrows both; `memory` counts what is allocated, as workspace.
std::unique_ptr<QuantizeOps> MakeCpuQuantizeOps(ThreadPool& pool, MemoryTracker& memory);

}  // namespace nibble

#endif  // NIBBLE_OPS_CPU_CPU_QUANTIZE_H_

// Quantizing on a GPU: kernels of our own for grids, rounding, sweeping and clipping, cuBLAS and
// cuSOLVER for products and factorizations.
#ifndef NIBBLE_OPS_CUDA_CUDA_QUANTIZE_H_
#define NIBBLE_OPS_CUDA_CUDA_QUANTIZE_H_

#include <memory>

#include "src/ops/cuda/cuda_linear.h"
#include "src/ops/cuda/stream.h"
#include "src/ops/quantize_ops.h"

namespace nibble::cuda {

// Borrows what it is given. `activations`: kF16 or kBF16. Fails with kResources where its scratch
// memory does not fit; that grows with the largest call so far, and is counted as kWorkspace.
Result<std::unique_ptr<QuantizeOps>> MakeCudaQuantizeOps(Stream& stream, WeightLoader& loader,
                                                         MemoryTracker& memory, DType activations);

}  // namespace nibble::cuda

#endif  // NIBBLE_OPS_CUDA_CUDA_QUANTIZE_H_

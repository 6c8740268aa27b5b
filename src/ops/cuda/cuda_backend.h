// The backend for NVIDIA GPUs.
//
// Activations, dense weights and the KV cache are of one 16-bit type; products and sums are float32.
// Dense products go through cuBLASLt, 4-bit ones and attention through kernels of our own. Operations
// are queued on one stream; steps that only decode are captured and replayed as graphs.
#ifndef NIBBLE_OPS_CUDA_CUDA_BACKEND_H_
#define NIBBLE_OPS_CUDA_CUDA_BACKEND_H_

#include <memory>

#include "src/ops/backend.h"

namespace nibble {

// kPortable: only those that run on any GPU, also where there are others for this one.
// kBatchInvariant: only those, and so that a row's sums are the same bits whatever else is in its step;
// slower, above all in decoding and at 4 bits.
enum class CudaKernels { kAuto, kPortable, kBatchInvariant };

struct CudaOptions {
  int device = 0;
  DType activations = DType::kF16;  // or kBF16
  CudaKernels kernels = CudaKernels::kAuto;
};

// Fails with kBadInput where this build has no CUDA, there is no such device, its driver is too old or
// its architecture is none that the kernels were compiled for; with kUsage for another type.
Result<std::unique_ptr<Backend>> MakeCudaBackend(const CudaOptions& options);

}  // namespace nibble

#endif  // NIBBLE_OPS_CUDA_CUDA_BACKEND_H_

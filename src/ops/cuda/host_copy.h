// Copies from the host that come between two kernels.
#ifndef NIBBLE_OPS_CUDA_HOST_COPY_H_
#define NIBBLE_OPS_CUDA_HOST_COPY_H_

#include <cstddef>

#include "src/ops/cuda/stream.h"

namespace nibble::cuda {

// Copies page-locked memory of the host; returns before that is done. Both aligned to 16 bytes,
// bytes a multiple of 16. A kernel reads the host's memory: the copying engine and the kernels'
// queue would wait for each other, 10 µs of each step. A kernel that is launched next with
// LaunchDependent may begin before the copy is seen.
void CopyFromHost(Stream& stream, const void* host, void* device, size_t bytes);

}  // namespace nibble::cuda

#endif  // NIBBLE_OPS_CUDA_HOST_COPY_H_

// Memory of the current CUDA device, and pinned memory of the host that the device copies from.
#ifndef NIBBLE_OPS_CUDA_DEVICE_MEMORY_H_
#define NIBBLE_OPS_CUDA_DEVICE_MEMORY_H_

#include <cstddef>

#include "src/base/error.h"
#include "src/tensor/memory.h"

namespace nibble::cuda {

// Not zeroed, aligned to 256 bytes, rounded up to whole 64 bytes. Fails with kResources, saying how much is free.
Result<Buffer> AllocateDevice(MemoryTracker& tracker, MemoryClass memory_class, size_t bytes);

// Page-locked host memory; not counted, since it is not the device's.
Result<Buffer> AllocatePinned(size_t bytes);

}  // namespace nibble::cuda

#endif  // NIBBLE_OPS_CUDA_DEVICE_MEMORY_H_

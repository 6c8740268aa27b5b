#include "src/ops/cuda/device_memory.h"

#include <cuda_runtime_api.h>

#include "src/base/checked.h"
#include "src/base/units.h"
#include "src/ops/cuda/stream.h"

namespace nibble::cuda {

Result<Buffer> AllocateDevice(MemoryTracker& tracker, MemoryClass memory_class, size_t bytes) {
  if (bytes == 0) return Buffer();
  bytes = RoundUp(bytes, size_t{64});
  if (bytes > tracker.Room()) {
    return NotEnough("{} of GPU memory for {} are wanted, {} are left of what nibble may use",
                     FormatBytes(bytes), Name(memory_class), FormatBytes(tracker.Room()));
  }
  void* data = nullptr;
  const cudaError_t error = cudaMalloc(&data, bytes);
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // not a failure of what comes next
    size_t free = 0, total = 0;
    cudaMemGetInfo(&free, &total);
    return NotEnough("{} of GPU memory for {} are wanted, {} of {} are free", FormatBytes(bytes),
                     Name(memory_class), FormatBytes(free), FormatBytes(total));
  }
  if (error != cudaSuccess) {
    return Fail(ErrorCode::kInternal, "allocating {} of GPU memory: {}", FormatBytes(bytes),
                ErrorText(error));
  }
  return Buffer(data, bytes, [](void* p, size_t) { cudaFree(p); }, &tracker, memory_class);
}

Result<Buffer> AllocatePinned(size_t bytes) {
  void* data = nullptr;
  const cudaError_t error = cudaMallocHost(&data, bytes);
  if (error != cudaSuccess) {
    cudaGetLastError();
    return NotEnough("{} of page-locked host memory: {}", FormatBytes(bytes), ErrorText(error));
  }
  return Buffer(data, bytes, [](void* p, size_t) { cudaFreeHost(p); }, nullptr,
                MemoryClass::kWorkspace);
}

}  // namespace nibble::cuda

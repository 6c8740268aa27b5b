#include "src/ops/cuda/device_memory.h"

#include <cuda_runtime_api.h>

#include "src/base/checked.h"
#include "src/base/units.h"
#include "src/ops/cuda/stream.h"

namespace nibble::cuda {
namespace {

// From the device's pool, which places allocations side by side where cudaMalloc rounds each up to
// 2 MiB: 192 MiB for Llama-2-7B at 4 bits. What is freed goes back to the system, as it would.
cudaError_t TakeFromPool(void** data, size_t bytes) {
  int device = 0, has_pools = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&has_pools, cudaDevAttrMemoryPoolsSupported, device);
  if (has_pools == 0) return cudaMalloc(data, bytes);
  const cudaError_t error = cudaMallocAsync(data, bytes, cudaStreamLegacy);
  return error == cudaSuccess ? cudaStreamSynchronize(cudaStreamLegacy) : error;
}

}  // namespace

Result<Buffer> AllocateDevice(MemoryTracker& tracker, MemoryClass memory_class, size_t bytes) {
  if (bytes == 0) return Buffer();
  bytes = RoundUp(bytes, size_t{64});
  if (bytes > tracker.Room()) {
    return NotEnough("{} of GPU memory for {} are wanted, {} are left of what nibble may use",
                     FormatBytes(bytes), Name(memory_class), FormatBytes(tracker.Room()));
  }
  void* data = nullptr;
  const cudaError_t error = TakeFromPool(&data, bytes);
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
  const auto release = [](void* p, size_t) {
    cudaDeviceSynchronize();  // what uses it may be under way, which a pool does not look at
    cudaFree(p);
  };
  return Buffer(data, bytes, release, &tracker, memory_class);
}

Result<Buffer> AllocatePinned(size_t bytes) {
  void* data = nullptr;
  const cudaError_t error = cudaMallocHost(&data, bytes);
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // not a failure of what comes next
    return NotEnough("{} of page-locked host memory: {}", FormatBytes(bytes), ErrorText(error));
  }
  if (error != cudaSuccess) {
    return Fail(ErrorCode::kInternal, "allocating {} of page-locked host memory: {}",
                FormatBytes(bytes), ErrorText(error));
  }
  return Buffer(
      data, bytes, [](void* p, size_t) { cudaFreeHost(p); }, nullptr, MemoryClass::kWorkspace);
}

}  // namespace nibble::cuda

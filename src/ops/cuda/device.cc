#include "src/ops/cuda/device.h"

#ifdef NIBBLE_WITH_CUDA
#include <cuda_runtime_api.h>
#include <fmt/format.h>
#endif

namespace nibble {

std::vector<CudaDevice> ListCudaDevices() {
  std::vector<CudaDevice> devices;
#ifdef NIBBLE_WITH_CUDA
  int count = 0, driver = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess || cudaDriverGetVersion(&driver) != cudaSuccess) {
    return devices;
  }
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp properties;
    if (cudaGetDeviceProperties(&properties, i) != cudaSuccess) continue;
    devices.push_back(
        {.index = i,
         .name = properties.name,
         .compute_capability = fmt::format("{}.{}", properties.major, properties.minor),
         .memory_bytes = properties.totalGlobalMem,
         .multiprocessors = properties.multiProcessorCount,
         .driver = fmt::format("{}.{}", driver / 1000, driver % 1000 / 10)});
  }
#endif
  return devices;
}

}  // namespace nibble

#include "src/ops/cuda/device.h"

#include <cuda_runtime_api.h>

#include "src/ops/cuda/elementwise.h"
#include "src/ops/cuda/stream.h"

namespace nibble {

std::vector<CudaDevice> ListCudaDevices() {
  std::vector<CudaDevice> devices;
  int count = 0, driver = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess || cudaDriverGetVersion(&driver) != cudaSuccess) {
    cudaGetLastError();
    return devices;
  }
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp properties;
    if (cudaGetDeviceProperties(&properties, i) != cudaSuccess) continue;
    char bus_id[32] = "";
    cudaDeviceGetPCIBusId(bus_id, sizeof(bus_id), i);
    devices.push_back(
        {.index = i,
         .name = properties.name,
         .compute_capability = fmt::format("{}.{}", properties.major, properties.minor),
         .memory_bytes = properties.totalGlobalMem,
         .multiprocessors = properties.multiProcessorCount,
         .pci_bus_id = bus_id,
         .driver = fmt::format("{}.{}", driver / 1000, driver % 1000 / 10)});
  }
  return devices;
}

CudaDevice CurrentCudaDevice() {
  int current = 0;
  CHECK(cudaGetDevice(&current) == cudaSuccess);
  for (const CudaDevice& device : ListCudaDevices()) {
    if (device.index == current) return device;
  }
  CHECK(false, "cuda:{} is current, but not listed", current);
  return {};
}

namespace cuda {

Status CheckDriver() {
  int driver = 0, runtime = 0;
  cudaRuntimeGetVersion(&runtime);
  const cudaError_t error = cudaDriverGetVersion(&driver);
  const auto version = [](int v) { return fmt::format("{}.{}", v / 1000, v % 1000 / 10); };
  if (error != cudaSuccess || driver == 0) return BadInput("no NVIDIA driver was found");
  // Minor versions are compatible (CUDA's minor version compatibility).
  if (driver / 1000 < runtime / 1000) {
    return BadInput("the NVIDIA driver supports CUDA {}; this nibble wants {} or newer",
                    version(driver), version(runtime / 1000 * 1000));
  }
  int count = 0;
  if (const cudaError_t counted = cudaGetDeviceCount(&count); counted != cudaSuccess) {
    cudaGetLastError();
    return BadInput("the NVIDIA driver does not answer: {}", ErrorText(counted));
  }
  return {};
}

Status CheckKernelsRun(const CudaDevice& device) {
  const cudaError_t error = FindElementwiseKernels();
  if (error == cudaSuccess) return {};
  cudaGetLastError();
  return BadInput("cuda:{} ({}, compute capability {}): this nibble has no kernels for it: {}",
                  device.index, device.name, device.compute_capability, ErrorText(error));
}

}  // namespace cuda
}  // namespace nibble

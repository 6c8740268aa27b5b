// The NVIDIA GPUs of this machine.
#ifndef NIBBLE_OPS_CUDA_DEVICE_H_
#define NIBBLE_OPS_CUDA_DEVICE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "src/base/error.h"

namespace nibble {

struct CudaDevice {
  int index = 0;
  std::string name;                // "NVIDIA H200"
  std::string compute_capability;  // "9.0"
  uint64_t memory_bytes = 0;
  int multiprocessors = 0;
  std::string pci_bus_id;  // "0000:3B:00.0"
  std::string driver;  // the CUDA version that the driver supports: "13.0"
};

// Empty where there is none, its driver does not answer, or this build is without CUDA.
std::vector<CudaDevice> ListCudaDevices();
// The one that this thread's CUDA work goes to. There must be one.
CudaDevice CurrentCudaDevice();

namespace cuda {

// kBadInput where there is no driver, or one too old for the runtime that this build carries.
Status CheckDriver();
// kBadInput where the kernels were not compiled for the current device's architecture.
Status CheckKernelsRun(const CudaDevice& device);

}  // namespace cuda
}  // namespace nibble

#endif  // NIBBLE_OPS_CUDA_DEVICE_H_

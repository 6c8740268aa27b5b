// The NVIDIA GPUs of this machine.
#ifndef NIBBLE_OPS_CUDA_DEVICE_H_
#define NIBBLE_OPS_CUDA_DEVICE_H_

#include <cstdint>
#include <string>
#include <vector>

namespace nibble {

struct CudaDevice {
  int index = 0;
  std::string name;                // "NVIDIA H200"
  std::string compute_capability;  // "9.0"
  uint64_t memory_bytes = 0;
  int multiprocessors = 0;
  std::string driver;  // the CUDA version that the driver supports: "13.0"
};

// Empty where there is none, its driver does not answer, or this build is without CUDA.
std::vector<CudaDevice> ListCudaDevices();

}  // namespace nibble

#endif  // NIBBLE_OPS_CUDA_DEVICE_H_

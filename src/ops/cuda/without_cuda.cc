// What a build without CUDA says of GPUs.
#include "src/ops/cuda/cuda_backend.h"
#include "src/ops/cuda/device.h"
#include "src/ops/cuda/measure_limits.h"

namespace nibble {

std::vector<CudaDevice> ListCudaDevices() { return {}; }

CudaDevice CurrentCudaDevice() {
  CHECK(false, "this nibble was built without CUDA");
  return {};
}

Result<std::unique_ptr<Backend>> MakeCudaBackend(const CudaOptions& options) {
  return BadInput("cuda:{}: this nibble was built without CUDA", options.device);
}

Result<CudaLimits> MeasureCudaLimits() { return BadInput("this nibble was built without CUDA"); }

}  // namespace nibble

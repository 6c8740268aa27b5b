// A fault on the device, as of a device that is lost: it ends the process's context for good.
#include <gtest/gtest.h>

#include <cstdlib>
#include <iostream>

#include "src/base/must.h"
#include "src/ops/cuda/cuda_backend.h"
#include "src/ops/cuda/device.h"

namespace nibble {
namespace {

__global__ void Fault() { asm("trap;"); }

// Runs an operation behind a fault and ends the process: 0 where nothing was noticed.
void NormalizeBehindFault() {
  const std::unique_ptr<Backend> backend = Must(MakeCudaBackend({.activations = DType::kF16}));
  const Matrix x = Must(backend->Allocate(MemoryClass::kWorkspace, DType::kF16, 1, 8));
  const Matrix gain = Must(backend->Upload(std::vector<float>(8, 1.0f)));
  backend->RmsNorm(x.view(), gain.view(), 1e-5f, x.view());  // its kernel is loaded now
  CHECK(backend->ToHost(x.view()).has_value());
  Fault<<<1, 1>>>();
  cudaDeviceSynchronize();
  backend->RmsNorm(x.view(), gain.view(), 1e-5f, x.view());
  const Result<MatrixView> result = backend->ToHost(x.view());
  if (!result) std::cerr << result.error().message();
  std::_Exit(result ? 0 : static_cast<int>(result.error().code()));
}

TEST(StreamDeathTest, AFaultComesBackAsAnErrorThatNamesTheOperation) {
  if (ListCudaDevices().empty()) GTEST_SKIP() << "there is no NVIDIA GPU here";
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(NormalizeBehindFault(),
              testing::ExitedWithCode(static_cast<int>(ErrorCode::kInternal)),
              "RMS norm.*cudaErrorLaunchFailure");
}

}  // namespace
}  // namespace nibble

// What tests of kernels begin with.
#ifndef NIBBLE_OPS_CUDA_CUDA_TEST_H_
#define NIBBLE_OPS_CUDA_CUDA_TEST_H_

#include <gtest/gtest.h>

#include <memory>

#include "src/base/must.h"
#include "src/ops/cuda/device.h"
#include "src/ops/cuda/device_memory.h"
#include "src/ops/cuda/stream.h"

namespace nibble::cuda {

// Skipped where there is no GPU.
class CudaTest : public testing::Test {
 protected:
  void SetUp() override {
    if (ListCudaDevices().empty()) GTEST_SKIP() << "there is no NVIDIA GPU here";
    stream_ = Must(Stream::Create());
  }

  MemoryTracker tracker_;
  std::unique_ptr<Stream> stream_;
};

}  // namespace nibble::cuda

#endif  // NIBBLE_OPS_CUDA_CUDA_TEST_H_

#include <cstdint>

#include "src/base/checked.h"
#include "src/ops/cuda/dependent_launch.cuh"
#include "src/ops/cuda/host_copy.h"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void CopyKernel(const uint4* host, uint4* device, size_t count) {
  // Before the wait: what the host wrote does not depend on an earlier kernel.
  const size_t i = size_t{blockIdx.x} * kThreads + threadIdx.x;
  const uint4 value = i < count ? host[i] : uint4{};
  WaitForLastKernel();
  if (i < count) device[i] = value;
}

}  // namespace

void CopyFromHost(Stream& stream, const void* host, void* device, size_t bytes) {
  const size_t count = bytes / sizeof(uint4);
  CHECK(bytes % sizeof(uint4) == 0 && reinterpret_cast<uintptr_t>(host) % sizeof(uint4) == 0 &&
        reinterpret_cast<uintptr_t>(device) % sizeof(uint4) == 0);
  if (count == 0) return;
  LaunchDependent(stream, CopyKernel, static_cast<unsigned>(CeilDiv<size_t>(count, kThreads)),
                  kThreads, 0, static_cast<const uint4*>(host), static_cast<uint4*>(device), count);
  stream.CheckLaunch("copying a batch", 1, static_cast<int64_t>(bytes));
}

}  // namespace nibble::cuda

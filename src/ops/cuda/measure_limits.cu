#include "src/ops/cuda/measure_limits.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "src/ops/cuda/device_memory.h"
#include "src/ops/cuda/half.cuh"
#include "src/ops/cuda/matrix_product.h"
#include "src/ops/cuda/stream.h"

namespace nibble {
namespace {

using cuda::Stream;

constexpr int kTries = 9;
constexpr int kLoads = 8;  // in flight, of a thread

__global__ void ReadKernel(const uint4* from, int64_t count, uint32_t* sums) {
  const int64_t threads = static_cast<int64_t>(gridDim.x) * blockDim.x;
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  uint32_t sum = 0;
  for (int64_t i = thread; i + (kLoads - 1) * threads < count; i += kLoads * threads) {
    uint4 loaded[kLoads];
#pragma unroll
    for (int u = 0; u < kLoads; ++u) loaded[u] = __ldcs(from + i + u * threads);
#pragma unroll
    for (int u = 0; u < kLoads; ++u) sum ^= loaded[u].x ^ loaded[u].y ^ loaded[u].z ^ loaded[u].w;
  }
  // Used, so that the reads cannot be left out.
  if (sum == 0x9e3779b9u) sums[0] = sum;
}

// Numbers between -1 and 1: products of zeros run faster than real ones.
__global__ void RandomKernel(__half* out, int64_t count) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  uint32_t bits = static_cast<uint32_t>(i) * 2654435761u;
  bits ^= bits >> 15;
  bits *= 2246822519u;
  bits ^= bits >> 13;
  out[i] = __float2half(static_cast<float>(bits >> 8) * 0x1p-23f - 1.0f);
}

// The median time of `work` in seconds.
template <typename Work>
Result<double> MedianSeconds(Stream& stream, const Work& work) {
  cudaEvent_t begin = nullptr, end = nullptr;
  cudaEventCreate(&begin);
  cudaEventCreate(&end);
  std::array<double, kTries> seconds{};
  work();
  for (double& time : seconds) {
    stream.Check(cudaEventRecord(begin, stream.get()), "timing", 1, 1);
    work();
    stream.Check(cudaEventRecord(end, stream.get()), "timing", 1, 1);
    NIBBLE_RETURN_IF_ERROR(stream.Synchronize());
    float milliseconds = 0;
    cudaEventElapsedTime(&milliseconds, begin, end);
    time = milliseconds * 1e-3;
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  std::sort(seconds.begin(), seconds.end());
  return seconds[kTries / 2];
}

}  // namespace

Result<CudaLimits> MeasureCudaLimits() {
  NIBBLE_ASSIGN_OR_RETURN(const std::unique_ptr<Stream> stream, Stream::Create());
  CudaLimits limits;
  MemoryTracker memory;  // measured apart from a model's
  {
    constexpr size_t kBytes = size_t{2} << 30;
    NIBBLE_ASSIGN_OR_RETURN(const Buffer buffer,
                            cuda::AllocateDevice(memory, MemoryClass::kWorkspace, kBytes));
    NIBBLE_ASSIGN_OR_RETURN(const Buffer sums,
                            cuda::AllocateDevice(memory, MemoryClass::kWorkspace, 256));
    stream->Check(cudaMemsetAsync(buffer.data(), 1, kBytes, stream->get()), "filling", 1, 1);
    NIBBLE_ASSIGN_OR_RETURN(
        const double seconds, MedianSeconds(*stream, [&] {
          const auto grid = static_cast<unsigned>(stream->multiprocessors() * 8);
          ReadKernel<<<grid, 256, 0, stream->get()>>>(
              buffer.as<uint4>(), static_cast<int64_t>(kBytes / sizeof(uint4)), sums.as<uint32_t>());
          stream->CheckLaunch("reading memory", 1, static_cast<int64_t>(kBytes));
        }));
    limits.read_bytes_per_second = static_cast<double>(kBytes) / seconds;
  }
  constexpr int64_t kSize = 8192;
  constexpr size_t kMatrixBytes = kSize * kSize * 2;
  constexpr size_t kWorkspaceBytes = size_t{32} << 20;
  std::array<Buffer, 3> matrices;
  for (Buffer& matrix : matrices) {
    NIBBLE_ASSIGN_OR_RETURN(matrix,
                            cuda::AllocateDevice(memory, MemoryClass::kWorkspace, kMatrixBytes));
    RandomKernel<<<kSize * kSize / 256, 256, 0, stream->get()>>>(matrix.as<__half>(),
                                                                 kSize * kSize);
    stream->CheckLaunch("filling", kSize, kSize);
  }
  NIBBLE_ASSIGN_OR_RETURN(const Buffer workspace,
                          cuda::AllocateDevice(memory, MemoryClass::kWorkspace, kWorkspaceBytes));
  NIBBLE_ASSIGN_OR_RETURN(const std::unique_ptr<cuda::MatrixProduct> product,
                          cuda::MatrixProduct::Create(CudaKernels::kAuto));
  const auto view = [&](const Buffer& b) {
    return MatrixView{b.data(), DType::kF16, kSize, kSize, kSize};
  };
  NIBBLE_ASSIGN_OR_RETURN(
      const double seconds, MedianSeconds(*stream, [&] {
        product->Run(*stream, view(matrices[0]), matrices[1].data(),
                     cuda::MatrixProduct::Output::kReplace, view(matrices[2]), workspace.data(),
                     kWorkspaceBytes);
      }));
  limits.matrix_flops_per_second = 2.0 * kSize * kSize * kSize / seconds;
  return limits;
}

}  // namespace nibble

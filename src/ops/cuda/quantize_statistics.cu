#include <algorithm>

#include "src/base/checked.h"
#include "src/ops/cuda/dependent_launch.cuh"
#include "src/ops/cuda/half.cuh"
#include "src/ops/cuda/quantize_kernels.h"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256;  // of kernels that go over a row
constexpr int kTile = 32;

// A block has kTile columns; its threads' sums of rows are added in their order.
template <typename T>
__global__ void __launch_bounds__(kTile* kTile)
    AddMagnitudesKernel(const T* x, int64_t stride, int64_t rows, int64_t columns, double* sums) {
  __shared__ float parts[kTile][kTile + 1];
  StartNextKernel();
  WaitForLastKernel();
  const int64_t column = blockIdx.x * int64_t{kTile} + threadIdx.x;
  float sum = 0;
  if (column < columns) {
#pragma unroll 4
    for (int64_t r = threadIdx.y; r < rows; r += kTile) {
      sum += fabsf(HalfTraits<T>::ToFloat(x[r * stride + column]));
    }
  }
  parts[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || column >= columns) return;
  double total = sums[column];
  for (int i = 0; i < kTile; ++i) total += parts[i][threadIdx.x];
  sums[column] = total;
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    DifferencesKernel(const T* from, int64_t from_stride, const float* scales, const T* x,
                      int64_t x_stride, int64_t columns, T* out, int64_t out_stride) {
  StartNextKernel();
  WaitForLastKernel();
  for (int64_t k = threadIdx.x; k < columns; k += kThreads) {
    const float unquantized = HalfTraits<T>::ToFloat(from[blockIdx.x * from_stride + k]);
    const float value = HalfTraits<T>::ToFloat(x[blockIdx.x * x_stride + k]);
    out[blockIdx.x * out_stride + k] = HalfTraits<T>::FromFloat(unquantized / scales[k] - value);
  }
}

// A block writes one tile of the lower triangle.
__global__ void __launch_bounds__(kTile * 8) MirrorKernel(float* gram, int64_t n) {
  __shared__ float tile[kTile][kTile + 1];
  StartNextKernel();
  WaitForLastKernel();
  const int64_t row = blockIdx.x * int64_t{kTile}, column = blockIdx.y * int64_t{kTile};
  if (row > column) return;  // of the upper triangle
  for (int64_t i = threadIdx.y; i < kTile; i += 8) {
    if (row + i < n && column + threadIdx.x < n) {
      tile[i][threadIdx.x] = gram[(row + i) * n + column + threadIdx.x];
    }
  }
  __syncthreads();
  for (int64_t i = threadIdx.y; i < kTile; i += 8) {
    const int64_t to_row = column + i, to_column = row + threadIdx.x;
    if (to_row < n && to_column < to_row) gram[to_row * n + to_column] = tile[threadIdx.x][i];
  }
}

__global__ void __launch_bounds__(kThreads)
    MeanSquaresKernel(const float* gram, int64_t n, const int32_t* order, double scale,
                      float* out) {
  StartNextKernel();
  WaitForLastKernel();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= n) return;
  const int64_t k = order != nullptr ? order[i] : i;
  out[i] = static_cast<float>(gram[k * n + k] * scale);
}

constexpr int kRidgeThreads = 1024;

__device__ double DiagonalOf(const float* gram, int64_t n, int64_t k, double scale) {
  const float value = gram[k * n + k];
  return value == 0 ? 1 : value * scale;
}

// One block.
__global__ void __launch_bounds__(kRidgeThreads)
    RidgeKernel(const float* gram, int64_t n, double scale, double damping, double* ridge) {
  __shared__ double sums[kRidgeThreads];
  StartNextKernel();
  WaitForLastKernel();
  double sum = 0;
  for (int64_t k = threadIdx.x; k < n; k += kRidgeThreads) sum += DiagonalOf(gram, n, k, scale);
  sums[threadIdx.x] = sum;
  for (int step = kRidgeThreads / 2; step > 0; step /= 2) {
    __syncthreads();
    if (threadIdx.x < step) sums[threadIdx.x] += sums[threadIdx.x + step];
  }
  if (threadIdx.x == 0) *ridge = damping * sums[0] / static_cast<double>(n);
}

// One block a row.
__global__ void __launch_bounds__(kThreads)
    BuildHessianKernel(const float* gram, int64_t n, const int32_t* order, double scale,
                       const double* ridge, double* hessian) {
  StartNextKernel();
  WaitForLastKernel();
  const int64_t i = blockIdx.x;
  const float* const from = gram + order[n - 1 - i] * n;
  double* const to = hessian + i * n;
  for (int64_t j = i + 1 + threadIdx.x; j < n; j += kThreads) {
    to[j] = scale * from[order[n - 1 - j]];
  }
  if (threadIdx.x == 0) to[i] = DiagonalOf(gram, n, order[n - 1 - i], scale) + *ridge;
}

// A block writes one tile, and reads it turned.
__global__ void __launch_bounds__(kTile * 8)
    ReverseFactorKernel(const double* inverse, int64_t n, float* out) {
  __shared__ float tile[kTile][kTile + 1];
  StartNextKernel();
  WaitForLastKernel();
  const int64_t row = blockIdx.y * int64_t{kTile}, column = blockIdx.x * int64_t{kTile};
  for (int64_t k = threadIdx.y; k < kTile; k += 8) {
    const int64_t i = row + threadIdx.x, j = column + k;
    tile[threadIdx.x][k] =
        i <= j && j < n ? static_cast<float>(inverse[(n - 1 - j) * n + n - 1 - i]) : 0.0f;
  }
  __syncthreads();
  for (int64_t k = threadIdx.y; k < kTile; k += 8) {
    const int64_t i = row + k, j = column + threadIdx.x;
    if (i < n && j < n) out[i * n + j] = tile[k][threadIdx.x];
  }
}

}  // namespace

void AddMagnitudes(Stream& stream, MatrixView x, double* sums) {
  if (x.rows == 0) return;
  WithHalfType(x.dtype, [&]<typename T>() {
    LaunchDependent(stream, AddMagnitudesKernel<T>,
                    static_cast<unsigned>(CeilDiv<int64_t>(x.columns, kTile)), dim3(kTile, kTile),
                    0, x.row<T>(0), x.stride, x.rows, x.columns, sums);
  });
  stream.CheckLaunch("adding magnitudes", x.rows, x.columns);
}

void Differences(Stream& stream, MatrixView from, const float* scales, MatrixView x,
                 MatrixView difference) {
  if (x.rows == 0) return;
  WithHalfType(x.dtype, [&]<typename T>() {
    LaunchDependent(stream, DifferencesKernel<T>, static_cast<unsigned>(x.rows), kThreads, 0,
                    from.row<T>(0), from.stride, scales, x.row<T>(0), x.stride, x.columns,
                    difference.row<T>(0), difference.stride);
  });
  stream.CheckLaunch("an input's drift", x.rows, x.columns);
}

void Mirror(Stream& stream, float* gram, int64_t n) {
  const auto tiles = static_cast<unsigned>(CeilDiv<int64_t>(n, kTile));
  LaunchDependent(stream, MirrorKernel, dim3(tiles, tiles), dim3(kTile, 8), 0, gram, n);
  stream.CheckLaunch("completing a Gram matrix", n, n);
}

void MeanSquares(Stream& stream, const float* gram, int64_t n, const int32_t* order, double scale,
                 float* out) {
  LaunchDependent(stream, MeanSquaresKernel, static_cast<unsigned>(CeilDiv<int64_t>(n, kThreads)),
                  kThreads, 0, gram, n, order, scale, out);
  stream.CheckLaunch("mean squares", 1, n);
}

void BuildHessian(Stream& stream, const float* gram, int64_t n, const int32_t* order, double scale,
                  double damping, double* ridge, double* hessian) {
  LaunchDependent(stream, RidgeKernel, 1, kRidgeThreads, 0, gram, n, scale, damping, ridge);
  LaunchDependent(stream, BuildHessianKernel, static_cast<unsigned>(n), kThreads, 0, gram, n, order,
                  scale, ridge, hessian);
  stream.CheckLaunch("a Hessian", n, n);
}

void ReverseFactor(Stream& stream, const double* inverse, int64_t n, float* out) {
  const auto tiles = static_cast<unsigned>(CeilDiv<int64_t>(n, kTile));
  LaunchDependent(stream, ReverseFactorKernel, dim3(tiles, tiles), dim3(kTile, 8), 0, inverse, n,
                  out);
  stream.CheckLaunch("a factor", n, n);
}

}  // namespace nibble::cuda

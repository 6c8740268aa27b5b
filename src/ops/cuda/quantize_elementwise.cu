#include <climits>

#include "src/base/checked.h"
#include "src/ops/cuda/dependent_launch.cuh"
#include "src/ops/cuda/half.cuh"
#include "src/ops/cuda/quantize_kernels.h"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256;  // one block a row, or kPartialSums blocks in turns

__device__ float AsFloat(float x) { return x; }
template <typename T>
__device__ float AsFloat(T x) {
  return HalfTraits<T>::ToFloat(x);
}

__global__ void __launch_bounds__(kThreads)
    ScaleKernel(const float* weight, int64_t stride, const float* rows, const float* columns,
                int64_t count, float* out, int64_t out_stride) {
  StartNextKernel();
  WaitForLastKernel();
  const float row = rows != nullptr ? rows[blockIdx.x] : 1.0f;
  for (int64_t k = threadIdx.x; k < count; k += kThreads) {
    out[blockIdx.x * out_stride + k] =
        weight[blockIdx.x * stride + k] * (columns != nullptr ? row * columns[k] : row);
  }
}

__global__ void __launch_bounds__(kThreads)
    AddInOrderKernel(const float* weight, int64_t stride, const float* change,
                     int64_t change_stride, const int32_t* positions, int64_t columns, float* out,
                     int64_t out_stride) {
  StartNextKernel();
  WaitForLastKernel();
  for (int64_t k = threadIdx.x; k < columns; k += kThreads) {
    out[blockIdx.x * out_stride + k] =
        weight[blockIdx.x * stride + k] + change[blockIdx.x * change_stride + positions[k]];
  }
}

__global__ void __launch_bounds__(kThreads)
    DequantizeKernel(const uint8_t* codes, const uint16_t* scales, const uint8_t* zeros,
                     int64_t group_length, int64_t columns, float* out, int64_t out_stride) {
  StartNextKernel();
  WaitForLastKernel();
  const int64_t row = blockIdx.x, groups = columns / group_length;
  for (int64_t k = threadIdx.x; k < columns; k += kThreads) {
    const int64_t at = row * groups + k / group_length;
    const int code = codes[row * (columns / 2) + k / 2] >> (4 * (k & 1)) & 15;
    out[row * out_stride + k] = GroupGrid{FloatFromF16(scales[at]), zeros[at]}.Value(code);
  }
}

__device__ float RoundToTf32(float value) {
  unsigned bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return __uint_as_float(bits);
}

__global__ void __launch_bounds__(kThreads)
    RoundedDifferenceKernel(const float* a, int64_t a_stride, const float* b, int64_t b_stride,
                            int64_t columns, float* out, int64_t out_stride) {
  StartNextKernel();
  WaitForLastKernel();
  for (int64_t k = threadIdx.x; k < columns; k += kThreads) {
    out[blockIdx.x * out_stride + k] =
        RoundToTf32(a[blockIdx.x * a_stride + k] - b[blockIdx.x * b_stride + k]);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    FirstBadRowKernel(const T* values, int64_t stride, int64_t columns, int32_t* row) {
  StartNextKernel();
  WaitForLastKernel();
  bool finite = true;
  for (int64_t k = threadIdx.x; k < columns; k += kThreads) {
    finite &= isfinite(AsFloat(values[blockIdx.x * stride + k])) != 0;
  }
  if (!finite) atomicMin(row, static_cast<int32_t>(blockIdx.x));
}

// The sum over a block, in its first thread.
template <int kCount>
__device__ double BlockSum(double value) {
  __shared__ double sums[kCount];
  sums[threadIdx.x] = value;
  for (int step = kCount / 2; step > 0; step /= 2) {
    __syncthreads();
    if (threadIdx.x < step) sums[threadIdx.x] += sums[threadIdx.x + step];
  }
  return sums[0];
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    SumSquaresKernel(const T* a, int64_t a_stride, const T* b, int64_t b_stride, int64_t rows,
                     int64_t columns, double* partial) {
  StartNextKernel();
  WaitForLastKernel();
  double sum = 0;
  for (int64_t r = blockIdx.x; r < rows; r += kPartialSums) {
    for (int64_t k = threadIdx.x; k < columns; k += kThreads) {
      double value = AsFloat(a[r * a_stride + k]);
      if (b != nullptr) value -= AsFloat(b[r * b_stride + k]);
      sum += value * value;
    }
  }
  sum = BlockSum<kThreads>(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kThreads)
    SumProductsKernel(const float* a, int64_t a_stride, const float* b, int64_t b_stride,
                      const float* product, int64_t product_stride, int64_t rows, int64_t columns,
                      double* partial) {
  StartNextKernel();
  WaitForLastKernel();
  double sum = 0;
  for (int64_t r = blockIdx.x; r < rows; r += kPartialSums) {
    for (int64_t k = threadIdx.x; k < columns; k += kThreads) {
      const double delta = static_cast<double>(a[r * a_stride + k]) - b[r * b_stride + k];
      sum += delta * product[r * product_stride + k];
    }
  }
  sum = BlockSum<kThreads>(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

constexpr int kAddThreads = 1024;

// One block.
__global__ void __launch_bounds__(kAddThreads)
    AddUpKernel(const double* partial, int64_t count, double* sum) {
  StartNextKernel();
  WaitForLastKernel();
  double part = 0;
  for (int64_t i = threadIdx.x; i < count; i += kAddThreads) part += partial[i];
  part = BlockSum<kAddThreads>(part);
  if (threadIdx.x == 0) *sum = part;
}

unsigned Rows(MatrixView matrix) { return static_cast<unsigned>(matrix.rows); }

// Calls body.template operator()<T>() for float32 too.
template <typename Body>
void WithFloatType(DType dtype, const Body& body) {
  if (dtype == DType::kF32) {
    body.template operator()<float>();
  } else {
    WithHalfType(dtype, body);
  }
}

}  // namespace

void Scale(Stream& stream, MatrixView weight, const float* rows, const float* columns,
           MatrixView out) {
  if (weight.rows == 0) return;
  LaunchDependent(stream, ScaleKernel, Rows(weight), kThreads, 0, weight.row<float>(0),
                  weight.stride, rows, columns, weight.columns, out.row<float>(0), out.stride);
  stream.CheckLaunch("scaling a weight", weight.rows, weight.columns);
}

void AddInOrder(Stream& stream, MatrixView weight, MatrixView change, const int32_t* positions,
                MatrixView out) {
  if (weight.rows == 0) return;
  LaunchDependent(stream, AddInOrderKernel, Rows(weight), kThreads, 0, weight.row<float>(0),
                  weight.stride, change.row<float>(0), change.stride, positions, weight.columns,
                  out.row<float>(0), out.stride);
  stream.CheckLaunch("a new target", weight.rows, weight.columns);
}

void Dequantize(Stream& stream, const uint8_t* codes, const uint16_t* scales, const uint8_t* zeros,
                int64_t group_length, MatrixView out) {
  if (out.rows == 0) return;
  LaunchDependent(stream, DequantizeKernel, Rows(out), kThreads, 0, codes, scales, zeros,
                  group_length, out.columns, out.row<float>(0), out.stride);
  stream.CheckLaunch("dequantizing", out.rows, out.columns);
}

void RoundedDifference(Stream& stream, MatrixView a, MatrixView b, MatrixView out) {
  if (a.rows == 0) return;
  LaunchDependent(stream, RoundedDifferenceKernel, Rows(a), kThreads, 0, a.row<float>(0), a.stride,
                  b.row<float>(0), b.stride, a.columns, out.row<float>(0), out.stride);
  stream.CheckLaunch("a difference", a.rows, a.columns);
}

void FirstBadRow(Stream& stream, MatrixView matrix, int32_t* row) {
  stream.Check(cudaMemsetAsync(row, 0x7f, sizeof(*row), stream.get()), "clearing", 1, 1);
  if (matrix.rows == 0) return;
  WithFloatType(matrix.dtype, [&]<typename T>() {
    LaunchDependent(stream, FirstBadRowKernel<T>, Rows(matrix), kThreads, 0, matrix.row<T>(0),
                    matrix.stride, matrix.columns, row);
  });
  stream.CheckLaunch("looking for what is not finite", matrix.rows, matrix.columns);
}

void SumSquares(Stream& stream, MatrixView a, MatrixView b, double* partial) {
  WithFloatType(a.dtype, [&]<typename T>() {
    LaunchDependent(stream, SumSquaresKernel<T>, kPartialSums, kThreads, 0, a.row<T>(0), a.stride,
                    b.row<T>(0), b.stride, a.rows, a.columns, partial);
  });
  stream.CheckLaunch("a sum of squares", a.rows, a.columns);
}

void SumProducts(Stream& stream, MatrixView a, MatrixView b, MatrixView product, double* partial) {
  LaunchDependent(stream, SumProductsKernel, kPartialSums, kThreads, 0, a.row<float>(0), a.stride,
                  b.row<float>(0), b.stride, product.row<float>(0), product.stride, a.rows,
                  a.columns, partial);
  stream.CheckLaunch("an output's error", a.rows, a.columns);
}

void AddUp(Stream& stream, const double* partial, int64_t count, double* sum) {
  LaunchDependent(stream, AddUpKernel, 1, kAddThreads, 0, partial, count, sum);
  stream.CheckLaunch("adding up", count, 1);
}

}  // namespace nibble::cuda

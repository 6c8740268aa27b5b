// Products with few rows of activations. The weight is read once, straight to registers, 16 bytes a
// load; a warp owns two of its rows at a time, so that their loads are in flight together.
#include <cstdint>

#include "src/ops/cuda/few_rows.cuh"

namespace nibble::cuda {
namespace {

constexpr int kWarps = 4;         // of a block; small blocks spread over the device more evenly
constexpr int kWeightRows = 2;    // of a warp, a gate and its up
constexpr int kUnroll = 4;        // loads in flight, of each weight row

// Activations lie in shared memory: the first-level cache is small beside it, and weights pass through.
constexpr size_t kMaxSharedBytes = size_t{99} << 10;  // of a block, on every supported device
size_t SharedBytes(int64_t rows, int64_t in_features) {
  return static_cast<size_t>(rows * in_features) * 2;
}

// 16 bytes of a weight: read once, so they shall not push activations out of the first-level cache.
__device__ uint4 LoadWeight(const void* from) {
  uint4 value;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(from));
  return value;
}

template <typename T, typename Out, int kRows, Epilogue kEpilogue>
__global__ void __launch_bounds__(32 * kWarps)
    FewRowsKernel(FewRowsShape shape, const T* x, const T* w, const float* bias, Out* out) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t first =
      (static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32) * kWeightRows;
  const bool idle = first >= shape.out_features;  // it helps to fetch the activations
  // An odd last row is computed twice and written once.
  const int64_t second = first + 1 < shape.out_features ? first + 1 : first;
  const T* weights[kWeightRows] = {w + first * shape.in_features, w + second * shape.in_features};
  extern __shared__ uint4 activation_memory[];  // [kRows][in / kElements]
  const T* activations_of = reinterpret_cast<const T*>(activation_memory);
  float sums[kRows][kWeightRows] = {};
  const int64_t stride = 32 * kElements, step = kUnroll * stride;
  int64_t k = lane * kElements;
  const int64_t steps_end = shape.in_features - (kUnroll - 1) * stride;
  uint4 loaded[kWeightRows][kUnroll];
  const auto load = [&](int64_t at) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
      for (int n = 0; n < kWeightRows; ++n) {
        loaded[n][u] = LoadWeight(weights[n] + at + u * stride);
      }
    }
  };
  StartNextKernel();
  if (!idle && k < steps_end) load(k);  // a weight does not depend on the kernel before
  WaitForLastKernel();
  const int64_t vectors = shape.in_features / kElements;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const auto* row = reinterpret_cast<const uint4*>(x + r * shape.x_stride);
#pragma unroll 4
    for (int64_t i = threadIdx.x; i < vectors; i += 32 * kWarps) {
      activation_memory[r * vectors + i] = row[i];
    }
  }
  __syncthreads();
  if (idle) return;
  while (k < steps_end) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const uint4 activations =
            *reinterpret_cast<const uint4*>(activations_of + r * shape.in_features + k + u * stride);
#pragma unroll
        for (int n = 0; n < kWeightRows; ++n) MultiplyAdd<T>(loaded[n][u], activations, sums[r][n]);
      }
    }
    k += step;
    if (k < steps_end) load(k);
  }
  for (; k < shape.in_features; k += stride) {
    for (int n = 0; n < kWeightRows; ++n) {
      const uint4 last = LoadWeight(weights[n] + k);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        MultiplyAdd<T>(last, *reinterpret_cast<const uint4*>(activations_of + r * shape.in_features + k),
                       sums[r][n]);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int n = 0; n < kWeightRows; ++n) {
      sums[r][n] = SumOverWarp(sums[r][n]);
      if (bias != nullptr) sums[r][n] += bias[n == 0 ? first : second];
    }
  }
  if (lane != 0) return;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    Out* to = out + r * shape.out_stride;
    const auto store = [](float sum, float up, Out& at) {
      StoreSum<Out, kEpilogue>(sum, up, Addend<Out, kEpilogue>(at), at);
    };
    if constexpr (kEpilogue == Epilogue::kSiluMul) {
      store(sums[r][0], sums[r][1], to[first / 2]);
    } else {
      store(sums[r][0], 0, to[first]);
      if (second != first) store(sums[r][1], 0, to[second]);
    }
  }
}

template <typename T, typename Out, int kRows>
void Launch(Stream& stream, const FewRowsShape& shape, MatrixView x, const void* w,
            const float* bias, Epilogue epilogue, MatrixView out) {
  auto* kernel = FewRowsKernel<T, Out, kRows, Epilogue::kNone>;
  if constexpr (sizeof(Out) == 2) {
    if (epilogue == Epilogue::kAdd) kernel = FewRowsKernel<T, Out, kRows, Epilogue::kAdd>;
    if (epilogue == Epilogue::kSiluMul) kernel = FewRowsKernel<T, Out, kRows, Epilogue::kSiluMul>;
  }
  constexpr int64_t kBlockRows = kWarps * kWeightRows;
  const auto grid = static_cast<unsigned>((shape.out_features + kBlockRows - 1) / kBlockRows);
  LaunchDependent(stream, kernel, grid, 32 * kWarps,
                  SharedBytes(kRows, shape.in_features), shape, x.row<T>(0),
                  static_cast<const T*>(w), bias, out.row<Out>(0));
}

template <typename T, typename Out>
void LaunchForRows(Stream& stream, const FewRowsShape& shape, MatrixView x, const void* w,
                   const float* bias, Epilogue epilogue, MatrixView out) {
  const auto launch = [&]<int kRows>() {
    Launch<T, Out, kRows>(stream, shape, x, w, bias, epilogue, out);
  };
  switch (x.rows) {
    case 1:
      return launch.template operator()<1>();
    case 2:
      return launch.template operator()<2>();
    default:
      CHECK(x.rows == 0, "{} rows are more than few", x.rows);
  }
}

}  // namespace

bool CanMultiplyFewRows(MatrixView x, const void* w) {
  return x.rows <= kFewRows && SharedBytes(x.rows, x.columns) <= kMaxSharedBytes && x.columns % kElements == 0 && x.stride % kElements == 0 &&
         (reinterpret_cast<uintptr_t>(x.data) | reinterpret_cast<uintptr_t>(w)) % 16 == 0;
}

void MultiplyFewRows(Stream& stream, MatrixView x, const void* w, const float* bias,
                     Epilogue epilogue, MatrixView out, CudaKernels kernels) {
  const FewRowsShape shape{
      .out_features = epilogue == Epilogue::kSiluMul ? 2 * out.columns : out.columns,
      .in_features = x.columns,
      .x_stride = x.stride,
      .out_stride = out.stride};
  if (kernels == CudaKernels::kAuto && StreamFewRows(stream, shape, x, w, bias, epilogue, out)) {
    return;
  }
  WithHalfType(x.dtype, [&]<typename T>() {
    if (out.dtype == DType::kF32) {
      CHECK(epilogue == Epilogue::kNone);
      LaunchForRows<T, float>(stream, shape, x, w, bias, epilogue, out);
    } else {
      LaunchForRows<T, T>(stream, shape, x, w, bias, epilogue, out);
    }
  });
  stream.CheckLaunch("a matrix product of few rows", x.rows, shape.out_features);
}

}  // namespace nibble::cuda

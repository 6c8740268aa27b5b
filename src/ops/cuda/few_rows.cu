// Products with few rows of activations. The weight is read once, straight to registers, 16 bytes a
// load; a warp owns two of its rows at a time, so that their loads are in flight together.
#include <cstdint>

#include "src/ops/cuda/async_copy.cuh"
#include "src/ops/cuda/dependent_launch.cuh"
#include "src/ops/cuda/half.cuh"
#include "src/ops/cuda/matrix_product.h"

namespace nibble::cuda {
namespace {

constexpr int kWarps = 4;  // of a block; small blocks spread over the device more evenly
constexpr int kThreads = 32 * kWarps;
constexpr int kWeightRows = 2;  // of a warp, a gate and its up
constexpr int kUnroll = 4;      // loads in flight, of each weight row
constexpr int kElements = 8;    // of a load

// Activations lie in shared memory: the first-level cache is small beside it, and weights pass through.
// With a norm they lie there times its gain, in float32; the sums are divided by the root mean square at
// the end, so that no one waits for it.
enum class Input { kPlain, kNormed };

constexpr size_t kMaxSharedBytes = size_t{99} << 10;  // of a block, on every supported device
size_t SharedBytes(int64_t rows, int64_t in_features, Input input) {
  return static_cast<size_t>(rows * in_features) * (input == Input::kNormed ? 4 : 2);
}

struct FewRowsShape {
  int64_t out_features, in_features, x_stride, out_stride;
};

// 16 bytes of a weight: read once, so they shall not push activations out of the first-level cache.
__device__ uint4 LoadWeight(const void* from) {
  uint4 value;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(from));
  return value;
}

template <typename T>
__device__ void ToFloats(const uint4& from, float (&values)[kElements]) {
  const auto* pairs = reinterpret_cast<const typename HalfTraits<T>::Pair*>(&from);
#pragma unroll
  for (int i = 0; i < kElements / 2; ++i) {
    const float2 pair = HalfTraits<T>::ToFloats(pairs[i]);
    values[2 * i] = pair.x;
    values[2 * i + 1] = pair.y;
  }
}

template <typename T>
__device__ void MultiplyAdd(const uint4& weights, const float (&activations)[kElements],
                            float& sum) {
  float values[kElements];
  ToFloats<T>(weights, values);
#pragma unroll
  for (int i = 0; i < kElements; ++i) sum = fmaf(values[i], activations[i], sum);
}

// The block's activations in shared memory, kElements at a time.
template <typename T, int kRows, Input kInput>
class Activations {
 public:
  __device__ Activations(uint4* memory, int64_t in_features)
      : memory_(memory), vectors_(static_cast<int>(in_features / kElements)) {}

  // What does not depend on the kernel before: gains go where activations will be.
  __device__ void Begin(const RowNorm& norm) const {
    if constexpr (kInput == Input::kPlain) return;
    for (int i = static_cast<int>(threadIdx.x); i < vectors_; i += kThreads) {
      CopyAsync16(SharedAddress(At(0, 0, i)), norm.gain + i * kElements);
      CopyAsync16(SharedAddress(At(0, 1, i)), norm.gain + i * kElements + 4);
    }
    CommitCopies();
  }

  // A barrier later all of them are there.
  __device__ void Load(const T* x, int64_t stride) {
    constexpr int kAtOnce = 4 / kRows;
    float squares[kRows] = {};
    for (int base = static_cast<int>(threadIdx.x); base < vectors_; base += kAtOnce * kThreads) {
      uint4 loaded[kAtOnce][kRows];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          const int i = min(base + j * kThreads, vectors_ - 1);
          loaded[j][r] = *reinterpret_cast<const uint4*>(x + r * stride + i * kElements);
        }
      }
      if constexpr (kInput == Input::kNormed) WaitForCopies<0>();
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const int i = base + j * kThreads;
        if (i < vectors_) Keep(i, loaded[j], squares);
      }
    }
    if constexpr (kInput == Input::kNormed) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        for (int step = 16; step > 0; step /= 2) {
          squares[r] += __shfl_xor_sync(~0u, squares[r], step);
        }
        if (threadIdx.x % 32 == 0) Squares()[threadIdx.x / 32][r] = squares[r];
      }
    }
  }

  __device__ void Get(int row, int vector, float (&values)[kElements]) const {
    if constexpr (kInput == Input::kPlain) {
      ToFloats<T>(memory_[row * vectors_ + vector], values);
    } else {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float4 part = *At(row, half, vector);
        values[4 * half] = part.x;
        values[4 * half + 1] = part.y;
        values[4 * half + 2] = part.z;
        values[4 * half + 3] = part.w;
      }
    }
  }

  // What a sum over a row's activations is still to be multiplied by.
  __device__ float Factor(int row, float epsilon) const {
    if constexpr (kInput == Input::kPlain) return 1;
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += Squares()[w][row];
    return rsqrtf(sum / static_cast<float>(vectors_ * kElements) + epsilon);
  }

 private:
  // Of each row first the lower halves of all vectors, then the upper ones: no bank conflicts.
  __device__ float4* At(int row, int half, int vector) const {
    return reinterpret_cast<float4*>(memory_) + (2 * row + half) * vectors_ + vector;
  }
  __device__ static float (&Squares())[kWarps][kRows] {
    __shared__ float squares[kWarps][kRows];
    return squares;
  }

  __device__ void Keep(int i, const uint4 (&loaded)[kRows], float (&squares)[kRows]) const {
    if constexpr (kInput == Input::kPlain) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) memory_[r * vectors_ + i] = loaded[r];
    } else {
      float gains[kElements];
      Get(0, i, gains);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        float values[kElements];
        ToFloats<T>(loaded[r], values);
#pragma unroll
        for (int e = 0; e < kElements; ++e) {
          squares[r] = fmaf(values[e], values[e], squares[r]);
          values[e] *= gains[e];
        }
        *At(r, 0, i) = {values[0], values[1], values[2], values[3]};
        *At(r, 1, i) = {values[4], values[5], values[6], values[7]};
      }
    }
  }

  uint4* memory_;
  int vectors_;
};

template <typename Out>
__device__ Out Rounded(float value) {
  if constexpr (sizeof(Out) == 4) {
    return value;
  } else {
    return HalfTraits<Out>::FromFloat(value);
  }
}

template <typename T, typename Out, int kRows, Epilogue kEpilogue, Input kInput>
__global__ void __launch_bounds__(kThreads, kRows == 1 ? 8 : 6)
    FewRowsKernel(FewRowsShape shape, RowNorm norm, const T* x, const T* w, const float* bias,
                  Out* out) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t first =
      (static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32) * kWeightRows;
  const bool idle = first >= shape.out_features;  // it helps to fetch the activations
  // An odd last row is computed twice and written once.
  const int64_t second = first + 1 < shape.out_features ? first + 1 : first;
  const T* weights[kWeightRows] = {w + first * shape.in_features, w + second * shape.in_features};
  extern __shared__ uint4 activation_memory[];
  Activations<T, kRows, kInput> activations(activation_memory, shape.in_features);
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
  activations.Begin(norm);
  if (!idle && k < steps_end) load(k);  // a weight does not depend on the kernel before
  WaitForLastKernel();
  activations.Load(x, shape.x_stride);
  __syncthreads();
  if (idle) return;
  while (k < steps_end) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        float values[kElements];
        activations.Get(r, static_cast<int>(k / kElements) + u * 32, values);
#pragma unroll
        for (int n = 0; n < kWeightRows; ++n) MultiplyAdd<T>(loaded[n][u], values, sums[r][n]);
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
        float values[kElements];
        activations.Get(r, static_cast<int>(k / kElements), values);
        MultiplyAdd<T>(last, values, sums[r][n]);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const float factor = activations.Factor(r, norm.epsilon);
#pragma unroll
    for (int n = 0; n < kWeightRows; ++n) {
      for (int step = 16; step > 0; step /= 2) {
        sums[r][n] += __shfl_xor_sync(~0u, sums[r][n], step);
      }
      sums[r][n] *= factor;
      if (bias != nullptr) sums[r][n] += bias[n == 0 ? first : second];
    }
  }
  if (lane != 0) return;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    Out* to = out + r * shape.out_stride;
    if constexpr (kEpilogue == Epilogue::kSiluMul) {
      const float gate = sums[r][0];
      to[first / 2] = Rounded<Out>(gate / (1.0f + __expf(-gate)) * sums[r][1]);
    } else {
      for (int n = 0; n < kWeightRows && first + n < shape.out_features; ++n) {
        if constexpr (kEpilogue == Epilogue::kAdd) {
          sums[r][n] += HalfTraits<Out>::ToFloat(to[first + n]);
        }
        to[first + n] = Rounded<Out>(sums[r][n]);
      }
    }
  }
}

template <typename T, typename Out, int kRows, Input kInput>
void Launch(Stream& stream, const FewRowsShape& shape, const RowNorm& norm, MatrixView x,
            const void* w, const float* bias, Epilogue epilogue, MatrixView out) {
  auto* kernel = FewRowsKernel<T, Out, kRows, Epilogue::kNone, kInput>;
  if constexpr (sizeof(Out) == 2) {
    if (epilogue == Epilogue::kAdd) kernel = FewRowsKernel<T, Out, kRows, Epilogue::kAdd, kInput>;
    if (epilogue == Epilogue::kSiluMul) {
      kernel = FewRowsKernel<T, Out, kRows, Epilogue::kSiluMul, kInput>;
    }
  }
  constexpr int64_t kBlockRows = kWarps * kWeightRows;
  const auto grid = static_cast<unsigned>((shape.out_features + kBlockRows - 1) / kBlockRows);
  LaunchDependent(stream, kernel, grid, kThreads, SharedBytes(kRows, shape.in_features, kInput),
                  shape, norm, x.row<T>(0), static_cast<const T*>(w), bias, out.row<Out>(0));
}

template <typename T, typename Out>
void LaunchForRows(Stream& stream, const FewRowsShape& shape, const RowNorm& norm, MatrixView x,
                   const void* w, const float* bias, Epilogue epilogue, MatrixView out) {
  const auto launch = [&]<int kRows>() {
    if (norm.gain == nullptr) {
      Launch<T, Out, kRows, Input::kPlain>(stream, shape, norm, x, w, bias, epilogue, out);
    } else {
      Launch<T, Out, kRows, Input::kNormed>(stream, shape, norm, x, w, bias, epilogue, out);
    }
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

bool CanMultiplyFewRows(const RowNorm& norm, MatrixView x, const void* w) {
  const Input input = norm.gain == nullptr ? Input::kPlain : Input::kNormed;
  return x.rows <= kFewRows && SharedBytes(x.rows, x.columns, input) <= kMaxSharedBytes &&
         x.columns % kElements == 0 && x.stride % kElements == 0 &&
         (reinterpret_cast<uintptr_t>(x.data) | reinterpret_cast<uintptr_t>(w) |
          reinterpret_cast<uintptr_t>(norm.gain)) %
                 16 ==
             0;
}

void MultiplyFewRows(Stream& stream, const RowNorm& norm, MatrixView x, const void* w,
                     const float* bias, Epilogue epilogue, MatrixView out) {
  const FewRowsShape shape{
      .out_features = epilogue == Epilogue::kSiluMul ? 2 * out.columns : out.columns,
      .in_features = x.columns,
      .x_stride = x.stride,
      .out_stride = out.stride};
  WithHalfType(x.dtype, [&]<typename T>() {
    if (out.dtype == DType::kF32) {
      CHECK(epilogue == Epilogue::kNone);
      LaunchForRows<T, float>(stream, shape, norm, x, w, bias, epilogue, out);
    } else {
      LaunchForRows<T, T>(stream, shape, norm, x, w, bias, epilogue, out);
    }
  });
  stream.CheckLaunch("a matrix product of few rows", x.rows, shape.out_features);
}

}  // namespace nibble::cuda

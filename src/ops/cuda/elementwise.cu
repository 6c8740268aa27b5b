#include "src/ops/cuda/elementwise.h"

#include <cstdint>
#include <type_traits>

#include "src/ops/cuda/dependent_launch.cuh"
#include "src/ops/cuda/half.cuh"
#include "src/ops/cuda/warp_sum.cuh"

namespace nibble::cuda {
namespace {

constexpr int kVector = 8;  // 16-bit elements in 16 bytes
constexpr int kThreads = 256;

// Whether rows can be read and written 16 bytes at a time.
bool Vectorizable(MatrixView m, int64_t columns) {
  return reinterpret_cast<uintptr_t>(m.data) % 16 == 0 && m.stride % kVector == 0 &&
         columns % kVector == 0;
}

// Threads for a block that goes over `items` items.
unsigned ThreadsFor(int64_t items, int64_t most = kThreads) {
  const int64_t warps = (items + 31) / 32;
  return static_cast<unsigned>(32 * (warps < 1 ? 1 : warps > most / 32 ? most / 32 : warps));
}

unsigned Grid(int64_t blocks) { return static_cast<unsigned>(blocks); }

// The sum over a block of at most 1024 threads, in every thread.
__device__ float BlockSum(float value) {
  __shared__ float sums[32];
  value = SumOverWarp(value);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  if (lane == 0) sums[warp] = value;
  __syncthreads();
  return SumOverWarp(lane < static_cast<int>(blockDim.x) / 32 ? sums[lane] : 0.0f);
}

template <int kWidth, typename T>
struct alignas(kWidth * sizeof(T)) Pack {
  T values[kWidth];
};

// One block a row.
template <int kWidth>
__global__ void EmbedKernel(const int32_t* tokens, const int32_t* chosen_rows,
                            const int32_t* chosen, const uint16_t* table, uint16_t* out,
                            int64_t columns, int64_t out_stride) {
  StartNextKernel();
  WaitForLastKernel();
  using P = Pack<kWidth, uint16_t>;
  const int32_t row = chosen_rows[blockIdx.x];
  const int32_t token = row < 0 ? tokens[blockIdx.x] : chosen[row];
  const auto* from = reinterpret_cast<const P*>(table + token * columns);
  auto* to = reinterpret_cast<P*>(out + blockIdx.x * out_stride);
  for (int64_t i = threadIdx.x; i < columns / kWidth; i += blockDim.x) to[i] = from[i];
}

// One block a row of out; rows: which of x each is of, null for the same. A thread's first packs
// stay in registers, with their gains, which are there before the row is.
template <typename T, int kWidth>
__global__ void RmsNormKernel(const T* x, const int32_t* rows, const float* gain, float epsilon,
                              T* out, int64_t columns, int64_t x_stride, int64_t out_stride) {
  using P = Pack<kWidth, T>;
  using G = Pack<kWidth, float>;
  constexpr int kKept = 2;
  const auto packs = static_cast<int>(columns / kWidth);
  const int first = static_cast<int>(threadIdx.x), step = static_cast<int>(blockDim.x);
  const auto* gains = reinterpret_cast<const G*>(gain);
  StartNextKernel();
  P kept[kKept];
  G kept_gains[kKept];
#pragma unroll
  for (int j = 0; j < kKept; ++j) {
    if (first + j * step < packs) kept_gains[j] = gains[first + j * step];
  }
  WaitForLastKernel();
  const int64_t from = rows != nullptr ? rows[blockIdx.x] : static_cast<int64_t>(blockIdx.x);
  const auto* row = reinterpret_cast<const P*>(x + from * x_stride);
  auto* to = reinterpret_cast<P*>(out + blockIdx.x * out_stride);
#pragma unroll
  for (int j = 0; j < kKept; ++j) {
    if (first + j * step < packs) kept[j] = row[first + j * step];
  }
  float squares = 0;
  const auto add_squares = [&](const P& pack) {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const float value = HalfTraits<T>::ToFloat(pack.values[i]);
      squares += value * value;
    }
  };
#pragma unroll
  for (int j = 0; j < kKept; ++j) {
    if (first + j * step < packs) add_squares(kept[j]);
  }
  for (int i = first + kKept * step; i < packs; i += step) add_squares(row[i]);
  const float factor = rsqrtf(BlockSum(squares) / static_cast<float>(columns) + epsilon);
  const auto write = [&](int at, P pack, const G& pack_gains) {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const float value = HalfTraits<T>::ToFloat(pack.values[i]);
      pack.values[i] = HalfTraits<T>::FromFloat(value * factor * pack_gains.values[i]);
    }
    to[at] = pack;
  };
#pragma unroll
  for (int j = 0; j < kKept; ++j) {
    if (first + j * step < packs) write(first + j * step, kept[j], kept_gains[j]);
  }
  for (int i = first + kKept * step; i < packs; i += step) write(i, row[i], gains[i]);
}

__global__ void RopeTableKernel(const int32_t* positions, const float* frequencies,
                                int64_t half_dim, float2* table) {
  StartNextKernel();
  WaitForLastKernel();
  const auto position = static_cast<float>(positions[blockIdx.x]);
  for (int64_t i = threadIdx.x; i < half_dim; i += blockDim.x) {
    float sine, cosine;
    sincosf(position * frequencies[i], &sine, &cosine);
    table[blockIdx.x * half_dim + i] = {cosine, sine};
  }
}

struct RopeStoreShape {
  int heads, kv_heads, head_dim;
  int64_t qkv_stride, table_stride;
};

// Grid (rows, heads of queries, keys and values): a warp takes a head of a row, a thread kWidth pairs
// (i, i + head_dim / 2) of it at a time.
constexpr int kRopeWarps = 8;

template <typename T, int kWidth>
__global__ void RopeAndStoreKvKernel(DeviceBatch batch, RopeStoreShape shape, const float2* angles,
                                     T* qkv, T* keys, T* values) {
  StartNextKernel();
  WaitForLastKernel();
  using P = Pack<kWidth, T>;
  using A = Pack<kWidth, float2>;
  const int row = static_cast<int>(blockIdx.x);
  const int head = static_cast<int>(blockIdx.y) * kRopeWarps + static_cast<int>(threadIdx.x) / 32;
  const int half = shape.head_dim / 2, turned = shape.heads + shape.kv_heads;
  if (head >= turned + shape.kv_heads) return;
  T* from = qkv + row * shape.qkv_stride + head * shape.head_dim;
  T* to = from;
  if (head >= shape.heads) {
    const int position = batch.positions[row];
    const int64_t block = batch.block_tables[batch.row_sequence[row] * shape.table_stride +
                                             position / kBlockTokens];
    const bool key = head < turned;
    const int kv_head = head - (key ? shape.heads : turned);
    // [blocks, kv_heads, kBlockTokens, head_dim]
    to = (key ? keys : values) +
         ((block * shape.kv_heads + kv_head) * kBlockTokens + position % kBlockTokens) *
             shape.head_dim;
  }
  for (int i = static_cast<int>(threadIdx.x) % 32 * kWidth; i < half; i += 32 * kWidth) {
    P low = *reinterpret_cast<const P*>(from + i);
    P high = *reinterpret_cast<const P*>(from + half + i);
    if (head < turned) {
      const A angle = *reinterpret_cast<const A*>(angles + static_cast<int64_t>(row) * half + i);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        const float a = HalfTraits<T>::ToFloat(low.values[j]);
        const float b = HalfTraits<T>::ToFloat(high.values[j]);
        const float cosine = angle.values[j].x, sine = angle.values[j].y;
        low.values[j] = HalfTraits<T>::FromFloat(a * cosine - b * sine);
        high.values[j] = HalfTraits<T>::FromFloat(b * cosine + a * sine);
      }
    }
    *reinterpret_cast<P*>(to + i) = low;
    *reinterpret_cast<P*>(to + half + i) = high;
  }
}

// Grid (column blocks, rows); a thread makes one element of out.
template <typename T, Epilogue kEpilogue>
__global__ void FinishLinearKernel(const T* y, const float* bias, T* out, int64_t columns,
                                   int64_t y_stride, int64_t out_stride) {
  StartNextKernel();
  WaitForLastKernel();
  using H = HalfTraits<T>;
  const int64_t c = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t r = blockIdx.y;
  if (c >= columns) return;
  T& to = out[r * out_stride + c];
  if constexpr (kEpilogue == Epilogue::kSiluMul) {
    const float2 pair = H::ToFloats(
        reinterpret_cast<const typename H::Pair*>(y + r * y_stride)[c]);
    const float gate = pair.x + (bias ? bias[2 * c] : 0.0f);
    const float up = pair.y + (bias ? bias[2 * c + 1] : 0.0f);
    to = H::FromFloat(SiluMul(gate, up));
  } else {
    float value = H::ToFloat(y[r * y_stride + c]) + (bias ? bias[c] : 0.0f);
    if constexpr (kEpilogue == Epilogue::kAdd) value += H::ToFloat(to);
    to = H::FromFloat(value);
  }
}

__global__ void GatherColumnsKernel(const uint16_t* x, const int32_t* columns, uint16_t* out,
                                    int64_t count, int64_t x_stride, int64_t out_stride) {
  StartNextKernel();
  WaitForLastKernel();
  for (int64_t k = threadIdx.x; k < count; k += blockDim.x) {
    out[blockIdx.x * out_stride + k] = x[blockIdx.x * x_stride + columns[k]];
  }
}

__device__ float ToFloat(float x) { return x; }
__device__ float ToFloat(__half x) { return __half2float(x); }
__device__ float ToFloat(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename From, typename To>
__global__ void ConvertRowsKernel(const From* x, To* out, int64_t columns, int64_t first_row,
                                  int64_t row_step) {
  const int64_t to = first_row + blockIdx.x * row_step;
  for (int64_t c = threadIdx.x; c < columns; c += blockDim.x) {
    if constexpr (std::is_same_v<From, To>) {
      out[to * columns + c] = x[blockIdx.x * columns + c];
    } else {
      out[to * columns + c] = static_cast<To>(ToFloat(x[blockIdx.x * columns + c]));
    }
  }
}

}  // namespace

void Embed(Stream& stream, const DeviceBatch& batch, const void* table, MatrixView out) {
  if (out.rows == 0) return;
  const bool wide = Vectorizable(out, out.columns) && reinterpret_cast<uintptr_t>(table) % 16 == 0;
  const unsigned threads = ThreadsFor(wide ? out.columns / kVector : out.columns);
  LaunchDependent(stream, wide ? EmbedKernel<kVector> : EmbedKernel<1>, Grid(out.rows), threads, 0,
                  batch.tokens, batch.chosen_rows, batch.chosen,
                  static_cast<const uint16_t*>(table), out.row<uint16_t>(0), out.columns,
                  out.stride);
  stream.CheckLaunch("embedding", out.rows, out.columns);
}

void RmsNormOfRows(Stream& stream, MatrixView x, const int32_t* rows, const float* gain,
                   float epsilon, MatrixView out) {
  if (out.rows == 0) return;
  WithHalfType(x.dtype, [&]<typename T>() {
    const bool wide = Vectorizable(x, x.columns) && Vectorizable(out, x.columns);
    const unsigned threads = ThreadsFor(wide ? x.columns / kVector : x.columns, 512);
    LaunchDependent(stream, wide ? RmsNormKernel<T, kVector> : RmsNormKernel<T, 1>, Grid(out.rows),
                    threads, 0, x.row<T>(0), rows, gain, epsilon, out.row<T>(0), x.columns,
                    x.stride, out.stride);
  });
  stream.CheckLaunch("RMS norm", out.rows, out.columns);
}

void RmsNorm(Stream& stream, MatrixView x, const float* gain, float epsilon, MatrixView out) {
  RmsNormOfRows(stream, x, nullptr, gain, epsilon, out);
}

void RopeTable(Stream& stream, const DeviceBatch& batch, const float* frequencies,
               int64_t half_dim, float2* table) {
  if (batch.rows == 0) return;
  LaunchDependent(stream, RopeTableKernel, Grid(batch.rows), ThreadsFor(half_dim), 0,
                  batch.positions, frequencies, half_dim, table);
  stream.CheckLaunch("rope angles", batch.rows, half_dim);
}

void RopeAndStoreKv(Stream& stream, const DeviceBatch& batch, const AttentionSpec& attention,
                    const float2* table, MatrixView qkv, KvView kv) {
  if (qkv.rows == 0) return;
  const RopeStoreShape shape{.heads = static_cast<int>(attention.heads),
                             .kv_heads = static_cast<int>(attention.kv_heads),
                             .head_dim = static_cast<int>(attention.head_dim),
                             .qkv_stride = qkv.stride,
                             .table_stride = batch.table_stride};
  const int64_t heads = attention.heads + 2 * attention.kv_heads;
  const dim3 grid(Grid(qkv.rows), Grid((heads + kRopeWarps - 1) / kRopeWarps));
  // Two pairs a thread: half a head's 32 to 64 pairs then keep a whole warp busy.
  const bool wide = attention.head_dim % 4 == 0 && qkv.stride % 2 == 0 &&
                    reinterpret_cast<uintptr_t>(qkv.data) % 4 == 0;
  WithHalfType(qkv.dtype, [&]<typename T>() {
    LaunchDependent(stream, wide ? RopeAndStoreKvKernel<T, 2> : RopeAndStoreKvKernel<T, 1>, grid,
                    32 * kRopeWarps, 0, batch, shape, table, qkv.row<T>(0),
                    static_cast<T*>(kv.keys), static_cast<T*>(kv.values));
  });
  stream.CheckLaunch("rope and KV store", qkv.rows, qkv.columns);
}

void FinishLinear(Stream& stream, MatrixView y, const float* bias, Epilogue epilogue,
                  MatrixView out) {
  if (out.rows == 0) return;
  constexpr int64_t kMaxGridRows = 65535;
  for (int64_t row = 0; row < out.rows; row += kMaxGridRows) {
    const int64_t rows = out.rows - row < kMaxGridRows ? out.rows - row : kMaxGridRows;
    const dim3 grid(Grid((out.columns + kThreads - 1) / kThreads), Grid(rows));
    WithHalfType(out.dtype, [&]<typename T>() {
      auto* kernel = epilogue == Epilogue::kNone  ? FinishLinearKernel<T, Epilogue::kNone>
                     : epilogue == Epilogue::kAdd ? FinishLinearKernel<T, Epilogue::kAdd>
                                                  : FinishLinearKernel<T, Epilogue::kSiluMul>;
      LaunchDependent(stream, kernel, grid, kThreads, 0, y.row<T>(row), bias, out.row<T>(row),
                      out.columns, y.stride, out.stride);
    });
  }
  stream.CheckLaunch("a linear layer's epilogue", out.rows, out.columns);
}

void GatherColumns(Stream& stream, MatrixView x, const int32_t* columns, MatrixView out) {
  if (out.rows == 0) return;
  LaunchDependent(stream, GatherColumnsKernel, Grid(out.rows), ThreadsFor(out.columns), 0,
                  x.row<uint16_t>(0), columns, out.row<uint16_t>(0), out.columns, x.stride,
                  out.stride);
  stream.CheckLaunch("gathering columns", out.rows, out.columns);
}

void ConvertRows(Stream& stream, MatrixView x, int64_t first_row, int64_t row_step,
                 MatrixView out) {
  if (x.rows == 0) return;
  const auto convert = [&]<typename To>() {
    const auto launch = [&]<typename From>(const From* from) {
      ConvertRowsKernel<From, To><<<Grid(x.rows), kThreads, 0, stream.get()>>>(
          from, out.row<To>(0), x.columns, first_row, row_step);
    };
    if (x.dtype == DType::kF32) {
      launch(x.row<float>(0));
    } else if (x.dtype == DType::kF16) {
      launch(x.row<__half>(0));
    } else {
      launch(x.row<__nv_bfloat16>(0));
    }
  };
  if (out.dtype == DType::kF32) {
    convert.template operator()<float>();
  } else {
    WithHalfType(out.dtype, convert);
  }
  stream.CheckLaunch("converting weights", x.rows, x.columns);
}

cudaError_t FindElementwiseKernels() {
  cudaFuncAttributes attributes;
  return cudaFuncGetAttributes(&attributes, RopeTableKernel);
}

}  // namespace nibble::cuda

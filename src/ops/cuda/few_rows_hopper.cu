// Products with few rows of activations on Hopper.
//
// A block for each multiprocessor has consecutive rows of the weight, which lie one behind the
// other in memory, in pieces of at most 4 KiB that its warps take in turn, so that all end
// together. Each warp streams its pieces through a ring of its own in shared memory by bulk copies:
// they keep more bytes on their way than registers could, from before the kernel before ends. The
// sums of a row's pieces are added in their order at the end.
#include <algorithm>

#include "src/base/checked.h"
#include "src/ops/cuda/async_copy.cuh"
#include "src/ops/cuda/few_rows.cuh"
#include "src/ops/cuda/hopper.cuh"

namespace nibble::cuda {
namespace {

constexpr int kWarps = 16;
constexpr int kPieceBytes = 4096;  // at most
constexpr int kMostStages = 3;     // of a ring, a piece each
// Of them asked for before the kernel before is done: what is under way then is in the way of x.
constexpr int kStagesAhead = 2;

struct Pieces {
  int of_row, bytes;  // of all but a row's last one
  int stages;
};

template <typename T, typename Out, int kRows, Epilogue kEpilogue>
__global__ void __launch_bounds__(32 * kWarps, 1)
    StreamRowsKernel(FewRowsShape shape, Pieces pieces, const T* x, const T* w, const float* bias,
                     Out* out) {
#if NIBBLE_HOPPER_CODE
  constexpr int kUnit = kEpilogue == Epilogue::kSiluMul ? 2 : 1;  // rows of an output
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ __align__(8) uint64_t barriers[kWarps][kMostStages];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int in = static_cast<int>(shape.in_features), vectors = in / kElements;
  const int64_t outputs = shape.out_features / kUnit;
  const int64_t first = blockIdx.x * outputs / gridDim.x;
  const int count = static_cast<int>((blockIdx.x + 1) * outputs / gridDim.x - first);
  const int items = count * kUnit * pieces.of_row;
  const auto* const weight = reinterpret_cast<const unsigned char*>(w + first * kUnit * in);
  // The rings, x: [kRows, in], and sums: [items, kRows].
  const unsigned char* const ring = shared + warp * pieces.stages * kPieceBytes;
  auto* const activations = reinterpret_cast<uint4*>(shared + kWarps * pieces.stages * kPieceBytes);
  auto* const sums = reinterpret_cast<float*>(activations + kRows * vectors);
  const uint32_t to = SharedAddress(ring), barrier = SharedAddress(barriers[warp]);

  if (lane == 0) {
    for (int i = 0; i < pieces.stages; ++i) InitializeBarrier(barrier + i * 8, 1);
    PublishBarriers();
  }
  __syncwarp();
  const auto bytes_of = [&](int piece) { return min(pieces.bytes, in * 2 - piece * pieces.bytes); };
  const auto ask = [&](int item, int stage) {
    if (lane != 0 || item >= items) return;
    const int row = item / pieces.of_row, piece = item % pieces.of_row;
    ArriveExpecting(barrier + stage * 8, bytes_of(piece));
    CopyBulk(to + stage * kPieceBytes,
             weight + static_cast<int64_t>(row) * in * 2 + piece * pieces.bytes, bytes_of(piece),
             barrier + stage * 8);
  };
  StartNextKernel();
  // A weight does not depend on the kernel before.
  for (int stage = 0; stage < kStagesAhead; ++stage) ask(warp + stage * kWarps, stage);
  WaitForLastKernel();
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const auto* from = reinterpret_cast<const uint4*>(x + r * shape.x_stride);
#pragma unroll 4
    for (int i = static_cast<int>(threadIdx.x); i < vectors; i += 32 * kWarps) {
      activations[r * vectors + i] = from[i];
    }
  }
  for (int stage = kStagesAhead; stage < pieces.stages; ++stage) {
    ask(warp + stage * kWarps, stage);
  }
  __syncthreads();
  int stage = 0;
  uint32_t parity = 0;
  for (int item = warp; item < items; item += kWarps) {
    const int piece = item % pieces.of_row, length = bytes_of(piece) / 16;
    const uint4* const of_x = activations + piece * (pieces.bytes / 16);
    const auto* const of_w = reinterpret_cast<const uint4*>(ring + stage * kPieceBytes);
    WaitForPhase(barrier + stage * 8, parity);
    float sum[kRows] = {};
#pragma unroll
    for (int u = 0; u < kPieceBytes / 512; ++u) {
      const int i = u * 32 + lane;
      if (i >= length) break;
      const uint4 value = of_w[i];
#pragma unroll
      for (int r = 0; r < kRows; ++r) MultiplyAdd<T>(value, of_x[r * vectors + i], sum[r]);
    }
    __syncwarp();  // all have read it
    ask(item + pieces.stages * kWarps, stage);
    if (++stage == pieces.stages) {
      stage = 0;
      parity ^= 1;
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      sum[r] = SumOverWarp(sum[r]);
      if (lane == 0) sums[item * kRows + r] = sum[r];
    }
  }
  // A thread's outputs; the first's place is found, and its addend on its way, while other warps
  // multiply.
  struct Place {
    int output, row;
    int64_t at;
  };
  const auto place_of = [&](int i) {
    const int row = kRows == 1 ? 0 : i / count, output = i - row * count;
    return Place{output, row, row * shape.out_stride + first + output};
  };
  const int begin = static_cast<int>(threadIdx.x);
  Place place{};
  float addend = 0;
  if (begin < count * kRows) {
    place = place_of(begin);
    addend = Addend<Out, kEpilogue>(out[place.at]);
  }
  __syncthreads();
  for (int i = begin; i < count * kRows; i += 32 * kWarps) {
    if (i != begin) {
      place = place_of(i);
      addend = Addend<Out, kEpilogue>(out[place.at]);
    }
    float total[2] = {};
#pragma unroll
    for (int n = 0; n < kUnit; ++n) {
      const int row = place.output * kUnit + n;
#pragma unroll 4
      for (int piece = 0; piece < pieces.of_row; ++piece) {
        total[n] += sums[(row * pieces.of_row + piece) * kRows + place.row];
      }
      if (bias != nullptr) total[n] += bias[first * kUnit + row];
    }
    StoreSum<Out, kEpilogue>(total[0], total[1], addend, out[place.at]);
  }
#endif
}

template <typename T, typename Out, int kRows>
bool Launch(Stream& stream, const FewRowsShape& shape, MatrixView x, const void* w,
            const float* bias, Epilogue epilogue, MatrixView out) {
  const auto kernel_of = [&]<Epilogue kEpilogue>() {
    return StreamRowsKernel<T, Out, kRows, kEpilogue>;
  };
  auto* kernel = kernel_of.template operator()<Epilogue::kNone>();
  if constexpr (sizeof(Out) == 2) {
    if (epilogue == Epilogue::kAdd) kernel = kernel_of.template operator()<Epilogue::kAdd>();
    if (epilogue == Epilogue::kSiluMul)
      kernel = kernel_of.template operator()<Epilogue::kSiluMul>();
  }
  // Without Hopper's code the kernel is empty and has no barriers.
  static const int of_block = [] {
    cudaFuncAttributes attributes{};
    int device = 0, most = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    const bool has_code =
        cudaFuncGetAttributes(&attributes, StreamRowsKernel<T, Out, kRows, Epilogue::kNone>) ==
            cudaSuccess &&
        attributes.sharedSizeBytes > 0;
    return has_code ? most - static_cast<int>(attributes.sharedSizeBytes) : 0;
  }();
  const int64_t row_bytes = shape.in_features * 2;
  const int64_t of_row = CeilDiv<int64_t>(row_bytes, kPieceBytes);
  const int64_t rows = CeilDiv(shape.out_features, int64_t{2} * stream.multiprocessors()) * 2;
  const int64_t rest = of_block - kRows * (row_bytes + (rows + 2) * of_row * 4);
  const int64_t stages = std::min<int64_t>(rest / (kWarps * kPieceBytes), kMostStages);
  if (stages < kStagesAhead) return false;
  const Pieces pieces{.of_row = static_cast<int>(of_row),
                      .bytes = static_cast<int>(RoundUp(CeilDiv(row_bytes, of_row), int64_t{16})),
                      .stages = static_cast<int>(stages)};
  const int64_t bytes = stages * kWarps * kPieceBytes + of_block - rest;
  LaunchDependent(stream, kernel, static_cast<unsigned>(stream.multiprocessors()), 32 * kWarps,
                  static_cast<size_t>(bytes), shape, pieces, x.row<T>(0), static_cast<const T*>(w),
                  bias, out.row<Out>(0));
  return true;
}

}  // namespace

bool StreamFewRows(Stream& stream, const FewRowsShape& shape, MatrixView x, const void* w,
                   const float* bias, Epilogue epilogue, MatrixView out) {
  bool launched = false;
  WithHalfType(x.dtype, [&]<typename T>() {
    const auto launch = [&]<typename Out>() {
      launched = x.rows == 1 ? Launch<T, Out, 1>(stream, shape, x, w, bias, epilogue, out)
                             : Launch<T, Out, 2>(stream, shape, x, w, bias, epilogue, out);
    };
    if (out.dtype == DType::kF32) {
      launch.template operator()<float>();
    } else {
      launch.template operator()<T>();
    }
  });
  return launched;
}

}  // namespace nibble::cuda

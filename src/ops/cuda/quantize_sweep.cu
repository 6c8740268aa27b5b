#include "src/base/checked.h"
#include "src/ops/cuda/dependent_launch.cuh"
#include "src/ops/cuda/quantize_grid.cuh"
#include "src/ops/cuda/quantize_kernels.h"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256;  // of kernels that go over a row

__global__ void __launch_bounds__(kThreads)
    GatherFloatsKernel(const float* from, int64_t stride, const int32_t* columns,
                       const float* importance, float* out, int64_t count, int64_t out_stride) {
  StartNextKernel();
  WaitForLastKernel();
  const float* const row = from + blockIdx.x * stride;
  float* const to = out + blockIdx.x * out_stride;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) {
    to[i] = importance != nullptr && importance[i] == 0 ? 0.0f : row[columns[i]];
  }
}

// A warp a row. Lane l has columns l, l + 32, l + 64 and l + 96 of the block in registers, so that
// a step is one exchange within the warp and, for each of the columns to come, one fused operation.
constexpr int kSweepWarps = 16;
constexpr int kSweepThreads = 32 * kSweepWarps;
constexpr int kBlock = static_cast<int>(kSweepBlock);
constexpr int kOwn = kBlock / 32;  // a lane's columns

struct SweepShared {
  float factor[kBlock][kBlock];  // zeros below the diagonal and beyond the block's columns
  float inverse[kBlock];         // 1 / U_ii
  float importance[kBlock];
};

// The grid of the block's columns [first, last).
__device__ __noinline__ GroupGrid FindBlockGrid(const GroupSpec& spec, float4 own, int first,
                                                int last, const float* importance) {
  const float values[kOwn] = {own.x, own.y, own.z, own.w};
  return FindWarpGrid(spec, [&](const auto& use) {
#pragma unroll
    for (int c = 0; c < kOwn; ++c) {
      const int k = 32 * c + LaneOfWarp();
      if (first <= k && k < last) use(values[c], importance[k]);
    }
  });
}

__global__ void __launch_bounds__(kSweepThreads) SweepKernel(GroupSpec spec, SweepBlock block) {
  extern __shared__ char shared_memory[];
  SweepShared& shared = *reinterpret_cast<SweepShared*>(shared_memory);
  StartNextKernel();
  WaitForLastKernel();
  const int count = static_cast<int>(block.columns.columns);
  for (int i = static_cast<int>(threadIdx.x); i < kBlock * kBlock; i += kSweepThreads) {
    const int j = i / kBlock, k = i % kBlock;
    shared.factor[j][k] = j <= k && k < count ? block.factor[j * block.factor_stride + k] : 0.0f;
  }
  for (int k = static_cast<int>(threadIdx.x); k < count; k += kSweepThreads) {
    shared.inverse[k] = 1.0f / block.factor[k * block.factor_stride + k];
    shared.importance[k] = block.importance != nullptr ? block.importance[k] : 1.0f;
  }
  __syncthreads();
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kSweepWarps + threadIdx.x / 32;
  if (row >= block.columns.rows) return;
  const int lane = LaneOfWarp(), length = static_cast<int>(spec.length);
  const float* const from =
      static_cast<const float*>(block.columns.data) + row * block.columns.stride;
  GroupGrid* const grids = block.grids + row * block.groups;

  float w[kOwn], scales[kOwn];
  int zeros[kOwn];
#pragma unroll
  for (int c = 0; c < kOwn; ++c) {
    const int k = 32 * c + lane;
    w[c] = k < count ? from[k] : 0.0f;
    GroupGrid grid{1, 0};
    if (!block.finds_grids && k < count) grid = grids[block.order[k] / length];
    scales[c] = grid.scale;
    zeros[c] = grid.zero;
  }
#pragma unroll
  for (int c = 0; c < kOwn; ++c) {
    float own_error = 0;
    int own_code = 0;
    for (int l = 0; l < 32; ++l) {
      const int k = 32 * c + l;
      if (k >= count) break;
      if (block.finds_grids && k % length == 0) {
        const GroupGrid found = FindBlockGrid(spec, make_float4(w[0], w[1], w[2], w[3]), k,
                                              k + length, shared.importance);
        if (lane == 0) grids[block.order[k] / length] = found;
#pragma unroll
        for (int j = c; j < kOwn; ++j) {
          const int of = 32 * j + lane;
          if (k <= of && of < k + length) {
            scales[j] = found.scale;
            zeros[j] = found.zero;
          }
        }
      }
      const float value = __shfl_sync(kWholeWarp, w[c], l);
      const GroupGrid grid{__shfl_sync(kWholeWarp, scales[c], l),
                           __shfl_sync(kWholeWarp, zeros[c], l)};
      const int code = grid.Code(value);
      const float error =
          fmaf(-grid.scale, static_cast<float>(code - grid.zero), value) * shared.inverse[k];
      if (lane == l) {
        own_code = code;
        own_error = error;
      }
      // Columns of this run that are done change too, and nobody reads them.
#pragma unroll
      for (int j = c; j < kOwn; ++j) w[j] = fmaf(-error, shared.factor[k][32 * j + lane], w[j]);
    }
    const int k = 32 * c + lane;
    if (k < count) {
      block.codes[row * block.codes_stride + k] = static_cast<uint8_t>(own_code);
      block.errors[row * kBlock + k] = own_error;
    }
  }
}

__global__ void __launch_bounds__(kThreads)
    PackCodesKernel(const uint8_t* codes, const int32_t* positions, int64_t columns,
                    uint8_t* packed) {
  StartNextKernel();
  WaitForLastKernel();
  const uint8_t* const row = codes + blockIdx.x * columns;
  const auto* const pairs = reinterpret_cast<const int2*>(positions);
  for (int64_t i = threadIdx.x; i < columns / 2; i += kThreads) {
    const int2 at = pairs[i];
    packed[blockIdx.x * (columns / 2) + i] = static_cast<uint8_t>(row[at.x] | row[at.y] << 4);
  }
}

__global__ void __launch_bounds__(kThreads)
    StoreGridsKernel(const GroupGrid* grids, int64_t count, uint16_t* scales, uint8_t* zeros) {
  StartNextKernel();
  WaitForLastKernel();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count) return;
  scales[i] = F16FromFloat(grids[i].scale);
  zeros[i] = static_cast<uint8_t>(grids[i].zero);
}

}  // namespace

void GatherFloats(Stream& stream, MatrixView from, const int32_t* columns, const float* importance,
                  MatrixView out) {
  if (from.rows == 0) return;
  LaunchDependent(stream, GatherFloatsKernel, static_cast<unsigned>(from.rows), kThreads, 0,
                  from.row<float>(0), from.stride, columns, importance, out.row<float>(0),
                  out.columns, out.stride);
  stream.CheckLaunch("gathering columns", from.rows, from.columns);
}

void Sweep(Stream& stream, const GroupSpec& spec, const SweepBlock& block) {
  const MatrixView& columns = block.columns;
  if (columns.rows == 0) return;
  CHECK(columns.columns <= kSweepBlock);
  CHECK(!block.finds_grids || columns.columns % spec.length == 0);
  LaunchDependent(stream, SweepKernel,
                  static_cast<unsigned>(CeilDiv<int64_t>(columns.rows, kSweepWarps)), kSweepThreads,
                  sizeof(SweepShared), spec, block);
  stream.CheckLaunch("a sweep", columns.rows, columns.columns);
}

void PackCodes(Stream& stream, const uint8_t* codes, const int32_t* positions, int64_t rows,
               int64_t columns, uint8_t* packed) {
  if (rows == 0) return;
  LaunchDependent(stream, PackCodesKernel, static_cast<unsigned>(rows), kThreads, 0, codes,
                  positions, columns, packed);
  stream.CheckLaunch("packing codes", rows, columns);
}

void StoreGrids(Stream& stream, const GroupGrid* grids, int64_t count, uint16_t* scales,
                uint8_t* zeros) {
  if (count == 0) return;
  LaunchDependent(stream, StoreGridsKernel,
                  static_cast<unsigned>(CeilDiv<int64_t>(count, kThreads)), kThreads, 0, grids,
                  count, scales, zeros);
  stream.CheckLaunch("storing grids", count, 1);
}

}  // namespace nibble::cuda

#include "src/base/checked.h"
#include "src/ops/cuda/dependent_launch.cuh"
#include "src/ops/cuda/quantize_grid.cuh"
#include "src/ops/cuda/quantize_kernels.h"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256;  // a warp for each row and group
constexpr int kWarps = kThreads / 32;

// The warp's row and group, of a weight with `groups` in a row.
struct RowGroup {
  int64_t row, group;
  bool exists;  // else the weight has no more

  __device__ RowGroup(int64_t rows, int64_t groups) {
    const int64_t number = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
    row = number / groups;
    group = number % groups;
    exists = row < rows;
  }
};

unsigned BlocksFor(int64_t rows, int64_t groups) {
  return static_cast<unsigned>(CeilDiv<int64_t>(rows * groups, kWarps));
}

__global__ void __launch_bounds__(kThreads)
    FindGridsKernel(const float* weight, int64_t stride, int64_t rows, int64_t groups,
                    GroupSpec spec, const float* importance, GroupGrid* grids, uint8_t* codes) {
  StartNextKernel();
  WaitForLastKernel();
  const RowGroup at(rows, groups);
  if (!at.exists) return;
  const int length = static_cast<int>(spec.length), lane = LaneOfWarp();
  const int64_t first = at.group * length;
  const float* const values = weight + at.row * stride + first;
  const GroupGrid grid = FindWarpGrid(spec, [&](const auto& use) {
    for (int i = lane; i < length; i += 32) {
      use(values[i], importance != nullptr ? importance[first + i] : 1.0f);
    }
  });
  if (lane == 0) grids[at.row * groups + at.group] = grid;
  if (codes == nullptr) return;
  uint8_t* const packed = codes + (at.row * groups * length + first) / 2;
  for (int begin = 0; begin < length; begin += 32) {
    const int i = begin + lane;
    const int code = i < length ? grid.Code(values[i]) : 0;
    const int next = __shfl_down_sync(kWholeWarp, code, 1);
    if (i < length && lane % 2 == 0) packed[i / 2] = static_cast<uint8_t>(code | next << 4);
  }
}

__global__ void __launch_bounds__(kThreads)
    PseudoQuantizeKernel(const float* weight, int64_t stride, int64_t rows, int64_t groups,
                         GroupSpec spec, const float* scales, ScalesAfter after, float* out,
                         int64_t out_stride) {
  StartNextKernel();
  WaitForLastKernel();
  const RowGroup at(rows, groups);
  if (!at.exists) return;
  const int length = static_cast<int>(spec.length), lane = LaneOfWarp();
  const int64_t first = at.group * length;
  const float* const values = weight + at.row * stride + first;
  const float* const of_group = scales + first;
  float* const to = out + at.row * out_stride + first;
  const GroupGrid grid = FindWarpGrid(spec, [&](const auto& use) {
    for (int i = lane; i < length; i += 32) use(__fmul_rn(values[i], of_group[i]), 1.0f);
  });
  for (int i = lane; i < length; i += 32) {
    const float scale = of_group[i];
    const float value = grid.Value(grid.Code(__fmul_rn(values[i], scale)));
    to[i] = after == ScalesAfter::kDividedOut ? value / scale : value;
  }
}

// Clipping tries kClipLimits limits in three kernels: the first finds each limit's grid, the second
// the losses of each block of a group, the third takes the limit with the least sum of them.

__device__ float Limit(float most, int step) {
  return most * (1 - static_cast<float>(step) / (2 * kClipLimits));
}
__device__ float Clamp(float value, float limit) { return fminf(fmaxf(value, -limit), limit); }

// max |w| of a group, in every lane.
__device__ float MostOf(const float* values, int length) {
  float most = 0;
  for (int i = LaneOfWarp(); i < length; i += 32) most = fmaxf(most, fabsf(values[i]));
  return WarpMax(most);
}

__global__ void __launch_bounds__(kThreads)
    ClipGridsKernel(const float* weight, int64_t stride, int64_t rows, int64_t groups,
                    GroupSpec spec, GroupGrid* grids) {
  StartNextKernel();
  WaitForLastKernel();
  const RowGroup at(rows, groups);
  if (!at.exists) return;
  const int length = static_cast<int>(spec.length), lane = LaneOfWarp();
  const float* const values = weight + at.row * stride + at.group * length;
  const float most = MostOf(values, length);
  for (int step = 0; step < kClipLimits; ++step) {
    const float limit = Limit(most, step);
    const GroupGrid grid = FindWarpGrid(spec, [&](const auto& use) {
      for (int i = lane; i < length; i += 32) use(Clamp(values[i], limit), 1.0f);
    });
    if (lane == 0) grids[(at.row * groups + at.group) * kClipLimits + step] = grid;
  }
}

constexpr int kClipWarps = 4;
constexpr int kClipThreads = 32 * kClipWarps;
constexpr int kClipRows = 16 * kClipWarps;  // of a block
constexpr int kClipColumns = 128;           // of a group that count together, at most
constexpr int kDeltas = 12;                 // a column's for all limits, padded to whole float4s

struct ClipShared {
  float4 gram[kClipColumns][kClipColumns / 4];
  float4 deltas[kClipWarps][kClipColumns][kDeltas / 4];
};

// One block for a block of columns and kClipRows rows; a warp takes one row at a time. A lane has
// the sums of four columns for all limits, so that a value of the Hessian serves them all.
__global__ void __launch_bounds__(kClipThreads)
    ClipLossesKernel(const float* weight, int64_t stride, int64_t rows, int64_t columns,
                     GroupSpec spec, int64_t blocks, const float* scales, const float* gram,
                     const GroupGrid* grids, float* losses) {
  extern __shared__ char shared_memory[];
  ClipShared& shared = *reinterpret_cast<ClipShared*>(shared_memory);
  StartNextKernel();
  WaitForLastKernel();
  const int64_t groups = columns / spec.length;
  const int64_t group = blockIdx.x / blocks, block = blockIdx.x % blocks;
  const int64_t first = group * spec.length + block * kClipColumns;
  const int count =
      static_cast<int>(min(spec.length - block * kClipColumns, static_cast<int64_t>(kClipColumns)));
  for (int i = static_cast<int>(threadIdx.x); i < kClipColumns * kClipColumns; i += kClipThreads) {
    const int j = i / kClipColumns, k = i % kClipColumns;
    reinterpret_cast<float*>(shared.gram)[i] =
        j < count && k < count ? gram[(first + j) * columns + first + k] : 0.0f;
  }
  __syncthreads();
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = LaneOfWarp();
  float4(*const deltas)[kDeltas / 4] = shared.deltas[warp];
  const int64_t end = min(rows, (blockIdx.y + int64_t{1}) * kClipRows);
  for (int64_t row = blockIdx.y * int64_t{kClipRows} + warp; row < end; row += kClipWarps) {
    const float* const values = weight + row * stride;
    const float most = MostOf(values + group * spec.length, static_cast<int>(spec.length));
    const GroupGrid* const tried = grids + (row * groups + group) * kClipLimits;
    __syncwarp();  // the last row's deltas have been read
    for (int k = lane; k < kClipColumns; k += 32) {
      auto* const to = reinterpret_cast<float*>(deltas[k]);
      const float value = k < count ? values[first + k] : 0.0f;
      const float scale = k < count ? scales[first + k] : 1.0f;
#pragma unroll
      for (int step = 0; step < kDeltas; ++step) {
        float delta = 0;
        if (step < kClipLimits && k < count) {
          const GroupGrid grid = tried[step];
          delta = (value - grid.Value(grid.Code(Clamp(value, Limit(most, step))))) / scale;
        }
        to[step] = delta;
      }
    }
    __syncwarp();
    float sums[kClipLimits][4] = {};
#pragma unroll 2
    for (int j = 0; j < count; ++j) {
      const float4 g = shared.gram[j][lane];
      const float4 parts[kDeltas / 4] = {deltas[j][0], deltas[j][1], deltas[j][2]};
      const float d[kDeltas] = {parts[0].x, parts[0].y, parts[0].z, parts[0].w,
                                parts[1].x, parts[1].y, parts[1].z, parts[1].w,
                                parts[2].x, parts[2].y, parts[2].z, parts[2].w};
#pragma unroll
      for (int step = 0; step < kClipLimits; ++step) {
        sums[step][0] = fmaf(d[step], g.x, sums[step][0]);
        sums[step][1] = fmaf(d[step], g.y, sums[step][1]);
        sums[step][2] = fmaf(d[step], g.z, sums[step][2]);
        sums[step][3] = fmaf(d[step], g.w, sums[step][3]);
      }
    }
    float* const to = losses + ((row * groups + group) * blocks + block) * kClipLimits;
#pragma unroll
    for (int step = 0; step < kClipLimits; ++step) {
      float loss = 0;
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const auto* const own = reinterpret_cast<const float*>(deltas[4 * lane + c]);
        loss = fmaf(sums[step][c], own[step], loss);
      }
      loss = SumOverWarp(loss);
      if (lane == 0) to[step] = loss;
    }
  }
}

__global__ void __launch_bounds__(kThreads)
    ClipKernel(float* weight, int64_t stride, int64_t rows, int64_t groups, int length,
               int64_t blocks, const float* losses) {
  StartNextKernel();
  WaitForLastKernel();
  const RowGroup at(rows, groups);
  if (!at.exists) return;
  float* const values = weight + at.row * stride + at.group * length;
  const float* const tried = losses + (at.row * groups + at.group) * blocks * kClipLimits;
  float least = INFINITY;
  int best = 0;  // all as it is, where no limit has a finite error
  for (int step = 0; step < kClipLimits; ++step) {
    float loss = 0;
    for (int64_t b = 0; b < blocks; ++b) loss += tried[b * kClipLimits + step];
    if (loss < least) {
      least = loss;
      best = step;
    }
  }
  const float limit = Limit(MostOf(values, length), best);
  for (int i = LaneOfWarp(); i < length; i += 32) values[i] = Clamp(values[i], limit);
}

}  // namespace

void FindGrids(Stream& stream, MatrixView weight, const GroupSpec& spec, const float* importance,
               GroupGrid* grids, uint8_t* codes) {
  if (weight.rows == 0) return;
  CHECK(spec.length % 2 == 0 || codes == nullptr, "groups of {}", spec.length);
  const int64_t groups = weight.columns / spec.length;
  LaunchDependent(stream, FindGridsKernel, BlocksFor(weight.rows, groups), kThreads, 0,
                  weight.row<float>(0), weight.stride, weight.rows, groups, spec, importance, grids,
                  codes);
  stream.CheckLaunch("finding grids", weight.rows, weight.columns);
}

void PseudoQuantize(Stream& stream, MatrixView weight, const GroupSpec& spec, const float* scales,
                    ScalesAfter after, MatrixView out) {
  if (weight.rows == 0) return;
  const int64_t groups = weight.columns / spec.length;
  LaunchDependent(stream, PseudoQuantizeKernel, BlocksFor(weight.rows, groups), kThreads, 0,
                  weight.row<float>(0), weight.stride, weight.rows, groups, spec, scales, after,
                  out.row<float>(0), out.stride);
  stream.CheckLaunch("quantizing on trial", weight.rows, weight.columns);
}

int64_t ClipBlocks(const GroupSpec& spec) { return CeilDiv<int64_t>(spec.length, kClipColumns); }

void Clip(Stream& stream, MatrixView weight, const GroupSpec& spec, const float* scales,
          const float* gram, GroupGrid* grids, float* losses) {
  if (weight.rows == 0) return;
  const int64_t groups = weight.columns / spec.length, blocks = ClipBlocks(spec);
  float* const values = weight.row<float>(0);
  LaunchDependent(stream, ClipGridsKernel, BlocksFor(weight.rows, groups), kThreads, 0, values,
                  weight.stride, weight.rows, groups, spec, grids);
  const dim3 grid(static_cast<unsigned>(groups * blocks),
                  static_cast<unsigned>(CeilDiv<int64_t>(weight.rows, kClipRows)));
  LaunchDependent(stream, ClipLossesKernel, grid, kClipThreads, sizeof(ClipShared), values,
                  weight.stride, weight.rows, weight.columns, spec, blocks, scales, gram, grids,
                  losses);
  LaunchDependent(stream, ClipKernel, BlocksFor(weight.rows, groups), kThreads, 0, values,
                  weight.stride, weight.rows, groups, spec.length, blocks, losses);
  stream.CheckLaunch("clipping", weight.rows, weight.columns);
}

}  // namespace nibble::cuda

// Tens to thousands of rows on Hopper: warpgroup products whose left operand is the weight,
// expanded in registers, and whose right one are rows of x in shared memory.
//
// A block makes 128 or 192 outputs of 16 to 160 rows, 64 outputs a warpgroup; two more warps bring
// units of 128 inputs through a ring of stages by tensor maps (TMA), weights the one and rows of x
// the other. Where there are fewer tiles than multiprocessors, several blocks share a tile's inputs
// (split-K); they are one cluster and send each other their sums, which are always added in the
// same order. docs/kernels.md has a drawing.
#include <array>
#include <bit>
#include <cstddef>

#include "src/ops/cuda/linear_q4_hopper.cuh"

namespace nibble::cuda::q4 {
namespace hopper {
namespace {

#if NIBBLE_HOPPER_CODE

// What a warp's lane has of one half of a unit: codes of four steps, and the kGrids grids that
// begin there. A half without one has that of the half before.
template <typename T, int kGrids>
struct LoadedHalf {
  static constexpr int kKept = kGrids == 0 ? 1 : kGrids;
  uint4 codes;
  __half2 scales[kKept];
  uint32_t zeros[kKept];  // two, of a byte each

  __device__ void Load(uint32_t codes_at, uint32_t scales_at, uint32_t zeros_at, bool has_zeros) {
    codes = LoadShared16(codes_at);
#pragma unroll
    for (int i = 0; i < kGrids; ++i) {
      scales[i] = LoadSharedPair(scales_at + 32 * i);
      if (has_zeros) zeros[i] = LoadSharedBytes(zeros_at + 16 * i);
    }
  }
  __device__ void Expand(Expander<T>& expander, uint32_t (&a)[4][4]) const {
    const uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};
#pragma unroll
    for (int s = 0; s < 4; ++s) {
      if (s * kGrids % 4 == 0 && s * kGrids / 4 < kGrids) {
        expander.SetGrid(scales[s * kGrids / 4], zeros[s * kGrids / 4]);
      }
      expander.Expand(words[s], a[s]);
    }
  }
};

// Barriers of the consumers' threads, and of a warpgroup's. Number 0 is the whole block's.
template <int kGroups>
__device__ void SynchronizeConsumers() {
  asm volatile("bar.sync 1, %0;" ::"n"(kConsumers<kGroups>) : "memory");
}
__device__ inline void SynchronizeGroup() {
  asm volatile("bar.sync %0, 128;" ::"r"(2 + static_cast<int>(threadIdx.x) / 128) : "memory");
}

// Eight neighbouring outputs of a row, or those of them that there are.
template <typename T>
__device__ void StoreOneByOne(const Product<T>& p, int row, int output, float4 low, float4 high) {
  using H = HalfTraits<T>;
  const float sums[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
  T* to = p.out + row * p.out_stride;
#pragma unroll 1
  for (int i = 0; i < 8; ++i) {
    if (output + i >= p.outputs) break;
    if (p.epilogue != Epilogue::kSiluMul) {
      const float before = p.epilogue == Epilogue::kAdd ? H::ToFloat(to[output + i]) : 0;
      to[output + i] = H::FromFloat(sums[i] + before);
    } else if (i % 2 == 0) {
      to[(output + i) / 2] = H::FromFloat(SiluMul(sums[i], sums[i + 1]));
    }
  }
}
// What there is of eight outputs before that, where they are added to and may be read at once.
template <typename T>
__device__ uint4 LoadAddends(const Product<T>& p, int row, int output, bool wide) {
  const bool wanted =
      p.epilogue == Epilogue::kAdd && wide && row < p.rows && output + 8 <= p.outputs;
  return wanted ? *reinterpret_cast<const uint4*>(p.out + row * p.out_stride + output) : uint4{};
}
// With the bias; `wide` where eight may be written at once, to which `addends` are added then.
template <typename T>
__device__ void StoreOutputs(const Product<T>& p, int row, int output, bool wide, float4 low,
                             float4 high, uint4 addends) {
  using H = HalfTraits<T>;
  if (row >= p.rows || output >= p.outputs) return;
  if (p.bias != nullptr) {
    float* sums[8] = {&low.x, &low.y, &low.z, &low.w, &high.x, &high.y, &high.z, &high.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) *sums[i] += output + i < p.outputs ? p.bias[output + i] : 0;
  }
  if (!wide || output + 8 > p.outputs) return StoreOneByOne(p, row, output, low, high);
  T* to = p.out + row * p.out_stride;
  if (p.epilogue == Epilogue::kSiluMul) {
    alignas(8) const T values[4] = {
        H::FromFloat(SiluMul(low.x, low.y)), H::FromFloat(SiluMul(low.z, low.w)),
        H::FromFloat(SiluMul(high.x, high.y)), H::FromFloat(SiluMul(high.z, high.w))};
    *reinterpret_cast<uint2*>(to + output / 2) = *reinterpret_cast<const uint2*>(values);
    return;
  }
  alignas(16) T values[8];
  auto& all = *reinterpret_cast<uint4*>(values);
  all = addends;
  const float sums[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
  for (int i = 0; i < 8; ++i) values[i] = H::FromFloat(sums[i] + H::ToFloat(values[i]));
  *reinterpret_cast<uint4*>(to + output) = all;
}

// A warpgroup's fragments n to n + kCount of eight rows each, to shared memory: [rows][kPitch]. A
// lane's place is that of its first row and output.
template <int kPitch, int kCount, int kSums>
__device__ void KeepFragments(float* to, const float (&sums)[kSums], int n) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const float* d = sums + 4 * (n + i);
    to[8 * i * kPitch] = d[0];
    to[(8 * i + 1) * kPitch] = d[1];
    to[8 * i * kPitch + 8] = d[2];
    to[(8 * i + 1) * kPitch + 8] = d[3];
  }
}

// Stores a tile that no other block has a part of, some rows at a time, which go through shared
// memory so that whole lines are written. Warpgroups do not wait for each other.
template <typename T, int kRows, int kGroups>
__device__ void StoreTile(const Product<T>& p, const HopperPlan& plan, int first_row,
                          int first_output, const float (&sums)[kRows / 2], float* shared) {
  constexpr int kAtOnce = kHopperStoredRows, kPitch = HopperSumPitch(64);
  const auto thread = static_cast<int>(threadIdx.x) % 128,
             group = static_cast<int>(threadIdx.x) / 128;
  const int lane = thread % 32;
  float* rows = shared + group * kAtOnce * kPitch;
  float* own = rows + lane % 4 * 2 * kPitch + thread / 32 * kTileOutputs + lane / 4;
  static_assert(kAtOnce * 8 == 128);
  const int row = thread / 8, output = thread % 8 * 8;  // what the thread stores
  const auto* from = reinterpret_cast<const float4*>(rows + row * kPitch + output);
#pragma unroll
  for (int first = 0; first < kRows; first += kAtOnce) {
    const uint4 addends = LoadAddends(p, first_row + first + row,
                                      first_output + 64 * group + output, plan.wide_outputs);
    SynchronizeGroup();  // the rows before are read
    KeepFragments<kPitch, kAtOnce / 8>(own, sums, first / 8);
    SynchronizeGroup();
    StoreOutputs(p, first_row + first + row, first_output + 64 * group + output, plan.wide_outputs,
                 from[0], from[1], addends);
  }
}

// Adds up and stores one tile of a cluster, of which each block has a part of the inputs and in the
// end some of the rows. Sums go over the ring; `received` is for what other parts send.
template <typename T, int kRows, int kGroups>
__device__ void StoreParts(const Product<T>& p, const HopperPlan& plan, const HopperBlock& block,
                           int first_row, int first_output, const float (&sums)[kRows / 2],
                           float* shared, float* received, uint32_t received_barrier) {
  constexpr int kPitch = HopperSumPitch(64 * kGroups),
                kChunks = 64 * kGroups / 8;  // of eight outputs
  const auto thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  const int rows = kRows >> plan.parts_log2;
  const int own_row = block.part * rows;
  // A thread's next addends are on their way while sums are.
  const auto addends_of = [&](int i) {
    if (i >= rows * kChunks) return uint4{};
    return LoadAddends(p, first_row + own_row + i / kChunks, first_output + i % kChunks * 8,
                       plan.wide_outputs);
  };
  uint4 next_addends = addends_of(thread);
  SynchronizeConsumers<kGroups>();  // nobody reads the ring any more
  KeepFragments<kPitch, kRows / 8>(
      shared + lane % 4 * 2 * kPitch + thread / 32 * kTileOutputs + lane / 4, sums, 0);
  ShowToProducts();  // and to copies
  SynchronizeConsumers<kGroups>();
  if (thread == 0) {
    const int bytes = rows * kPitch * int{sizeof(float)};
    for (int part = 0; part < plan.parts(); ++part) {
      if (part == block.part) continue;
      const int place = block.part - (block.part > part ? 1 : 0);
      CopyToMapped(MapToRank(SharedAddress(received) + place * bytes, part),
                   SharedAddress(shared) + part * bytes, bytes, MapToRank(received_barrier, part));
    }
  }
  WaitForPhase(received_barrier, 0);
#pragma unroll 1
  for (int i = thread; i < rows * kChunks; i += kConsumers<kGroups>) {
    const int row = i / kChunks, output = i % kChunks * 8;
    const uint4 addends = next_addends;
    next_addends = addends_of(i + kConsumers<kGroups>);
    float4 low{}, high{};
#pragma unroll
    for (int part = 0; part < kHopperMostParts; ++part) {  // always in this order
      if (part >= plan.parts()) break;
      const int place = part - (part > block.part ? 1 : 0);
      const float* from =
          (part == block.part ? shared + own_row * kPitch : received + place * rows * kPitch) +
          row * kPitch + output;
      const auto [a, b, c, d] = *reinterpret_cast<const float4*>(from);
      const auto [e, f, g, h] = *reinterpret_cast<const float4*>(from + 4);
      low = {low.x + a, low.y + b, low.z + c, low.w + d};
      high = {high.x + e, high.y + f, high.z + g, high.w + h};
    }
    StoreOutputs(p, first_row + own_row + row, first_output + output, plan.wide_outputs, low, high,
                 addends);
  }
}

// A warpgroup's part in all tiles of the block.
template <typename T, int kGrids, int kRows, int kGroups>
__device__ void Consume(const Weights& w, const Product<T>& p, const HopperPlan& plan,
                        const HopperBlock& block, unsigned char* shared, uint32_t full,
                        uint32_t empty, uint32_t received_barrier, uint32_t largest) {
  using Stage = HopperStage<kGrids, kRows, kGroups>;
  const auto warp = static_cast<int>(Uniform(threadIdx.x / 32));
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const uint32_t ring = Uniform(SharedAddress(shared));
  auto* const beside = reinterpret_cast<float*>(shared + plan.stages * sizeof(Stage));
  const uint32_t codes = ring + offsetof(Stage, codes) + warp * kUnitBytes + 16 * lane;
  const uint32_t scales = ring + offsetof(Stage, scales) + 32 * kGrids * warp + lane / 4 * 4;
  const uint32_t zeros = ring + offsetof(Stage, zeros) + 16 * kGrids * warp + lane / 4 * 2;
  constexpr int kFirstGrids = (kGrids + 1) / 2;
  LoadedHalf<T, kFirstGrids> first;
  LoadedHalf<T, kGrids / 2> second;
  const bool has_zeros = w.zeros != nullptr;
  const auto load = [&](uint32_t slot, int half) {
    const uint32_t stage = slot * uint32_t{sizeof(Stage)};
    if (half == 0) {
      first.Load(codes + stage, scales + stage, zeros + stage, has_zeros);
    } else {
      second.Load(codes + stage + kUnitBytes / 2, scales + stage + 32 * kFirstGrids,
                  zeros + stage + 16 * kFirstGrids, has_zeros);
    }
  };
  // A descriptor counts by 16 bytes.
  const uint64_t first_rows = SwizzledDescriptor(ring + offsetof(Stage, x), 0);
  Expander<T> expander(largest, has_zeros);
  float sums[kRows / 2];
  uint32_t a[2][4][4];  // of a half, used in turns
  RingPlace place{0, 0};
  // Of the stage that the unit before was in; before a tile's first unit one that nobody waits for.
  uint32_t free_barrier = empty + 8 * kHopperMostStages;
  const auto tile_step = static_cast<int>(gridDim.y);
  WaitForPhase(full, 0);
  load(0, 0);
  load(0, 1);
#pragma unroll 1
  for (auto tile = static_cast<int>(blockIdx.y); tile < plan.tiles; tile += tile_step) {
#pragma unroll
    for (float& sum : sums) sum = 0;
#pragma unroll 1
    for (int unit = block.begin; unit < block.end; ++unit) {
      const uint32_t slot = place.slot;
      const uint64_t x = first_rows + slot * uint32_t{sizeof(Stage) / 16};
      place.Advance(plan);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (half == 0) {
          first.Expand(expander, a[0]);
        } else {
          second.Expand(expander, a[1]);
        }
        BeginProducts();
        const uint64_t rows = x + half * sizeof(Stage::x) / kPanels / 16;
#pragma unroll
        for (int s = 0; s < 4; ++s) {
          MultiplyWarpgroup<T, kRows>(sums, a[half][s], rows + 2 * s, true);
        }
        CommitProducts();
        // The next unit's codes come while the products run.
        if (half == 0) WaitForPhase(full + 8 * place.slot, place.parity);
        load(place.slot, half);
        WaitForProducts<1>();  // those of the half before: their operands' registers are free
        if (half == 0 && lane == 0) Arrive(free_barrier);
      }
      free_barrier = empty + 8 * slot;
    }
    WaitForProducts<0>();
#pragma unroll
    for (int i = 0; i < kRows / 2; ++i) {
      Pin(sums[i]);
      sums[i] *= expander.factor;
    }
    if (lane == 0) Arrive(free_barrier);
    free_barrier = empty + 8 * kHopperMostStages;
    const int first_row = plan.RowTile(tile) * kRows;
    const int first_output = plan.OutputTile(tile) * 64 * kGroups;
    if (plan.parts_log2 == 0) {
      StoreTile<T, kRows, kGroups>(p, plan, first_row, first_output, sums, beside);
    } else {
      StoreParts<T, kRows, kGroups>(p, plan, block, first_row, first_output, sums,
                                    reinterpret_cast<float*>(shared), beside, received_barrier);
    }
  }
}

#endif  // NIBBLE_HOPPER_CODE

template <typename T, int kGrids, int kRows, int kGroups>
__global__ void __maxnreg__((kRegisters<kRows, kGroups>.first))
    HopperKernel(const __grid_constant__ HopperMaps maps, Weights w, Product<T> p,
                 HopperPlan plan) {
  static_assert(RegistersSuffice<kRows, kGroups>());
#if NIBBLE_HOPPER_CODE
  extern __shared__ __align__(1024) unsigned char shared[];
  __shared__ uint64_t full_barriers[kHopperMostStages], empty_barriers[kHopperMostStages + 1];
  __shared__ uint64_t received_barrier;
  const uint32_t full = Uniform(SharedAddress(full_barriers));
  const uint32_t empty = Uniform(SharedAddress(empty_barriers));
  const HopperBlock block(plan, w.units);
  if (threadIdx.x == 0) {
    for (int i = 0; i < plan.stages; ++i) {
      InitializeBarrier(full + 8 * i, 1);
      InitializeBarrier(empty + 8 * i, kConsumers<kGroups> / 32);
    }
    InitializeBarrier(empty + 8 * kHopperMostStages, kConsumers<kGroups> / 32);
    InitializeBarrier(SharedAddress(&received_barrier), 1);
    PublishBarriers();
    ArriveExpecting(
        SharedAddress(&received_barrier),
        (plan.parts() - 1) * static_cast<int>(HopperPartBytes(kRows, kGroups, plan.parts())));
  }
  ArriveAtCluster();
  StartNextKernel();
  WaitForCluster();  // the other blocks' barriers are there
  // Uniform, so that the compiler has uniform registers for what warps have in common.
  if (Uniform(threadIdx.x / 128) == kGroups) {
    GiveRegisters<kRegisters<kRows, kGroups>.copying>();
    auto* ring = reinterpret_cast<HopperStage<kGrids, kRows, kGroups>*>(shared);
    if (threadIdx.x == kConsumers<kGroups>) {
      BringWeights(maps, w, plan, block, ring, full, empty);
    } else if (threadIdx.x == kConsumers<kGroups> + 32) {
      BringRows(maps, plan, block, ring, full, empty);
    }
    __syncwarp();
  } else {
    TakeRegisters<kRegisters<kRows, kGroups>.consumer>();
    const uint32_t largest = *w.largest;
    WaitForLastKernel();  // it may read or write what this one writes
    Consume<T, kGrids, kRows, kGroups>(w, p, plan, block, shared, full, empty,
                                       SharedAddress(&received_barrier), largest);
    __syncwarp();
  }
  ArriveAtCluster();
  WaitForCluster();  // nobody sends this block anything any more
#endif
}

// sizes and box: elements, the fastest dimension first; strides: bytes, of the other dimensions.
template <size_t kDimensions>
CUtensorMap MapOf(CUtensorMapDataType type, const void* data,
                  const std::array<cuuint64_t, kDimensions>& sizes,
                  const std::array<cuuint64_t, kDimensions - 1>& strides,
                  const std::array<cuuint32_t, kDimensions>& box, CUtensorMapSwizzle swizzle) {
  // A function of the driver's, which is not linked.
  static const auto encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found;
    const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                               12000, cudaEnableDefault, &found);
    CHECK(error == cudaSuccess && found == cudaDriverEntryPointSuccess,
          "a driver for Hopper has tensor maps");
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
  }();
  std::array<cuuint32_t, kDimensions> steps;
  steps.fill(1);
  CUtensorMap map;
  const CUresult result =
      encode(&map, type, kDimensions, const_cast<void*>(data), sizes.data(), strides.data(),
             box.data(), steps.data(), CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
             CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  CHECK(result == CUDA_SUCCESS, "a tensor map: error {}", static_cast<int>(result));
  return map;
}

template <typename T>
HopperMaps MapsOf(const Weights& w, const Product<T>& p, int rows, int tiles) {
  const auto weights_map = [&](const void* data, int64_t per_tile, int64_t words, int64_t count) {
    return MapOf<3>(
        CU_TENSOR_MAP_DATA_TYPE_UINT32, data,
        {static_cast<cuuint64_t>(words), static_cast<cuuint64_t>(per_tile),
         static_cast<cuuint64_t>(w.tiles)},
        {static_cast<cuuint64_t>(4 * words), static_cast<cuuint64_t>(4 * words * per_tile)},
        {static_cast<cuuint32_t>(words), static_cast<cuuint32_t>(count),
         static_cast<cuuint32_t>(tiles)},
        CU_TENSOR_MAP_SWIZZLE_NONE);
  };
  return {.x = MapOf<2>(std::is_same_v<T, __half> ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                                  : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                        p.x, {static_cast<cuuint64_t>(p.in), static_cast<cuuint64_t>(p.rows)},
                        {static_cast<cuuint64_t>(2 * p.x_stride)},
                        {kPanelInputs, static_cast<cuuint32_t>(rows)}, CU_TENSOR_MAP_SWIZZLE_128B),
          .codes = weights_map(w.codes, w.units, kUnitBytes / 4, 1),
          .scales = weights_map(w.scales, w.scale_groups, 8, w.scales_per_unit),
          .zeros = w.zeros == nullptr ? CUtensorMap{}
                                      : weights_map(w.zeros, w.scale_groups, 4, w.scales_per_unit)};
}

// Asked for once, of any of the kernels: each fills a multiprocessor.
const ClusterRoom& RoomOfDevice() {
  static const ClusterRoom room = [] {
    const auto kernel = HopperKernel<__half, 1, 64, 2>;
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                         static_cast<int>(HopperSharedBytes(64)));
    ClusterRoom found{};
    for (size_t i = 0; i < found.size(); ++i) {
      cudaLaunchAttribute attribute;
      attribute.id = cudaLaunchAttributeClusterDimension;
      attribute.val.clusterDim = {1u << i, 1, 1};
      cudaLaunchConfig_t config{};
      config.gridDim = 1u << i;
      config.blockDim = kThreads<2>;
      config.dynamicSmemBytes = HopperSharedBytes(64);
      config.attrs = &attribute;
      config.numAttrs = 1;
      if (cudaOccupancyMaxActiveClusters(&found[i], kernel, &config) != cudaSuccess) {
        cudaGetLastError();  // not a failure of what comes next
        found[i] = 0;
      }
    }
    return found;
  }();
  return room;
}

template <typename T, int kGrids, int kRows, int kGroups>
void LaunchHopper(Stream& stream, const Weights& w, const Product<T>& p, const HopperForm& form) {
  static_assert(sizeof(HopperStage<kGrids, kRows, kGroups>) ==
                HopperStageBytes(kRows, kGroups, kGrids));
  const HopperPlan plan{
      .parts_log2 = std::countr_zero(static_cast<unsigned>(form.parts)),
      .stages = form.stages,
      .row_tiles = (p.rows + kRows - 1) / kRows,
      .tiles = form.tiles,
      .wide_outputs = reinterpret_cast<uintptr_t>(p.out) % 16 == 0 && p.out_stride % 8 == 0};
  const auto cluster = static_cast<unsigned>(form.parts);
  LaunchDependentClusters(stream, HopperKernel<T, kGrids, kRows, kGroups>, cluster,
                          dim3(cluster, static_cast<unsigned>(form.clusters)), kThreads<kGroups>,
                          form.shared_bytes(kGrids), MapsOf(w, p, kRows, 4 * kGroups), w, p, plan);
}

template <typename T, int kGrids>
void LaunchHopper(Stream& stream, const Weights& w, const Product<T>& p, const HopperForm& form) {
  const auto launch = [&]<int kRows>() {
    if (form.groups == 2) {
      LaunchHopper<T, kGrids, kRows, 2>(stream, w, p, form);
    } else {
      LaunchHopper<T, kGrids, kRows, 3>(stream, w, p, form);
    }
  };
  switch (form.rows) {
    case 16:
      return launch.template operator()<16>();
    case 32:
      return launch.template operator()<32>();
    case 48:
      return launch.template operator()<48>();
    case 64:
      return launch.template operator()<64>();
    case 96:
      return launch.template operator()<96>();
    case 128:
      return launch.template operator()<128>();
    default:
      return launch.template operator()<160>();
  }
}

}  // namespace
}  // namespace hopper

bool HasHopperProduct() {
  // Without Hopper's code the kernel is empty and has no barriers.
  static const bool has = [] {
    cudaFuncAttributes attributes;
    return cudaFuncGetAttributes(&attributes, hopper::HopperKernel<__half, 1, 64, 2>) ==
               cudaSuccess &&
           attributes.sharedSizeBytes > 0;
  }();
  return has;
}

HopperForm ChooseHopperForm(const Geometry& geometry, int64_t rows) {
  return ChooseHopperForm(geometry.tiles, geometry.units, geometry.scales_per_unit(), rows,
                          hopper::RoomOfDevice());
}

template <typename T>
void HopperProduct(Stream& stream, const Geometry& geometry, const Weights& weights,
                   const Product<T>& product, const HopperForm& form) {
  switch (geometry.scales_per_unit()) {
    case 1:
      return hopper::LaunchHopper<T, 1>(stream, weights, product, form);
    case 2:
      return hopper::LaunchHopper<T, 2>(stream, weights, product, form);
    default:
      return hopper::LaunchHopper<T, 4>(stream, weights, product, form);
  }
}

template void HopperProduct(Stream&, const Geometry&, const Weights&, const Product<__half>&,
                            const HopperForm&);
template void HopperProduct(Stream&, const Geometry&, const Weights&, const Product<__nv_bfloat16>&,
                            const HopperForm&);

}  // namespace nibble::cuda::q4

// What the parts of linear_q4_hopper.cu share: the stages, how work is divided, how it is brought
// in, and how codes become operands.
#ifndef NIBBLE_OPS_CUDA_LINEAR_Q4_HOPPER_CUH_
#define NIBBLE_OPS_CUDA_LINEAR_Q4_HOPPER_CUH_

#include <cuda.h>

#include "src/ops/cuda/hopper.cuh"
#include "src/ops/cuda/linear_q4_form.h"
#include "src/ops/cuda/linear_q4_kernels.cuh"

namespace nibble::cuda::q4::hopper {

inline constexpr int kPanelInputs = 64;  // 128 bytes of a row, which swizzling is made for
inline constexpr int kPanels = kUnitInputs / kPanelInputs;

// A block makes the outputs of kGroups warpgroups, 64 each, for kRows rows; one more warpgroup copies,
// of which two threads do something.
template <int kGroups>
inline constexpr int kConsumers = 128 * kGroups;
template <int kGroups>
inline constexpr int kThreads = kConsumers<kGroups> + 128;
// Registers of a thread that multiplies, of one that copies, and of each as a block begins. Blocks
// for few rows leave some of their multiprocessor to the norm behind them.
struct Registers {
  int consumer, copying, first;
};
template <int kRows, int kGroups>
inline constexpr Registers kRegisters = kRows <= kHopperFewRows ? Registers{96, 32, 80}
                                        : kGroups == 2          ? Registers{232, 40, 168}
                                                                : Registers{152, 56, 128};
// Asking for more than a block has would wait for ever.
template <int kRows, int kGroups>
constexpr bool RegistersSuffice() {
  constexpr Registers kCounts = kRegisters<kRows, kGroups>;
  return kConsumers<kGroups> * kCounts.consumer + 128 * kCounts.copying <=
         kThreads<kGroups> * kCounts.first;
}

// One unit of a block's tile; kGrids: scales of an output in it, 1, 2 or 4.
template <int kGrids, int kRows, int kGroups>
struct alignas(1024) HopperStage {            // as swizzling wants it
  static constexpr int kTiles = 4 * kGroups;  // of 16 outputs
  uint4 x[kPanels][kRows][8];                 // see SwizzledDescriptor
  uint4 codes[kTiles][2][32];
  __half2 scales[kTiles][kGrids][8];
  uchar2 zeros[kTiles][kGrids][8];
};

// As tensor maps: x [rows, in]; and [tiles, units or scale groups, 32-bit words].
struct HopperMaps {
  CUtensorMap x, codes, scales, zeros;
};

// A HopperForm for the device; the number of parts as a power of two, since a division would take
// the compiler's knowledge that all threads have the same.
struct HopperPlan {
  int parts_log2;
  int stages;
  int row_tiles, tiles;  // of rows; of rows by outputs
  bool wide_outputs;     // rows of outputs are aligned to 16 bytes

  __device__ int parts() const { return 1 << parts_log2; }
  __device__ int OutputTile(int tile) const { return tile / row_tiles; }
  __device__ int RowTile(int tile) const { return tile % row_tiles; }
};

// A block's units of any tile. Block (part, cluster) of the grid; the part is its rank.
struct HopperBlock {
  int part;
  int begin, end;

  __device__ HopperBlock(const HopperPlan& plan, int units)
      : part(static_cast<int>(blockIdx.x)),
        begin(part * units >> plan.parts_log2),
        end((part + 1) * units >> plan.parts_log2) {}
};

#if NIBBLE_HOPPER_CODE

// The ring's next stage, and the parity of the phase that its barriers are in.
struct RingPlace {
  uint32_t slot, parity;
  __device__ void Advance(const HopperPlan& plan) {
    if (++slot == static_cast<uint32_t>(plan.stages)) {
      slot = 0;
      parity ^= 1;
    }
  }
};

// Calls bring(tile)(unit, slot) for all of a block's units, when their stages of the ring are free.
// Returns the place behind the last.
template <typename Bring>
__device__ RingPlace ForUnits(const HopperPlan& plan, const HopperBlock& block, uint32_t empty,
                              const Bring& bring) {
  RingPlace place{0, 1};  // all are free
  for (auto tile = static_cast<int>(blockIdx.y); tile < plan.tiles;
       tile += static_cast<int>(gridDim.y)) {
    const auto bring_unit = bring(tile);
#pragma unroll 1  // unrolled it makes the warps that multiply slower (docs/results/kernels.md)
    for (int unit = block.begin; unit < block.end; ++unit) {
      WaitForPhase(empty + 8 * place.slot, place.parity);
      bring_unit(unit, place.slot);
      place.Advance(plan);
    }
  }
  return place;
}

// Brings a block's weights, also before the last kernel is done. One thread.
template <int kGrids, int kRows, int kGroups>
__device__ void BringWeights(const HopperMaps& maps, const Weights& w, const HopperPlan& plan,
                             const HopperBlock& block, HopperStage<kGrids, kRows, kGroups>* ring,
                             uint32_t full, uint32_t empty) {
  using Stage = HopperStage<kGrids, kRows, kGroups>;
  const bool has_zeros = w.zeros != nullptr;
  const int bytes =  // of a whole stage
      static_cast<int>(sizeof(Stage::x) + sizeof(Stage::codes) + sizeof(Stage::scales) +
                       (has_zeros ? sizeof(Stage::zeros) : 0));
  const RingPlace end = ForUnits(plan, block, empty, [&](int tile) {
    const int first_tile = plan.OutputTile(tile) * Stage::kTiles;
    return [=, &maps, &w](int unit, uint32_t slot) {
      const uint32_t barrier = full + 8 * slot;
      const int group = w.ScaleGroup(unit);
      Stage& stage = ring[slot];
      ArriveExpecting(barrier, bytes);
      CopyBox(SharedAddress(stage.codes), maps.codes, 0, unit, first_tile, barrier);
      CopyBox(SharedAddress(stage.scales), maps.scales, 0, group, first_tile, barrier);
      if (has_zeros) CopyBox(SharedAddress(stage.zeros), maps.zeros, 0, group, first_tile, barrier);
    };
  });
  // Consumers load one unit ahead, at the end one of which they use nothing.
  WaitForPhase(empty + 8 * end.slot, end.parity);
  Arrive(full + 8 * end.slot);
}

// Brings rows of x. One thread.
template <int kGrids, int kRows, int kGroups>
__device__ void BringRows(const HopperMaps& maps, const HopperPlan& plan, const HopperBlock& block,
                          HopperStage<kGrids, kRows, kGroups>* ring, uint32_t full,
                          uint32_t empty) {
  WaitForLastKernel();  // x is there now
  ForUnits(plan, block, empty, [&](int tile) {
    const int first_row = plan.RowTile(tile) * kRows;
    return [=, &maps](int unit, uint32_t slot) {
#pragma unroll
      for (int panel = 0; panel < kPanels; ++panel) {
        CopyBox(SharedAddress(ring[slot].x[panel]), maps.x,
                unit * kUnitInputs + panel * kPanelInputs, first_row, full + 8 * slot);
      }
    };
  });
}

// The same in all lanes, and known to be.
__device__ inline uint32_t Uniform(uint32_t value) { return __shfl_sync(~0u, value, 0); }

// (word & mask) | bits in one instruction; of two constants the compiler makes two.
__device__ inline uint32_t MaskedOr(uint32_t word, uint32_t mask, uint32_t bits) {
  uint32_t result;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(result) : "r"(word), "r"(mask), "r"(bits));
  return result;
}

// The left operand of a step: pairs of (code - zero) · scale · 2^-n, rounded to T, n a weight's
// own. `largest`: Weights::largest; scales and zeros: of outputs g and g + 8, zeros in two bytes;
// where the weight has none they are 8, and what is given is not looked at.
template <typename T>
struct Expander;

// A code is masked into the mantissa of a subnormal number, code · 2⁻²⁴ or, in the upper nibble of
// a byte, code · 2⁻²⁰, so that one multiply-add makes a pair. What it multiplies by, scale · 2²⁴⁻ⁿ,
// would be infinite for common scales; n is such that the weight's largest scale comes to 2⁻⁸ at
// most, and one of less than 2⁻⁶ of the largest loses some of its last bits.
template <>
struct Expander<__half> {
  __device__ Expander(uint32_t largest, bool weight_has_zeros) : has_zeros(weight_has_zeros) {
    // Scales are less than 2^(exponent - 14).
    const int exponent = static_cast<int>(largest >> 10);
    const uint32_t to_below_two =  // 2^(15 - exponent)
        exponent < 30 ? static_cast<uint32_t>(30 - exponent) << 10 : 0x0400u >> (exponent - 29);
    normal = Pair(to_below_two * 0x00010001u);
    factor = __int_as_float((exponent - 6 + 127) << 23);
  }
  __device__ void SetGrid(__half2 scales, uint32_t zeros) {
    const __half2 scale = __hmul2(scales, normal);  // below 2
    const __half2 low = __low2half2(scale), high = __high2half2(scale);
    low_scale = __hmul2(low, Pair(0x78007800u));    // · 2^15
    high_scale = __hmul2(high, Pair(0x68006800u));  // · 2^11
    if (!has_zeros) {
      const __half2 eight = Pair(0xa400a400u);  // 8 · -2⁻⁹
      low_addend = __hmul2(low, eight);
      high_addend = __hmul2(high, eight);
      return;
    }
    // Zeros · -2⁻⁹, from 1024 + zero.
    const __half2 low_zero = Pair(__byte_perm(zeros, 0x64u, 0x4040));
    const __half2 high_zero = Pair(__byte_perm(zeros, 0x64u, 0x4141));
    const __half2 unit = Pair(0x98009800u), two = Pair(0x40004000u);  // -2⁻⁹
    low_addend = __hmul2(low, __hfma2(low_zero, unit, two));
    high_addend = __hmul2(high, __hfma2(high_zero, unit, two));
  }
  __device__ void Expand(uint32_t word, uint32_t (&a)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      const __half2 low = __hfma2(Pair(word & 0x000f000fu), low_scale, low_addend);
      const __half2 high = __hfma2(Pair(word & 0x00f000f0u), high_scale, high_addend);
      a[i] = *reinterpret_cast<const uint32_t*>(&low);
      a[i + 1] = *reinterpret_cast<const uint32_t*>(&high);
      word >>= 8;
    }
  }
  static __device__ __half2 Pair(uint32_t bits) { return *reinterpret_cast<const __half2*>(&bits); }

  bool has_zeros;
  float factor;  // of sums: 2^n
  __half2 normal, low_scale, high_scale, low_addend, high_addend;
};

// A code is masked into the mantissa of 128, the zero subtracted, the scale multiplied by.
template <>
struct Expander<__nv_bfloat16> {
  __device__ Expander(uint32_t /*largest*/, bool weight_has_zeros) : has_zeros(weight_has_zeros) {}
  __device__ void SetGrid(__half2 scales, uint32_t zeros) {
    const float2 wide = __half22float2(scales);
    low_scale = __float2bfloat162_rn(wide.x);
    high_scale = __float2bfloat162_rn(wide.y);
    low_zero = high_zero = 0x43084308u;  // 128 + zero
    if (!has_zeros) return;
    low_zero = __byte_perm(zeros, 0x43u, 0x4040);
    high_zero = __byte_perm(zeros, 0x43u, 0x4141);
  }
  __device__ void Expand(uint32_t word, uint32_t (&a)[4]) const {
    const auto pair = [](uint32_t bits) { return *reinterpret_cast<const __nv_bfloat162*>(&bits); };
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const __nv_bfloat162 difference =
          __hsub2(pair(MaskedOr(word >> (4 * i), 0x000f000fu, 0x43004300u)),
                  pair(i % 2 == 0 ? low_zero : high_zero));
      const __nv_bfloat162 scaled = __hmul2(difference, i % 2 == 0 ? low_scale : high_scale);
      a[i] = *reinterpret_cast<const uint32_t*>(&scaled);
    }
  }

  static constexpr float factor = 1;  // n is 0
  bool has_zeros;
  uint32_t low_zero, high_zero;
  __nv_bfloat162 low_scale, high_scale;
};

#endif  // NIBBLE_HOPPER_CODE

}  // namespace nibble::cuda::q4::hopper

#endif  // NIBBLE_OPS_CUDA_LINEAR_Q4_HOPPER_CUH_

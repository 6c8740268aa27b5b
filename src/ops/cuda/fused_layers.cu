// All layers of a step of one row, in one kernel.
//
// One row's products take as long as their weights' bytes; kernels of their own waste 2 to 3 µs each
// between the last byte of one and the first use of the next one's. Here one block on each
// multiprocessor stays for all layers, and its warps' rings of weights fill while rows are exchanged.
//
//   for each layer:  x ─ norm ─ qkv ─ attention ─ o ─ + ─ norm ─ gate, up ─ SiLU · ─ down ─ + ─ x
//   exchanged:       a         b       c              d                   e
//
// As in linear_q4_small.cu, a block has some tiles of each weight's outputs with all of their inputs,
// and its warps divide the inputs. So every block needs all of each exchanged row. Nobody waits at a
// barrier of all blocks: a row is written as packets of two elements and the step's and layer's
// number, eight bytes that are written and read at once, and readers read until the numbers are
// right. A row is written again only by blocks that have read rows which took everybody's reading of
// it to make, so one copy of each is enough.
//
// Attention: a block has some tokens of one head. Its warps' keys and values are on their way before
// the queries are there. Parts of a head are merged by whoever reads them, for the product with o.
#include "src/ops/cuda/fused_layers.h"

#include <algorithm>
#include <limits>

#include "src/base/checked.h"
#include "src/ops/cuda/attention_common.cuh"
#include "src/ops/cuda/cuda_linear.h"
#include "src/ops/cuda/hopper.cuh"
#include "src/ops/cuda/linear_q4_kernels.cuh"
#include "src/ops/cuda/load_matrices.cuh"

namespace nibble::cuda {
namespace {

using q4::kTileOutputs;
using q4::kUnitBytes;
using q4::kUnitInputs;

constexpr int kWarps = 16;  // that multiply; a thread of a further warpgroup copies
constexpr int kConsumers = 32 * kWarps;
constexpr int kThreads = kConsumers + 128;
// Of each thread, of the 96 with which the block starts.
constexpr int kConsumerRegisters = 112, kCopyRegisters = 32;
constexpr int kHeldUnits = 2;                        // of x in a warp's registers
constexpr int kStageUnits = kWarps * kHeldUnits;     // of one tile
constexpr int kMostStages = 8;
constexpr int kStagesUnderWay = 2;  // more, and rows wait behind weights
constexpr int kMostLayers = 128;
constexpr int kMostParts = 4;      // of a head's context
constexpr int kMostEntries = 512;  // of the block table, of a part
constexpr int kNormRounds = 2;     // 8,192 inputs
constexpr int kDigits = 3;         // of an element of x
constexpr int kFetchedRounds = 3;  // at once

enum LinearOfLayer { kQkv, kOutput, kGateUp, kDown, kLinears };

// What a weight of one kind has in all layers.
struct FusedLinear {
  int tiles, units, inputs, outputs;
  uint32_t codes_at, scales_at, zeros_at, bias_at;  // zeros_at, bias_at: 0 for none
};

struct FusedLayer {
  const std::byte* weights[kLinears];
  const float *input_gain, *post_gain;
};

struct FusedArguments {
  FusedLinear linears[kLinears];
  int layers, stages;
  int units;       // of x, at most
  int sum_tiles;   // of a block, at most
  int heads, kv_heads, parts, window;
  float scale_log2, epsilon;
  std::byte* keys;  // of the first layer
  size_t half_layer_bytes;
  const int32_t* context;
  const int32_t* block_table;
  const float2* angles;
  void* residual;  // [hidden], replaced
  uint32_t* step;
  // Packets, see above. The parts: [heads, kMostParts, head_dim / 2], and the logarithm of their
  // weights' sum, [heads, kMostParts].
  uint64_t *qkv, *parts_packets, *part_sums, *middle, *gated, *out;
  FusedLayer layer[kMostLayers];
};

// A stage of the ring: up to kStageUnits units of one tile.
template <int kGranule>
struct Stage {
  static constexpr int kGrids = kUnitInputs / kGranule;
  static constexpr int kScales = kStageUnits * kUnitBytes;
  static constexpr int kZeros = kScales + kStageUnits * 32 * kGrids;
  static constexpr int kBytes = kZeros + kStageUnits * 16 * kGrids;
};

// What lies where in shared memory, in bytes; the ring is at 0.
struct FusedShared {
  int x, x_scales, sums, residual, total;

  template <int kGranule>
  __host__ __device__ static FusedShared Of(const FusedArguments& a) {
    FusedShared s;
    s.x = a.stages * Stage<kGranule>::kBytes;
    s.x_scales = s.x + a.units * kDigits * kUnitInputs;
    s.sums = s.x_scales + RoundUp(a.units, 4) * 4;
    s.residual = s.sums + 2 * a.sum_tiles * kWarps * kTileOutputs * 4;
    s.total = s.residual + a.sum_tiles * kTileOutputs * 4;
    return s;
  }
};

#if NIBBLE_HOPPER_CODE

__device__ void StorePacket(uint64_t* to, uint32_t bits, uint32_t tag) {
  asm volatile("{\n.reg .b64 packet;\nmov.b64 packet, {%1, %2};\n"
               "st.relaxed.gpu.global.b64 [%0], packet;\n}" ::"l"(to),
               "r"(bits), "r"(tag)
               : "memory");
}
// Whether the packet has the tag.
__device__ bool LoadPacket(const uint64_t* from, uint32_t tag, uint32_t& bits) {
  uint32_t found;
  asm volatile("{\n.reg .b64 packet;\nld.relaxed.gpu.global.b64 packet, [%2];\n"
               "mov.b64 {%0, %1}, packet;\n}"
               : "=r"(bits), "=r"(found)
               : "l"(from)
               : "memory");
  return found == tag;
}
__device__ bool LoadPackets(const uint64_t* from, uint32_t tag, uint32_t (&bits)[2]) {
  uint32_t found[2];
  asm volatile("{\n.reg .b64 a, b;\nld.relaxed.gpu.global.v2.b64 {a, b}, [%4];\n"
               "mov.b64 {%0, %1}, a;\nmov.b64 {%2, %3}, b;\n}"
               : "=r"(bits[0]), "=r"(found[0]), "=r"(bits[1]), "=r"(found[1])
               : "l"(from)
               : "memory");
  return found[0] == tag && found[1] == tag;
}

// d = a · b + c: 16 outputs by 8 columns, of 32 inputs.
__device__ void MultiplyAddBytes(int (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                 uint32_t b0, uint32_t b1, const int (&c)[4]) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
      : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1), "r"(c[0]), "r"(c[1]), "r"(c[2]),
        "r"(c[3]));
}

__device__ float SumOverWarp(float value) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
  return value;
}

template <typename T>
__device__ float2 FloatsOf(uint32_t bits) {
  return HalfTraits<T>::ToFloats(reinterpret_cast<const typename HalfTraits<T>::Pair&>(bits));
}

// A block's tiles of a weight.
struct Tiles {
  int begin, count;
  __device__ explicit Tiles(int tiles)
      : begin(static_cast<int>(blockIdx.x * static_cast<uint32_t>(tiles) / gridDim.x)),
        count(static_cast<int>((blockIdx.x + 1) * static_cast<uint32_t>(tiles) / gridDim.x) -
              begin) {}
};
__device__ int RoundsOf(int units) { return (units + kStageUnits - 1) / kStageUnits; }

__device__ void SynchronizeConsumers() {
  asm volatile("bar.sync 1, %0;" ::"n"(kConsumers) : "memory");
}

// Where a thread is in the ring.
struct RingPlace {
  uint32_t slot = 0, parity = 0;
  __device__ void Advance(int stages) {
    if (++slot == stages) {
      slot = 0;
      parity ^= 1;
    }
  }
};

// Brings all weights in the order of their use: layer by layer, weight by weight, for every round of
// units all tiles of the block.
template <int kGranule>
__device__ void BringWeights(const FusedArguments& a, uint32_t ring, uint32_t full, uint32_t empty) {
  using S = Stage<kGranule>;
  RingPlace place, under_way;  // to fill; the oldest that may be on its way
  int asked = 0;
#pragma unroll 1
  for (int layer = 0; layer < a.layers; ++layer) {
#pragma unroll 1
    for (int linear = 0; linear < kLinears; ++linear) {
      const FusedLinear& l = a.linears[linear];
      const std::byte* weight = a.layer[layer].weights[linear];
      const std::byte *codes = weight + l.codes_at, *scales = weight + l.scales_at,
                      *zeros = weight + l.zeros_at;
      const Tiles tiles(l.tiles);
#pragma unroll 1
      for (int first = 0; first < l.units; first += kStageUnits) {
        const int units = min(kStageUnits, l.units - first);
        const int per_unit = kUnitBytes + (l.zeros_at != 0 ? 48 : 32) * S::kGrids;
#pragma unroll 1
        for (int i = 0; i < tiles.count; ++i) {
          const auto at = static_cast<uint32_t>((tiles.begin + i) * l.units + first);
          if (asked >= a.stages) WaitForPhase(empty + 8 * place.slot, place.parity ^ 1);
          if (asked >= kStagesUnderWay) {
            WaitForPhase(full + 8 * under_way.slot, under_way.parity);
            under_way.Advance(a.stages);
          }
          ++asked;
          const uint32_t to = ring + place.slot * S::kBytes, barrier = full + 8 * place.slot;
          ArriveExpecting(barrier, units * per_unit);
          CopyBulk(to, codes + at * kUnitBytes, units * kUnitBytes, barrier);
          CopyBulk(to + S::kScales, scales + at * (32 * S::kGrids), units * 32 * S::kGrids, barrier);
          if (l.zeros_at != 0) {
            CopyBulk(to + S::kZeros, zeros + at * (16 * S::kGrids), units * 16 * S::kGrids, barrier);
          }
          place.Advance(a.stages);
        }
      }
    }
  }
}

// A warp's part of all else that a block does.
template <typename T, int kGranule, int kDim>
class FusedWarp {
  using H = HalfTraits<T>;

 public:
  __device__ FusedWarp(const FusedArguments& a, unsigned char* shared, uint32_t full,
                       uint32_t empty, float* norm_sums, const float2* angles,
                       const int32_t* entries)
      : a_(a),
        warp_(static_cast<int>(threadIdx.x) / 32),
        lane_(static_cast<int>(threadIdx.x) % 32),
        ring_(SharedAddress(shared)),
        full_(full),
        empty_(empty),
        norm_sums_(norm_sums),
        angles_(angles),
        entries_(entries) {
    const FusedShared places = FusedShared::Of<kGranule>(a);
    x_ = SharedAddress(shared) + places.x;
    x_scales_ = reinterpret_cast<float*>(shared + places.x_scales);
    sums_ = reinterpret_cast<float*>(shared + places.sums);
    residual_ = reinterpret_cast<float*>(shared + places.residual);
    step_ = *a.step;
  }

  __device__ void Run() {
    const uint32_t first_tag = step_ * static_cast<uint32_t>(a_.layers + 1) + 1;
    PublishResidual(first_tag);
#pragma unroll 1
    for (int layer = 0; layer < a_.layers; ++layer) {
      const uint32_t tag = first_tag + static_cast<uint32_t>(layer);
      const FusedLayer& weights = a_.layer[layer];
#pragma unroll 1
      for (int linear = 0; linear < kLinears; ++linear) {
        switch (linear) {
          case kOutput:
            FetchAttention(tag);
            break;
          case kDown:
            Fetch(a_.gated, tag);
            break;
          default:
            FetchNormed(linear == kQkv ? a_.out : a_.middle,
                        linear == kQkv ? weights.input_gain : weights.post_gain, tag);
        }
        Multiply(a_.linears[linear]);
        SynchronizeConsumers();
        Finish(linear, weights, linear == kDown ? tag + 1 : tag);
        if (linear == kQkv) Attend(layer, tag);
      }
    }
    // Everybody has read the number: nothing would be here otherwise.
    if (blockIdx.x == 0 && threadIdx.x == 0) *a_.step = step_ + 1;
    const Tiles tiles(a_.linears[kDown].tiles);
    for (int i = warp_; i < tiles.count; i += kWarps) {
      const int output = (tiles.begin + i) * kTileOutputs + lane_;
      if (lane_ < kTileOutputs && output < a_.linears[kDown].outputs) {
        static_cast<T*>(a_.residual)[output] = H::FromFloat(residual_[i * kTileOutputs + lane_]);
      }
    }
  }

 private:
  // The block's part of the row that the step begins with.
  __device__ void PublishResidual(uint32_t tag) {
    const Tiles tiles(a_.linears[kDown].tiles);
    for (int i = warp_; i < tiles.count; i += kWarps) {
      const int output = (tiles.begin + i) * kTileOutputs + lane_ % kTileOutputs;
      const bool inside = output < a_.linears[kDown].outputs;
      const float value =
          inside ? H::ToFloat(static_cast<const T*>(a_.residual)[output]) : 0.0f;
      if (lane_ < kTileOutputs) residual_[i * kTileOutputs + lane_] = value;
      const float next = __shfl_down_sync(~0u, value, 1);
      if (inside && lane_ < kTileOutputs && lane_ % 2 == 0) {
        StorePacket(a_.out + output / 2, PackHalves<T>(value, next), tag);
      }
    }
  }

  // A warp has two neighbouring units of each round; a lane of each four inputs, two and two, that
  // are one lane's of a product.
  __device__ int UnitOf(int round, int u) const {
    return round * kStageUnits + warp_ * kHeldUnits + u;
  }
  __device__ int FirstInput(int unit) const {
    return unit * kUnitInputs + lane_ / 4 * 16 + lane_ % 4 * 2;
  }
  // Waits for the elements of some rounds.
  template <int kRounds>
  __device__ void Receive(const uint64_t* from, uint32_t tag, int round, int inputs,
                          uint32_t (&bits)[kRounds * kHeldUnits][2]) const {
    bool come;
    do {
      come = true;
#pragma unroll
      for (int i = 0; i < kRounds * kHeldUnits; ++i) {
        const int k = FirstInput(UnitOf(round + i / kHeldUnits, i % kHeldUnits));
        bits[i][0] = bits[i][1] = 0;
        if (k < inputs) come &= LoadPacket(from + k / 2, tag, bits[i][0]);
        if (k + 8 < inputs) come &= LoadPacket(from + k / 2 + 4, tag, bits[i][1]);
      }
    } while (!__all_sync(~0u, come));
  }

  // Keeps a unit of x as integers of three signed digits of 8 bits and a power of two: the digits of
  // the largest are all in use.
  __device__ void PutX(int unit, float2 low, float2 high) const {
    const float largest =
        fmaxf(fmaxf(fabsf(low.x), fabsf(low.y)), fmaxf(fabsf(high.x), fabsf(high.y)));
    // Numbers without a sign compare as their bits do, and what is not a number as the largest.
    const bool is_number = low.x == low.x && low.y == low.y && high.x == high.x && high.y == high.y;
    const uint32_t bits =
        __reduce_max_sync(~0u, is_number ? __float_as_uint(largest) : 0x7fc00000u);
    const int exponent = max(static_cast<int>(bits >> 23), 30);  // biased
    const float factor = __int_as_float((127 + 127 + 21 - exponent) << 23);
    int q[4] = {__float2int_rn(low.x * factor), __float2int_rn(high.x * factor),
                __float2int_rn(low.y * factor), __float2int_rn(high.y * factor)};
#pragma unroll
    for (int digit = kDigits - 1; digit >= 0; --digit) {
      const uint32_t word =
          __byte_perm(__byte_perm(q[0], q[1], 0x0040), __byte_perm(q[2], q[3], 0x0040), 0x5410);
      asm volatile("st.shared.u32 [%0], %1;" ::"r"(x_ + (unit * kDigits + digit) * kUnitInputs +
                                                    lane_ % 4 * 32 + lane_ / 4 * 4),
                   "r"(word)
                   : "memory");
#pragma unroll
      for (int& rest : q) rest = (rest + 128) >> 8;
    }
    if (lane_ == 0) {
      x_scales_[unit] = bits >= 0x7f800000u ? __int_as_float(0x7fc00000)
                                            : __int_as_float((exponent - 21) << 23);
    }
  }

  __device__ void Fetch(const uint64_t* from, uint32_t tag) const {
    const FusedLinear& l = a_.linears[kDown];
#pragma unroll 1
    for (int first = 0; first < RoundsOf(l.units); first += kFetchedRounds) {
      uint32_t bits[kFetchedRounds * kHeldUnits][2];
      Receive<kFetchedRounds>(from, tag, first, l.inputs, bits);
#pragma unroll
      for (int i = 0; i < kFetchedRounds * kHeldUnits; ++i) {
        const int unit = UnitOf(first + i / kHeldUnits, i % kHeldUnits);
        if (unit < l.units) PutX(unit, FloatsOf<T>(bits[i][0]), FloatsOf<T>(bits[i][1]));
      }
    }
    __syncwarp();
  }

  // x · gain / sqrt(mean(x²) + epsilon)
  __device__ void FetchNormed(const uint64_t* from, const float* gain, uint32_t tag) const {
    constexpr int kUnits = kNormRounds * kHeldUnits;
    const FusedLinear& l = a_.linears[kQkv];
    float2 gains[kUnits][2];
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
      const int k = FirstInput(UnitOf(i / kHeldUnits, i % kHeldUnits));
      const auto* of_k = reinterpret_cast<const float2*>(gain + k);
      gains[i][0] = k < l.inputs ? __ldg(of_k) : float2{};
      gains[i][1] = k + 8 < l.inputs ? __ldg(of_k + 4) : float2{};
    }
    uint32_t bits[kUnits][2];
    Receive<kNormRounds>(from, tag, 0, l.inputs, bits);
    float squares = 0;
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float2 x = FloatsOf<T>(bits[i][j]);
        squares += x.x * x.x + x.y * x.y;
        gains[i][j] = {x.x * gains[i][j].x, x.y * gains[i][j].y};
      }
    }
    squares = SumOverWarp(squares);
    if (lane_ == 0) norm_sums_[warp_] = squares;
    SynchronizeConsumers();
    squares = norm_sums_[lane_ % kWarps];
#pragma unroll
    for (int step = kWarps / 2; step > 0; step /= 2) {
      squares += __shfl_xor_sync(~0u, squares, step);
    }
    const float factor = rsqrtf(squares / static_cast<float>(l.inputs) + a_.epsilon);
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
      const int unit = UnitOf(i / kHeldUnits, i % kHeldUnits);
      if (unit >= l.units) break;
      PutX(unit, {gains[i][0].x * factor, gains[i][0].y * factor},
           {gains[i][1].x * factor, gains[i][1].y * factor});
    }
    __syncwarp();
  }

  // The heads' outputs from those of their parts.
  __device__ void FetchAttention(uint32_t tag) const {
    const FusedLinear& l = a_.linears[kOutput];
    const int parts = PartsOf(*a_.context).count;
#pragma unroll 1
    for (int i = 0; i < RoundsOf(l.units) * kHeldUnits; ++i) {
      const int unit = UnitOf(i / kHeldUnits, i % kHeldUnits);
      if (unit >= l.units) break;
      const int k = FirstInput(unit), head = k / kDim;
      const bool inside = k < l.inputs;  // and so is k + 8
      uint32_t bits[kMostParts][2], sums[kMostParts];
      bool come;
      do {
        come = true;
#pragma unroll
        for (int p = 0; p < kMostParts; ++p) {
          const int at = head * kMostParts + p;
          const uint64_t* packets = a_.parts_packets + (at * kDim + k % kDim) / 2;
          bits[p][0] = bits[p][1] = 0;
          sums[p] = __float_as_uint(-INFINITY);
          if (p >= parts || !inside) continue;
          come &= LoadPacket(packets, tag, bits[p][0]) & LoadPacket(packets + 4, tag, bits[p][1]) &
                  LoadPacket(a_.part_sums + at, tag, sums[p]);
        }
      } while (!__all_sync(~0u, come));
      float top = __uint_as_float(sums[0]);
#pragma unroll
      for (int p = 1; p < kMostParts; ++p) top = fmaxf(top, __uint_as_float(sums[p]));
      float sum = 0;
      float2 low{}, high{};
#pragma unroll
      for (int p = 0; p < kMostParts; ++p) {
        const float factor = Exp2(__uint_as_float(sums[p]) - top);
        const float2 x = FloatsOf<T>(bits[p][0]), y = FloatsOf<T>(bits[p][1]);
        sum += factor;
        low = {fmaf(factor, x.x, low.x), fmaf(factor, x.y, low.y)};
        high = {fmaf(factor, y.x, high.x), fmaf(factor, y.y, high.y)};
      }
      const float share = inside ? __fdividef(1, sum) : 0;
      if (!inside) low = high = {};
      PutX(unit, {low.x * share, low.y * share}, {high.x * share, high.y * share});
    }
    __syncwarp();
  }

  static constexpr int kGrids = kUnitInputs / kGranule;
  // A unit of x as right operands: columns 0, 1 and 3 are its digits, the others zeros.
  struct HeldUnit {
    uint32_t x[8];
    float scale;       // of the lane's digits
    int sums[kGrids];  // of a granule's inputs, the lane's two columns together
  };
  // The two columns of a lane: 0 and 1, or 2 and 3.
  static __device__ int Together(int even, int odd) { return even * 256 + odd; }

  __device__ void Load(HeldUnit& held, int unit) const {
    const int column = lane_ / 4;
    uint4 low{}, high{};
    if (column < 2 || column == 3) {
      const uint32_t from =
          x_ + (unit * kDigits + min(column, kDigits - 1)) * kUnitInputs + lane_ % 4 * 32;
      low = q4::LoadShared16(from);
      high = q4::LoadShared16(from + 16);
    }
    const uint32_t all[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) held.x[i] = all[i];
    held.scale = x_scales_[unit] * (lane_ % 4 == 0 ? 256.0f : 1.0f);
    constexpr uint32_t kOnes = 0x01010101;
#pragma unroll
    for (int g = 0; g < kGrids; ++g) {
      int sums[4] = {};
#pragma unroll
      for (int i = g * 4 / kGrids; i < (g + 1) * 4 / kGrids; ++i) {
        MultiplyAddBytes(sums, kOnes, kOnes, kOnes, kOnes, held.x[2 * i], held.x[2 * i + 1], sums);
      }
      held.sums[g] = Together(sums[0], sums[1]);
    }
  }

  // A code of the upper outputs is the upper half of a byte, and counts 16 times; what it adds to the
  // lower outputs is taken away from their sums.
  __device__ void Consume(float (&sum)[2], uint32_t codes, uint32_t scales, uint32_t zeros,
                          bool has_zeros, const HeldUnit& held) const {
    constexpr uint32_t kUpper = 0xf0f0f0f0;
    uint4 q{};
#pragma unroll
    for (int g = 0; g < kGrids; ++g) {
      const float2 scale = q4::LoadSharedScales(scales + 32 * g + lane_ / 4 * 4);
      int low_zero = 8, high_zero = 8 * 16;
      if (has_zeros) {
        const uchar2 pair = q4::LoadSharedZeros(zeros + 16 * g + lane_ / 4 * 2);
        low_zero = pair.x;
        high_zero = pair.y * 16;
      }
      int sums[4] = {};
#pragma unroll
      for (int i = g * 4 / kGrids; i < (g + 1) * 4 / kGrids; ++i) {
        if (i % 2 == 0) q = q4::LoadShared16(codes + 256 * i);
        const uint32_t first = i % 2 == 0 ? q.x : q.z, second = i % 2 == 0 ? q.y : q.w;
        MultiplyAddBytes(sums, first, first & kUpper, second, second & kUpper, held.x[2 * i],
                         held.x[2 * i + 1], sums);
      }
      const int high = Together(sums[2], sums[3]), low = Together(sums[0], sums[1]) - high;
      sum[0] = fmaf(scale.x * held.scale, static_cast<float>(low - low_zero * held.sums[g]), sum[0]);
      sum[1] = fmaf(scale.y * held.scale, static_cast<float>(high - high_zero * held.sums[g]), sum[1]);
    }
  }

  // The block's tiles times the warp's x, to sums_.
  __device__ void Multiply(const FusedLinear& l) {
    using S = Stage<kGranule>;
    const int tiles = Tiles(l.tiles).count;
    const bool has_zeros = l.zeros_at != 0;
    float* const to = sums_ + warp_ * kTileOutputs + lane_ / 4;
#pragma unroll 1
    for (int round = 0; round < RoundsOf(l.units); ++round) {
      const int count = l.units - UnitOf(round, 0);  // that there are of the warp's two
      HeldUnit held[kHeldUnits];
#pragma unroll
      for (int u = 0; u < kHeldUnits; ++u) Load(held[u], UnitOf(round, u));
#pragma unroll 1
      for (int i = 0; i < tiles; ++i) {
        float sums[kHeldUnits][2] = {};
        WaitForPhase(full_ + 8 * place_.slot, place_.parity);
        const uint32_t stage = ring_ + place_.slot * S::kBytes;
#pragma unroll
        for (int u = 0; u < kHeldUnits; ++u) {  // if there is no such unit, of whatever lies there
          const int unit = warp_ * kHeldUnits + u;
          Consume(sums[u], stage + unit * kUnitBytes + 16 * lane_,
                  stage + S::kScales + unit * 32 * S::kGrids,
                  stage + S::kZeros + unit * 16 * S::kGrids, has_zeros, held[u]);
        }
        __syncwarp();
        if (lane_ == 0) Arrive(empty_ + 8 * place_.slot);
        place_.Advance(a_.stages);
        float low = count > 0 ? sums[0][0] : 0, high = count > 0 ? sums[0][1] : 0;
        low += count > 1 ? sums[1][0] : 0;
        high += count > 1 ? sums[1][1] : 0;
        low += __shfl_down_sync(~0u, low, 1);
        high += __shfl_down_sync(~0u, high, 1);
        if (lane_ % 4 == 0) {
          float* own = to + i * kWarps * kTileOutputs;
          own[0] = round > 0 ? own[0] + low : low;
          own[8] = round > 0 ? own[8] + high : high;
        }
      }
    }
  }

  // Adds up the block's outputs and publishes them.
  __device__ void Finish(int linear, const FusedLayer& weights, uint32_t tag) {
    const FusedLinear& l = a_.linears[linear];
    uint64_t* const packets = linear == kQkv      ? a_.qkv
                              : linear == kOutput ? a_.middle
                              : linear == kGateUp ? a_.gated
                                                  : a_.out;
    const Tiles tiles(l.tiles);
    const int own = lane_ % kTileOutputs, half = lane_ / kTileOutputs;
#pragma unroll 1
    for (int i = warp_; i < tiles.count; i += kWarps) {
      const float* from = sums_ + (i * kWarps + half) * kTileOutputs + own;
      float total = 0;
#pragma unroll
      for (int j = 0; j < kWarps / 2; ++j) total += from[2 * j * kTileOutputs];
      total += __shfl_xor_sync(~0u, total, kTileOutputs);
      if (own >= 8) total *= 1.0f / 16;
      const int output = (tiles.begin + i) * kTileOutputs + own;
      const bool inside = output < l.outputs;
      if (l.bias_at != 0 && inside) {
        total += __ldg(reinterpret_cast<const float*>(weights.weights[linear] + l.bias_at) + output);
      }
      int element = output;
      if (linear == kGateUp) {
        const float up = __shfl_down_sync(~0u, total, 1);
        total = SiluMul(total, up);
        // Outputs 0, 2, ... to the first lanes.
        total = __shfl_sync(~0u, total, 2 * lane_ % kTileOutputs);
        element = (tiles.begin + i) * (kTileOutputs / 2) + own;
      } else if (linear != kQkv) {
        total = H::ToFloat(H::FromFloat(total + residual_[i * kTileOutputs + own]));
        __syncwarp();
        if (half == 0) residual_[i * kTileOutputs + own] = total;
      }
      const float next = __shfl_down_sync(~0u, total, 1);
      const int elements = linear == kGateUp ? kTileOutputs / 2 : kTileOutputs;
      const int end = linear == kGateUp ? l.outputs / 2 : l.outputs;
      if (lane_ < elements && lane_ % 2 == 0 && element < end) {
        StorePacket(packets + element / 2, PackHalves<T>(total, next), tag);
      }
    }
    // The next product's, or attention's, are others: they are written while these are read.
    sums_ += other_sums_;
    other_sums_ = -other_sums_;
  }

  // How a context is divided: parts of `length` tokens from the first on that is seen.
  struct Parts {
    int first, length, count;
  };
  __device__ Parts PartsOf(int context) const {
    const int first = max(0, context - a_.window), tokens = context - first;
    const int length = (tokens + a_.parts - 1) / a_.parts;
    return {first, length, (tokens + length - 1) / length};
  }

  static constexpr int kLanes = kDim / 8;  // of a token's keys or values, eight each
  static constexpr int kWarpTokens = 32 / kLanes;
  static constexpr int kTokensAtOnce = 5;  // of a lane

  // Eight elements of the q, k or v that begins there, and turned.
  __device__ bool LoadEight(const uint64_t* from, uint32_t tag, uint32_t (&bits)[4]) const {
    uint32_t low[2], high[2];
    const bool come = LoadPackets(from, tag, low) & LoadPackets(from + 2, tag, high);
    bits[0] = low[0];
    bits[1] = low[1];
    bits[2] = high[0];
    bits[3] = high[1];
    return come;
  }
  __device__ void Turn(const uint32_t (&own)[4], const uint32_t (&other)[4],
                       float (&out)[8]) const {
    const int chunk = lane_ % kLanes;
    const float sign = chunk < kLanes / 2 ? -1.0f : 1.0f;
    const float2* angles = angles_ + chunk % (kLanes / 2) * 8;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 x = FloatsOf<T>(own[i]), y = FloatsOf<T>(other[i]);
      out[2 * i] = x.x * angles[2 * i].x + sign * y.x * angles[2 * i].y;
      out[2 * i + 1] = x.y * angles[2 * i + 1].x + sign * y.y * angles[2 * i + 1].y;
    }
  }

  __device__ void Attend(int layer, uint32_t tag) {
    const int context = *a_.context;
    const Parts parts = PartsOf(context);
    const int head = static_cast<int>(blockIdx.x) / a_.parts;
    const int part = static_cast<int>(blockIdx.x) % a_.parts;
    const bool is_idle = head >= a_.heads || part >= parts.count;
    if (!is_idle) AttendPart(layer, tag, head, part, parts, context);
    SynchronizeConsumers();
    if (!is_idle) FinishPart(tag, head, part);
    sums_ += other_sums_;
    other_sums_ = -other_sums_;
  }

  __device__ void AttendPart(int layer, uint32_t tag, int head, int part, const Parts& parts,
                             int context) {
    const int kv_head = head / (a_.heads / a_.kv_heads);
    const int begin = parts.first + part * parts.length;
    const int end = min(begin + parts.length, context);
    const int chunk = lane_ % kLanes;
    auto* const keys = reinterpret_cast<T*>(a_.keys + 2 * layer * a_.half_layer_bytes);
    auto* const values = reinterpret_cast<T*>(a_.keys + (2 * layer + 1) * a_.half_layer_bytes);
    const auto place_of = [&](int token) {
      const int block = entries_[token / kBlockTokens - begin / kBlockTokens];
      return (static_cast<int64_t>(block * a_.kv_heads + kv_head) * kBlockTokens +
              token % kBlockTokens) *
                 kDim +
             chunk * 8;
    };
    const int64_t row = chunk * 8, other = (chunk ^ (kLanes / 2)) * 8;
    float query[8], highest = -INFINITY, sum = 0, out[8] = {};
    // Backwards, so that the newest token is the first lanes' first.
    int token = end - 1 - warp_ * kWarpTokens - lane_ / kLanes;
    bool is_first = true;
#pragma unroll 1
    do {
      uint4 k[kTokensAtOnce], v[kTokensAtOnce];
#pragma unroll
      for (int i = 0; i < kTokensAtOnce; ++i) {
        const int t = token - i * kWarps * kWarpTokens;
        k[i] = v[i] = uint4{};
        if (t < begin || (i == 0 && t == context - 1)) continue;
        const int64_t place = place_of(t);
        k[i] = *reinterpret_cast<const uint4*>(keys + place);
        v[i] = *reinterpret_cast<const uint4*>(values + place);
      }
      if (is_first) {
        const uint64_t* from = a_.qkv + static_cast<int64_t>(head) * kDim / 2;
        uint32_t a[4], b[4];
        bool come;
        do {
          come = LoadEight(from + row / 2, tag, a) & LoadEight(from + other / 2, tag, b);
        } while (!__all_sync(~0u, come));
        Turn(a, b, query);
        is_first = false;
      }
      if (token == context - 1) {  // the newest, which is not in the cache yet
        const uint64_t* key = a_.qkv + static_cast<int64_t>(a_.heads + kv_head) * kDim / 2;
        const uint64_t* value = key + static_cast<int64_t>(a_.kv_heads) * kDim / 2;
        uint32_t a[4], b[4], c[4];
        while (!(LoadEight(key + row / 2, tag, a) & LoadEight(key + other / 2, tag, b) &
                 LoadEight(value + row / 2, tag, c))) {
        }
        float turned[8];
        Turn(a, b, turned);
        k[0] = uint4{PackHalves<T>(turned[0], turned[1]), PackHalves<T>(turned[2], turned[3]),
                     PackHalves<T>(turned[4], turned[5]), PackHalves<T>(turned[6], turned[7])};
        v[0] = uint4{c[0], c[1], c[2], c[3]};
        if (head % (a_.heads / a_.kv_heads) == 0) {
          const int64_t place = place_of(token);
          *reinterpret_cast<uint4*>(keys + place) = k[0];
          *reinterpret_cast<uint4*>(values + place) = v[0];
        }
      }
      __syncwarp();
      float scores[kTokensAtOnce], top = highest;
#pragma unroll
      for (int i = 0; i < kTokensAtOnce; ++i) {
        const uint32_t words[4] = {k[i].x, k[i].y, k[i].z, k[i].w};
        float score = 0;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float2 x = FloatsOf<T>(words[j]);
          score = fmaf(x.x, query[2 * j], score);
          score = fmaf(x.y, query[2 * j + 1], score);
        }
#pragma unroll
        for (int step = kLanes / 2; step > 0; step /= 2) {
          score += __shfl_xor_sync(~0u, score, step);
        }
        scores[i] = token - i * kWarps * kWarpTokens >= begin ? score * a_.scale_log2 : -INFINITY;
        top = fmaxf(top, scores[i]);
      }
      const float shift = top == -INFINITY ? 0.0f : top;
      const float factor = Exp2(highest - shift);
      highest = top;
      sum *= factor;
#pragma unroll
      for (float& x : out) x *= factor;
#pragma unroll
      for (int i = 0; i < kTokensAtOnce; ++i) {
        const float weight = Exp2(scores[i] - shift);
        const uint32_t words[4] = {v[i].x, v[i].y, v[i].z, v[i].w};
        sum += weight;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float2 x = FloatsOf<T>(words[j]);
          out[2 * j] = fmaf(weight, x.x, out[2 * j]);
          out[2 * j + 1] = fmaf(weight, x.y, out[2 * j + 1]);
        }
      }
      token -= kTokensAtOnce * kWarps * kWarpTokens;
    } while (__any_sync(~0u, token >= begin));
    // The warp's tokens together.
#pragma unroll
    for (int step = kLanes; step < 32; step *= 2) {
      const float theirs = __shfl_xor_sync(~0u, highest, step), top = fmaxf(highest, theirs);
      const float shift = top == -INFINITY ? 0.0f : top;
      const float factor = Exp2(highest - shift), their_factor = Exp2(theirs - shift);
      highest = top;
      sum = sum * factor + __shfl_xor_sync(~0u, sum, step) * their_factor;
#pragma unroll
      for (float& x : out) x = x * factor + __shfl_xor_sync(~0u, x, step) * their_factor;
    }
    float* own = sums_ + warp_ * kPartStride;
    if (lane_ < kLanes) {
      auto* to = reinterpret_cast<float4*>(own + chunk * 8);
      to[0] = {out[0], out[1], out[2], out[3]};
      to[1] = {out[4], out[5], out[6], out[7]};
    }
    if (lane_ == 0) {
      own[kDim] = highest;
      own[kDim + 1] = sum;
    }
  }

  __device__ void FinishPart(uint32_t tag, int head, int part) {
    const int dim = static_cast<int>(threadIdx.x);
    if (dim >= kDim) return;
    float top = -INFINITY;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) top = fmaxf(top, sums_[w * kPartStride + kDim]);
    float sum = 0, out = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float* from = sums_ + w * kPartStride;
      const float factor = Exp2(from[kDim] - top);
      sum = fmaf(factor, from[kDim + 1], sum);
      out = fmaf(factor, from[dim], out);
    }
    out = __fdividef(out, sum);
    const float next = __shfl_down_sync(~0u, out, 1);
    const int at = head * kMostParts + part;
    if (dim % 2 == 0) StorePacket(a_.parts_packets + (at * kDim + dim) / 2, PackHalves<T>(out, next), tag);
    if (dim == 0) StorePacket(a_.part_sums + at, __float_as_uint(top + __log2f(sum)), tag);
  }

  static constexpr int kPartStride = kDim + 4;  // of a warp's sums in attention

  const FusedArguments& a_;
  int warp_, lane_;
  uint32_t ring_, full_, empty_;
  RingPlace place_;
  float* norm_sums_;
  const float2* angles_;
  const int32_t* entries_;
  uint32_t x_;       // [units][digits][4][8 steps] words of four inputs
  float* x_scales_;  // [units]
  float* sums_;  // [tiles][warps][16], or of attention
  int other_sums_ = a_.sum_tiles * kWarps * kTileOutputs;
  float* residual_;  // of the block's tiles
  uint32_t step_;
};

#endif  // NIBBLE_HOPPER_CODE

template <typename T, int kGranule, int kDim>
__global__ void __launch_bounds__(kThreads, 1)
    FusedLayersKernel(const __grid_constant__ FusedArguments a) {
#if NIBBLE_HOPPER_CODE
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ uint64_t full_barriers[kMostStages], empty_barriers[kMostStages];
  __shared__ float norm_sums[kWarps];
  __shared__ float2 angles[kDim / 2];
  __shared__ int32_t entries[kMostEntries];
  const auto thread = static_cast<int>(threadIdx.x);
  const uint32_t full = SharedAddress(full_barriers), empty = SharedAddress(empty_barriers);
  if (thread < a.stages) {
    InitializeBarrier(full + 8 * thread, 1);
    InitializeBarrier(empty + 8 * thread, kWarps);
  }
  PublishBarriers();
  WaitForLastKernel();
  if (thread < kDim / 2) angles[thread] = a.angles[thread];
  // Of the block's part of the context.
  const int context = *a.context, first = max(0, context - a.window);
  const int length = (context - first + a.parts - 1) / a.parts;
  const int begin = first + static_cast<int>(blockIdx.x) % a.parts * length;
  const int end = min(begin + length, context);
  for (int i = thread; (begin / kBlockTokens + i) * kBlockTokens < end; i += kThreads) {
    entries[i] = a.block_table[begin / kBlockTokens + i];
  }
  __syncthreads();
  // The same in all lanes, so that the compiler sees it.
  if (__shfl_sync(~0u, thread / 128, 0) == kWarps / 4) {
    GiveRegisters<kCopyRegisters>();
    if (thread == kConsumers) BringWeights<kGranule>(a, SharedAddress(shared), full, empty);
  } else {
    TakeRegisters<kConsumerRegisters>();
    FusedWarp<T, kGranule, kDim>(a, shared, full, empty, norm_sums, angles, entries).Run();
  }
#endif
}

const CudaLinear& WeightOf(const DecoderLayer& layer, int linear) {
  const PreparedLinear* const all[] = {layer.qkv, layer.output, layer.gate_up, layer.down};
  return static_cast<const CudaLinear&>(*all[linear]);
}

q4::Geometry GeometryOf(const CudaLinear& weight) {
  const Q4Layout& layout = *weight.layout().q4;
  return q4::Geometry::Of(layout.out_features, layout.in_features, layout.group_length);
}

// Without Hopper's code the kernel is empty and has no barriers.
bool HasFusedLayers() {
  static const bool has = [] {
    cudaFuncAttributes attributes;
    return cudaFuncGetAttributes(&attributes, FusedLayersKernel<__half, 128, 128>) == cudaSuccess &&
           attributes.sharedSizeBytes > 0;
  }();
  return has;
}

// Of the first layer's weights, and what follows from them.
FusedArguments ShapeOf(std::span<const DecoderLayer> layers, int multiprocessors) {
  FusedArguments a{};
  a.layers = static_cast<int>(layers.size());
  int units = 0, tiles = 0;
  for (int i = 0; i < kLinears; ++i) {
    const CudaLinear& weight = WeightOf(layers[0], i);
    const q4::Geometry geometry = GeometryOf(weight);
    const Q4Layout& layout = *weight.layout().q4;
    a.linears[i] = {
        .tiles = geometry.tiles,
        .units = geometry.units,
        .inputs = geometry.in_features,
        .outputs = geometry.out_features,
        .codes_at = static_cast<uint32_t>(layout.codes_offset),
        .scales_at = static_cast<uint32_t>(layout.scales_offset),
        .zeros_at = layout.symmetric ? 0 : static_cast<uint32_t>(layout.zeros_offset),
        .bias_at = weight.layout().has_bias ? static_cast<uint32_t>(weight.layout().bias_at) : 0};
    units = std::max(units, geometry.units);
    tiles = std::max(tiles, CeilDiv(geometry.tiles, multiprocessors));
  }
  const AttentionSpec& attention = layers[0].attention;
  a.units = units;
  // Attention's sums take the place of some tiles'.
  a.sum_tiles = std::max(tiles, static_cast<int>(attention.head_dim) / kTileOutputs + 1);
  a.heads = static_cast<int>(attention.heads);
  a.kv_heads = static_cast<int>(attention.kv_heads);
  a.parts = std::min(kMostParts, multiprocessors / a.heads);
  a.window = WindowOf(attention);
  a.scale_log2 = attention.scale * kLog2E;
  return a;
}

// As many stages as there is room for; 0 where there is too little.
template <int kGranule>
int StagesOf(FusedArguments a) {
  constexpr int kStatic = 4 << 10;  // what the kernel declares
  const auto available = static_cast<int>(q4::SharedMemory::OfDevice().of_block) - kStatic;
  a.stages = 0;
  const int rest = available - FusedShared::Of<kGranule>(a).total;
  const int stages = rest / Stage<kGranule>::kBytes;
  return stages < 2 ? 0 : std::min(stages, kMostStages);
}

template <typename Body>
auto WithGranule(int granule, const Body& body) {
  switch (granule) {
    default:
      return body.template operator()<128>();
  }
}

constexpr size_t Aligned(size_t bytes) { return RoundUp<size_t>(bytes, 256); }

}  // namespace

bool CanFuseLayers(std::span<const DecoderLayer> layers, const KvLayout& cache, DType activations,
                   int64_t context, int multiprocessors) {
  if (layers.empty() || layers.size() > kMostLayers || !HasFusedLayers()) return false;
  const AttentionSpec& attention = layers[0].attention;
  if (cache.scaled() || attention.head_dim != 128 || activations != DType::kF16 ||
      attention.heads > multiprocessors) {
    return false;
  }
  int granule = 0;
  for (const DecoderLayer& layer : layers) {
    if (layer.attention.window != attention.window) return false;
    for (int i = 0; i < kLinears; ++i) {
      const CudaLinear& weight = WeightOf(layer, i);
      const LinearLayout& layout = weight.layout();
      if (!layout.q4 || layout.has_order) return false;
      const LinearLayout& first = WeightOf(layers[0], i).layout();
      if (layout.total_bytes != first.total_bytes || layout.has_bias != first.has_bias ||
          layout.q4->symmetric != first.q4->symmetric ||
          layout.q4->group_length != first.q4->group_length ||
          layout.total_bytes > std::numeric_limits<uint32_t>::max()) {
        return false;
      }
      const q4::Geometry geometry = GeometryOf(weight);
      if (granule == 0) granule = geometry.granule;
      if (geometry.spreads || geometry.units_per_scale != 1 || geometry.granule != granule ||
          geometry.in_features % 4 != 0) {
        return false;
      }
    }
  }
  const FusedArguments a = ShapeOf(layers, multiprocessors);
  const int64_t part = CeilDiv<int64_t>(std::min<int64_t>(context, a.window), a.parts);
  return granule == 128 && CeilDiv(a.linears[kQkv].units, kStageUnits) <= kNormRounds &&
         CeilDiv<int64_t>(part, kBlockTokens) + 1 <= kMostEntries &&
         WithGranule(granule, [&]<int kGranule>() { return StagesOf<kGranule>(a); }) > 0;
}

namespace {

// Offsets in bytes of what the kernel keeps in scratch memory.
struct FusedScratch {
  size_t step = 0, qkv, parts, part_sums, middle, gated, out, total;
  FusedScratch(int64_t hidden, int64_t intermediate, int64_t heads, int64_t kv_heads,
               int64_t head_dim) {
    size_t end = Aligned(sizeof(uint32_t));
    const auto packets = [&end](int64_t count) {
      const size_t begin = end;
      end += Aligned(static_cast<size_t>(count) * sizeof(uint64_t));
      return begin;
    };
    qkv = packets((heads + 2 * kv_heads) * head_dim / 2);
    parts = packets(heads * kMostParts * head_dim / 2);
    part_sums = packets(heads * kMostParts);
    middle = packets(CeilDiv<int64_t>(hidden, 2));
    gated = packets(CeilDiv<int64_t>(intermediate, 2));
    out = packets(CeilDiv<int64_t>(hidden, 2));
    total = end;
  }
};

}  // namespace

size_t FusedLayersScratchBytes(const ModelExtents& model) {
  return FusedScratch(model.hidden, model.intermediate, model.heads, model.kv_heads,
                      model.head_dim)
      .total;
}

void RunFusedLayers(Stream& stream, const DeviceBatch& batch, std::span<const DecoderLayer> layers,
                    const float2* angles, float epsilon, const FusedKv& kv, MatrixView residual,
                    void* scratch) {
  CHECK(batch.rows == 1 && residual.rows == 1 && batch.prefill_tile_count == 0);
  FusedArguments a = ShapeOf(layers, stream.multiprocessors());
  const AttentionSpec& attention = layers[0].attention;
  const FusedScratch places(a.linears[kOutput].outputs, a.linears[kDown].inputs, a.heads,
                            a.kv_heads, attention.head_dim);
  auto* const memory = static_cast<std::byte*>(scratch);
  const auto packets = [memory](size_t at) { return reinterpret_cast<uint64_t*>(memory + at); };
  a.epsilon = epsilon;
  a.keys = kv.keys;
  a.half_layer_bytes = kv.half_layer_bytes;
  a.context = batch.context_lengths;
  a.block_table = batch.block_tables;
  a.angles = angles;
  a.residual = residual.data;
  a.step = reinterpret_cast<uint32_t*>(memory + places.step);
  a.qkv = packets(places.qkv);
  a.parts_packets = packets(places.parts);
  a.part_sums = packets(places.part_sums);
  a.middle = packets(places.middle);
  a.gated = packets(places.gated);
  a.out = packets(places.out);
  for (size_t i = 0; i < layers.size(); ++i) {
    for (int j = 0; j < kLinears; ++j) {
      a.layer[i].weights[j] = static_cast<const std::byte*>(WeightOf(layers[i], j).weight());
    }
    a.layer[i].input_gain = layers[i].input_norm.row<float>(0);
    a.layer[i].post_gain = layers[i].post_attention_norm.row<float>(0);
  }
  WithGranule(GeometryOf(WeightOf(layers[0], kQkv)).granule, [&]<int kGranule>() {
    a.stages = StagesOf<kGranule>(a);
    LaunchDependent(stream, FusedLayersKernel<__half, kGranule, 128>,
                    static_cast<unsigned>(stream.multiprocessors()), kThreads,
                    static_cast<size_t>(FusedShared::Of<kGranule>(a).total), a);
  });
  stream.CheckLaunch("a step's layers", 1, residual.columns);
}

}  // namespace nibble::cuda

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
#include "src/ops/cuda/linear_q4_held.cuh"
#include "src/ops/cuda/load_matrices.cuh"

namespace nibble::cuda {
namespace {

using q4::kTileOutputs;
using q4::kUnitBytes;
using q4::kUnitInputs;

constexpr int kWarps = 16;
constexpr int kThreads = 32 * kWarps;
constexpr int kChunkUnits = 2;  // of a stage, of one tile
constexpr int kMostStages = 8;
constexpr int kMostLayers = 128;
constexpr int kMostParts = 4;      // of a head's context
constexpr int kMostEntries = 512;  // of the block table, of a part
constexpr int kNormUnits = 4;      // of a warp: up to 8,192 inputs
constexpr int kFetchedUnits = 8;   // at once

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
  int warp_units;  // of x in a warp's memory, at most
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

template <int kGranule>
struct Chunk {
  static constexpr int kGrids = kUnitInputs / kGranule;
  static constexpr int kScales = kChunkUnits * kUnitBytes;
  static constexpr int kZeros = kScales + kChunkUnits * 32 * kGrids;
  static constexpr int kBytes = kZeros + kChunkUnits * 16 * kGrids;
};

// What lies where in shared memory, in bytes; the ring is at 0.
struct FusedShared {
  int x, sums, residual, total;

  template <int kGranule>
  __host__ __device__ static FusedShared Of(const FusedArguments& a) {
    FusedShared s;
    s.x = kWarps * a.stages * Chunk<kGranule>::kBytes;
    s.sums = s.x + kWarps * a.warp_units * kUnitInputs * 2;
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
// A warp's units of a weight.
struct Units {
  int begin, end;
  __device__ Units(int units, int warp)
      : begin(warp * units / kWarps), end((warp + 1) * units / kWarps) {}
};

// A warp's chunks of all weights, in the order of their use: layer by layer, weight by weight, for
// every two of its units all tiles of the block. Lane 0 asks for them.
template <int kGranule>
class WeightStream {
  using C = Chunk<kGranule>;

 public:
  __device__ WeightStream(const FusedArguments& a, int warp, uint32_t ring, uint32_t barriers)
      : a_(a), warp_(warp), ring_(ring), barriers_(barriers) {}

  __device__ void Begin() {
    linear_ = kQkv;
    layer_ = 0;
    BeginLinear();
    for (int i = 0; i < a_.stages; ++i) Ask(i);
  }
  // The stage of the next chunk, when that is there.
  __device__ uint32_t Wait() const {
    WaitForPhase(barriers_ + 8 * slot_, parity_);
    return ring_ + slot_ * C::kBytes;
  }
  // All lanes are done with it.
  __device__ void Refill(int lane) {
    __syncwarp();
    if (lane == 0) Ask(slot_);
    if (++slot_ == a_.stages) {
      slot_ = 0;
      parity_ ^= 1;
    }
  }

 private:
  __device__ void BeginLinear() {
    do {
      if (layer_ == a_.layers) return;
      const FusedLinear& l = a_.linears[linear_];
      weight_ = a_.layer[layer_].weights[linear_];
      unit_ = Units(l.units, warp_).begin - kChunkUnits;
      tiles_left_ = Tiles(l.tiles).count;
      BeginUnits();
    } while (count_ <= 0);
  }
  // The next units, of all tiles; or the next weight, where there are no more of this one.
  __device__ void BeginUnits() {
    const FusedLinear& l = a_.linears[linear_];
    unit_ += kChunkUnits;
    count_ = min(kChunkUnits, Units(l.units, warp_).end - unit_);
    const Tiles tiles(l.tiles);
    tiles_left_ = tiles.count;
    at_ = tiles.begin * l.units + unit_;
    if (count_ > 0 && tiles.count > 0) return;
    count_ = 0;
    if (++linear_ == kLinears) {
      linear_ = 0;
      ++layer_;
    }
  }
  __device__ void Ask(int slot) {
    if (layer_ == a_.layers) return;
    const FusedLinear& l = a_.linears[linear_];
    const uint32_t to = ring_ + slot * C::kBytes, barrier = barriers_ + 8 * slot;
    const int per_unit = kUnitBytes + (l.zeros_at != 0 ? 48 : 32) * C::kGrids;
    ArriveExpecting(barrier, count_ * per_unit);
    CopyBulk(to, weight_ + l.codes_at + static_cast<uint32_t>(at_) * kUnitBytes,
             count_ * kUnitBytes, barrier);
    CopyBulk(to + C::kScales, weight_ + l.scales_at + static_cast<uint32_t>(at_) * (32 * C::kGrids),
             count_ * 32 * C::kGrids, barrier);
    if (l.zeros_at != 0) {
      CopyBulk(to + C::kZeros, weight_ + l.zeros_at + static_cast<uint32_t>(at_) * (16 * C::kGrids),
               count_ * 16 * C::kGrids, barrier);
    }
    at_ += l.units;
    if (--tiles_left_ > 0) return;
    BeginUnits();
    if (count_ == 0) BeginLinear();
  }

  const FusedArguments& a_;
  int warp_;
  uint32_t ring_, barriers_;
  uint32_t slot_ = 0, parity_ = 0;
  // Of what is asked for next: `count_` units from unit_ on, of the tile where the units' index is at_.
  const std::byte* weight_;
  int layer_, linear_, unit_, count_, tiles_left_, at_;
};

// A warp's part of all that a block does.
template <typename T, int kGranule, int kDim>
class FusedWarp {
  using H = HalfTraits<T>;

 public:
  __device__ FusedWarp(const FusedArguments& a, unsigned char* shared, uint32_t barriers,
                       float* norm_sums, const float2* angles, const int32_t* entries)
      : a_(a),
        warp_(static_cast<int>(threadIdx.x) / 32),
        lane_(static_cast<int>(threadIdx.x) % 32),
        norm_sums_(norm_sums),
        angles_(angles),
        entries_(entries),
        stream_(a, warp_,
                SharedAddress(shared) + warp_ * a.stages * Chunk<kGranule>::kBytes,
                barriers + warp_ * kMostStages * 8) {
    const FusedShared places = FusedShared::Of<kGranule>(a);
    x_ = SharedAddress(shared) + places.x + warp_ * a.warp_units * kUnitInputs * 2;
    sums_ = reinterpret_cast<float*>(shared + places.sums);
    residual_ = reinterpret_cast<float*>(shared + places.residual);
    step_ = *a.step;
  }

  __device__ void Run() {
    if (lane_ == 0) stream_.Begin();
    const uint32_t first_tag = step_ * static_cast<uint32_t>(a_.layers + 1) + 1;
    PublishResidual(first_tag);
    for (int layer = 0; layer < a_.layers; ++layer) {
      const uint32_t tag = first_tag + static_cast<uint32_t>(layer);
      const FusedLayer& weights = a_.layer[layer];
      FetchNormed(a_.out, weights.input_gain, tag);
      Multiply(kQkv);
      Finish(kQkv, weights, a_.qkv, tag);
      Attend(layer, tag);
      FetchAttention(tag);
      Multiply(kOutput);
      Finish(kOutput, weights, a_.middle, tag);
      FetchNormed(a_.middle, weights.post_gain, tag);
      Multiply(kGateUp);
      Finish(kGateUp, weights, a_.gated, tag);
      Fetch(a_.gated, tag);
      Multiply(kDown);
      Finish(kDown, weights, a_.out, tag + 1);
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

  // Waits for elements of `count` units from the first-th on, four to a lane and unit.
  template <int kCount>
  __device__ void Receive(const uint64_t* from, uint32_t tag, int first, int count, int inputs,
                          uint32_t (&bits)[kCount][2]) const {
    bool come;
    do {
      come = true;
#pragma unroll
      for (int u = 0; u < kCount; ++u) {
        const int k = (first + u) * kUnitInputs + 4 * lane_;
        bits[u][0] = bits[u][1] = 0;
        if (u < count && k < inputs) come &= LoadPackets(from + k / 2, tag, bits[u]);
      }
    } while (!__all_sync(~0u, come));
  }
  // To the warp's memory.
  __device__ void PutX(int unit, uint32_t low, uint32_t high) const {
    asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(x_ + unit * kUnitInputs * 2 + 8 * lane_),
                 "r"(low), "r"(high)
                 : "memory");
  }

  __device__ void Fetch(const uint64_t* from, uint32_t tag) const {
    const FusedLinear& l = a_.linears[kDown];
    const Units units(l.units, warp_);
    for (int first = units.begin; first < units.end; first += kFetchedUnits) {
      uint32_t bits[kFetchedUnits][2];
      const int count = min(kFetchedUnits, units.end - first);
      Receive(from, tag, first, count, l.inputs, bits);
#pragma unroll
      for (int u = 0; u < kFetchedUnits; ++u) {
        if (u < count) PutX(first - units.begin + u, bits[u][0], bits[u][1]);
      }
    }
    __syncwarp();
  }

  // x · gain / sqrt(mean(x²) + epsilon)
  __device__ void FetchNormed(const uint64_t* from, const float* gain, uint32_t tag) const {
    const FusedLinear& l = a_.linears[kQkv];
    const Units units(l.units, warp_);
    const int count = units.end - units.begin;
    float4 gains[kNormUnits];
#pragma unroll
    for (int u = 0; u < kNormUnits; ++u) {
      const int k = (units.begin + u) * kUnitInputs + 4 * lane_;
      gains[u] = u < count && k < l.inputs ? __ldg(reinterpret_cast<const float4*>(gain + k))
                                           : float4{};
    }
    uint32_t bits[kNormUnits][2];
    Receive(from, tag, units.begin, count, l.inputs, bits);
    float squares = 0;
#pragma unroll
    for (int u = 0; u < kNormUnits; ++u) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float2 x = FloatsOf<T>(bits[u][i]);
        squares += x.x * x.x + x.y * x.y;
      }
    }
    squares = SumOverWarp(squares);
    if (lane_ == 0) norm_sums_[warp_] = squares;
    __syncthreads();
    squares = norm_sums_[lane_ % kWarps];
#pragma unroll
    for (int step = kWarps / 2; step > 0; step /= 2) {
      squares += __shfl_xor_sync(~0u, squares, step);
    }
    const float factor = rsqrtf(squares / static_cast<float>(l.inputs) + a_.epsilon);
#pragma unroll
    for (int u = 0; u < kNormUnits; ++u) {
      if (u >= count) break;
      const float2 x = FloatsOf<T>(bits[u][0]), y = FloatsOf<T>(bits[u][1]);
      PutX(u, PackHalves<T>(x.x * factor * gains[u].x, x.y * factor * gains[u].y),
           PackHalves<T>(y.x * factor * gains[u].z, y.y * factor * gains[u].w));
    }
    __syncwarp();
  }

  // The heads' outputs from those of their parts.
  __device__ void FetchAttention(uint32_t tag) const {
    const FusedLinear& l = a_.linears[kOutput];
    const Units units(l.units, warp_);
    const int parts = PartsOf(*a_.context).count;
    for (int unit = units.begin; unit < units.end; ++unit) {
      const int k = unit * kUnitInputs + 4 * lane_;
      const int head = k / kDim, dim = k % kDim;
      uint32_t bits[kMostParts][2], sums[kMostParts];
      bool come;
      do {
        come = true;
#pragma unroll
        for (int p = 0; p < kMostParts; ++p) {
          const int at = head * kMostParts + p;
          bits[p][0] = bits[p][1] = 0;
          sums[p] = __float_as_uint(-INFINITY);
          if (p >= parts || k >= l.inputs) continue;
          come &= LoadPackets(a_.parts_packets + (at * kDim + dim) / 2, tag, bits[p]);
          come &= LoadPacket(a_.part_sums + at, tag, sums[p]);
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
      if (k >= l.inputs) {
        low = high = {};
        sum = 1;
      }
      PutX(unit - units.begin, PackHalves<T>(low.x / sum, low.y / sum),
           PackHalves<T>(high.x / sum, high.y / sum));
    }
    __syncwarp();
  }

  // The block's tiles times the warp's x, to sums_.
  __device__ void Multiply(LinearOfLayer linear) {
    const FusedLinear& l = a_.linears[linear];
    const Units units(l.units, warp_);
    const int tiles = Tiles(l.tiles).count;
    const bool has_zeros = l.zeros_at != 0;
    float* to = sums_ + warp_ * kTileOutputs + lane_ / 4;
    int first = units.begin;
    do {  // once where a warp has no units: its sums are zero
      q4::HeldUnit<kGranule> held[kChunkUnits][1];
#pragma unroll
      for (int u = 0; u < kChunkUnits; ++u) {
        const uint32_t x = x_ + (first - units.begin + u) * kUnitInputs * 2;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          uint32_t b[4];
          LoadMatrices(x + (4 * i + lane_ / 8) * 16, b);
          held[u][0].x[i] = uint4{b[0], b[1], b[2], b[3]};
        }
        q4::SumHeld<T>(held[u][0]);
      }
      const int count = units.end - first;
      for (int i = 0; i < tiles; ++i) {
        float sum[1][4] = {};
        if (count > 0) {
          using C = Chunk<kGranule>;
          const uint32_t stage = stream_.Wait();
          const auto consume = [&](int u) {
            q4::ConsumeUnit<T>(sum, stage + u * kUnitBytes + 16 * lane_,
                               stage + C::kScales + u * 32 * C::kGrids,
                               stage + C::kZeros + u * 16 * C::kGrids, has_zeros, held[u], lane_);
          };
          consume(0);
          if (count > 1) consume(1);
          stream_.Refill(lane_);
        }
        // All columns are the same row.
        if (lane_ % 4 == 0) {
          float* own = to + i * kWarps * kTileOutputs;
          const bool adds = first != units.begin;
          own[0] = sum[0][0] + (adds ? own[0] : 0);
          own[8] = sum[0][2] + (adds ? own[8] : 0);
        }
      }
      first += kChunkUnits;
    } while (first < units.end);
    __syncthreads();
  }

  // Adds up the block's outputs and publishes them.
  __device__ void Finish(LinearOfLayer linear, const FusedLayer& weights, uint64_t* packets,
                         uint32_t tag) {
    const FusedLinear& l = a_.linears[linear];
    const Tiles tiles(l.tiles);
    const int own = lane_ % kTileOutputs, half = lane_ / kTileOutputs;
    for (int i = warp_; i < tiles.count; i += kWarps) {
      const float* from = sums_ + (i * kWarps + half) * kTileOutputs + own;
      float total = 0;
#pragma unroll
      for (int j = 0; j < kWarps / 2; ++j) total += from[2 * j * kTileOutputs];
      total += __shfl_xor_sync(~0u, total, kTileOutputs);
      total *= own < 8 ? q4::Codes<T>::kLowUnit : q4::Codes<T>::kHighUnit;
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
    __syncthreads();
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
    float query[8], highest = -INFINITY, sum = 0, out[8] = {};
    int token = begin + warp_ * kWarpTokens + lane_ / kLanes;
    for (bool is_first = true; is_first || __any_sync(~0u, token < end); is_first = false) {
      uint4 k[kTokensAtOnce], v[kTokensAtOnce];
#pragma unroll
      for (int i = 0; i < kTokensAtOnce; ++i) {
        const int t = token + i * kWarps * kWarpTokens;
        k[i] = v[i] = uint4{};
        if (t >= end || t == context - 1) continue;
        const int64_t place = place_of(t);
        k[i] = *reinterpret_cast<const uint4*>(keys + place);
        v[i] = *reinterpret_cast<const uint4*>(values + place);
      }
      const int64_t row = chunk * 8, other = (chunk ^ (kLanes / 2)) * 8;
      if (is_first) {
        const uint64_t* from = a_.qkv + static_cast<int64_t>(head) * kDim / 2;
        uint32_t a[4], b[4];
        bool come;
        do {
          come = LoadEight(from + row / 2, tag, a) & LoadEight(from + other / 2, tag, b);
        } while (!__all_sync(~0u, come));
        Turn(a, b, query);
      }
#pragma unroll
      for (int i = 0; i < kTokensAtOnce; ++i) {
        const int t = token + i * kWarps * kWarpTokens;
        if (t >= end || t != context - 1) continue;
        // The newest token is not in the cache yet.
        const uint64_t* key = a_.qkv + static_cast<int64_t>(a_.heads + kv_head) * kDim / 2;
        const uint64_t* value = key + static_cast<int64_t>(a_.kv_heads) * kDim / 2;
        uint32_t a[4], b[4], c[4];
        while (!(LoadEight(key + row / 2, tag, a) & LoadEight(key + other / 2, tag, b) &
                 LoadEight(value + row / 2, tag, c))) {
        }
        float turned[8];
        Turn(a, b, turned);
        k[i] = uint4{PackHalves<T>(turned[0], turned[1]), PackHalves<T>(turned[2], turned[3]),
                     PackHalves<T>(turned[4], turned[5]), PackHalves<T>(turned[6], turned[7])};
        v[i] = uint4{c[0], c[1], c[2], c[3]};
        if (head % (a_.heads / a_.kv_heads) == 0) {
          const int64_t place = place_of(t);
          *reinterpret_cast<uint4*>(keys + place) = k[i];
          *reinterpret_cast<uint4*>(values + place) = v[i];
        }
      }
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
        scores[i] = token + i * kWarps * kWarpTokens < end ? score * a_.scale_log2 : -INFINITY;
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
      token += kTokensAtOnce * kWarps * kWarpTokens;
    }
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
  float* norm_sums_;
  const float2* angles_;
  const int32_t* entries_;
  uint32_t x_;
  float* sums_;  // [tiles][warps][16], or of attention
  int other_sums_ = a_.sum_tiles * kWarps * kTileOutputs;
  float* residual_;  // of the block's tiles
  uint32_t step_;
  WeightStream<kGranule> stream_;
};

#endif  // NIBBLE_HOPPER_CODE

template <typename T, int kGranule, int kDim>
__global__ void __launch_bounds__(kThreads, 1)
    FusedLayersKernel(const __grid_constant__ FusedArguments a) {
#if NIBBLE_HOPPER_CODE
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ uint64_t barriers[kWarps * kMostStages];
  __shared__ float norm_sums[kWarps];
  __shared__ float2 angles[kDim / 2];
  __shared__ int32_t entries[kMostEntries];
  const auto thread = static_cast<int>(threadIdx.x);
  if (thread < kWarps * kMostStages) InitializeBarrier(SharedAddress(barriers + thread), 1);
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
  FusedWarp<T, kGranule, kDim>(a, shared, SharedAddress(barriers), norm_sums, angles, entries)
      .Run();
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
    units = std::max(units, CeilDiv(geometry.units, kWarps));
    tiles = std::max(tiles, CeilDiv(geometry.tiles, multiprocessors));
  }
  const AttentionSpec& attention = layers[0].attention;
  a.warp_units = RoundUp(units, kChunkUnits);
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
  const int stages = rest / (kWarps * Chunk<kGranule>::kBytes);
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
  return granule == 128 && CeilDiv(a.linears[kQkv].units, kWarps) <= kNormUnits &&
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

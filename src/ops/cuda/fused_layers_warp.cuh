// A multiplying warp's way through all layers in fused_layers.cu.
#ifndef NIBBLE_OPS_CUDA_FUSED_LAYERS_WARP_CUH_
#define NIBBLE_OPS_CUDA_FUSED_LAYERS_WARP_CUH_

#include "src/ops/cuda/fused_layers_helpers.cuh"

namespace nibble::cuda::fused {

#if NIBBLE_HOPPER_CODE

template <typename T, int kGranule, int kDim>
class FusedWarp {
  using H = HalfTraits<T>;

 public:
  __device__ explicit FusedWarp(const FusedArguments& a)
      : a_(a),
        warp_(static_cast<int>(threadIdx.x) / 32),
        lane_(static_cast<int>(threadIdx.x) % 32) {}

  __device__ void Run() {
    const uint32_t first_tag = FirstTag(a_);
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
        if (linear == kQkv) PrefetchGains(weights.post_gain);
        if (linear == kGateUp) PrefetchGains(a_.layer[min(layer + 1, a_.layers - 1)].input_gain);
        Multiply(a_.linears[linear]);
        SynchronizeConsumers();
        Finish(linear, weights, linear == kDown ? tag + 1 : tag);
        if (linear == kQkv) Attend(layer, tag);
      }
    }
    // Everybody has read the number: nothing would be here otherwise.
    if (blockIdx.x == 0 && threadIdx.x == 0) ++*a_.step;
    const Tiles tiles(a_.linears[kDown].tiles);
    for (int i = warp_; i < tiles.count; i += kWarps) {
      const int output = (tiles.begin + i) * kTileOutputs + lane_;
      if (lane_ < kTileOutputs && output < a_.linears[kDown].outputs) {
        static_cast<T*>(a_.residual)[output] =
            H::FromFloat(FloatsAt(a_.shared.residual)[i * kTileOutputs + lane_]);
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
      const float value = inside ? H::ToFloat(static_cast<const T*>(a_.residual)[output]) : 0.0f;
      if (lane_ < kTileOutputs) FloatsAt(a_.shared.residual)[i * kTileOutputs + lane_] = value;
      const float next = __shfl_down_sync(~0u, value, 1);
      if (inside && lane_ < kTileOutputs && lane_ % 2 == 0) {
        StorePacket(a_.out + PlaceOf(output / 2), PackHalves<T>(value, next), tag);
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
    bool come = false;
    do {
      if (come) continue;  // what waits asks again, nobody else
      come = true;
#pragma unroll
      for (int i = 0; i < kRounds * kHeldUnits; ++i) {
        const int unit = UnitOf(round + i / kHeldUnits, i % kHeldUnits);
        bits[i][0] = bits[i][1] = 0;
        if (FirstInput(unit) < inputs) {
          come &= LoadPackets(from + unit * (kUnitInputs / 2) + 2 * lane_, tag, bits[i]);
        }
      }
    } while (!__all_sync(~0u, come));
  }

  // Keeps a unit of x as integers of three signed digits of 8 bits and a power of two: the digits
  // of the largest are all in use.
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
      asm volatile("st.shared.u32 [%0], %1;" ::"r"(AddressOf(a_.shared.x) +
                                                   (unit * kDigits + digit) * kUnitInputs +
                                                   lane_ % 4 * 32 + lane_ / 4 * 4),
                   "r"(word)
                   : "memory");
#pragma unroll
      for (int& rest : q) rest = (rest + 128) >> 8;
    }
    if (lane_ == 0) {
      FloatsAt(a_.shared.x_scales)[unit] =
          bits >= 0x7f800000u ? __int_as_float(0x7fc00000) : __int_as_float((exponent - 21) << 23);
    }
  }

  __device__ void Fetch(const uint64_t* from, uint32_t tag) {
    BeginPhase();
    const FusedLinear& l = a_.linears[kDown];
#pragma unroll 1
    for (int first = 0; first < RoundsOf(l.units); first += kFetchedRounds) {
      uint32_t bits[kFetchedRounds * kHeldUnits][2];
      Receive<kFetchedRounds>(from, tag, first, l.inputs, bits);
      HoldBackWeights(false);
#pragma unroll
      for (int i = 0; i < kFetchedRounds * kHeldUnits; ++i) {
        const int unit = UnitOf(first + i / kHeldUnits, i % kHeldUnits);
        if (unit < l.units) PutX(unit, FloatsOf<T>(bits[i][0]), FloatsOf<T>(bits[i][1]));
      }
    }
    __syncwarp();
  }

  // Into the second-level cache.
  __device__ void PrefetchGains(const float* gain) const {
    for (int round = 0; round < RoundsOf(a_.linears[kQkv].units); ++round) {
      const int k = UnitOf(round, 0) * kUnitInputs + lane_ * 8;
      if (k < a_.linears[kQkv].inputs) Prefetch(gain + k);
    }
  }
  // x · gain / sqrt(mean(x²) + epsilon)
  __device__ void FetchNormed(const uint64_t* from, const float* gain, uint32_t tag) {
    BeginPhase();
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
    if (lane_ == 0) Fixed().norm_sums[warp_] = squares;
    SynchronizeConsumers();
    HoldBackWeights(false);
    squares = Fixed().norm_sums[lane_ % kWarps];
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

  // The heads' outputs from those of their parts, of a round's units at once: what is asked for
  // under way of weights takes more than a microsecond to come.
  __device__ void FetchAttention(uint32_t tag) {
    BeginPhase();
    const FusedLinear& l = a_.linears[kOutput];
    const int parts = Fixed().parts;
    constexpr int kHeads = kUnitInputs / kDim;  // of a unit
#pragma unroll 1
    for (int round = 0; round < RoundsOf(l.units); ++round) {
      const int first = UnitOf(round, 0), head = first * kHeads;
      // Lane i has the sum of part i % kMostParts of the round's head i / kMostParts.
      const uint64_t* const part_sums = a_.part_sums + head * kMostParts + lane_;
      const bool has_sum = lane_ < kHeldUnits * kHeads * kMostParts && lane_ % kMostParts < parts &&
                           head + lane_ / kMostParts < a_.heads;
      const int own_head = lane_ / 4 * 16 / kDim;
      const uint64_t* const packets =
          a_.parts_packets + (head + own_head) * (kMostParts * kDim / 2) + 2 * lane_ % (kDim / 2);
      const auto inside = [&](int u) { return FirstInput(first + u) < l.inputs; };  // k + 8 too
      uint32_t bits[kHeldUnits][kMostParts][2], part_sum;
      bool come;
      do {
        part_sum = __float_as_uint(-INFINITY);
        come = !has_sum || LoadPacket(part_sums, tag, part_sum);
#pragma unroll
        for (int u = 0; u < kHeldUnits; ++u) {
#pragma unroll
          for (int p = 0; p < kMostParts; ++p) {
            bits[u][p][0] = bits[u][p][1] = 0;
            if (p >= parts || !inside(u)) continue;
            come &=
                LoadPackets(packets + (u * kHeads * kMostParts + p) * (kDim / 2), tag, bits[u][p]);
          }
        }
      } while (!__all_sync(~0u, come));
#pragma unroll
      for (int u = 0; u < kHeldUnits; ++u) {
        if (first + u >= l.units) break;
        float factors[kMostParts], top = -INFINITY, sum = 0;
#pragma unroll
        for (int p = 0; p < kMostParts; ++p) {
          factors[p] =
              __uint_as_float(__shfl_sync(~0u, part_sum, (u * kHeads + own_head) * kMostParts + p));
          top = fmaxf(top, factors[p]);
        }
        float2 low{}, high{};
#pragma unroll
        for (int p = 0; p < kMostParts; ++p) {
          const float factor = Exp2(factors[p] - top);
          const float2 x = FloatsOf<T>(bits[u][p][0]), y = FloatsOf<T>(bits[u][p][1]);
          sum += factor;
          low = {fmaf(factor, x.x, low.x), fmaf(factor, x.y, low.y)};
          high = {fmaf(factor, y.x, high.x), fmaf(factor, y.y, high.y)};
        }
        const float share = inside(u) ? __fdividef(1, sum) : 0;
        if (!inside(u)) low = high = {};
        PutX(first + u, {low.x * share, low.y * share}, {high.x * share, high.y * share});
      }
    }
    __syncwarp();
  }

  static constexpr int kGrids = kUnitInputs / kGranule;
  static_assert(kHeldUnits == 2);
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
      const uint32_t from = AddressOf(a_.shared.x) +
                            (unit * kDigits + min(column, kDigits - 1)) * kUnitInputs +
                            lane_ % 4 * 32;
      low = q4::LoadShared16(from);
      high = q4::LoadShared16(from + 16);
    }
    const uint32_t all[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) held.x[i] = all[i];
    held.scale = FloatsAt(a_.shared.x_scales)[unit] * (lane_ % 4 == 0 ? 256.0f : 1.0f);
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

  // A code of the upper outputs is the upper half of a byte, and counts 16 times; what it adds to
  // the lower outputs is taken away from their sums. The addresses are the lane's.
  template <bool kHasZeros>
  __device__ static void Consume(float (&sum)[2], uint32_t codes, uint32_t scales, uint32_t zeros,
                                 const HeldUnit& held) {
    constexpr uint32_t kUpper = 0xf0f0f0f0;
    uint4 q{};
#pragma unroll
    for (int g = 0; g < kGrids; ++g) {
      const float2 scale = q4::LoadSharedScales(scales + 32 * g);
      int low_zero = 8, high_zero = 8;
      if constexpr (kHasZeros) {
        const uchar2 pair = q4::LoadSharedZeros(zeros + 16 * g);
        low_zero = pair.x;
        high_zero = pair.y;
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
      sum[0] =
          fmaf(scale.x * held.scale, static_cast<float>(low - low_zero * held.sums[g]), sum[0]);
      sum[1] = fmaf(scale.y * held.scale, static_cast<float>(high - high_zero * 16 * held.sums[g]),
                    sum[1]);
    }
  }

  // The block's tiles times the units that the warp holds, to `own`, the lane's of a tile's sums.
  template <bool kHasZeros>
  __device__ void MultiplyTiles(const HeldUnit (&held)[kHeldUnits], int tiles, bool adds,
                                float* own) {
    using S = Stage<kGranule>;
    const uint32_t ring = AddressOf(sizeof(FusedFixed));
    const uint32_t full = SharedAddress(Fixed().full) + 8 * (warp_ / (kWarps / kPieces));
    const uint32_t codes = ring + warp_ * kHeldUnits * kUnitBytes + 16 * lane_;
    const uint32_t scales = ring + S::kScales + warp_ * kHeldUnits * 32 * kGrids + lane_ / 4 * 4;
    const uint32_t zeros = ring + S::kZeros + warp_ * kHeldUnits * 16 * kGrids + lane_ / 4 * 2;
#pragma unroll 1
    for (int i = 0; i < tiles; ++i, own += kWarps * kTileOutputs) {
      WaitForPhase(full + 8 * kPieces * place_.slot, place_.parity);
      const uint32_t stage = place_.slot * uint32_t{S::kBytes};
      float sums[kHeldUnits][2] = {};
#pragma unroll
      for (int u = 0; u < kHeldUnits; ++u) {
        Consume<kHasZeros>(sums[u], codes + stage + u * kUnitBytes,
                           scales + stage + u * 32 * kGrids, zeros + stage + u * 16 * kGrids,
                           held[u]);
      }
      __syncwarp();
      if (lane_ == 0) Arrive(SharedAddress(Fixed().empty) + 8 * place_.slot);
      place_.Advance(a_.stages);
      float low = sums[0][0] + sums[1][0], high = sums[0][1] + sums[1][1];
      low += __shfl_down_sync(~0u, low, 1);
      high += __shfl_down_sync(~0u, high, 1);
      if (lane_ % 4 == 0) {  // all columns are the same row
        own[0] = adds ? own[0] + low : low;
        own[8] = adds ? own[8] + high : high;
      }
    }
  }

  // The block's tiles times x, to Sums().
  __device__ void Multiply(const FusedLinear& l) {
    BeginPhase();
    const int tiles = Tiles(l.tiles).count;
    float* const own = Sums() + warp_ * kTileOutputs + lane_ / 4;
    HoldBackWeights(false);
#pragma unroll 1
    for (int round = 0; round < RoundsOf(l.units); ++round) {
      HeldUnit held[kHeldUnits];
#pragma unroll
      for (int u = 0; u < kHeldUnits; ++u) {
        const int unit = UnitOf(round, u);
        Load(held[u], min(unit, l.units - 1));
        // Of a unit that there is not, whatever lies in the ring counts nothing.
        if (unit >= l.units) held[u].scale = 0;
      }
      if (l.zeros_at != 0) {
        MultiplyTiles<true>(held, tiles, round > 0, own);
      } else {
        MultiplyTiles<false>(held, tiles, round > 0, own);
      }
    }
    HoldBackWeights(true);
  }

  // Adds up the block's outputs and publishes them.
  __device__ void Finish(int linear, const FusedLayer& weights, uint32_t tag) {
    BeginPhase();
    const FusedLinear& l = a_.linears[linear];
    uint64_t* const packets = linear == kQkv      ? a_.qkv
                              : linear == kOutput ? a_.middle
                              : linear == kGateUp ? a_.gated
                                                  : a_.out;
    const Tiles tiles(l.tiles);
    const int own = lane_ % kTileOutputs, half = lane_ / kTileOutputs;
#pragma unroll 1
    for (int i = warp_; i < tiles.count; i += kWarps) {
      const float* from = Sums() + (i * kWarps + half) * kTileOutputs + own;
      float total = 0;
#pragma unroll
      for (int j = 0; j < kWarps / 2; ++j) total += from[2 * j * kTileOutputs];
      total += __shfl_xor_sync(~0u, total, kTileOutputs);
      if (own >= 8) total *= 1.0f / 16;
      const int output = (tiles.begin + i) * kTileOutputs + own;
      const bool inside = output < l.outputs;
      if (l.bias_at != 0 && inside) {
        total +=
            __ldg(reinterpret_cast<const float*>(weights.weights[linear] + l.bias_at) + output);
      }
      int element = output;
      if (linear == kGateUp) {
        const float up = __shfl_down_sync(~0u, total, 1);
        total = SiluMul(total, up);
        // Outputs 0, 2, ... to the first lanes.
        total = __shfl_sync(~0u, total, 2 * lane_ % kTileOutputs);
        element = (tiles.begin + i) * (kTileOutputs / 2) + own;
      } else if (linear != kQkv) {
        total =
            H::ToFloat(H::FromFloat(total + FloatsAt(a_.shared.residual)[i * kTileOutputs + own]));
        __syncwarp();
        if (half == 0) FloatsAt(a_.shared.residual)[i * kTileOutputs + own] = total;
      }
      const float next = __shfl_down_sync(~0u, total, 1);
      const int elements = linear == kGateUp ? kTileOutputs / 2 : kTileOutputs;
      const int end = linear == kGateUp ? l.outputs / 2 : l.outputs;
      if (lane_ < elements && lane_ % 2 == 0 && element < end) {
        const int place = linear == kQkv ? element / 2 : PlaceOf(element / 2);
        StorePacket(packets + place, PackHalves<T>(total, next), tag);
      }
    }
    // The next product's, or attention's, are others: they are written while these are read.
    in_other_sums_ = !in_other_sums_;
  }

  static constexpr int kLanes = kDim / 8;  // of a token's keys or values, eight each
  static constexpr int kWarpTokens = 32 / kLanes;
  static constexpr int kTokensAtOnce = 6;  // of a lane

  __device__ void Attend(int layer, uint32_t tag) {
    BeginPhase();
    const bool is_idle = Fixed().begin >= Fixed().end;
    if (!is_idle) AttendPart(layer, tag);
    SynchronizeConsumers();
    if (!is_idle) FinishPart(tag);
    in_other_sums_ = !in_other_sums_;
  }

  __device__ void AttendPart(int layer, uint32_t tag) {
    const int kv_head = Fixed().kv_head, begin = Fixed().begin, end = Fixed().end;
    const int context = Fixed().context;
    const int chunk = lane_ % kLanes;
    T *keys, *values;
    CacheOf(a_, layer, keys, values);
    const auto place_of = [&](int token) {
      return PlaceInCache<kDim>(a_, token, begin, kv_head) + chunk * 8;
    };
    float query[8], highest = -INFINITY, sum = 0, out[8] = {};
    // Backwards, so that the newest token is the first lanes' first.
    int token = end - 1 - warp_ * kWarpTokens - lane_ / kLanes;
    // Both are in the second-level cache already.
    const auto load = [&](const T* cache, int i) {
      const int t = token - i * kWarps * kWarpTokens;
      const bool is_here = t >= begin && (i > 0 || t != context - 1);
      return is_here ? *reinterpret_cast<const uint4*>(cache + place_of(t)) : uint4{};
    };
    uint4 k[kTokensAtOnce];
#pragma unroll
    for (int i = 0; i < kTokensAtOnce; ++i) k[i] = load(keys, i);
    WaitForNewest();
#pragma unroll
    for (int i = 0; i < 8; i += 4) {
      const float4 x = *reinterpret_cast<const float4*>(Fixed().query + chunk * 8 + i);
      query[i] = x.x;
      query[i + 1] = x.y;
      query[i + 2] = x.z;
      query[i + 3] = x.w;
    }
    // The newest is not in the cache yet.
    if (token == context - 1) k[0] = reinterpret_cast<const uint4*>(Fixed().key)[chunk];
    while (true) {
      uint4 v[kTokensAtOnce];
      float scores[kTokensAtOnce], top = highest;
#pragma unroll
      for (int i = 0; i < kTokensAtOnce; ++i) {
        const uint32_t words[4] = {k[i].x, k[i].y, k[i].z, k[i].w};
        v[i] = load(values, i);
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
      if (token == context - 1) v[0] = reinterpret_cast<const uint4*>(Fixed().value)[chunk];
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
      if (!__any_sync(~0u, token >= begin)) break;
#pragma unroll
      for (int i = 0; i < kTokensAtOnce; ++i) k[i] = load(keys, i);
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
    BeginPhase();
    float* own = Sums() + warp_ * kPartStride;
    if (lane_ < kLanes) {
      auto* to = reinterpret_cast<float4*>(own + lane_ * 8);
      to[0] = {out[0], out[1], out[2], out[3]};
      to[1] = {out[4], out[5], out[6], out[7]};
    }
    if (lane_ == 0) {
      own[kDim] = highest;
      own[kDim + 1] = sum;
    }
  }

  __device__ void FinishPart(uint32_t tag) {
    const int dim = warp_ * 32 + lane_;
    if (dim >= kDim) return;
    float top = -INFINITY;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) top = fmaxf(top, Sums()[w * kPartStride + kDim]);
    float sum = 0, out = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float* from = Sums() + w * kPartStride;
      const float factor = Exp2(from[kDim] - top);
      sum = fmaf(factor, from[kDim + 1], sum);
      out = fmaf(factor, from[dim], out);
    }
    out = __fdividef(out, sum);
    const float next = __shfl_down_sync(~0u, out, 1);
    const int at = Fixed().head * kMostParts + Fixed().part;
    if (dim % 2 == 0) {
      StorePacket(a_.parts_packets + at * (kDim / 2) + PlaceOf(dim / 2), PackHalves<T>(out, next),
                  tag);
    }
    if (dim == 0) StorePacket(a_.part_sums + at, __float_as_uint(top + __log2f(sum)), tag);
  }

  static constexpr int kPartStride = kDim + 4;  // of a warp's sums in attention

  // While the block waits for a row, which weights that are under way would delay.
  __device__ void HoldBackWeights(bool hold) const {
    if (warp_ == 0 && lane_ == 0) Fixed().waits_for_row = hold;
  }

  // To be called where a phase begins: keeps the compiler from computing all phases' addresses
  // before the first layer, since it would then have to spill them.
  __device__ void BeginPhase() {
    int thread = warp_ * 32 + lane_;
    asm volatile("" : "+r"(thread));
    warp_ = thread / 32;
    lane_ = thread % 32;
  }

  // What products and attention leave for each other's warps takes turns with what is being read.
  __device__ float* Sums() const {  // [tiles][warps][16], or attention's [warps][kPartStride]
    const int size = a_.sum_tiles * kWarps * kTileOutputs;
    return FloatsAt(a_.shared.sums) + (in_other_sums_ ? size : 0);
  }

  const FusedArguments& a_;
  int warp_, lane_;
  RingPlace place_;
  bool in_other_sums_ = false;
};

#endif  // NIBBLE_HOPPER_CODE

}  // namespace nibble::cuda::fused

#endif  // NIBBLE_OPS_CUDA_FUSED_LAYERS_WARP_CUH_

// Decode attention's kernel, a template of the activations' type T and the cache's Element: T, or
// Fp8 (kv_fp8.cuh) with a scale for each token's keys and values.
#ifndef NIBBLE_OPS_CUDA_ATTENTION_DECODE_CUH_
#define NIBBLE_OPS_CUDA_ATTENTION_DECODE_CUH_

#include <algorithm>

#include "src/base/checked.h"
#include "src/ops/cuda/attention.h"
#include "src/ops/cuda/attention_common.cuh"
#include "src/ops/cuda/decode_tiles.cuh"

namespace nibble::cuda {

// What a warp has of up to kHeads heads, 8 or 16. Products are transposed: tokens, and dimensions
// of values, are their rows, and eight heads their columns, of which a lane has two.
template <int kDim, int kHeads>
struct WarpState {
  __device__ WarpState() {
#pragma unroll
    for (int h = 0; h < kHeads / 8; ++h) highest[h][0] = highest[h][1] = -INFINITY;
  }

  // Of heads 8h + 2 · (lane % 4) + {0, 1}; sums are the lane's share.
  float highest[kHeads / 8][2];
  float sums[kHeads / 8][2] = {};
  float out[kHeads / 8][kDim / 16][4] = {};  // see OutDimension
};

// Queries of kHeads heads as the product's right operand: lane / 4 is the head.
template <int kDim, int kHeads>
using Queries = uint32_t[kHeads / 8][kDim / 16][2];

// From [heads, head_dim]; zeros where there is no head or dimension.
template <typename T, int kDim, int kHeads>
__device__ void LoadQueries(const T* from, int heads, int head_dim,
                            Queries<kDim, kHeads>& queries) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int h = 0; h < kHeads / 8; ++h) {
    const int head = h * 8 + lane / 4;
    const T* row = from + head * head_dim;
#pragma unroll
    for (int i = 0; i < kDim / 8; ++i) {
      const int column = i * 8 + lane % 4 * 2;
      queries[h][i / 2][i % 2] =
          head < heads && column < head_dim ? *reinterpret_cast<const uint32_t*>(row + column) : 0;
    }
  }
}

// Turns queries; the two dimensions that turn together are in the same lane. angles: LoadAngles.
template <typename T, int kDim, int kHeads>
__device__ void TurnQueries(const float4 (&angles)[kDim / 16], Queries<kDim, kHeads>& queries) {
  constexpr int kHalf = kDim / 32;
  using Pair = typename HalfTraits<T>::Pair;
#pragma unroll
  for (int h = 0; h < kHeads / 8; ++h) {
#pragma unroll
    for (int i = 0; i < kDim / 16; ++i) {
      const float4 angle = angles[i];
      uint32_t &low = queries[h][i / 2][i % 2], &high = queries[h][i / 2 + kHalf][i % 2];
      const float2 a = HalfTraits<T>::ToFloats(reinterpret_cast<const Pair&>(low));
      const float2 b = HalfTraits<T>::ToFloats(reinterpret_cast<const Pair&>(high));
      low = PackHalves<T>(a.x * angle.x - b.x * angle.y, a.y * angle.z - b.y * angle.w);
      high = PackHalves<T>(b.x * angle.x + a.x * angle.y, b.y * angle.z + a.y * angle.w);
    }
  }
}

// Products of 16 rows with all heads.
template <typename T, int kHeadTiles, int kSteps>
__device__ void MultiplyHeads(const uint32_t (&rows)[4],
                              const uint32_t (&heads)[kHeadTiles][kSteps][2], int step,
                              float (&sums)[kHeadTiles][4]) {
#pragma unroll
  for (int h = 0; h < kHeadTiles; ++h) {
    MultiplyAdd<T>(rows, heads[h][step][0], heads[h][step][1], sums[h]);
  }
}

// scores += keys · queriesᵀ, of a tile of 16-bit keys. `keys`: of lane 0's row.
template <typename T, int kDim, int kHeads>
__device__ void AddScores(uint32_t keys, const Queries<kDim, kHeads>& queries,
                          float (&scores)[kHeads / 8][4], T) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  keys += lane % 16 * DecodeShape<kDim, T>::kRowBytes + lane / 16 * 16;
#pragma unroll
  for (int step = 0; step < kDim / 16; ++step) {
    uint32_t fragment[4];
    LoadMatrices(keys + step * 32, fragment);
    MultiplyHeads<T>(fragment, queries, step, scores);
  }
}

// The same of 8 bits: a lane's four bytes of 16 are its elements of the product's operand.
template <typename T, int kDim, int kHeads>
__device__ void AddScores(uint32_t keys, const Queries<kDim, kHeads>& queries,
                          float (&scores)[kHeads / 8][4], Fp8) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  keys += lane % 16 * DecodeShape<kDim, Fp8>::kRowBytes + lane / 16 * 16;
#pragma unroll
  for (int step = 0; step < kDim / 16; step += 2) {
    uint32_t fragment[4];
    LoadMatrices(keys + step * 16, fragment);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint2 low = FromFp8<T>(fragment[2 * i]), high = FromFp8<T>(fragment[2 * i + 1]);
      MultiplyHeads<T>({low.x, high.x, low.y, high.y}, queries, step + i, scores);
    }
  }
}

// out += valuesᵀ · weights, of a tile of 16-bit values. `values`: of lane 0's row.
template <typename T, int kDim, int kHeads>
__device__ void AddValues(uint32_t values, const uint32_t (&weights)[kHeads / 8][2],
                          WarpState<kDim, kHeads>& state, T) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  values += (lane / 16 * 8 + lane % 8) * DecodeShape<kDim, T>::kRowBytes + lane / 8 % 2 * 16;
#pragma unroll
  for (int t = 0; t < kDim / 16; ++t) {
    uint32_t fragment[4];
    LoadMatricesTransposed(values + t * 32, fragment);
#pragma unroll
    for (int h = 0; h < kHeads / 8; ++h) {
      MultiplyAdd<T>(fragment, weights[h][0], weights[h][1], state.out[h][t]);
    }
  }
}

// The same of 8 bits. What is transposed are pairs of them, which a lane has of two tokens; the
// pairs' first dimensions are the product's upper eight rows, the second ones its lower.
template <typename T, int kDim, int kHeads>
__device__ void AddValues(uint32_t values, const uint32_t (&weights)[kHeads / 8][2],
                          WarpState<kDim, kHeads>& state, Fp8) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  values += lane % 16 * DecodeShape<kDim, Fp8>::kRowBytes + lane / 16 * 16;
#pragma unroll
  for (int t = 0; t < kDim / 16; t += 2) {
    uint32_t fragment[4];
    LoadMatricesTransposed(values + t * 16, fragment);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint2 low = FromFp8<T>(__byte_perm(fragment[2 * i], 0, 0x3120));
      const uint2 high = FromFp8<T>(__byte_perm(fragment[2 * i + 1], 0, 0x3120));
#pragma unroll
      for (int h = 0; h < kHeads / 8; ++h) {
        MultiplyAdd<T>({low.x, low.y, high.x, high.y}, weights[h][0], weights[h][1],
                       state.out[h][t + i]);
      }
    }
  }
}

// The dimension of sums 0 and 1 of a lane's out[h][t]; that of 2 and 3 is kOutStep further.
template <typename Element>
__device__ int OutDimension(int t) {
  const int row = static_cast<int>(threadIdx.x) % 32 / 4;
  if constexpr (std::is_same_v<Element, Fp8>) return t * 16 + row + (row % 2 == 0 ? 0 : 7);
  return t * 16 + row;
}
template <typename Element>
inline constexpr int kOutStep = std::is_same_v<Element, Fp8> ? 1 : 8;

// The scales of a lane's two tokens of a tile of 8-bit keys and values: lane / 4 + {0, 8}.
struct TileScales {
  float keys[2], values[2];

  TileScales() = default;
  __device__ explicit TileScales(uint32_t shared) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      uint32_t word;
      asm volatile("ld.shared.u32 %0, [%1];"
                   : "=r"(word)
                   : "r"(shared + (static_cast<int>(threadIdx.x) % 32 / 4 + i * 8) * 4)
                   : "memory");
      keys[i] = __uint_as_float(word << 16);
      values[i] = kFp8WeightScale * __uint_as_float(word & 0xffff0000u);
    }
  }
};

// scores of a tile, -infinity where a token is not seen, become exp2(scores · scale_log2 - the
// head's highest so far), and what the tiles before gave is multiplied accordingly.
template <int kDim, int kHeads>
__device__ void SoftmaxTile(float scale_log2, float (&scores)[kHeads / 8][4],
                            WarpState<kDim, kHeads>& state) {
  float factors[kHeads / 8][2];
  bool is_higher = false;
#pragma unroll
  for (int h = 0; h < kHeads / 8; ++h) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float& highest = state.highest[h][i];
      float top = fmaxf(scores[h][i], scores[h][i + 2]);
#pragma unroll
      for (int lanes = 4; lanes < 32; lanes *= 2) {
        top = fmaxf(top, __shfl_xor_sync(~0u, top, lanes));
      }
      top = fmaxf(highest, top * scale_log2);
      is_higher = is_higher || top > highest;
      // A head that has seen no token yet keeps its zeros.
      const float shift = top == -INFINITY ? 0.0f : top;
      factors[h][i] = Exp2(highest - shift);
      highest = top;
      float& sum = state.sums[h][i];
      sum *= factors[h][i];
#pragma unroll
      for (int j = i; j < 4; j += 2) {
        scores[h][j] = Exp2(fmaf(scores[h][j], scale_log2, -shift));
        sum += scores[h][j];
      }
    }
  }
  if (!__any_sync(~0u, is_higher)) return;  // all factors are 1, or of zeros
#pragma unroll
  for (int h = 0; h < kHeads / 8; ++h) {
#pragma unroll
    for (int i = 0; i < kDim / 4; ++i) state.out[h][i / 4][i % 4] *= factors[h][i % 2];
  }
}

// The warp's tiles of one segment. Its memory is a ring of kStages tiles of keys and of values;
// `stage`: that of the next tile. A tile that is done with makes room for the stream's next.
template <typename T, typename Element, int kDim, int kHeads, DecodeInput kInput>
__device__ void AttendTiles(const DecodeArguments& a, const Segment& segment,
                            const Queries<kDim, kHeads>& queries, const FreshToken<T, kDim>* fresh,
                            uint32_t shared, int& stage, TileStream<Element, kDim, kInput>& stream,
                            WarpState<kDim, kHeads>& state) {
  using Shape = DecodeShape<kDim, Element>;
  constexpr int kStages = Shape::kStages, kWarps = Shape::kWarps;
  constexpr bool kScaled = std::is_same_v<Element, Fp8>;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int first_token = segment.span.first_token, end_token = segment.span.end_token;
  const int end =
      segment.span.first_tile + min(segment.span.tiles, (segment.first + segment.count) * kWarps);
  for (int tile = segment.span.first_tile + segment.first * kWarps + warp; tile < end;
       tile += kWarps) {
    const uint32_t keys = shared + 2 * stage * Shape::kTileBytes;
    const uint32_t values = keys + Shape::kTileBytes;
    WaitForCopies<2 * kStages - 1>();
    const bool has_fresh = kInput == DecodeInput::kFresh && tile == fresh->tile();
    if (has_fresh) fresh->PutKey(keys);
    __syncwarp();
    float scores[kHeads / 8][4] = {};
    AddScores<T, kDim, kHeads>(keys, queries, scores, Element());
    [[maybe_unused]] TileScales scales;
    if constexpr (kScaled) {
      scales = TileScales(keys + Shape::kScales);
#pragma unroll
      for (int i = 0; i < kHeads / 2; ++i) scores[i / 4][i % 4] *= scales.keys[i % 4 / 2];
    }
    __syncwarp();  // all lanes have read the tile that the next one replaces
    const bool more = stream.Next();
    if (more) stream.LoadKeys(2 * stage);
    CommitCopies();

    const int token = tile * kTileTokens;
    if (token < first_token || token + kTileTokens > end_token) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {  // of the lane's tokens
        const int key = token + lane / 4 + i * 8;
        if (key >= first_token && key < end_token) continue;
#pragma unroll
        for (int h = 0; h < kHeads / 8; ++h) {
          scores[h][2 * i] = scores[h][2 * i + 1] = -INFINITY;
        }
        if constexpr (kScaled) scales.values[i] = 0;  // they may hold anything
      }
    }
    SoftmaxTile<kDim, kHeads>(a.scale_log2, scores, state);
    uint32_t weights[kHeads / 8][2];
#pragma unroll
    for (int i = 0; i < kHeads / 4; ++i) {
      float low = scores[i / 2][i % 2 * 2], high = scores[i / 2][i % 2 * 2 + 1];
      if constexpr (kScaled) {
        low *= scales.values[i % 2];
        high *= scales.values[i % 2];
      }
      weights[i / 2][i % 2] = TransposedMatrix(PackHalves<T>(low, high));
    }

    WaitForCopies<2 * kStages - 1>();
    if (has_fresh) fresh->PutValue(values);
    __syncwarp();
    AddValues<T, kDim, kHeads>(values, weights, state, Element());
    __syncwarp();
    if (more) stream.Load(a.values, 2 * stage + 1);
    CommitCopies();
    stage = stage + 1 == kStages ? 0 : stage + 1;
  }
  if constexpr (kScaled) {
#pragma unroll
    for (int i = 0; i < kHeads / 4; ++i) state.sums[i / 2][i % 2] *= kFp8WeightScale;
  }
}

template <typename T>
__device__ void Store4(T* to, float4 values) {
  const uint2 packed = {PackHalves<T>(values.x, values.y), PackHalves<T>(values.z, values.w)};
  *reinterpret_cast<uint2*>(to) = packed;
}

inline __device__ void AddScaled(float4& sum, float factor, float4 x) {
  sum.x = fmaf(factor, x.x, sum.x);
  sum.y = fmaf(factor, x.y, sum.y);
  sum.z = fmaf(factor, x.z, sum.z);
  sum.w = fmaf(factor, x.w, sum.w);
}

inline __device__ float4 Scaled(float factor, float4 x) {
  return {factor * x.x, factor * x.y, factor * x.z, factor * x.w};
}

// What the warps of a block have of up to kRoundHeads heads of a pair, to be added up.
template <int kDim>
struct BlockMemory {
  float* out;                     // [kWarps, kRoundHeads, kOutStride]
  float (*highest)[kRoundHeads];  // [kWarps]
  float (*sums)[kRoundHeads];     // [kWarps]

  __device__ float* At(int warp, int head) const {
    return out + (warp * kRoundHeads + head) * kOutStride<kDim>;
  }
};

// Heads [first, first + kRoundHeads) of the state, those of them that there are.
template <typename Element, int kDim, int kHeads>
__device__ void KeepState(const WarpState<kDim, kHeads>& state, int first, int heads,
                          const BlockMemory<kDim>& memory) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int h = 0; h < kHeads / 8; ++h) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int head = h * 8 + lane % 4 * 2 + i - first;
      float sum = state.sums[h][i];
#pragma unroll
      for (int lanes = 4; lanes < 32; lanes *= 2) sum += __shfl_xor_sync(~0u, sum, lanes);
      if (head >= 0 && head < min(kRoundHeads, heads - first)) {
        if (lane / 4 == 0) {
          memory.highest[warp][head] = state.highest[h][i];
          memory.sums[warp][head] = sum;
        }
        float* to = memory.At(warp, head);
#pragma unroll
        for (int t = 0; t < kDim / 16; ++t) {
          const int dimension = OutDimension<Element>(t);
          to[dimension] = state.out[h][t][i];
          to[dimension + kOutStep<Element>] = state.out[h][t][2 + i];
        }
      }
    }
  }
}

// Adds the warps up and gives each head's result, four columns at a time:
// emit(head, column, highest, sum, out).
template <int kDim, typename Emit>
__device__ void CombineWarps(const BlockMemory<kDim>& memory, int heads, int head_dim,
                             const Emit& emit) {
  constexpr int kWarps = kDecodeWarps<kDim>;
  const int chunks = head_dim / 4;
  for (int i = static_cast<int>(threadIdx.x); i < heads * chunks; i += 32 * kWarps) {
    const int head = i / chunks, column = i % chunks * 4;
    float top = memory.highest[0][head];  // warp 0 always has something
#pragma unroll
    for (int w = 1; w < kWarps; ++w) top = fmaxf(top, memory.highest[w][head]);
    float4 out = {};
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float factor = Exp2(memory.highest[w][head] - top);
      sum = fmaf(factor, memory.sums[w][head], sum);
      AddScaled(out, factor, *reinterpret_cast<const float4*>(memory.At(w, head) + column));
    }
    emit(head, column, top, sum, out);
  }
}

// The output of a pair from what its `parts` blocks left of it: the first one at first_slot, each of
// the following in its own first slot.
template <typename T, int kDim>
__device__ void MergeParts(const DecodeArguments& a, int first_slot, int parts, int heads,
                           int head_dim, T* to) {
  constexpr int kAtOnce = 8;  // loads under way
  const int quads = head_dim / 4;  // columns
  for (int i = static_cast<int>(threadIdx.x); i < heads * quads; i += 32 * kDecodeWarps<kDim>) {
    const int head = i / quads, column = i % quads * 4;
    float top = -INFINITY, sum = 0;
    float4 out = {};
    for (int first = 0; first < parts; first += kAtOnce) {
      float2 part_sums[kAtOnce];
      float4 part_out[kAtOnce];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const int part = first + j;
        const int64_t slot = part == 0 ? first_slot : (first_slot / 2 + part) * 2;
        const int64_t at = slot * a.tile_heads + head;
        part_sums[j] = part < parts ? __ldcg(a.partial_sums + at) : float2{-INFINITY, 0};
        part_out[j] =
            part < parts
                ? __ldcg(reinterpret_cast<const float4*>(a.partial_out + at * head_dim + column))
                : float4{};
      }
      float higher = top;
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) higher = fmaxf(higher, part_sums[j].x);
      const float factor = Exp2(top - higher);
      sum *= factor;
      out = Scaled(factor, out);
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const float part_factor = Exp2(part_sums[j].x - higher);
        sum = fmaf(part_factor, part_sums[j].y, sum);
        AddScaled(out, part_factor, part_out[j]);
      }
      top = higher;
    }
    Store4(to + head * head_dim + column, Scaled(1 / sum, out));
  }
}

// Whether a counter, zero before the first of so many, has been counted up that often; then it is
// zero again. The last one sees what the others wrote before the barriers that preceded their counts.
inline __device__ bool CountUp(unsigned* counter, int times) {
  const auto last = static_cast<unsigned>(times - 1);
  unsigned before;
  // A release and an acquire cost less than two fences of __threadfence, which are sequentially
  // consistent.
  asm volatile("atom.acq_rel.gpu.global.inc.u32 %0, [%1], %2;"
               : "=r"(before)
               : "l"(counter), "r"(last)
               : "memory");
  return before == last;
}

// The numbers from 0 on, in turn; after `count` of them the counter is zero again, as before. Each
// of the blocks that take pairs in turn asks until it gets a number too high: once.
inline __device__ unsigned TakeNumber(unsigned* counter, unsigned count) {
  return atomicInc(counter, count - 1);
}

// Writes the output of a segment that is a whole pair, or its part; the block that writes a pair's
// last part writes the output.
template <typename T, typename Element, int kDim, int kHeads>
__device__ void Finish(const DecodeArguments& a, const Segment& segment,
                       const WarpState<kDim, kHeads>& state, int first_head, int heads,
                       int head_dim, const BlockMemory<kDim>& memory) {
  T* to = static_cast<T*>(a.out) + segment.span.row * a.out_stride +
          static_cast<int64_t>(first_head) * head_dim;
  const int block = static_cast<int>(blockIdx.x), end = segment.is_first ? 0 : 1;
  const int64_t slot = 2 * block + end;
  const int parts = a.line.parts[block].blocks[end];
  const int first_slot = a.line.parts[block].first_slot[end];
  const bool is_whole = segment.count == segment.granules;
  for (int first = 0; first < heads; first += kRoundHeads) {
    const int count = min(kRoundHeads, heads - first);
    __syncthreads();  // the memory is free
    KeepState<Element>(state, first, heads, memory);
    __syncthreads();
    CombineWarps(memory, count, head_dim,
                 [&](int head, int column, float top, float sum, float4 out) {
                   if (is_whole) {
                     Store4(to + (first + head) * head_dim + column, Scaled(1 / sum, out));
                     return;
                   }
                   const int64_t at = slot * a.tile_heads + first + head;
                   *reinterpret_cast<float4*>(a.partial_out + at * head_dim + column) = out;
                   if (column == 0) a.partial_sums[at] = {top, sum};
                 });
  }
  if (is_whole) return;

  __shared__ bool is_last;
  __syncthreads();
  if (threadIdx.x == 0) is_last = CountUp(a.counters + first_slot / 2, parts);
  __syncthreads();
  if (is_last) MergeParts<T, kDim>(a, first_slot, parts, heads, head_dim, to);
}

// kHeads: the most heads of a pair, 8 or 16.
template <typename T, typename Element, int kDim, int kHeads, DecodeInput kInput>
__global__ void __launch_bounds__(32 * kDecodeWarps<kDim>, kResident)
    DecodeKernel(const __grid_constant__ DecodeArguments a) {
  using Shape = DecodeShape<kDim, Element>;
  constexpr int kWarps = kDecodeWarps<kDim>;
  extern __shared__ __align__(16) unsigned char shared[];
  __shared__ float highest[kWarps][kRoundHeads], sums[kWarps][kRoundHeads];
  __shared__ Turns turns;
  const BlockMemory<kDim> memory{reinterpret_cast<float*>(shared + Shape::kOutputs), highest, sums};
  const int warp = static_cast<int>(threadIdx.x) / 32;

  StartNextKernel();
  // The batch was there before the kernels of its step. The tables come into the second-level cache
  // beside the parts, which say where in the tables each block reads.
  const DecodePart part = a.line.parts[blockIdx.x];
  constexpr int kEntries = kSectorBytes / sizeof(int32_t);
  const int64_t entry =
      (static_cast<int64_t>(blockIdx.x) * (32 * kWarps) + threadIdx.x) * kEntries;
  if (entry < a.line.sequences * a.line.table_stride) KeepSector(a.line.block_tables + entry);
  if (threadIdx.x == 0) KeepSector(a.line.parts + blockIdx.x);
  if (part.count == 0) {
    WaitForLastKernel();
    return;
  }
  const int head_dim = HeadDim<kDim, kInput>(a);
  Walk<kWarps> walk(part, turns);
  const uint32_t warp_shared = SharedAddress(shared) + warp * Shape::kWarpBytes;
  TileStream<Element, kDim, kInput> stream(a, walk, warp_shared);
  bool more = stream.Next();
  // With fresh input this kernel is the only one of its step that touches this layer's cache, and
  // all that it reads there was written before the step: the copy of the step's batch to the device
  // begins when all before it is done, and no kernel of the step begins before the copy is done
  // (CudaPlan::SetBatch). So nothing need be waited for.
  if constexpr (kInput == DecodeInput::kTurned) WaitForLastKernel();
  for (int stage = 0; stage < Shape::kStages; ++stage) {
    if (more) stream.LoadKeys(2 * stage);
    CommitCopies();
    if (more) stream.Load(a.values, 2 * stage + 1);
    CommitCopies();
    if (more && stage + 1 < Shape::kStages) more = stream.Next();
  }
  if constexpr (kInput == DecodeInput::kFresh) {
    // The kernel before may still be writing the angles; it writes to the same cache.
    const float2* angles = a.angles + static_cast<int64_t>(part.row) * (kDim / 2);
    constexpr int kAngles = kSectorBytes / sizeof(float2);
    if (threadIdx.x < kDim / 2 / kAngles) KeepSector(angles + threadIdx.x * kAngles);
    WaitForLastKernel();
  }
  int stage = 0;
  Segment segment;
  bool asks = part.in_turn() && threadIdx.x == 0;  // for the next pair but one
  for (unsigned pair = 0; walk.Next(a.line, segment); ++pair) {
    unsigned next = 0;
    if (asks) next = 2 * gridDim.x + TakeNumber(a.counters, AllPairs(a.line) - gridDim.x);
    const int first_in_group = segment.head_tile * kTileHeads;
    const int first_head = segment.kv_head * a.group + first_in_group;
    const int heads = min(kTileHeads, a.group - first_in_group);
    WarpState<kDim, kHeads> state;
    Queries<kDim, kHeads> queries;
    LoadQueries<T, kDim, kHeads>(static_cast<const T*>(a.q) + segment.span.row * a.q_stride +
                                     static_cast<int64_t>(first_head) * head_dim,
                                 heads, head_dim, queries);
    if constexpr (kInput == DecodeInput::kFresh) {
      float4 angles[kDim / 16];
      LoadAngles<kDim>(a.angles + static_cast<int64_t>(segment.span.row) * (kDim / 2), angles);
      const FreshToken<T, kDim> fresh(a, segment);
      TurnQueries<T, kDim, kHeads>(angles, queries);
      AttendTiles<T, Element, kDim, kHeads>(a, segment, queries, &fresh, warp_shared, stage, stream,
                                            state);
    } else {
      AttendTiles<T, Element, kDim, kHeads>(a, segment, queries, nullptr, warp_shared, stage,
                                            stream, state);
    }
    if (asks) {
      turns.next[(pair + 2) % kTurns] = next;
      asks = next < AllPairs(a.line);
    }
    Finish<T, Element>(a, segment, state, first_head, heads, head_dim, memory);
  }
}

template <typename T, typename Element, int kDim, DecodeInput kInput>
void Launch(Stream& stream, const DecodeArguments& arguments, int64_t blocks) {
  const auto launch = [&]<int kHeads>() {
    LaunchDependent(stream, DecodeKernel<T, Element, kDim, kHeads, kInput>,
                    static_cast<unsigned>(blocks), 32 * kDecodeWarps<kDim>,
                    DecodeShape<kDim, Element>::kSharedBytes, arguments);
  };
  if (arguments.tile_heads <= 8) {
    launch.template operator()<8>();
  } else {
    launch.template operator()<16>();
  }
}

// Scratch memory: the counters, then partial outputs, then their sums. Where the counters are
// depends on the device alone, since they must stay zero from one batch to the next.
inline size_t CounterBytes(int multiprocessors) {
  const auto blocks = static_cast<size_t>(DecodeBlocks(multiprocessors));
  return RoundUp<size_t>(blocks * sizeof(unsigned), 256);
}

inline int64_t TileHeads(const AttentionSpec& attention) {
  return std::min<int64_t>(kTileHeads, attention.heads / attention.kv_heads);
}

// kFp8: whether the cache has 8 bits.
template <DecodeInput kInput, bool kFp8>
void Decode(Stream& stream, const DeviceBatch& batch, const AttentionSpec& attention, MatrixView q,
            const float2* angles, KvView kv, MatrixView out, void* scratch) {
  CheckAttention(attention, q.Columns(0, attention.heads * attention.head_dim), out);
  const int64_t blocks = DecodeBlocks(stream.multiprocessors());
  const int64_t group = attention.heads / attention.kv_heads;
  auto* memory = static_cast<std::byte*>(scratch);
  auto* parts = reinterpret_cast<float*>(memory + CounterBytes(stream.multiprocessors()));
  const DecodeArguments arguments{
      .line = {.parts = attention.window ? batch.window_decode_parts : batch.decode_parts,
               .row_begin = batch.row_begin,
               .context_lengths = batch.context_lengths,
               .block_tables = batch.block_tables,
               .table_stride = batch.table_stride,
               .sequences = static_cast<int>(batch.sequences),
               .kv_heads = static_cast<int>(attention.kv_heads),
               .head_tiles = static_cast<int>(CeilDiv<int64_t>(group, kTileHeads)),
               .window = WindowOf(attention)},
      .keys = kv.keys,
      .values = kv.values,
      .scales = kv.scales,
      .q = q.data,
      .angles = angles,
      .out = out.data,
      .q_stride = q.stride,
      .out_stride = out.stride,
      .group = static_cast<int>(group),
      .tile_heads = static_cast<int>(TileHeads(attention)),
      .head_dim = static_cast<int>(attention.head_dim),
      .scale_log2 = attention.scale * kLog2E,
      .counters = reinterpret_cast<unsigned*>(memory),
      .partial_out = parts,
      .partial_sums = reinterpret_cast<float2*>(parts + 2 * blocks * TileHeads(attention) *
                                                            attention.head_dim)};
  WithHalfType(q.dtype, [&]<typename T>() {
    using Element = std::conditional_t<kFp8, Fp8, T>;
    if (attention.head_dim <= 64) {
      Launch<T, Element, 64, kInput>(stream, arguments, blocks);
    } else if (attention.head_dim <= 128) {
      Launch<T, Element, 128, kInput>(stream, arguments, blocks);
    } else {
      Launch<T, Element, 256, kInput>(stream, arguments, blocks);
    }
  });
  stream.CheckLaunch("decode attention", q.rows, q.columns);
}

}  // namespace nibble::cuda

#endif  // NIBBLE_OPS_CUDA_ATTENTION_DECODE_CUH_

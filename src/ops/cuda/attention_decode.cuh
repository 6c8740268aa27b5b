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

template <int kDim>
struct WarpState {
  float highest[2] = {-INFINITY, -INFINITY};  // of rows lane / 4 and lane / 4 + 8
  float sums[2] = {0, 0};
  float out[kDim / 8][4] = {};
};

// scores += queries · keysᵀ, of a tile of 16-bit keys. `keys`: of lane 0's row.
template <typename T, int kDim>
__device__ void AddScores(uint32_t keys, const uint32_t (&queries)[kDim / 16][4],
                          float (&scores)[2][4], T) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  // Rows of a tile for ldmatrix: keys are the product's columns.
  keys += (lane / 16 * 8 + lane % 8) * DecodeShape<kDim, T>::kRowBytes + lane / 8 % 2 * 16;
#pragma unroll
  for (int step = 0; step < kDim / 16; ++step) {
    uint32_t fragment[4];
    LoadMatrices(keys + step * 32, fragment);
    MultiplyAdd<T>(queries[step], fragment[0], fragment[1], scores[0]);
    MultiplyAdd<T>(queries[step], fragment[2], fragment[3], scores[1]);
  }
}

// The same of 8 bits: a lane's four bytes of 16 are its elements of the product's operand.
template <typename T, int kDim>
__device__ void AddScores(uint32_t keys, const uint32_t (&queries)[kDim / 16][4],
                          float (&scores)[2][4], Fp8) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  keys += (lane / 8 % 2 * 8 + lane % 8) * DecodeShape<kDim, Fp8>::kRowBytes + lane / 16 * 16;
#pragma unroll
  for (int step = 0; step < kDim / 16; step += 2) {
    uint32_t fragment[4];
    LoadMatrices(keys + step * 16, fragment);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint2 pairs = FromFp8<T>(fragment[i]);
      MultiplyAdd<T>(queries[step + i / 2], pairs.x, pairs.y, scores[i % 2]);
    }
  }
}

// out += weights · values, of a tile of 16-bit values. `values`: of lane 0's row.
template <typename T, int kDim>
__device__ void AddValues(uint32_t values, const uint32_t (&weights)[4], float (&out)[kDim / 8][4],
                          T) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  // For ldmatrix: values are the product's depth.
  values += (lane / 8 % 2 * 8 + lane % 8) * DecodeShape<kDim, T>::kRowBytes + lane / 16 * 16;
#pragma unroll
  for (int t = 0; t < kDim / 8; t += 2) {
    uint32_t fragment[4];
    LoadMatricesTransposed(values + t * 16, fragment);
    MultiplyAdd<T>(weights, fragment[0], fragment[1], out[t]);
    MultiplyAdd<T>(weights, fragment[2], fragment[3], out[t + 1]);
  }
}

// The same of 8 bits. What is transposed are pairs of them, which a lane has of two tokens; so one
// product is of the pairs' first columns, and one of their second ones.
template <typename T, int kDim>
__device__ void AddValues(uint32_t values, const uint32_t (&weights)[4], float (&out)[kDim / 8][4],
                          Fp8) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  values += (lane / 8 % 2 * 8 + lane % 8) * DecodeShape<kDim, Fp8>::kRowBytes + lane / 16 * 16;
#pragma unroll
  for (int t = 0; t < kDim / 8; t += 4) {
    uint32_t fragment[4];
    LoadMatricesTransposed(values + t * 8, fragment);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint2 low = FromFp8<T>(__byte_perm(fragment[2 * i], 0, 0x3120));
      const uint2 high = FromFp8<T>(__byte_perm(fragment[2 * i + 1], 0, 0x3120));
      float(&a)[4] = out[t + 2 * i], (&b)[4] = out[t + 2 * i + 1];
      MultiplyAdd<T>(weights, low.x, high.x, a[0], b[0], a[2], b[2]);
      MultiplyAdd<T>(weights, low.y, high.y, a[1], b[1], a[3], b[3]);
    }
  }
}

// The scales of a lane's four tokens of a tile of 8-bit keys: 2 · (lane % 4) + {0, 1} + {0, 8}.
struct TileScales {
  float keys[2][2], values[2][2];

  TileScales() = default;
  __device__ explicit TileScales(uint32_t shared) {
#pragma unroll
    for (int t = 0; t < 2; ++t) {
      uint32_t words[2];
      asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];"
                   : "=r"(words[0]), "=r"(words[1])
                   : "r"(shared + (t * 8 + static_cast<int>(threadIdx.x) % 4 * 2) * 4)
                   : "memory");
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        keys[t][j] = __uint_as_float(words[j] << 16);
        values[t][j] = kFp8WeightScale * __uint_as_float(words[j] & 0xffff0000u);
      }
    }
  }
};

// The warp's tiles of one segment. Its memory is a ring of kStages tiles of keys and of values;
// `stage`: that of the next tile. A tile that is done with makes room for the stream's next.
template <typename T, typename Element, int kDim, DecodeInput kInput>
__device__ void AttendTiles(const DecodeArguments& a, const Segment& segment,
                            const uint32_t (&queries)[kDim / 16][4],
                            const FreshToken<T, kDim>* fresh, uint32_t shared, int& stage,
                            TileStream<Element, kDim, kInput>& stream, WarpState<kDim>& state) {
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
    float scores[2][4] = {};
    AddScores<T, kDim>(keys, queries, scores, Element());
    [[maybe_unused]] TileScales scales;
    if constexpr (kScaled) {
      scales = TileScales(keys + Shape::kScales);
#pragma unroll
      for (int i = 0; i < 8; ++i) scores[i / 4][i % 4] *= scales.keys[i / 4][i % 2];
    }
    __syncwarp();  // all lanes have read the tile that the next one replaces
    const bool more = stream.Next();
    if (more) stream.LoadKeys(2 * stage);
    CommitCopies();

    const int token = tile * kTileTokens;
    if (token < first_token || token + kTileTokens > end_token) {
#pragma unroll
      for (int t = 0; t < 2; ++t) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int key = token + t * 8 + lane % 4 * 2 + j % 2;
          if (key >= first_token && key < end_token) continue;
          scores[t][j] = -INFINITY;
          if constexpr (kScaled) scales.values[t][j % 2] = 0;  // they may hold anything
        }
      }
    }
    SoftmaxStep(a.scale_log2, scores, state.highest, state.sums, state.out);
    if constexpr (kScaled) {
#pragma unroll
      for (int i = 0; i < 8; ++i) scores[i / 4][i % 4] *= scales.values[i / 4][i % 2];
    }
    const uint32_t weights[4] = {
        PackHalves<T>(scores[0][0], scores[0][1]), PackHalves<T>(scores[0][2], scores[0][3]),
        PackHalves<T>(scores[1][0], scores[1][1]), PackHalves<T>(scores[1][2], scores[1][3])};

    WaitForCopies<2 * kStages - 1>();
    if (has_fresh) fresh->PutValue(values);
    __syncwarp();
    AddValues<T, kDim>(values, weights, state.out, Element());
    __syncwarp();
    if (more) stream.Load(a.values, 2 * stage + 1);
    CommitCopies();
    stage = stage + 1 == kStages ? 0 : stage + 1;
  }
  if constexpr (kScaled) {
    for (float& sum : state.sums) sum *= kFp8WeightScale;
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
template <int kDim>
__device__ void KeepState(const WarpState<kDim>& state, int first, int heads,
                          const BlockMemory<kDim>& memory) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int head = lane / 4 + half * 8 - first;
    const float sum = SumOverQuad(state.sums[half]);
    if (head < 0 || head >= min(kRoundHeads, heads - first)) continue;
    if (lane % 4 == 0) {
      memory.highest[warp][head] = state.highest[half];
      memory.sums[warp][head] = sum;
    }
    float* to = memory.At(warp, head) + lane % 4 * 2;
#pragma unroll
    for (int t = 0; t < kDim / 8; ++t) {
      *reinterpret_cast<float2*>(to + t * 8) = {state.out[t][2 * half], state.out[t][2 * half + 1]};
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

// Writes the output of a segment that is a whole pair, or its part; the block that writes a pair's
// last part writes the output.
template <typename T, int kDim>
__device__ void Finish(const DecodeArguments& a, const Segment& segment,
                       const WarpState<kDim>& state, int first_head, int heads, int head_dim,
                       const BlockMemory<kDim>& memory) {
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
    KeepState(state, first, heads, memory);
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

template <typename T, typename Element, int kDim, DecodeInput kInput>
__global__ void __launch_bounds__(32 * kDecodeWarps<kDim>, kResident)
    DecodeKernel(const __grid_constant__ DecodeArguments a) {
  using Shape = DecodeShape<kDim, Element>;
  constexpr int kWarps = kDecodeWarps<kDim>;
  extern __shared__ __align__(16) unsigned char shared[];
  __shared__ float highest[kWarps][kRoundHeads], sums[kWarps][kRoundHeads];
  const BlockMemory<kDim> memory{reinterpret_cast<float*>(shared + Shape::kOutputs), highest, sums};
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;

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
  Walk<kWarps> walk(part);
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
  while (walk.Next(a.line, segment)) {
    const int first_in_group = segment.head_tile * kTileHeads;
    const int first_head = segment.kv_head * a.group + first_in_group;
    const int heads = min(kTileHeads, a.group - first_in_group);
    WarpState<kDim> state;
    const T* query = static_cast<const T*>(a.q) + segment.span.row * a.q_stride +
                     static_cast<int64_t>(first_head) * head_dim;
    const int low = lane / 4, high = low + 8;
    uint32_t queries[kDim / 16][4];
    LoadQueries(low < heads ? query + low * head_dim : nullptr,
                high < heads ? query + high * head_dim : nullptr, head_dim, queries);
    if constexpr (kInput == DecodeInput::kFresh) {
      float4 angles[kDim / 16];
      LoadAngles<kDim>(a.angles + static_cast<int64_t>(segment.span.row) * (kDim / 2), angles);
      const FreshToken<T, kDim> fresh(a, segment);
      TurnQueries<T, kDim, 0>(angles, queries);
      if (heads > 8) TurnQueries<T, kDim, 1>(angles, queries);
      AttendTiles<T, Element, kDim>(a, segment, queries, &fresh, warp_shared, stage, stream, state);
    } else {
      AttendTiles<T, Element, kDim>(a, segment, queries, nullptr, warp_shared, stage, stream,
                                    state);
    }
    Finish<T, kDim>(a, segment, state, first_head, heads, head_dim, memory);
  }
}

template <typename T, typename Element, int kDim, DecodeInput kInput>
void Launch(Stream& stream, const DecodeArguments& arguments, int64_t blocks) {
  LaunchDependent(stream, DecodeKernel<T, Element, kDim, kInput>, static_cast<unsigned>(blocks),
                  32 * kDecodeWarps<kDim>, DecodeShape<kDim, Element>::kSharedBytes, arguments);
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

#include <algorithm>

#include "src/base/checked.h"
#include "src/ops/cuda/attention.h"
#include "src/ops/cuda/attention_common.cuh"

namespace nibble::cuda {
namespace {

constexpr int kTileTokens = 16;  // the depth of one tensor-core product
constexpr int kTilesPerBlock = kBlockTokens / kTileTokens;
constexpr int kTileHeads = 16;  // query heads of one KV head that a block handles: the product's rows
constexpr int kResident = 3;    // blocks on a multiprocessor
#ifndef MG
#define MG 1
#endif
constexpr int kLeastGranules = MG;

// The work is a line of granules: sequence after sequence that has one row, in it KV head after KV
// head (and, where more than kTileHeads query heads share one, tile after tile of those), in it
// granules of one tile of keys for each warp. The blocks, as many as are resident at a time, share
// the line evenly, whatever the contexts' lengths. So a block works on a few pairs of sequence and
// KV head one after another, and only its first and its last can be shared with other blocks.
struct DecodeArguments {
  const void* keys;    // [blocks, kv_heads, kBlockTokens, head_dim]
  const void* values;  // likewise
  const void* q;       // [rows, q_stride]
  void* out;           // [rows, out_stride]
  const int32_t* row_begin;        // [sequences + 1]
  const int32_t* context_lengths;  // [sequences]
  const int32_t* block_tables;     // [sequences, table_stride]
  int64_t q_stride, out_stride, table_stride;
  int sequences, kv_heads, group, head_tiles, head_dim, window;
  float scale_log2;
  // Of a pair that several blocks share, its first block's counter counts those that are done. Zero
  // between calls.
  unsigned* counters;    // [blocks]
  float* partial_out;    // [blocks, first or last, kTileHeads, head_dim] Σ exp2(score - highest) · value
  float2* partial_sums;  // [blocks, first or last, kTileHeads] highest, Σ exp2(score - highest)
};

// Head dimensions up to kDim are padded to it with zeros.
template <int kDim_>
struct DecodeShape {
  static constexpr int kDim = kDim_;
  static constexpr int kWarps = kDim == 256 ? 2 : 4;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kStages = kDim == 64 ? 4 : 2;  // tiles on their way to a warp
  static constexpr int kStride = kDim + 8;     // of a row in shared memory: no bank conflicts
  static constexpr int kTile = kTileTokens * kStride;
  static constexpr int kWarpTiles = 2 * kStages;  // keys and values
  static constexpr int kSharedBytes = kWarps * kWarpTiles * kTile * 2;
  // Afterwards the same memory holds each warp's float32 outputs, [kWarps, kTileHeads, kStride].
  static_assert(kSharedBytes >= kWarps * kTileHeads * kStride * 4);
};

// What of its context a sequence's row sees: tokens [first_token, end_token), in `tiles` tiles from
// first_tile on.
struct Span {
  int row;
  int first_token, end_token;
  int first_tile, tiles;
};

__device__ Span SpanOf(const DecodeArguments& a, int sequence) {
  Span span;
  span.row = a.row_begin[sequence];
  span.end_token = a.context_lengths[sequence];
  if (a.row_begin[sequence + 1] - span.row != 1) span.end_token = 0;  // not ours
  span.first_token = max(0, span.end_token - a.window);
  span.first_tile = span.first_token / kTileTokens;
  span.tiles = (span.end_token + kTileTokens - 1) / kTileTokens - span.first_tile;
  return span;
}

template <int kWarps>
__device__ int GranulesOf(const DecodeArguments& a, int sequence) {
  if (sequence >= a.sequences) return 0;
  return (SpanOf(a, sequence).tiles + kWarps - 1) / kWarps;
}

// How the line is shared: block b has granules [Begin(b), Begin(b + 1)).
struct Share {
  int blocks, each, longer;  // the first `longer` blocks have one more than `each`
  __device__ Share(int total, int most_blocks) {
    blocks = min(most_blocks, (total + kLeastGranules - 1) / kLeastGranules);
    each = blocks > 0 ? total / blocks : 0;
    longer = total - each * blocks;
  }
  __device__ int Begin(int block) const { return block * each + min(block, longer); }
  __device__ int BlockOf(int granule) const {
    const int in_longer = longer * (each + 1);
    return granule < in_longer ? granule / (each + 1) : longer + (granule - in_longer) / each;
  }
};

// A place on the line.
struct Place {
  int sequence;
  int offset;  // granules of the sequence before it, all KV heads'
};

// The line's length, and where on it a granule is; all lanes of a warp call these together.
template <int kWarps>
__device__ int LineLength(const DecodeArguments& a) {
  int length = 0;
  for (int s = static_cast<int>(threadIdx.x) % 32; s < a.sequences; s += 32) {
    length += GranulesOf<kWarps>(a, s);
  }
  return __reduce_add_sync(~0u, length) * a.kv_heads * a.head_tiles;
}

template <int kWarps>
__device__ Place Find(const DecodeArguments& a, int granule) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int base = 0;; base += 32) {
    const int own = GranulesOf<kWarps>(a, base + lane) * a.kv_heads * a.head_tiles;
    int end = own;  // of the sequence, from `base` on
    for (int step = 1; step < 32; step *= 2) {
      const int other = __shfl_up_sync(~0u, end, step);
      if (lane >= step) end += other;
    }
    const unsigned after = __ballot_sync(~0u, end > granule);
    if (after != 0) {
      const int found = __ffs(static_cast<int>(after)) - 1;
      return {base + found, granule - __shfl_sync(~0u, end - own, found)};
    }
    granule -= __shfl_sync(~0u, end, 31);
  }
}

// A block's part of one pair: tiles [begin_tile, end_tile) of what `span` spans.
struct Segment {
  Span span;
  int sequence, kv_head;
  int first_head, heads;  // query heads
  int begin_tile, end_tile;
};

// One warp's way through tiles first, first + kWarps, ... of a segment.
template <typename T, int kDim>
class TileLoader {
  using Shape = DecodeShape<kDim>;
  static constexpr int kChunks = kDim / 8;  // of 16 bytes in a row
  static constexpr int kRowsAtOnce = 32 / kChunks;

 public:
  __device__ TileLoader(const DecodeArguments& a, const Segment& segment, int first)
      : segment_(segment),
        table_(a.block_tables + segment.sequence * a.table_stride),
        first_(first),
        head_dim_(a.head_dim) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    row_ = lane / kChunks;
    const int column = lane % kChunks * 8;
    has_column_ = column < head_dim_;
    shared_offset_ = (row_ * Shape::kStride + column) * 2;
    block_elements_ = static_cast<int64_t>(a.kv_heads) * kBlockTokens * head_dim_;
    lane_offset_ = segment.kv_head * kBlockTokens * head_dim_ +
                   (has_column_ ? row_ * head_dim_ + column : 0);
  }

  // Where in the cache this lane's part of the warp's tile i begins; to be called for i = 0, 1, ...
  // by all lanes.
  __device__ int64_t Locate(int i) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    if (i % 32 == 0) {  // a lane reads the table for one tile, so that the warp waits for it once
      const int tile = first_ + (i + lane) * Shape::kWarps;
      block_ = tile < segment_.end_tile ? table_[tile / kTilesPerBlock] : 0;
    }
    const int block = __shfl_sync(~0u, block_, i % 32);
    const int slot = (first_ + i * Shape::kWarps) % kTilesPerBlock * kTileTokens;
    return block * block_elements_ + lane_offset_ + slot * head_dim_;
  }

  // Slots that hold no token of the context are not read: they may hold anything, even NaN.
  __device__ void Load(const T* part, int i, uint32_t shared) const {
    const int token = (first_ + i * Shape::kWarps) * kTileTokens + row_ - segment_.span.first_token;
    const auto count =
        static_cast<unsigned>(segment_.span.end_token - segment_.span.first_token);
#pragma unroll
    for (int row = 0; row < kTileTokens; row += kRowsAtOnce) {
      const bool wanted = has_column_ && static_cast<unsigned>(token + row) < count;
      CopyAsync16(shared + shared_offset_ + row * Shape::kStride * 2,
                  part + (wanted ? row * head_dim_ : 0), wanted);
    }
  }

 private:
  const Segment& segment_;
  const int32_t* table_;
  int first_, head_dim_, row_;
  bool has_column_;
  int shared_offset_, lane_offset_;
  int64_t block_elements_;
  int block_ = 0;
};

template <int kDim>
struct WarpState {
  float highest[2] = {-INFINITY, -INFINITY};  // of rows lane / 4 and lane / 4 + 8
  float sums[2] = {0, 0};
  float out[kDim / 8][4] = {};
};

// The warp's tiles, one after another: loads run kStages tiles ahead in shared memory of its own.
template <typename T, int kDim>
__device__ void AttendTiles(const DecodeArguments& a, const Segment& segment,
                            const uint32_t (&queries)[kDim / 16][4], uint32_t shared,
                            WarpState<kDim>& state) {
  using Shape = DecodeShape<kDim>;
  constexpr int kStages = Shape::kStages;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int first = segment.begin_tile + warp;
  const int count = (segment.end_tile - first + Shape::kWarps - 1) / Shape::kWarps;
  TileLoader<T, kDim> loader(a, segment, first);
  const auto* keys = static_cast<const T*>(a.keys);
  const auto* values = static_cast<const T*>(a.values);
  shared += warp * Shape::kWarpTiles * Shape::kTile * 2;
  const auto key_tile = [&](int i) { return shared + i % kStages * 2 * Shape::kTile * 2; };
  const auto value_tile = [&](int i) { return key_tile(i) + Shape::kTile * 2; };
  for (int i = 0; i < kStages; ++i) {
    if (i < count) {
      const int64_t at = loader.Locate(i);
      loader.Load(keys + at, i, key_tile(i));
      CommitCopies();
      loader.Load(values + at, i, value_tile(i));
      CommitCopies();
    } else {
      CommitCopies();
      CommitCopies();
    }
  }
  // Rows of a tile for ldmatrix: keys are the product's columns, values its depth.
  const int key_offset = ((lane / 16 * 8 + lane % 8) * Shape::kStride + lane / 8 % 2 * 8) * 2;
  const int value_offset = ((lane / 8 % 2 * 8 + lane % 8) * Shape::kStride + lane / 16 * 8) * 2;
  for (int i = 0; i < count; ++i) {
    WaitForCopies<2 * kStages - 1>();
    __syncwarp();
    float scores[2][4] = {};
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
      uint32_t fragment[4];
      LoadMatrices(key_tile(i) + key_offset + step * 32, fragment);
      MultiplyAdd<T>(queries[step], fragment[0], fragment[1], scores[0]);
      MultiplyAdd<T>(queries[step], fragment[2], fragment[3], scores[1]);
    }
    __syncwarp();  // all lanes have read the tile that the next one replaces
    int64_t next = 0;
    if (i + kStages < count) {
      next = loader.Locate(i + kStages);
      loader.Load(keys + next, i + kStages, key_tile(i));
    }
    CommitCopies();

    const int token = (first + i * Shape::kWarps) * kTileTokens;
    const int first_token = segment.span.first_token, end_token = segment.span.end_token;
    if (token < first_token || token + kTileTokens > end_token) {
#pragma unroll
      for (int t = 0; t < 2; ++t) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int key = token + t * 8 + lane % 4 * 2 + j % 2;
          if (key < first_token || key >= end_token) scores[t][j] = -INFINITY;
        }
      }
    }
    SoftmaxStep(a.scale_log2, scores, state.highest, state.sums, state.out);
    const uint32_t weights[4] = {
        PackHalves<T>(scores[0][0], scores[0][1]), PackHalves<T>(scores[0][2], scores[0][3]),
        PackHalves<T>(scores[1][0], scores[1][1]), PackHalves<T>(scores[1][2], scores[1][3])};

    WaitForCopies<2 * kStages - 1>();
    __syncwarp();
#pragma unroll
    for (int t = 0; t < kDim / 8; t += 2) {
      uint32_t fragment[4];
      LoadMatricesTransposed(value_tile(i) + value_offset + t * 16, fragment);
      MultiplyAdd<T>(weights, fragment[0], fragment[1], state.out[t]);
      MultiplyAdd<T>(weights, fragment[2], fragment[3], state.out[t + 1]);
    }
    __syncwarp();
    if (i + kStages < count) loader.Load(values + next, i + kStages, value_tile(i));
    CommitCopies();
  }
  WaitForCopies<0>();
}

template <typename T>
__device__ void Store4(T* to, float4 values) {
  const uint2 packed = {PackHalves<T>(values.x, values.y), PackHalves<T>(values.z, values.w)};
  *reinterpret_cast<uint2*>(to) = packed;
}

__device__ void AddScaled(float4& sum, float factor, float4 x) {
  sum.x = fmaf(factor, x.x, sum.x);
  sum.y = fmaf(factor, x.y, sum.y);
  sum.z = fmaf(factor, x.z, sum.z);
  sum.w = fmaf(factor, x.w, sum.w);
}

__device__ float4 Scaled(float factor, float4 x) {
  return {factor * x.x, factor * x.y, factor * x.z, factor * x.w};
}

// What the warps of a block have of a pair, to be added up.
template <int kDim>
struct BlockMemory {
  using Shape = DecodeShape<kDim>;
  float* out;  // [kWarps, kTileHeads, kStride] in the memory of the tiles
  float (*highest)[kTileHeads];  // [kWarps]
  float (*sums)[kTileHeads];     // [kWarps]

  __device__ float* At(int warp, int head) const {
    return out + (warp * kTileHeads + head) * Shape::kStride;
  }
};

template <int kDim>
__device__ void KeepState(const WarpState<kDim>& state, int heads, const BlockMemory<kDim>& memory) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int head = lane / 4 + half * 8;
    const float sum = SumOverQuad(state.sums[half]);
    if (head >= heads) continue;
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
  using Shape = DecodeShape<kDim>;
  const int chunks = head_dim / 4;
  for (int i = static_cast<int>(threadIdx.x); i < heads * chunks; i += Shape::kThreads) {
    const int head = i / chunks, column = i % chunks * 4;
    float top = memory.highest[0][head];  // warp 0 always has something
#pragma unroll
    for (int w = 1; w < Shape::kWarps; ++w) top = fmaxf(top, memory.highest[w][head]);
    float4 out = {};
    float sum = 0;
#pragma unroll
    for (int w = 0; w < Shape::kWarps; ++w) {
      const float factor = Exp2(memory.highest[w][head] - top);
      sum = fmaf(factor, memory.sums[w][head], sum);
      AddScaled(out, factor, *reinterpret_cast<const float4*>(memory.At(w, head) + column));
    }
    emit(head, column, top, sum, out);
  }
}

// The parts that blocks first_block, first_block + 1, ... left of a pair, some for each warp.
// `first_slot`: of the first block's two parts, which; of the others it is their first.
template <int kDim>
__device__ void GatherParts(const DecodeArguments& a, int first_block, int first_slot, int parts,
                            int heads, const BlockMemory<kDim>& memory) {
  using Shape = DecodeShape<kDim>;
  constexpr int kAtOnce = 4;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  for (int head = 0; head < heads; ++head) {
    for (int column = lane * 4; column < a.head_dim; column += 128) {
      float top = -INFINITY, sum = 0;
      float4 out = {};
      for (int part = warp; part < parts; part += kAtOnce * Shape::kWarps) {
        float2 part_sums[kAtOnce];
        float4 part_out[kAtOnce];
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          const int p = part + i * Shape::kWarps;
          const int64_t slot = 2 * (first_block + p) + (p == 0 ? first_slot : 0);
          const int64_t at = slot * kTileHeads + head;
          part_sums[i] = p < parts ? __ldcg(a.partial_sums + at) : float2{-INFINITY, 0};
          part_out[i] = p < parts ? __ldcg(reinterpret_cast<const float4*>(
                                        a.partial_out + at * a.head_dim + column))
                                  : float4{};
        }
        float higher = top;
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) higher = fmaxf(higher, part_sums[i].x);
        const float factor = Exp2(top - higher);
        sum *= factor;
        out = Scaled(factor, out);
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          const float part_factor = Exp2(part_sums[i].x - higher);
          sum = fmaf(part_factor, part_sums[i].y, sum);
          AddScaled(out, part_factor, part_out[i]);
        }
        top = higher;
      }
      *reinterpret_cast<float4*>(memory.At(warp, head) + column) = out;
      if (column == 0) {
        memory.highest[warp][head] = top;
        memory.sums[warp][head] = sum;
      }
    }
  }
}

template <typename T, int kDim>
__global__ void __launch_bounds__(DecodeShape<kDim>::kThreads, kResident)
    DecodeKernel(const __grid_constant__ DecodeArguments a) {
  using Shape = DecodeShape<kDim>;
  constexpr int kWarps = Shape::kWarps;
  extern __shared__ __align__(16) unsigned char tiles[];
  __shared__ float highest[kWarps][kTileHeads], sums[kWarps][kTileHeads];
  __shared__ bool is_last;
  const BlockMemory<kDim> memory{reinterpret_cast<float*>(tiles), highest, sums};
  const int lane = static_cast<int>(threadIdx.x) % 32;

  // The batch was there before the kernels of its step.
  const int block = static_cast<int>(blockIdx.x);
  const Share share(LineLength<kWarps>(a), static_cast<int>(gridDim.x));
  const int begin = share.Begin(block), end = share.Begin(block + 1);
  StartNextKernel();
  WaitForLastKernel();
  if (block >= share.blocks) return;
  Place place = Find<kWarps>(a, begin);
  for (int granule = begin; granule < end;) {
    const Span span = SpanOf(a, place.sequence);
    const int granules = (span.tiles + kWarps - 1) / kWarps;  // of the pair
    if (granules == 0) {
      ++place.sequence;
      continue;
    }
    const int pair = place.offset / granules, first = place.offset % granules;
    const int count = min(granules - first, end - granule);
    const int first_in_group = pair % a.head_tiles * kTileHeads;
    const int kv_head = pair / a.head_tiles;
    const Segment segment{.span = span,
                          .sequence = place.sequence,
                          .kv_head = kv_head,
                          .first_head = kv_head * a.group + first_in_group,
                          .heads = min(kTileHeads, a.group - first_in_group),
                          .begin_tile = span.first_tile + first * kWarps,
                          .end_tile = span.first_tile + min(span.tiles, (first + count) * kWarps)};
    const int heads = segment.heads;
    {
      WarpState<kDim> state;
      const T* query = static_cast<const T*>(a.q) + span.row * a.q_stride +
                       static_cast<int64_t>(segment.first_head) * a.head_dim;
      const int low = lane / 4, high = low + 8;
      uint32_t queries[kDim / 16][4];
      LoadQueries(low < heads ? query + low * a.head_dim : nullptr,
                  high < heads ? query + high * a.head_dim : nullptr, a.head_dim, queries);
      AttendTiles<T, kDim>(a, segment, queries, SharedAddress(tiles), state);
      __syncthreads();  // the tiles' memory serves the warps' outputs now
      KeepState(state, heads, memory);
    }
    __syncthreads();

    T* to = static_cast<T*>(a.out) + span.row * a.out_stride +
            static_cast<int64_t>(segment.first_head) * a.head_dim;
    const auto store = [&](int head, int column, float, float sum, float4 out) {
      Store4(to + head * a.head_dim + column, Scaled(1 / sum, out));
    };
    if (count == granules) {
      CombineWarps(memory, heads, a.head_dim, store);
    } else {
      const int64_t slot = 2 * block + (granule == begin ? 0 : 1);
      CombineWarps(memory, heads, a.head_dim,
                   [&](int head, int column, float top, float sum, float4 out) {
                     const int64_t at = slot * kTileHeads + head;
                     *reinterpret_cast<float4*>(a.partial_out + at * a.head_dim + column) = out;
                     if (column == 0) a.partial_sums[at] = {top, sum};
                   });
      const int pair_begin = granule - first;
      const int first_block = share.BlockOf(pair_begin);
      const int parts = share.BlockOf(pair_begin + granules - 1) - first_block + 1;
      __threadfence();  // the parts before the count
      __syncthreads();
      if (threadIdx.x == 0) {
        const auto last = static_cast<unsigned>(parts - 1);
        is_last = atomicInc(a.counters + first_block, last) == last;  // which leaves zero
        __threadfence();
      }
      __syncthreads();
      if (is_last) {
        const int first_slot = share.Begin(first_block) == pair_begin ? 0 : 1;
        GatherParts(a, first_block, first_slot, parts, heads, memory);
        __syncthreads();
        CombineWarps(memory, heads, a.head_dim, store);
      }
    }
    __syncthreads();  // before the memory takes tiles again

    granule += count;
    place.offset += count;
    if (place.offset == granules * a.kv_heads * a.head_tiles) place = {place.sequence + 1, 0};
  }
}

template <typename T, int kDim>
void Launch(Stream& stream, const DecodeArguments& arguments, int64_t blocks) {
  using Shape = DecodeShape<kDim>;
  const auto kernel = DecodeKernel<T, kDim>;
  stream.Check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    Shape::kSharedBytes),
               "decode attention's shared memory", blocks, kDim);
  cudaLaunchAttribute early;
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(Shape::kThreads);
  config.dynamicSmemBytes = Shape::kSharedBytes;
  config.stream = stream.get();
  config.attrs = &early;
#ifdef NO_PDL
  config.numAttrs = 0;
#else
  config.numAttrs = WaitsForLastKernel(reinterpret_cast<const void*>(kernel)) ? 1 : 0;
#endif
  cudaLaunchKernelEx(&config, kernel, arguments);
}

int64_t Blocks(int multiprocessors) { return int64_t{kResident} * multiprocessors; }

// Scratch memory: the counters, then partial outputs, then their sums; of a size that does not depend
// on the batch, since counters must stay zero from one to the next.
size_t CounterBytes(int multiprocessors) {
  return RoundUp<size_t>(static_cast<size_t>(Blocks(multiprocessors)) * sizeof(unsigned), 256);
}

}  // namespace

size_t DecodeScratchBytes(int multiprocessors, int64_t, const AttentionSpec& attention) {
  const auto part_bytes = static_cast<size_t>(attention.head_dim) * sizeof(float) + sizeof(float2);
  return CounterBytes(multiprocessors) +
         static_cast<size_t>(2 * Blocks(multiprocessors) * kTileHeads) * part_bytes;
}

void AttendDecode(Stream& stream, const DeviceBatch& batch, const AttentionSpec& attention,
                  MatrixView q, KvView kv, MatrixView out, void* scratch) {
  if (!batch.has_decode) return;
  CheckAttention(attention, q, out);
  const int64_t blocks = Blocks(stream.multiprocessors());
  const int64_t group = attention.heads / attention.kv_heads;
  auto* memory = static_cast<std::byte*>(scratch);
  auto* parts = reinterpret_cast<float*>(memory + CounterBytes(stream.multiprocessors()));
  const DecodeArguments arguments{
      .keys = kv.keys,
      .values = kv.values,
      .q = q.data,
      .out = out.data,
      .row_begin = batch.row_begin,
      .context_lengths = batch.context_lengths,
      .block_tables = batch.block_tables,
      .q_stride = q.stride,
      .out_stride = out.stride,
      .table_stride = batch.table_stride,
      .sequences = static_cast<int>(batch.sequences),
      .kv_heads = static_cast<int>(attention.kv_heads),
      .group = static_cast<int>(group),
      .head_tiles = static_cast<int>(CeilDiv<int64_t>(group, kTileHeads)),
      .head_dim = static_cast<int>(attention.head_dim),
      .window = WindowOf(attention),
      .scale_log2 = attention.scale * kLog2E,
      .counters = reinterpret_cast<unsigned*>(memory),
      .partial_out = parts,
      .partial_sums =
          reinterpret_cast<float2*>(parts + 2 * blocks * kTileHeads * attention.head_dim)};
  WithHalfType(q.dtype, [&]<typename T>() {
    if (attention.head_dim <= 64) {
      Launch<T, 64>(stream, arguments, blocks);
    } else if (attention.head_dim <= 128) {
      Launch<T, 128>(stream, arguments, blocks);
    } else {
      Launch<T, 256>(stream, arguments, blocks);
    }
  });
  stream.CheckLaunch("decode attention", q.rows, q.columns);
}

}  // namespace nibble::cuda

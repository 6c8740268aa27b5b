// Decode attention's input: its arguments, tiles of the cache on their way into shared memory, and
// the token that is not in the cache yet.
#ifndef NIBBLE_OPS_CUDA_DECODE_TILES_CUH_
#define NIBBLE_OPS_CUDA_DECODE_TILES_CUH_

#include <cstdint>

#include "src/ops/cuda/attention_common.cuh"
#include "src/ops/cuda/decode_line.cuh"
#include "src/ops/cuda/kv_fp8.cuh"

namespace nibble::cuda {

inline constexpr int kRoundHeads = 4;  // that a block's warps add up at a time

// kFresh: queries are not turned yet, and each context's last token is not in the cache but with
// them.
enum class DecodeInput { kTurned, kFresh };

struct DecodeArguments {
  DecodeLine line;
  void* keys;            // [blocks, kv_heads, kBlockTokens, head_dim]
  void* values;          // likewise
  const uint32_t* scales;  // see KvView
  const void* q;         // [rows, q_stride]; fresh: queries, then keys, then values
  const float2* angles;  // fresh: [rows, head_dim / 2], cos and sin
  void* out;             // [rows, out_stride]
  int64_t q_stride, out_stride;
  int group, tile_heads, head_dim;
  float scale_log2;
  // Of a pair that several blocks share, its first block's counter counts those that are done; the
  // first one counts the pairs that are taken in turn. Zero between calls.
  unsigned* counters;  // [blocks]
  float* partial_out;  // [blocks, first or last, tile_heads, head_dim] Σ exp2(score - highest) · v
  float2* partial_sums;  // [blocks, first or last, tile_heads] highest, Σ exp2(score - highest)
};

// Head dimensions up to kDim are padded to it with zeros; with fresh input there is nothing to pad.
template <int kDim, DecodeInput kInput>
__device__ int HeadDim(const DecodeArguments& a) {
  return kInput == DecodeInput::kFresh ? kDim : a.head_dim;
}
template <int kDim>
inline constexpr int kDecodeWarps = DecodeWarps(kDim);
template <int kDim>
inline constexpr int kOutStride = kDim + 8;  // of a warp's outputs for a head

template <int kDim, typename Element>
struct DecodeShape {
  static constexpr int kWarps = kDecodeWarps<kDim>;
  // A warp's tiles under way. Three for 128 of 16 bits were no faster, and are too much for GPUs that
  // give a block 99 KiB.
  static constexpr int kStages = (kDim == 64 ? 4 : 2) * 2 / static_cast<int>(sizeof(Element));
  static_assert(kStages <= MostDecodeStages(kDim));
  // Of a row in shared memory: no bank conflicts.
  static constexpr int kRowBytes = kDim * static_cast<int>(sizeof(Element)) + 16;
  static constexpr int kScales = kTileTokens * kRowBytes;  // of 8-bit keys and values, behind keys
  static constexpr int kTileBytes = kScales + (std::is_same_v<Element, Fp8> ? kTileTokens * 4 : 0);
  static constexpr int kWarpBytes = 2 * kStages * kTileBytes;  // of keys and values
  // After the tiles come the warps' outputs, float32 [kWarps, kRoundHeads, kOutStride].
  static constexpr int kOutputs = kWarps * kWarpBytes;
  static constexpr int kSharedBytes = kOutputs + kWarps * kRoundHeads * kOutStride<kDim> * 4;
};

inline constexpr int kSectorBytes = 32;  // that a cache reads at a time
static_assert(sizeof(DecodePart) == kSectorBytes);
// Into the second-level cache, to stay there until the next layer while all weights pass.
inline __device__ void KeepSector(const void* global) {
  asm volatile("prefetch.global.L2::evict_last [%0];" ::"l"(global));
}

// One warp's tiles of all its block's segments, of which each warp has every kWarps-th.
template <typename Element, int kDim, DecodeInput kInput>
class TileStream {
  using Shape = DecodeShape<kDim, Element>;
  static constexpr int kWarps = Shape::kWarps;
  static constexpr int kElements = 16 / static_cast<int>(sizeof(Element));
  static constexpr int kChunks = kDim / kElements;  // of 16 bytes in a row
  static constexpr int kRowsAtOnce = 32 / kChunks;

 public:
  __device__ TileStream(const DecodeArguments& a, const Walk<kWarps>& walk, uint32_t shared)
      : a_(a), walk_(walk) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    row_ = lane / kChunks;
    const int chunk = lane % kChunks, column = chunk * kElements;
    has_column_ = column < HeadDim<kDim, kInput>(a);
    lane_offset_ = has_column_ ? row_ * HeadDim<kDim, kInput>(a) + column : 0;
    shared_ = shared + row_ * Shape::kRowBytes + chunk * 16;
    shared_scales_ = shared + Shape::kScales + lane * 16;
  }

  // Goes to the next tile; false after the last. For all lanes together.
  __device__ bool Next() {
    ++index_;
    while (index_ >= count_) {
      Segment segment;
      if (!walk_.Next(a_.line, segment)) {
        index_ = count_;
        return false;
      }
      const int warp = static_cast<int>(threadIdx.x) / 32;
      first_token_ = segment.span.first_token;
      end_token_ = segment.span.end_token - (kInput == DecodeInput::kFresh ? 1 : 0);
      first_ = segment.span.first_tile + segment.first * kWarps + warp;
      const int end = min(segment.span.tiles, (segment.first + segment.count) * kWarps) +
                      segment.span.first_tile;
      count_ = (end - first_ + kWarps - 1) / kWarps;
      index_ = 0;
      table_ = a_.line.block_tables + segment.sequence * a_.line.table_stride;
      head_offset_ = segment.kv_head * kBlockTokens;
    }
    const int lane = static_cast<int>(threadIdx.x) % 32;
    if (index_ % 32 == 0) {  // a lane reads the table for one tile: the warp waits for it once
      const int tile = index_ + lane < count_ ? first_ + (index_ + lane) * kWarps : first_;
      block_ = table_[tile / kTilesPerBlock];
    }
    const int block = __shfl_sync(~0u, block_, index_ % 32);
    const int slot = (first_ + index_ * kWarps) % kTilesPerBlock * kTileTokens;
    at_ = static_cast<int64_t>(block) * a_.line.kv_heads * kBlockTokens + head_offset_ + slot;
    return true;
  }

  // Copies that tile of keys or values, to a place for it in the warp's memory. Slots that hold no
  // token of the context, or a fresh one, are not read: they may hold anything, even NaN.
  __device__ void Load(const void* cache, int place) const {
    const int head_dim = HeadDim<kDim, kInput>(a_);
    const Element* from = static_cast<const Element*>(cache) + at_ * head_dim + lane_offset_;
    const int token = (first_ + index_ * kWarps) * kTileTokens + row_ - first_token_;
    const auto count = static_cast<unsigned>(end_token_ - first_token_);
#pragma unroll
    for (int row = 0; row < kTileTokens; row += kRowsAtOnce) {
      const bool wanted = has_column_ && static_cast<unsigned>(token + row) < count;
      CopyAsync16(shared_ + place * Shape::kTileBytes + row * Shape::kRowBytes,
                  from + row * head_dim, wanted);
    }
  }
  // Copies the tile's keys, and the scales of both.
  __device__ void LoadKeys(int place) const {
    Load(a_.keys, place);
    if constexpr (std::is_same_v<Element, Fp8>) {
      const int lane = static_cast<int>(threadIdx.x) % 32;
      if (lane < kTileTokens / 4) {
        CopyAsync16(shared_scales_ + place * Shape::kTileBytes, a_.scales + at_ + lane * 4);
      }
    }
  }

 private:
  const DecodeArguments& a_;
  Walk<kWarps> walk_;
  const int32_t* table_ = nullptr;
  int64_t at_ = 0;  // of the tile's first token, of all heads' tokens
  int first_ = 0, index_ = -1, count_ = 0;
  int first_token_ = 0, end_token_ = 0;
  int head_offset_ = 0, block_ = 0;
  int row_, lane_offset_;
  bool has_column_;
  uint32_t shared_, shared_scales_;
};

// The fresh token of a segment's context, where the segment and this warp have its tile: 16 bytes
// of its key, turned, and of its value in the lane that filled their place in the tile.
template <typename T, int kDim>
class FreshToken {
  using Shape = DecodeShape<kDim, T>;
  static constexpr int kChunks = kDim / 8;  // of 16 bytes in a row
  static constexpr int kRowsAtOnce = 32 / kChunks;

 public:
  // Reads it and writes it to the cache.
  __device__ FreshToken(const DecodeArguments& a, const Segment& segment) {
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    if (segment.first + segment.count != segment.granules ||
        (segment.span.tiles - 1) % Shape::kWarps != warp) {
      return;
    }
    const int token = segment.span.end_token - 1, slot = token % kTileTokens;
    tile_ = token / kTileTokens;
    const int chunk = lane % kChunks, column = chunk * 8;
    is_here_ = lane / kChunks == slot % kRowsAtOnce;
    if (!is_here_) return;
    offset_ = slot * Shape::kRowBytes + chunk * 16;
    const int kv_head = segment.kv_head;
    const T* key = static_cast<const T*>(a.q) + segment.span.row * a.q_stride +
                   static_cast<int64_t>(a.line.kv_heads * a.group + kv_head) * kDim;
    const T* value = key + static_cast<int64_t>(a.line.kv_heads) * kDim;
    const int32_t block =
        a.line.block_tables[segment.sequence * a.line.table_stride + token / kBlockTokens];
    key_ = *reinterpret_cast<const uint4*>(key + column);
    value_ = *reinterpret_cast<const uint4*>(value + column);
    const uint4 other = *reinterpret_cast<const uint4*>(key + (chunk ^ (kChunks / 2)) * 8);
    const auto* angles = reinterpret_cast<const float4*>(
        a.angles + static_cast<int64_t>(segment.span.row) * (kDim / 2) + chunk % (kChunks / 2) * 8);
    Turn(other, chunk < kChunks / 2 ? -1.0f : 1.0f, angles);
    const int64_t at = ((static_cast<int64_t>(block) * a.line.kv_heads + kv_head) * kBlockTokens +
                        token % kBlockTokens) *
                           kDim +
                       column;
    *reinterpret_cast<uint4*>(static_cast<T*>(a.keys) + at) = key_;
    *reinterpret_cast<uint4*>(static_cast<T*>(a.values) + at) = value_;
  }

  // Of the context; -1 where it is not the warp's.
  __device__ int tile() const { return tile_; }
  // To a tile whose copies this lane has waited for.
  __device__ void PutKey(uint32_t tile) const { Put(key_, tile); }
  __device__ void PutValue(uint32_t tile) const { Put(value_, tile); }

 private:
  // key_ · cos + sign · other · sin
  __device__ void Turn(const uint4& other, float sign, const float4* angles) {
    using H = HalfTraits<T>;
    auto* own = reinterpret_cast<typename H::Pair*>(&key_);
    const auto* others = reinterpret_cast<const typename H::Pair*>(&other);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float4 angle = angles[i];
      const float2 x = H::ToFloats(own[i]), y = H::ToFloats(others[i]);
      own[i] =
          H::FromFloats(x.x * angle.x + sign * y.x * angle.y, x.y * angle.z + sign * y.y * angle.w);
    }
  }
  __device__ void Put(const uint4& from, uint32_t tile) const {
    if (!is_here_) return;
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(tile + offset_), "r"(from.x),
                 "r"(from.y), "r"(from.z), "r"(from.w)
                 : "memory");
  }

  int tile_ = -1;
  bool is_here_ = false;
  uint32_t offset_ = 0;
  uint4 key_, value_;
};

// A row's angles as a lane's queries need them: two of them for every two columns below kDim / 2.
template <int kDim>
__device__ void LoadAngles(const float2* row, float4 (&angles)[kDim / 16]) {
#pragma unroll
  for (int i = 0; i < kDim / 16; ++i) {
    angles[i] =
        *reinterpret_cast<const float4*>(row + i * 8 + static_cast<int>(threadIdx.x) % 4 * 2);
  }
}

}  // namespace nibble::cuda

#endif  // NIBBLE_OPS_CUDA_DECODE_TILES_CUH_

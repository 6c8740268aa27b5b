// The CPU's arrangement of the key-value cache: [layer][block][kv_head] of
//   keys   [head_dim][16 tokens], so that the lanes of a score's vector are
//   tokens values [16 tokens][head_dim], so that the lanes of an output's
//   vector are dimensions
#ifndef NIBBLE_OPS_CPU_CPU_KV_CACHE_H_
#define NIBBLE_OPS_CPU_CPU_KV_CACHE_H_

#include <cstddef>
#include <cstdint>

#include "src/ops/kv.h"

namespace nibble::cpu {

inline constexpr int64_t kBlockTokens = 16;
// Kernels read values in whole vectors, up to this far past the last.
inline constexpr size_t kKvSlackBytes = 64;

class CpuKvCache final : public KvCache {
 public:
  CpuKvCache(const KvLayout& layout, int64_t blocks, Buffer memory)
      : layout_(layout), blocks_(blocks), memory_(std::move(memory)) {}

  static size_t Bytes(const KvLayout& layout, int64_t blocks) {
    return static_cast<size_t>(blocks) * layout.BlockBytes() +
           (layout.head_dim % kBlockTokens == 0 ? 0 : kKvSlackBytes);
  }

  const KvLayout& layout() const override { return layout_; }
  int64_t blocks() const override { return blocks_; }

  // Keys, or values, of one head in a block.
  size_t half_bytes() const {
    return static_cast<size_t>(layout_.head_dim * kBlockTokens) * BytesOf(layout_.dtype);
  }
  std::byte* keys(int64_t layer, int64_t block, int64_t kv_head) const {
    const int64_t at = (layer * blocks_ + block) * layout_.kv_heads + kv_head;
    return memory_.as<std::byte>() + static_cast<size_t>(at) * 2 * half_bytes();
  }
  std::byte* values(int64_t layer, int64_t block, int64_t kv_head) const {
    return keys(layer, block, kv_head) + half_bytes();
  }

 private:
  KvLayout layout_;
  int64_t blocks_;
  Buffer memory_;
};

}  // namespace nibble::cpu

#endif  // NIBBLE_OPS_CPU_CPU_KV_CACHE_H_

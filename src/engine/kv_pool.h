// Counts the blocks of a KV cache: which are free, and how many sequences hold each.
#ifndef NIBBLE_ENGINE_KV_POOL_H_
#define NIBBLE_ENGINE_KV_POOL_H_

#include <cstdint>
#include <optional>
#include <vector>

namespace nibble {

class KvPool {
 public:
  explicit KvPool(int64_t blocks);

  // A block held once; none where all are in use.
  std::optional<int32_t> Take();
  // One holder more, one holder less; a block that nobody holds is free again.
  void Share(int32_t block);
  void Release(int32_t block);

  int64_t holders(int32_t block) const { return holders_[static_cast<size_t>(block)]; }
  int64_t free_blocks() const { return static_cast<int64_t>(free_.size()); }
  int64_t blocks() const { return static_cast<int64_t>(holders_.size()); }

 private:
  std::vector<int32_t> holders_;  // [blocks]
  std::vector<int32_t> free_;     // a stack
};

}  // namespace nibble

#endif  // NIBBLE_ENGINE_KV_POOL_H_

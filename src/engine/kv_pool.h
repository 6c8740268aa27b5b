// Counts the blocks of a KV cache: which are free, how many sequences hold each, and which hold
// known tokens, so that later sequences that begin with the same tokens find them.
//
// Known blocks form a tree: a block's parent is the block before it in its sequence (kNoBlock for a
// sequence's first). A block is found by its parent and its own tokens, which are compared, so what
// is found holds exactly the tokens of the whole path. A known block that nobody holds stays known
// until its memory is needed; the one that was released first goes first.
//
// Whoever holds a known block must hold its parent, and release it no later: then a path is taken
// back from its end, and what is known can always be found.
#ifndef NIBBLE_ENGINE_KV_POOL_H_
#define NIBBLE_ENGINE_KV_POOL_H_

#include <cstdint>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

namespace nibble {

class KvPool {
 public:
  static constexpr int32_t kNoBlock = -1;

  KvPool(int64_t blocks, int64_t block_tokens);

  // A block held once, with nothing known of its content; none where all are held.
  std::optional<int32_t> Take();
  // One holder more; a known block needs none before.
  void Share(int32_t block);
  // One holder less; a block that nobody holds may be taken.
  void Release(int32_t block);

  // The known block that follows `parent` with these tokens; they are block_tokens. Nobody need
  // hold it.
  std::optional<int32_t> Find(int32_t parent, std::span<const int32_t> tokens) const;
  // From now on the held block is found so. It must be none that is known, and none may be known in
  // its place.
  void Publish(int32_t block, int32_t parent, std::span<const int32_t> tokens);

  int64_t holders(int32_t block) const { return at(block).holders; }
  // That may be taken, what is known of some included.
  int64_t free_blocks() const { return static_cast<int64_t>(free_.size()) + idle_count_; }
  int64_t idle_blocks() const { return idle_count_; }  // known and held by nobody
  int64_t blocks() const { return static_cast<int64_t>(blocks_.size()); }

 private:
  struct Block {
    int32_t holders = 0;
    bool known = false;
    int32_t parent = kNoBlock;
    int32_t children = 0;  // known ones
    uint64_t key = 0;      // of by_key_, while it is known
    // Among the idle ones, in the order of their release.
    int32_t earlier = kNoBlock, later = kNoBlock;
  };
  Block& at(int32_t block) { return blocks_[static_cast<size_t>(block)]; }
  const Block& at(int32_t block) const { return blocks_[static_cast<size_t>(block)]; }
  uint64_t KeyOf(int32_t parent, std::span<const int32_t> tokens) const;
  std::span<const int32_t> TokensOf(int32_t block) const;
  void AddIdle(int32_t block);
  void RemoveIdle(int32_t block);
  void Forget(int32_t block);

  const size_t block_tokens_;
  const uint64_t key_seed_;  // of this pool alone: clients choose tokens, but cannot aim at keys
  std::vector<Block> blocks_;
  std::vector<int32_t> tokens_;  // [blocks, block_tokens] of the known ones
  std::vector<int32_t> free_;    // a stack: nothing is known of them
  std::unordered_multimap<uint64_t, int32_t> by_key_;
  int32_t first_idle_ = kNoBlock, last_idle_ = kNoBlock;
  int64_t idle_count_ = 0;
};

}  // namespace nibble

#endif  // NIBBLE_ENGINE_KV_POOL_H_

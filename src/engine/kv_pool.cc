#include "src/engine/kv_pool.h"

#include "src/base/error.h"

namespace nibble {

KvPool::KvPool(int64_t blocks) : holders_(static_cast<size_t>(blocks)) {
  free_.reserve(holders_.size());
  for (int64_t block = blocks; block-- > 0;) free_.push_back(static_cast<int32_t>(block));
}

std::optional<int32_t> KvPool::Take() {
  if (free_.empty()) return std::nullopt;
  const int32_t block = free_.back();
  free_.pop_back();
  holders_[static_cast<size_t>(block)] = 1;
  return block;
}

void KvPool::Share(int32_t block) {
  CHECK(holders(block) > 0);
  ++holders_[static_cast<size_t>(block)];
}

void KvPool::Release(int32_t block) {
  CHECK(holders(block) > 0);
  if (--holders_[static_cast<size_t>(block)] == 0) free_.push_back(block);
}

}  // namespace nibble

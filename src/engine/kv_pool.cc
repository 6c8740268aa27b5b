#include "src/engine/kv_pool.h"

#include <algorithm>
#include <random>

#include "src/base/error.h"
#include "src/base/random.h"

namespace nibble {

KvPool::KvPool(int64_t blocks, int64_t block_tokens)
    : block_tokens_(static_cast<size_t>(block_tokens)),
      key_seed_(std::random_device()()),
      blocks_(static_cast<size_t>(blocks)) {
  free_.reserve(blocks_.size());
  for (int64_t block = blocks; block-- > 0;) free_.push_back(static_cast<int32_t>(block));
}

std::optional<int32_t> KvPool::Take() {
  int32_t block = kNoBlock;
  if (!free_.empty()) {
    block = free_.back();
    free_.pop_back();
  } else if (first_idle_ != kNoBlock) {
    block = first_idle_;
    RemoveIdle(block);
    Forget(block);
  } else {
    return std::nullopt;
  }
  at(block).holders = 1;
  return block;
}

void KvPool::Share(int32_t block) {
  Block& shared = at(block);
  CHECK(shared.holders > 0 || shared.known);
  if (shared.holders++ == 0) RemoveIdle(block);
}

void KvPool::Release(int32_t block) {
  Block& released = at(block);
  CHECK(released.holders > 0);
  if (--released.holders > 0) return;
  if (released.known) {
    AddIdle(block);
  } else {
    free_.push_back(block);
  }
}

std::optional<int32_t> KvPool::Find(int32_t parent, std::span<const int32_t> tokens) const {
  const auto [begin, end] = by_key_.equal_range(KeyOf(parent, tokens));
  for (auto it = begin; it != end; ++it) {
    const int32_t block = it->second;
    if (at(block).parent == parent && std::ranges::equal(TokensOf(block), tokens)) return block;
  }
  return std::nullopt;
}

void KvPool::Publish(int32_t block, int32_t parent, std::span<const int32_t> tokens) {
  Block& published = at(block);
  CHECK(published.holders > 0 && !published.known && tokens.size() == block_tokens_);
  // Who shares no prefixes need not keep their tokens.
  tokens_.resize(blocks_.size() * block_tokens_);
  std::ranges::copy(tokens, tokens_.begin() + block * static_cast<int64_t>(block_tokens_));
  published.known = true;
  published.parent = parent;
  published.key = KeyOf(parent, tokens);
  by_key_.emplace(published.key, block);
  if (parent == kNoBlock) return;
  CHECK(at(parent).known && at(parent).holders > 0);
  ++at(parent).children;
}

uint64_t KvPool::KeyOf(int32_t parent, std::span<const int32_t> tokens) const {
  uint64_t key = Random::Mix(key_seed_ + static_cast<uint32_t>(parent));
  for (const int32_t token : tokens) key = Random::Mix(key + static_cast<uint32_t>(token) + 1);
  return key;
}

std::span<const int32_t> KvPool::TokensOf(int32_t block) const {
  return std::span(tokens_).subspan(static_cast<size_t>(block) * block_tokens_, block_tokens_);
}

void KvPool::AddIdle(int32_t block) {
  at(block).earlier = last_idle_;
  at(block).later = kNoBlock;
  (last_idle_ == kNoBlock ? first_idle_ : at(last_idle_).later) = block;
  last_idle_ = block;
  ++idle_count_;
}

void KvPool::RemoveIdle(int32_t block) {
  const Block& idle = at(block);
  (idle.earlier == kNoBlock ? first_idle_ : at(idle.earlier).later) = idle.later;
  (idle.later == kNoBlock ? last_idle_ : at(idle.later).earlier) = idle.earlier;
  --idle_count_;
}

void KvPool::Forget(int32_t block) {
  Block& forgotten = at(block);
  CHECK(forgotten.children == 0, "a block was released before one that follows it");
  const auto [begin, end] = by_key_.equal_range(forgotten.key);
  by_key_.erase(std::find_if(begin, end, [&](const auto& entry) { return entry.second == block; }));
  if (forgotten.parent != kNoBlock) --at(forgotten.parent).children;
  forgotten.known = false;
  forgotten.parent = kNoBlock;
}

}  // namespace nibble

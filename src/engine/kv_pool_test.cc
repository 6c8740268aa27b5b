#include "src/engine/kv_pool.h"

#include <gtest/gtest.h>

#include <map>
#include <set>

#include "src/base/random.h"

namespace nibble {
namespace {

TEST(KvPoolTest, CountsHolders) {
  KvPool pool(2, 1);
  const int32_t first = pool.Take().value();
  const int32_t second = pool.Take().value();
  EXPECT_NE(first, second);
  EXPECT_FALSE(pool.Take());
  pool.Share(first);
  pool.Release(first);
  EXPECT_EQ(pool.free_blocks(), 0);
  pool.Release(first);
  EXPECT_EQ(pool.free_blocks(), 1);
  EXPECT_EQ(pool.Take(), first);
}

TEST(KvPoolTest, KnownBlocksAreFoundUntilTheyAreNeeded) {
  KvPool pool(3, 2);
  const std::vector<int32_t> one{1, 2}, two{3, 4}, other{2, 1};
  const int32_t a = pool.Take().value();
  const int32_t b = pool.Take().value();
  pool.Publish(a, KvPool::kNoBlock, one);
  pool.Publish(b, a, two);
  EXPECT_EQ(pool.Find(KvPool::kNoBlock, one), a);
  EXPECT_EQ(pool.Find(a, two), b);
  EXPECT_EQ(pool.Find(KvPool::kNoBlock, two), std::nullopt);
  EXPECT_EQ(pool.Find(KvPool::kNoBlock, other), std::nullopt);
  pool.Release(b);
  pool.Release(a);
  EXPECT_EQ(pool.free_blocks(), 3);
  EXPECT_EQ(pool.idle_blocks(), 2);
  // The one that never was known goes first, then the path's end.
  EXPECT_NE(pool.Take(), a);
  pool.Share(a);
  EXPECT_EQ(pool.Take(), b);
  EXPECT_EQ(pool.Find(a, two), std::nullopt);
  EXPECT_EQ(pool.Find(KvPool::kNoBlock, one), a);
  EXPECT_EQ(pool.Take(), std::nullopt);
  pool.Release(a);
  EXPECT_EQ(pool.Take(), a);
  EXPECT_EQ(pool.Find(KvPool::kNoBlock, one), std::nullopt);
}

// A pool that is a map from paths to blocks and a clock.
struct Model {
  struct Known {
    int32_t block;
    int64_t released = 0;  // while nobody holds it
  };
  using Path = std::vector<int32_t>;
  std::map<Path, Known> known;
  std::map<int32_t, int64_t> holders;  // of blocks that are held
  int64_t clock = 0;
};

// A text that holds blocks: those of `path`, of which the first `published` are known.
struct Text {
  std::vector<int32_t> tokens;
  std::vector<int32_t> blocks;
};

// Sequences that open from what is known, grow, publish (taking another's block in place of their
// own where it is known already), and close, against the model. One token a block keeps many paths
// common.
TEST(KvPoolTest, AgreesWithASimpleModel) {
  constexpr int64_t kBlocks = 24;
  KvPool pool(kBlocks, 1);
  Model model;
  std::vector<Text> texts;
  Random random(7);
  int64_t found = 0, evicted = 0;
  const auto parent_of = [](const Text& text, size_t i) {
    return i == 0 ? KvPool::kNoBlock : text.blocks[i - 1];
  };
  const auto path_of = [](const std::vector<int32_t>& tokens, size_t count) {
    return Model::Path(tokens.begin(), tokens.begin() + static_cast<int64_t>(count));
  };
  const auto release = [&](int32_t block) {
    pool.Release(block);
    if (--model.holders.at(block) > 0) return;
    model.holders.erase(block);
    for (auto& [path, known] : model.known) {
      if (known.block == block) known.released = ++model.clock;
    }
  };
  const auto take = [&]() -> std::optional<int32_t> {
    const std::optional<int32_t> block = pool.Take();
    EXPECT_EQ(block.has_value(), static_cast<int64_t>(model.holders.size()) < kBlocks);
    if (!block) return block;
    EXPECT_FALSE(model.holders.contains(*block));
    model.holders[*block] = 1;
    // Known content is given up last, and of that what was released first.
    const auto given_up =
        std::find_if(model.known.begin(), model.known.end(),
                     [&](const auto& entry) { return entry.second.block == *block; });
    if (given_up == model.known.end()) return block;
    ++evicted;
    std::set<int32_t> used;
    for (const auto& [held, count] : model.holders) used.insert(held);
    for (const auto& [path, known] : model.known) {
      used.insert(known.block);
      if (!model.holders.contains(known.block)) {
        EXPECT_GE(known.released, given_up->second.released);
      }
    }
    EXPECT_EQ(static_cast<int64_t>(used.size()), kBlocks) << "a free block was left";
    model.known.erase(given_up);
    return block;
  };
  for (int round = 0; round < 20000; ++round) {
    const uint64_t action = random.Below(4);
    if (action == 0 && texts.size() < 6) {
      Text text;
      const uint64_t length = 1 + random.Below(8);
      for (uint64_t i = 0; i < length; ++i) {
        text.tokens.push_back(static_cast<int32_t>(random.Below(2)));
      }
      for (size_t i = 0; i < length; ++i) {
        const auto block = pool.Find(parent_of(text, i), std::span(text.tokens).subspan(i, 1));
        const auto known = model.known.find(path_of(text.tokens, i + 1));
        ASSERT_EQ(block.has_value(), known != model.known.end());
        if (!block) break;
        ASSERT_EQ(*block, known->second.block);
        pool.Share(*block);
        ++model.holders[*block];
        text.blocks.push_back(*block);
        ++found;
      }
      texts.push_back(std::move(text));
    } else if (!texts.empty() && action < 3) {  // grow by a block and publish it
      Text& text = texts[random.Below(texts.size())];
      const size_t i = text.blocks.size();
      if (i == text.tokens.size()) text.tokens.push_back(static_cast<int32_t>(random.Below(2)));
      const auto block = take();
      if (!block) continue;
      const auto tokens = std::span<const int32_t>(text.tokens).subspan(i, 1);
      const auto path = path_of(text.tokens, i + 1);
      if (const auto same = pool.Find(parent_of(text, i), tokens)) {
        ASSERT_EQ(*same, model.known.at(path).block);
        pool.Share(*same);
        ++model.holders[*same];
        release(*block);
        text.blocks.push_back(*same);
      } else {
        ASSERT_FALSE(model.known.contains(path));
        pool.Publish(*block, parent_of(text, i), tokens);
        model.known[path] = {*block};
        text.blocks.push_back(*block);
      }
    } else if (!texts.empty()) {
      const size_t i = random.Below(texts.size());
      while (!texts[i].blocks.empty()) {
        release(texts[i].blocks.back());
        texts[i].blocks.pop_back();
      }
      texts.erase(texts.begin() + static_cast<int64_t>(i));
    }
    ASSERT_EQ(pool.free_blocks(), kBlocks - static_cast<int64_t>(model.holders.size()));
    for (const auto& [block, count] : model.holders) ASSERT_EQ(pool.holders(block), count);
  }
  EXPECT_GT(found, 1000);
  EXPECT_GT(evicted, 1000);
}

}  // namespace
}  // namespace nibble

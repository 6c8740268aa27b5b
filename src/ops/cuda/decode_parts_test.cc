#include "src/ops/cuda/decode_parts.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "src/base/checked.h"
#include "src/base/random.h"

namespace nibble::cuda {
namespace {

struct Case {
  AttentionSpec spec;
  std::vector<int32_t> row_begin{0}, contexts;

  void Add(int32_t context, int32_t rows = 1) {
    row_begin.push_back(row_begin.back() + rows);
    contexts.push_back(context);
  }
  std::vector<DecodePart> Divide(size_t blocks) const {
    std::vector<DecodePart> parts(blocks);
    DivideDecode(spec, row_begin, contexts, parts);
    return parts;
  }
  int64_t HeadTiles() const { return CeilDiv<int64_t>(spec.heads / spec.kv_heads, kTileHeads); }
  // Of a pair of that sequence's.
  int64_t Granules(size_t s) const {
    const int64_t first_token =
        std::max<int64_t>(0, contexts[s] - spec.window.value_or(contexts[s]));
    const int64_t tiles = CeilDiv<int64_t>(contexts[s], kTileTokens) - first_token / kTileTokens;
    return CeilDiv<int64_t>(tiles, DecodeWarps(spec.head_dim));
  }
};

AttentionSpec Spec(int64_t heads, int64_t kv_heads, int64_t head_dim = 128) {
  return {.heads = heads, .kv_heads = kv_heads, .head_dim = head_dim};
}

// Each block begins with the pair of its own number, and may run ahead into its next one alone.
void CheckTurns(const Case& c, const std::vector<DecodePart>& parts) {
  const int64_t head_tiles = c.HeadTiles(), pairs = c.spec.kv_heads * head_tiles;
  ASSERT_GE(pairs * static_cast<int64_t>(c.contexts.size()),
            2 * static_cast<int64_t>(parts.size()));
  for (size_t s = 0; s < c.contexts.size(); ++s) {
    EXPECT_EQ(c.row_begin[s], static_cast<int32_t>(s));
    EXPECT_GT(c.Granules(s), MostDecodeStages(c.spec.head_dim));
  }
  for (size_t b = 0; b < parts.size(); ++b) {
    const DecodePart& part = parts[b];
    const auto pair = static_cast<int64_t>(b);
    const auto s = static_cast<size_t>(pair / pairs);
    EXPECT_TRUE(part.in_turn());
    EXPECT_EQ(part.count, c.Granules(s));
    EXPECT_EQ(part.sequence, static_cast<int32_t>(s));
    EXPECT_EQ(part.row, c.row_begin[s]);
    EXPECT_EQ(part.context, c.contexts[s]);
    EXPECT_EQ(part.first, 0);
    EXPECT_EQ((part.sequence * c.spec.kv_heads + part.kv_head) * head_tiles + part.head_tile, pair);
  }
}

// Goes through the pairs in order, and takes each one's granules from the parts as blocks do.
void Check(const Case& c, size_t blocks) {
  const std::vector<DecodePart> parts = c.Divide(blocks);
  const int64_t head_tiles = c.HeadTiles(), pairs = c.spec.kv_heads * head_tiles;
  if (parts[0].in_turn()) return CheckTurns(c, parts);
  size_t block = 0;
  int32_t taken = 0;  // of the block's granules
  for (size_t s = 0; s < c.contexts.size(); ++s) {
    if (c.row_begin[s + 1] - c.row_begin[s] != 1) continue;
    const int64_t granules = c.Granules(s);
    for (int64_t pair = 0; pair < pairs; ++pair) {
      int blocks_of_pair = 0;
      size_t first_slot = 0;
      std::vector<std::pair<size_t, int>> ends;  // blocks, which of their ends the pair is
      for (int64_t done = 0; done < granules;) {
        ASSERT_LT(block, blocks);
        const DecodePart& part = parts[block];
        if (taken == 0) {
          ASSERT_GT(part.count, 0);
          EXPECT_EQ(part.sequence, static_cast<int32_t>(s));
          EXPECT_EQ(part.row, c.row_begin[s]);
          EXPECT_EQ(part.context, c.contexts[s]);
          EXPECT_EQ(part.kv_head, pair / head_tiles);
          EXPECT_EQ(part.head_tile, pair % head_tiles);
          EXPECT_EQ(part.first, done);
        }
        const int end = taken == 0 ? 0 : 1;
        if (blocks_of_pair++ == 0) first_slot = 2 * block + static_cast<size_t>(end);
        ends.emplace_back(block, end);
        const int64_t count = std::min<int64_t>(granules - done, part.count - taken);
        done += count;
        taken += static_cast<int32_t>(count);
        if (taken == part.count) {
          ++block;
          taken = 0;
        }
      }
      if (blocks_of_pair == 1) continue;
      for (const auto& [b, end] : ends) {
        EXPECT_EQ(parts[b].blocks[end], blocks_of_pair);
        EXPECT_EQ(parts[b].first_slot[end], first_slot);
      }
    }
  }
  EXPECT_EQ(taken, 0);
  for (; block < blocks; ++block) EXPECT_EQ(parts[block].count, 0);
}

TEST(DivideDecodeTest, TakesEveryGranuleOnce) {
  Random random(1);
  for (int i = 0; i < 2000 && !testing::Test::HasFailure(); ++i) {
    constexpr int64_t kDims[] = {64, 128, 256};
    const int64_t kv_heads = 1 + static_cast<int64_t>(random.Below(33));
    Case c{.spec = Spec(kv_heads * (1 + static_cast<int64_t>(random.Below(20))), kv_heads,
                        kDims[random.Below(3)])};
    if (random.Below(3) == 0) c.spec.window = 1 + static_cast<int64_t>(random.Below(300));
    const bool alike = random.Below(2) == 0;
    const auto context = [&] { return 1 + static_cast<int32_t>(random.Below(2000)); };
    const int32_t first = context();
    for (uint64_t s = 1 + random.Below(40); s > 0; --s) {
      c.Add(alike ? first : context(), random.Below(8) == 0 ? 2 : 1);
    }
    SCOPED_TRACE(i);
    Check(c, 1 + random.Below(300));
  }
}

TEST(DivideDecodeTest, NothingToDo) {
  Case c{.spec = Spec(4, 4)};
  Check(c, 8);
  c.Add(7, 3);
  Check(c, 8);
}

TEST(DivideDecodeTest, CutsPairsOfOneLengthAlike) {
  Case c{.spec = Spec(32, 32)};
  c.Add(612);  // ten granules a pair
  const std::vector<DecodePart> parts = c.Divide(264);
  for (size_t b = 0; b < parts.size(); ++b) {
    EXPECT_EQ(parts[b].count, b < 160 ? 2 : 0);
    EXPECT_EQ(parts[b].kv_head, b < 160 ? b / 5 : 0);
  }
}

TEST(DivideDecodeTest, GivesBlocksSeveralWholePairs) {
  Case c{.spec = Spec(32, 32)};
  for (int32_t s = 0; s < 16; ++s) c.Add(612);
  const std::vector<DecodePart> parts = c.Divide(264);
  for (size_t b = 0; b < parts.size(); ++b) {
    EXPECT_EQ(parts[b].count, b < 256 ? 20 : 0);
    EXPECT_EQ(parts[b].first, 0);
    EXPECT_EQ(parts[b].kv_head, b < 256 ? 2 * b % 32 : 0);
  }
}

TEST(DivideDecodeTest, TakesManyPairsInTurn) {
  const auto takes_turns = [](const Case& c) { return c.Divide(264)[0].in_turn(); };
  Case c{.spec = Spec(32, 32)};
  for (int32_t s = 0; s < 49; ++s) c.Add(612);
  EXPECT_FALSE(takes_turns(c));  // less than six to a block
  c.Add(612);
  EXPECT_TRUE(takes_turns(c));
  Check(c, 264);
  Case with_prefill = c;
  with_prefill.Add(612, 2);
  EXPECT_FALSE(takes_turns(with_prefill));
  Case with_long = c;
  with_long.Add(50 * 612);
  EXPECT_FALSE(takes_turns(with_long));
  Case with_short = c;
  with_short.Add(256);  // as many tiles to a warp as it has under way
  EXPECT_FALSE(takes_turns(with_short));
  with_short.contexts.back() = 257;
  EXPECT_TRUE(takes_turns(with_short));
}

// Where blocks would have many whole pairs that are too short to be taken in turn, even shares end
// together.
TEST(DivideDecodeTest, SharesManyPairsEvenly) {
  Case c{.spec = Spec(32, 32)};
  for (int32_t s = 0; s < 128; ++s) c.Add(250);
  for (const DecodePart& part : c.Divide(264)) {
    EXPECT_GE(part.count, 62);
    EXPECT_LE(part.count, 63);
  }
}

TEST(DivideDecodeTest, SharesUnlikeContextsEvenly) {
  Case c{.spec = Spec(8, 8)};
  for (int32_t s = 0; s < 30; ++s) c.Add(100 + 61 * s);
  const std::vector<DecodePart> parts = c.Divide(264);
  const auto [least, most] =
      std::ranges::minmax(parts, {}, [](const DecodePart& part) { return part.count; });
  EXPECT_GE(least.count, most.count - 1);
}

}  // namespace
}  // namespace nibble::cuda

// Parts of encoding that the references' vectors do not single out.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "src/tokenizer/added_tokens.h"
#include "src/tokenizer/bpe.h"
#include "src/tokenizer/normalizer.h"
#include "src/tokenizer/word_cache.h"

namespace nibble {
namespace {

using ::testing::ElementsAre;

TEST(Bpe, TimeIsNearlyLinearInAWord) {
  BpeModel::Settings settings;
  settings.vocabulary = {{"a", 0}};
  std::string token = "a";
  for (TokenId id = 1; id < 12; ++id) {
    settings.merges.emplace_back(token, token);
    token += token;
    settings.vocabulary[token] = id;
  }
  const auto model = BpeModel::Create(std::move(settings), "test");
  ASSERT_TRUE(model);
  std::vector<TokenId> tokens;
  // Quadratic time would make this test run for hours.
  model->Encode(std::string(2048 * 1000 + 5, 'a'), tokens);
  ASSERT_EQ(tokens.size(), 1002);
  EXPECT_EQ(tokens[0], 11);
  EXPECT_EQ(tokens[1000], 2);
  EXPECT_EQ(tokens[1001], 0);
}

TEST(Bpe, CutsAtMetaspaceOnlyWhereNoMergeReachesAcross) {
  const auto cuts = [](const std::string& left, const std::string& right) {
    BpeModel::Settings settings;
    settings.vocabulary = {{"▁", 0}, {"a", 1}, {"▁a", 2}, {"a▁", 3}, {"▁▁", 4}};
    settings.merges = {{left, right}};
    return BpeModel::Create(std::move(settings), "test")->cuts_at_metaspace();
  };
  EXPECT_TRUE(cuts("▁", "a"));
  EXPECT_TRUE(cuts("▁", "▁"));
  EXPECT_FALSE(cuts("a", "▁"));
}

TEST(WordCache, RepeatsWhatTheFirstTimeGave) {
  std::vector<TokenId> tokens;
  WordCache cache(tokens);
  int calls = 0;
  const auto encode = [&](std::string_view word, std::vector<TokenId>& out) {
    ++calls;
    for (const char c : word) out.push_back(c);
  };
  for (const char* word : {"ab", "c", "ab", "c"}) cache.Append(word, encode);
  EXPECT_EQ(calls, 2);
  EXPECT_THAT(tokens, ElementsAre('a', 'b', 'c', 'a', 'b', 'c'));
}

TEST(CutAtMetaspace, CutsBeforeRuns) {
  std::vector<std::string> parts;
  CutAtMetaspace("▁▁a▁b▁▁▁c▁", [&](std::string_view part) { parts.emplace_back(part); });
  EXPECT_THAT(parts, ElementsAre("▁▁a", "▁b", "▁▁▁c", "▁"));
}

TEST(Nfc, ComposesAndOrders) {
  EXPECT_EQ(ToNfc("e\u0301"), "\u00E9");
  EXPECT_EQ(ToNfc("a\u0301\u0323"), "\u1EA1\u0301");
  EXPECT_EQ(ToNfc("\u1112\u1161\u11AB"), "\uD55C");
  EXPECT_EQ(ToNfc("\u212B\u2126"), "\u00C5\u03A9");
  EXPECT_EQ(ToNfc("plain"), "plain");
  // A mark that is newer than the reference's tables keeps its place and stops composition.
  EXPECT_EQ(ToNfc("e\u0898\u0301"), "e\u0898\u0301");
}

TEST(Nfc, LongRunsOfMarksAreOrderedInTime) {
  std::string marks;
  std::string want;
  for (int i = 0; i < 200'000; ++i) marks += i % 2 == 0 ? "\u0301" : "\u0323";
  for (int i = 0; i < 100'000; ++i) want += "\u0323";
  for (int i = 0; i < 100'000; ++i) want += "\u0301";
  EXPECT_EQ(ToNfc("x" + marks), "x" + want);
}

TEST(AddedTokens, TheLongestFirst) {
  AddedTokenSplitter splitter;
  splitter.Add({.id = 1, .content = "<a>"}, "<a>");
  splitter.Add({.id = 2, .content = "<a><b>", .special = true}, "<a><b>");
  const auto ids = [&](std::string_view text, ParseSpecial parse) {
    std::vector<TokenId> found;
    for (const Segment& segment : splitter.Split(text, parse)) {
      found.push_back(segment.token.value_or(0));
    }
    return found;
  };
  EXPECT_THAT(ids("x<a><b><a>y", ParseSpecial::kYes), ElementsAre(0, 2, 1, 0));
  // As in the reference, the longest match hides the shorter even where it does not count.
  EXPECT_THAT(ids("<a><b><a>", ParseSpecial::kNo), ElementsAre(0, 1));
  EXPECT_THAT(ids("", ParseSpecial::kYes), ElementsAre());
}

}  // namespace
}  // namespace nibble

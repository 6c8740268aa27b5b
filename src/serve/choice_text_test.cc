#include "src/serve/choice_text.h"

#include <gtest/gtest.h>

#include "src/serve/test_tokenizer.h"

namespace nibble {
namespace {

// "a", "b", and the two bytes of "é".
std::unique_ptr<Tokenizer> MakeTokenizer() {
  return MakeByteTokenizer({{"a", 0}, {"b", 1}, {"Ã", 2}, {"©", 3}});
}

std::string PushAll(ChoiceText& text, std::initializer_list<TokenId> tokens) {
  std::string all;
  for (const TokenId token : tokens) {
    const auto progress = text.Push(token);
    all += text.Take().text + "|";
    if (progress == ChoiceText::Progress::kStopped) return all + "stop";
  }
  const auto progress = text.Finish();
  all += text.Take().text;
  return progress == ChoiceText::Progress::kStopped ? all + "stop" : all;
}

TEST(ChoiceTextTest, SendsWholeCharacters) {
  const auto tokenizer = MakeTokenizer();
  ChoiceText text(*tokenizer, {}, EchoPrompt::kNo);
  EXPECT_EQ(PushAll(text, {0, 2, 3, 1, 2}), "a||é|b||\xEF\xBF\xBD");
}

TEST(ChoiceTextTest, StopStringsStraddleTokens) {
  const auto tokenizer = MakeTokenizer();
  const auto run = [&](std::vector<std::string> stops, std::initializer_list<TokenId> tokens) {
    ChoiceText text(*tokenizer, std::move(stops), EchoPrompt::kNo);
    return PushAll(text, tokens);
  };
  EXPECT_EQ(run({"aab"}, {1, 0, 0, 0, 1, 1}), "b|||a||stop");
  EXPECT_EQ(run({"aab"}, {0, 0}), "||aa");
  EXPECT_EQ(run({"bb", "ab"}, {0, 1}), "||stop");
  EXPECT_EQ(run({"é"}, {0, 2, 3, 1}), "a|||stop");
  EXPECT_EQ(run({"a\xEF\xBF\xBD"}, {1, 0, 2}), "b|||stop");
}

TEST(ChoiceTextTest, EchoesThePromptAndLooksForStopsBehindIt) {
  const auto tokenizer = MakeTokenizer();
  ChoiceText text(*tokenizer, {"ab"}, EchoPrompt::kYes);
  for (const TokenId token : {0, 1, 0}) text.PushPrompt(token);
  EXPECT_EQ(text.Push(1), ChoiceText::Progress::kGoesOn);
  EXPECT_EQ(text.Take().text, "abab");
  EXPECT_EQ(text.Push(0), ChoiceText::Progress::kGoesOn);
  EXPECT_EQ(text.Push(1), ChoiceText::Progress::kStopped);
  const ChoicePart part = text.Take();
  EXPECT_EQ(part.text, "");
  EXPECT_EQ(part.generated, 2);
}

TEST(ChoiceTextTest, ScoresComeWithTheirText) {
  const auto tokenizer = MakeTokenizer();
  ChoiceText text(*tokenizer, {"bb"}, EchoPrompt::kNo);
  const auto push = [&](TokenId token) {
    text.Score({.bytes = DisplayBytes(*tokenizer, token), .logprob = -1});
    return text.Push(token);
  };
  push(0);
  push(1);
  ChoicePart part = text.Take();
  ASSERT_EQ(part.tokens.size(), 1u);  // "b" may be the beginning of "bb"
  push(2);
  push(3);
  push(0);
  part = text.Take();
  EXPECT_EQ(part.text, "béa");
  ASSERT_EQ(part.tokens.size(), 4u);
  EXPECT_EQ(part.tokens[1].bytes, "\xC3");
  EXPECT_EQ(part.tokens[3].text_offset, 3);
  push(1);
  EXPECT_EQ(push(1), ChoiceText::Progress::kStopped);
  part = text.Take();
  EXPECT_TRUE(part.text.empty() && part.tokens.empty());
  EXPECT_EQ(DisplayBytes(*tokenizer, 4), "<s>");
}

}  // namespace
}  // namespace nibble

#include "src/eval/mmlu_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace nibble {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

Result<MmluFile> Interpret(std::string_view text) {
  const auto rows = ParseCsv(text, "x_test.csv");
  EXPECT_TRUE(rows.has_value()) << rows.error().message();
  return InterpretMmluRows(*rows, "x_test.csv");
}

std::string ErrorOf(std::string_view text) {
  const auto file = Interpret(text);
  EXPECT_FALSE(file.has_value());
  if (file) return "";
  EXPECT_EQ(file.error().code(), ErrorCode::kBadInput);
  return file.error().message();
}

TEST(MmluFileTest, OriginalForm) {
  const auto file = Interpret("\"What, now?\",one,two,None, four ,C\nSecond,1,2,3,4,A\n");
  ASSERT_TRUE(file.has_value()) << file.error().message();
  EXPECT_FALSE(file->has_header);
  EXPECT_EQ(file->answers, MmluAnswerForm::kLetters);
  ASSERT_EQ(file->questions.size(), 2u);
  EXPECT_EQ(file->questions[0].question, "What, now?");
  EXPECT_THAT(file->questions[0].choices, ElementsAre("one", "two", "None", " four "));
  EXPECT_EQ(file->questions[0].answer, 2);
  EXPECT_EQ(file->questions[1].index, 1);
  EXPECT_EQ(file->questions[1].answer, 0);
}

TEST(MmluFileTest, HeaderInAnyOrderAndDigits) {
  const auto file = Interpret(",subject,Answer,question,A,B,C,D\n0,law,3,Why?,p,q,r,s\n");
  ASSERT_TRUE(file.has_value()) << file.error().message();
  EXPECT_TRUE(file->has_header);
  EXPECT_EQ(file->answers, MmluAnswerForm::kDigits);
  ASSERT_EQ(file->questions.size(), 1u);
  EXPECT_EQ(file->questions[0].question, "Why?");
  EXPECT_THAT(file->questions[0].choices, ElementsAre("p", "q", "r", "s"));
  EXPECT_EQ(file->questions[0].answer, 3);
  EXPECT_EQ(file->questions[0].index, 0);
}

TEST(MmluFileTest, HeaderWithAListOfChoices) {
  const auto file = Interpret(
      "question,subject,choices,answer\nWhy?,law,\"['a, b' \"\"it's\"\"\n 'c' 'd']\",1\n");
  ASSERT_TRUE(file.has_value()) << file.error().message();
  EXPECT_THAT(file->questions[0].choices, ElementsAre("a, b", "it's", "c", "d"));
  EXPECT_EQ(file->questions[0].answer, 1);
}

TEST(MmluFileTest, ChoiceLists) {
  const auto python = ParseChoiceList(R"(['a', "b", 'it\'s', 'x\n\\y'])");
  ASSERT_TRUE(python.has_value());
  EXPECT_THAT(*python, ElementsAre("a", "b", "it's", "x\n\\y"));
  const auto escaped = ParseChoiceList(R"(['\xa0', '\u20ac', '\U0001f600', ''])");
  ASSERT_TRUE(escaped.has_value());
  EXPECT_THAT(*escaped, ElementsAre("\xC2\xA0", "\xE2\x82\xAC", "\xF0\x9F\x98\x80", ""));
  for (const std::string_view bad :
       {"", "[", "]", "[]", "['a','b','c']", "['a','b','c','d','e']", "['a','b','c','d'",
        "['a','b','c',d]", "['a','b','c','d]", R"(['a','b','c','\q'])", R"(['a','b','c','\xg0'])",
        R"(['a','b','c','\ud800'])", R"(['a','b','c','\x4'])", R"(['a','b','c','\)",
        "['a','b',,'c','d']", R"(['a','b','c','\u-123'])"}) {
    EXPECT_FALSE(ParseChoiceList(bad).has_value()) << bad;
  }
}

TEST(MmluFileTest, ErrorsNameFileAndLine) {
  EXPECT_THAT(ErrorOf("q,1,2,3,4,A\nq,1,2,3,B\n"),
              HasSubstr("x_test.csv:2: want 6 columns, got 5"));
  EXPECT_THAT(ErrorOf("q,1,2,3,4,E\n"), HasSubstr("x_test.csv:1: the answer: want A, B, C or D"));
  EXPECT_THAT(ErrorOf("q,1,2,3,4,\n"), HasSubstr("got \"\""));
  EXPECT_THAT(ErrorOf("q,1,2,3,4,4\n"), HasSubstr("got \"4\""));
  EXPECT_THAT(ErrorOf("q,1,2,3,4,a\n"), HasSubstr("got \"a\""));
  EXPECT_THAT(ErrorOf("\"q\n\",1,2,3,4,A\n ,1,2,3,4,A\n"),
              HasSubstr("x_test.csv:3: the question is empty"));
  EXPECT_THAT(ErrorOf("q,1,,3,4,A\n"), HasSubstr("x_test.csv:1: choice B is empty"));
  EXPECT_THAT(ErrorOf("q,1,2,3,4,A\nq,1,2,3,4,1\n"),
              HasSubstr("x_test.csv:2: the answer is a digit, those before it are letters"));
  EXPECT_THAT(ErrorOf("question,A,B,C,answer\nq,1,2,3,A\n"),
              HasSubstr("x_test.csv:1: the header names no column \"D\""));
  EXPECT_THAT(ErrorOf("question,choices,answer\nq,1 2 3 4,A\n"),
              HasSubstr("x_test.csv:2: the choices: want a list"));
  EXPECT_THAT(ErrorOf("question,A,B,C,D,answer\nq,1,2,3,4\n"), HasSubstr("x_test.csv:2: want 6"));
}

}  // namespace
}  // namespace nibble

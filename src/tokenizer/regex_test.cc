#include "src/tokenizer/regex.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace nibble {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<std::string> Matches(std::string_view pattern, std::string_view text) {
  const Result<Regex> regex = Regex::Compile(pattern, "file");
  if (!regex) return {regex.error().message()};
  std::vector<std::string> matches;
  for (const TextRange& range : regex->FindAll(text)) {
    matches.emplace_back(text.substr(range.begin, range.size()));
  }
  return matches;
}

TEST(Regex, FindsMatchesFromLeftToRight) {
  EXPECT_THAT(Matches(R"(\p{L}+|\p{N}{1,2}|\s+(?!\S))", "añb 123  x  "),
              ElementsAre("añb", "12", "3", " ", "x", "  "));
  EXPECT_THAT(Matches(R"((?i:'s|'t)|[^\r\n])", "'S\n'"), ElementsAre("'S", "'"));
}

// U+180E is in PCRE2's \s and no white space in Unicode; U+0085 is in both.
TEST(Regex, WhiteSpaceIsUnicodes) {
  EXPECT_THAT(Matches(R"(\s)", "\u180E\u0085"), ElementsAre("\u0085"));
  EXPECT_THAT(Matches(R"([^\s])", "\u180E\u0085"), ElementsAre("\u180E"));
  EXPECT_THAT(Matches(R"([\S])", "\u180E\u0085"), ElementsAre("\u180E"));
}

// CJK extension H came with Unicode 15, Garay digits with 16.
TEST(Regex, KnowsLettersAndNumbersNewerThanPcre2s) {
  EXPECT_THAT(Matches(R"(\p{L}+)", "a\U00031350b"), ElementsAre("a\U00031350b"));
  EXPECT_THAT(Matches(R"([^\p{L}\p{N}])", "\U00031350\U00010D40."), ElementsAre("."));
  EXPECT_THAT(Matches(R"(\p{N}{1,2})", "\U00010D40\U00010D411"),
              ElementsAre("\U00010D40\U00010D41", "1"));
}

TEST(Regex, RefusesWhatOnigurumaReadsDifferently) {
  for (const char* pattern :
       {R"(\w+)", R"(\h)", R"(a\b)", R"([a[b]])", R"([a&&b])", R"(^a)", R"(a$)", R"(a{,2})",
        R"(a{2}+)",
        R"(a{2})"
        "{",
        R"((?m:a))", R"((?<name>a))", R"((*UTF)a)", R"((a)\1)", R"([]a])", R"(\pL)"}) {
    EXPECT_THAT(Matches(pattern, "a"), ElementsAre(HasSubstr("is not supported"))) << pattern;
  }
  EXPECT_THAT(Matches("(a", "a"), ElementsAre(HasSubstr("missing closing parenthesis")));
  EXPECT_THAT(Matches("a*", "a"), ElementsAre(HasSubstr("can match nothing at all")));
  EXPECT_THAT(Matches(std::string(kMaxPatternBytes + 1, 'a'), "a"),
              ElementsAre(HasSubstr("at most 4096")));
  EXPECT_THAT(Matches(std::string(100, '(') + "a" + std::string(100, ')'), "a"),
              ElementsAre(HasSubstr("nested")));
}

TEST(Regex, GivesUpOnRunawayBacktracking) {
  EXPECT_THAT(Matches("(a+)+b", std::string(5000, 'a')), ElementsAre());
  // A long run is no runaway.
  EXPECT_EQ(Matches(R"(\s*\n|\s+(?!\S)|\s+)", std::string(3'000'000, ' ') + "x").size(), 2);
}

}  // namespace
}  // namespace nibble

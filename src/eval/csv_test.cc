#include "src/eval/csv.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace nibble {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<CsvRow> Rows(std::string_view text) {
  auto rows = ParseCsv(text, "t.csv");
  EXPECT_TRUE(rows.has_value()) << rows.error().message();
  return rows.value_or(std::vector<CsvRow>());
}

std::string ErrorOf(std::string_view text, const CsvLimits& limits = {}) {
  const auto rows = ParseCsv(text, "t.csv", limits);
  EXPECT_FALSE(rows.has_value());
  if (rows) return "";
  EXPECT_EQ(rows.error().code(), ErrorCode::kBadInput);
  return rows.error().message();
}

TEST(CsvTest, PlainCells) {
  const auto rows = Rows("a,b,c\nd,,f\n");
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_THAT(rows[0].cells, ElementsAre("a", "b", "c"));
  EXPECT_THAT(rows[1].cells, ElementsAre("d", "", "f"));
  EXPECT_EQ(rows[1].line, 2);
}

TEST(CsvTest, LastLineNeedsNoBreakAndAFinalCommaOpensACell) {
  const auto rows = Rows("a,b\nc,");
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_THAT(rows[1].cells, ElementsAre("c", ""));
}

TEST(CsvTest, QuotesCommasAndLineBreaksInsideQuotes) {
  const auto rows = Rows("\"a \"\"b\"\"\",\"c,d\"\n\"one\ntwo\r\nthree\",\"\"\nlast,x\n");
  ASSERT_EQ(rows.size(), 3u);
  EXPECT_THAT(rows[0].cells, ElementsAre("a \"b\"", "c,d"));
  EXPECT_THAT(rows[1].cells, ElementsAre("one\ntwo\r\nthree", ""));
  EXPECT_EQ(rows[1].line, 2);
  EXPECT_EQ(rows[2].line, 5);
}

TEST(CsvTest, CrlfByteOrderMarkAndEmptyLines) {
  const auto rows = Rows(
      "\xEF\xBB\xBF"
      "a,b\r\n\r\n\"c\",d\r\n\n");
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_THAT(rows[0].cells, ElementsAre("a", "b"));
  EXPECT_THAT(rows[1].cells, ElementsAre("c", "d"));
  EXPECT_EQ(rows[1].line, 3);
}

TEST(CsvTest, NothingIsNoRows) {
  EXPECT_TRUE(Rows("").empty());
  EXPECT_TRUE(Rows("\xEF\xBB\xBF").empty());
}

TEST(CsvTest, SpacesAndUnicodeAreKept) {
  const auto rows = Rows(" a ,\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80\n");
  ASSERT_EQ(rows.size(), 1u);
  EXPECT_THAT(rows[0].cells, ElementsAre(" a ", "\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80"));
}

TEST(CsvTest, ErrorsNameTheLine) {
  EXPECT_THAT(ErrorOf("a,b\nc \"d\",e\n"), HasSubstr("t.csv:2: a quote inside"));
  EXPECT_THAT(ErrorOf("a\n\"b\nc\" d\n"), HasSubstr("t.csv:3: text after a closing quote"));
  EXPECT_THAT(ErrorOf("a\n\"b\nc\nd"), HasSubstr("t.csv:2: a quote is opened here"));
  EXPECT_THAT(ErrorOf("a\rb\n"), HasSubstr("t.csv:1: a carriage return"));
  EXPECT_THAT(ErrorOf("\"a\"\rb\n"), HasSubstr("t.csv:1: a carriage return"));
}

TEST(CsvTest, RefusesWhatIsNotUtf8) {
  EXPECT_THAT(ErrorOf("a\nb\n\xE9t\xE9,c\n"), HasSubstr("t.csv:3: not UTF-8 (byte 0xe9)"));
  EXPECT_THAT(ErrorOf("\xED\xA0\x80"), HasSubstr("not UTF-8"));  // a surrogate
  EXPECT_THAT(ErrorOf("\xC0\xAF"), HasSubstr("not UTF-8"));      // an overlong slash
  EXPECT_THAT(ErrorOf("a,\xE2\x82"), HasSubstr("not UTF-8"));    // cut short
}

TEST(CsvTest, RefusesWhatIsBeyondTheLimits) {
  const CsvLimits limits{.max_bytes = 12, .max_rows = 2, .max_columns = 3};
  EXPECT_THAT(ErrorOf("aaaaaaaaaaaaa", limits), HasSubstr("13 bytes, more than the 12"));
  EXPECT_THAT(ErrorOf("a\nb\nc\n", limits), HasSubstr("t.csv:3: more than 2 rows"));
  EXPECT_THAT(ErrorOf("a\nb,c,d,e\n", limits), HasSubstr("t.csv:2: more than 3 columns"));
}

TEST(CsvTest, AMissingFileIsAnErrorThatNamesIt) {
  const auto rows = ReadCsvFile("/nonexistent/t.csv");
  ASSERT_FALSE(rows.has_value());
  EXPECT_THAT(rows.error().message(), HasSubstr("/nonexistent/t.csv"));
}

}  // namespace
}  // namespace nibble

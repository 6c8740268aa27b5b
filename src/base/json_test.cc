#include "src/base/json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace nibble {
namespace {

using ::testing::HasSubstr;

TEST(ParseJson, KeepsValuesAndTheOrderOfKeys) {
  const std::string text =
      R"({"z":[1,-2,3.5,true,null,"é"],"a":{"deep":{"x":[],"y":{}}},"m":18446744073709551615})";
  const Result<Json> json = ParseJson(text, "file");
  ASSERT_TRUE(json) << json.error().message();
  EXPECT_EQ(json->dump(), text);
}

TEST(ParseJson, NamesWhatIsWrong) {
  const auto problem = [](const std::string& text) {
    const Result<Json> json = ParseJson(text, "file");
    return json ? "none" : json.error().message();
  };
  EXPECT_THAT(problem(R"({"a":1,"b":{"a":1},"a":2})"), HasSubstr("file: key \"a\" occurs twice"));
  EXPECT_THAT(problem(R"({"a":1} x)"), HasSubstr("file: not valid JSON"));
  EXPECT_THAT(problem("{\"a\":\"\xff\"}"), HasSubstr("file: not valid JSON"));
  EXPECT_THAT(problem(R"({"a":)"), HasSubstr("file: not valid JSON"));
  EXPECT_THAT(problem("[1e999]"), HasSubstr("file: not valid JSON"));
  EXPECT_EQ(problem(std::string(kMaxJsonDepth, '[') + std::string(kMaxJsonDepth, ']')), "none");
  EXPECT_EQ(problem(std::string(1'000'000, '[')),
            fmt::format("file: nested deeper than {} levels", kMaxJsonDepth));
  // The same key in two objects of an array is no repetition.
  EXPECT_EQ(problem(R"([{"a":1},{"a":1}])"), "none");
}

// A vocabulary is one object of some 150,000 keys; quadratic time would be noticed here.
TEST(ParseJson, ReadsObjectsWithManyKeys) {
  std::string text = "{";
  constexpr int kKeys = 200'000;
  for (int i = 0; i < kKeys; ++i) text += fmt::format("{}\"k{}\":{}", i == 0 ? "" : ",", i, i);
  const Result<Json> json = ParseJson(text + "}", "file");
  ASSERT_TRUE(json);
  EXPECT_EQ(json->size(), kKeys);
  EXPECT_EQ(json->back(), kKeys - 1);
}

}  // namespace
}  // namespace nibble

#include "src/eval/eval_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sstream>
#include <string>
#include <vector>

namespace nibble {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

EvalResult Evaluate(std::string model, std::vector<bool> correct) {
  EvalSettings settings;
  settings.model = std::move(model);
  settings.data.directory = "mmlu";
  std::vector<QuestionResult> questions;
  for (size_t i = 0; i < correct.size(); ++i) {
    QuestionResult question{.subject = static_cast<int>(i % 2),
                            .index = static_cast<int64_t>(i),
                            .logprobs = {-1, -2, -3, -4},
                            .answer = correct[i] ? 0 : 1,
                            .shots = i == 0 ? 3 : 5};
    questions.push_back(question);
  }
  return *EvalResult::Make(settings, questions);
}

std::string LineWith(const std::string& text, std::string_view start) {
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with(start)) return line;
  }
  return "";
}

TEST(EvalTableTest, AlignedColumns) {
  const EvalResult result = Evaluate("tiny", {true, false, true, true});
  const std::string table = FormatEvalTable(result, SubjectRows::kShow);
  EXPECT_THAT(table, HasSubstr("tiny: mmlu on mmlu, 4 questions, 5 shots, template original, "
                               "scored by letters\n"));
  EXPECT_THAT(table,
              HasSubstr("Prompts too long for the context: 1; shots left out of them: 2.\n"));
  // 3 of 4: Wilson 30.1 to 95.4; 2 of 2: 34.2 to 100.0.
  EXPECT_EQ(LineWith(table, "overall"),
            "overall                                    4        75.0   30.1 to 95.4");
  EXPECT_EQ(LineWith(table, "  STEM"),
            "  STEM                                     2       100.0  34.2 to 100.0");
  EXPECT_EQ(LineWith(table, "  abstract_algebra"),
            "  abstract_algebra                         2       100.0  34.2 to 100.0");
  EXPECT_THAT(table, Not(HasSubstr("reference")));
  EXPECT_THAT(table, HasSubstr("With 4 questions of which 8 % flip"));
  EXPECT_THAT(FormatEvalTable(result, SubjectRows::kHide), Not(HasSubstr("abstract_algebra")));
}

// The same questions with other answers cannot be compared, so the models choose differently.
TEST(EvalTableTest, ComparisonColumns) {
  EvalResult reference = Evaluate("base", {true, true, true, true});
  std::vector<QuestionResult> questions = reference.questions();
  questions[0].logprobs = {-2, -1, -3, -4};
  const auto compared =
      Compare(reference, *EvalResult::Make(reference.settings(), std::move(questions)));
  ASSERT_TRUE(compared.has_value()) << compared.error().message();
  const std::string table = FormatEvalTable(*compared, SubjectRows::kHide);
  EXPECT_THAT(table, HasSubstr("Compared with base on the same questions.\n"));
  const std::string overall = LineWith(table, "overall");
  for (const std::string_view cell : {"75.0", "100.0", "-25.0", "25.0", "1.000"}) {
    EXPECT_THAT(overall, HasSubstr(cell));
  }
}

TEST(EvalTableTest, SaysWhatTheNumbersAreNot) {
  EvalSettings settings;
  settings.origin = WeightsOrigin::kSynthetic;
  settings.format.scoring = MmluScoring::kCloze;
  const auto result =
      EvalResult::Make(settings, {{.logprobs = {-1, -2, -3, -4}, .answer = 0, .shots = 5}});
  ASSERT_TRUE(result.has_value());
  const std::string table = FormatEvalTable(*result, SubjectRows::kHide);
  EXPECT_THAT(table, HasSubstr("weights are synthetic"));
  EXPECT_THAT(table, HasSubstr("scored by cloze"));
}

// (1.959964 + 0.841621) · sqrt(0.08 / 14042) = 0.0066870.
TEST(EvalTableTest, DetectableDifference) {
  EXPECT_EQ(DescribeDetectableDifference(14042),
            "With 14042 questions of which 8 % flip, the smallest difference that can be told from "
            "chance is 0.67 points.");
}

}  // namespace
}  // namespace nibble

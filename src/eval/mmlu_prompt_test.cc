#include "src/eval/mmlu_prompt.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace nibble {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr MmluFormat kOriginal{MmluTemplate::kOriginal, MmluScoring::kLetters};
constexpr MmluFormat kLmEval{MmluTemplate::kLmEval, MmluScoring::kLetters};
constexpr MmluFormat kCloze{MmluTemplate::kOriginal, MmluScoring::kCloze};
constexpr MmluFormat kLmEvalCloze{MmluTemplate::kLmEval, MmluScoring::kCloze};

MmluSubjectData Algebra() {
  MmluSubjectData data;
  data.subject = 0;
  data.shots = {{0, "One plus one? ", {"1", "2", "3", "None"}, 1},
                {1, "\xC2\xA0Zero?", {"0", "1", "2", "3"}, 0}};
  data.questions = {{4, " Is \"x\", y?\n", {"yes", "no", "t\xC3\xA9", "None"}, 3}};
  return data;
}

TEST(MmluPromptTest, OriginalHasTwoSpacesAndKeepsTheText) {
  const MmluSubjectData data = Algebra();
  EXPECT_EQ(MmluPrefix(data, 2, kOriginal) + MmluQuestionPart(data.questions[0], kOriginal),
            "The following are multiple choice questions (with answers) about  abstract "
            "algebra.\n\n"
            "One plus one? \nA. 1\nB. 2\nC. 3\nD. None\nAnswer: B\n\n"
            "\xC2\xA0Zero?\nA. 0\nB. 1\nC. 2\nD. 3\nAnswer: A\n\n"
            " Is \"x\", y?\n\nA. yes\nB. no\nC. t\xC3\xA9\nD. None\nAnswer:");
}

TEST(MmluPromptTest, LmEvalHasOneSpaceAndStripsQuestions) {
  const MmluSubjectData data = Algebra();
  EXPECT_EQ(MmluPrefix(data, 2, kLmEval) + MmluQuestionPart(data.questions[0], kLmEval),
            "The following are multiple choice questions (with answers) about abstract "
            "algebra.\n\n"
            "One plus one?\nA. 1\nB. 2\nC. 3\nD. None\nAnswer: B\n\n"
            "Zero?\nA. 0\nB. 1\nC. 2\nD. 3\nAnswer: A\n\n"
            "Is \"x\", y?\nA. yes\nB. no\nC. t\xC3\xA9\nD. None\nAnswer:");
}

TEST(MmluPromptTest, ShotsAreDroppedFromTheEnd) {
  const MmluSubjectData data = Algebra();
  EXPECT_EQ(MmluPrefix(data, 1, kOriginal),
            "The following are multiple choice questions (with answers) about  abstract "
            "algebra.\n\n"
            "One plus one? \nA. 1\nB. 2\nC. 3\nD. None\nAnswer: B\n\n");
  EXPECT_EQ(MmluPrefix(data, 0, kLmEval),
            "The following are multiple choice questions (with answers) about abstract "
            "algebra.\n\n");
}

TEST(MmluPromptTest, ClozeShowsNoChoices) {
  const MmluSubjectData data = Algebra();
  EXPECT_EQ(MmluPrefix(data, 2, kLmEvalCloze) + MmluQuestionPart(data.questions[0], kLmEvalCloze),
            "The following are questions (with answers) about abstract algebra.\n\n"
            "One plus one?\nAnswer: 2\n\n"
            "Zero?\nAnswer: 0\n\n"
            "Is \"x\", y?\nAnswer:");
  EXPECT_THAT(MmluPrefix(data, 0, kCloze), HasSubstr("about  abstract algebra.\n\n"));
}

TEST(MmluPromptTest, Continuations) {
  const MmluQuestion question = Algebra().questions[0];
  EXPECT_THAT(MmluContinuations(question, kOriginal), ElementsAre(" A", " B", " C", " D"));
  EXPECT_THAT(MmluContinuations(question, kCloze),
              ElementsAre(" yes", " no", " t\xC3\xA9", " None"));
}

TEST(MmluPromptTest, ClozeScoresAreDividedByTheBytesOfTheChoice) {
  const MmluQuestion question = Algebra().questions[0];  // 3, 2, 3 and 4 bytes
  const std::array<double, 4> log_likelihoods = {-6, -6, -3, -10};
  EXPECT_THAT(MmluScores(question, kLmEval, log_likelihoods), ElementsAre(-6, -6, -3, -10));
  EXPECT_THAT(MmluScores(question, kCloze, log_likelihoods), ElementsAre(-2, -3, -1, -2.5));
}

TEST(MmluPromptTest, Names) {
  EXPECT_EQ(ParseMmluTemplate("original").value(), MmluTemplate::kOriginal);
  EXPECT_EQ(ParseMmluTemplate("lm-eval").value(), MmluTemplate::kLmEval);
  EXPECT_EQ(ParseMmluTemplate("helm").error().code(), ErrorCode::kUsage);
  EXPECT_EQ(ParseMmluScoring("letters").value(), MmluScoring::kLetters);
  EXPECT_EQ(ParseMmluScoring("cloze").value(), MmluScoring::kCloze);
  EXPECT_EQ(ParseMmluScoring("").error().code(), ErrorCode::kUsage);
}

TEST(MmluPromptTest, StrippingAnEmptyQuestionLeavesNothing) {
  MmluQuestion question = Algebra().questions[0];
  question.question = " \t\xE3\x80\x80\n";  // an ideographic space among others
  EXPECT_EQ(MmluQuestionPart(question, kLmEvalCloze), "\nAnswer:");
}

}  // namespace
}  // namespace nibble

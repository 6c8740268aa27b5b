#include "src/eval/eval_result.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>

#include "src/eval/mmlu_subjects.h"

namespace nibble {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;

EvalSettings Settings() {
  EvalSettings settings;
  settings.model = "tiny";
  settings.options = {.shots = 5, .questions_per_subject = 4};
  settings.data = {"mmlu", {"absent", "letters"}, "0123456789abcdef"};
  return settings;
}

// Answers `answer` when `correct`, else the next letter.
QuestionResult Question(int subject, int64_t index, int answer, bool correct) {
  QuestionResult question{.subject = subject, .index = index, .answer = answer, .shots = 5};
  question.logprobs = {-4, -5, -6, -7.25};
  question.logprobs[static_cast<size_t>(correct ? answer : (answer + 1) % 4)] = -0.5;
  return question;
}

// Four questions in each subject; `correct(subject, index)` says which are right.
EvalResult Evaluate(const std::function<bool(int, int)>& correct,
                    const EvalSettings& settings = Settings()) {
  std::vector<QuestionResult> questions;
  for (int subject = 0; subject < 57; ++subject) {
    for (int i = 0; i < 4; ++i) questions.push_back(Question(subject, i, i, correct(subject, i)));
  }
  auto result = EvalResult::Make(settings, std::move(questions));
  EXPECT_TRUE(result.has_value()) << result.error().message();
  return *result;
}

const GroupResult& Group(const std::vector<GroupResult>& groups, std::string_view name) {
  for (const GroupResult& group : groups) {
    if (group.name == name) return group;
  }
  ADD_FAILURE() << "no group " << name;
  return groups.front();
}

template <typename T>
std::string ErrorOf(const Result<T>& result) {
  EXPECT_FALSE(result.has_value());
  if (result) return "";
  EXPECT_EQ(result.error().code(), ErrorCode::kBadInput);
  return result.error().message();
}

TEST(EvalResultTest, PoolsQuestionsIntoGroups) {
  // The even subjects get all four right, the others the first only.
  const EvalResult result = Evaluate([](int subject, int i) { return subject % 2 == 0 || i == 0; });
  EXPECT_EQ(result.overall().total, 228);
  EXPECT_EQ(result.overall().correct, 29 * 4 + 28);
  EXPECT_EQ(result.subjects().size(), 57u);
  EXPECT_EQ(result.subcategories().size(), 17u);
  EXPECT_EQ(result.categories().size(), 4u);
  EXPECT_EQ(Group(result.subjects(), "anatomy").correct, 1);
  EXPECT_EQ(Group(result.subjects(), "astronomy").correct, 4);
  // law: international_law (34), jurisprudence (35), professional_law (48).
  EXPECT_EQ(Group(result.subcategories(), "law").correct, 4 + 1 + 4);
  EXPECT_DOUBLE_EQ(Group(result.subcategories(), "law").accuracy(), 0.75);
  const Interval expected = WilsonInterval(9, 12);
  EXPECT_EQ(Group(result.subcategories(), "law").ci95.low, expected.low);
  EXPECT_EQ(Group(result.subcategories(), "law").ci95.high, expected.high);
  int64_t total = 0;
  for (const GroupResult& category : result.categories()) total += category.total;
  EXPECT_EQ(total, 228);
  EXPECT_EQ(Group(result.categories(), "STEM").total, 18 * 4);
}

TEST(EvalResultTest, ChoosesTheFirstOfTheLargestAndSorts) {
  QuestionResult tie = Question(3, 1, 2, true);
  tie.logprobs = {-2, -1, -1, -3};
  const auto result = EvalResult::Make(Settings(), {tie, Question(3, 0, 1, true)});
  ASSERT_TRUE(result.has_value());
  EXPECT_EQ(result->questions()[0].index, 0);
  EXPECT_EQ(result->questions()[1].choice, 1);
  EXPECT_FALSE(result->questions()[1].correct());
  EXPECT_EQ(result->subjects().size(), 1u);
  EXPECT_EQ(result->categories().size(), 1u);
}

TEST(EvalResultTest, CountsDroppedShots) {
  std::vector<QuestionResult> questions = {Question(0, 0, 0, true), Question(0, 1, 0, true),
                                           Question(0, 2, 0, true)};
  questions[1].shots = 3;
  questions[2].shots = 0;
  const auto result = EvalResult::Make(Settings(), questions);
  ASSERT_TRUE(result.has_value());
  EXPECT_EQ(result->dropped_shots(), 7);
  EXPECT_EQ(result->questions_with_dropped_shots(), 2);
}

TEST(EvalResultTest, RefusesWhatCannotBe) {
  EXPECT_THAT(ErrorOf(EvalResult::Make(Settings(), {})), HasSubstr("at least one question"));
  EXPECT_THAT(
      ErrorOf(EvalResult::Make(Settings(), {Question(0, 3, 0, true), Question(0, 3, 0, true)})),
      HasSubstr("abstract_algebra, question 3: occurs twice"));
  QuestionResult broken = Question(1, 7, 0, true);
  broken.logprobs[2] = std::numeric_limits<double>::quiet_NaN();
  EXPECT_THAT(ErrorOf(EvalResult::Make(Settings(), {broken})),
              HasSubstr("anatomy, question 7: the model gives a log-probability of nan"));
  QuestionResult shots = Question(1, 7, 0, true);
  shots.shots = 6;
  EXPECT_THAT(ErrorOf(EvalResult::Make(Settings(), {shots})), HasSubstr("6 shots, of 5"));
  EXPECT_THAT(ErrorOf(EvalResult::Make(Settings(), {Question(1, -1, 0, true)})),
              HasSubstr("negative index"));
}

TEST(EvalResultTest, JsonHasTheKeysOfTheContract) {
  const Json json = Evaluate([](int, int i) { return i != 3; }).ToJson();
  EXPECT_EQ(json["schema"], "nibble.evaluate/1");
  EXPECT_EQ(json["task"], "mmlu");
  EXPECT_EQ(json["template"], "original");
  EXPECT_EQ(json["scoring"], "letters");
  EXPECT_EQ(json["shots"], 5);
  EXPECT_EQ(json["questions_per_subject"], 4);
  EXPECT_EQ(json["data"]["directory"], "mmlu");
  EXPECT_EQ(json["data"]["answers"], "letters");
  EXPECT_EQ(json["dropped_shots"], 0);
  EXPECT_NEAR(json["detectable_difference"].get<double>(), DetectableDifference(228), 1e-15);
  EXPECT_FALSE(json.contains("synthetic"));
  EXPECT_EQ(json["overall"]["correct"], 171);
  EXPECT_EQ(json["overall"]["total"], 228);
  EXPECT_EQ(json["overall"]["accuracy"], 0.75);
  EXPECT_EQ(json["overall"]["ci95"].size(), 2u);
  EXPECT_FALSE(json["overall"].contains("comparison"));
  EXPECT_EQ(json["subjects"].size(), 57u);
  EXPECT_EQ(json["subjects"]["virology"]["correct"], 3);
  EXPECT_EQ(json["subcategories"].size(), 17u);
  EXPECT_EQ(json["categories"]["other (business, health, misc.)"]["total"], 14 * 4);
  ASSERT_EQ(json["questions"].size(), 228u);
  EXPECT_EQ(json["questions"][3], Json::parse(R"({"subject": "abstract_algebra", "index": 3,
      "logprobs": [-0.5, -5.0, -6.0, -7.25], "choice": "A", "answer": "D", "shots": 5})"));
}

TEST(EvalResultTest, ComparesInPairs) {
  const EvalResult reference = Evaluate([](int, int i) { return i != 3; });
  // Loses question 0 of the first ten subjects, gains question 3 of virology.
  const int virology = *FindMmluSubject("virology");
  const auto compared = Compare(reference, Evaluate([&](int subject, int i) {
                                  if (i == 0 && subject < 10) return false;
                                  return i != 3 || subject == virology;
                                }));
  ASSERT_TRUE(compared.has_value()) << compared.error().message();
  EXPECT_EQ(compared->reference_model(), "tiny");
  const PairedComparison& overall = *compared->overall().comparison;
  EXPECT_EQ(overall.counts.reference_only_correct, 10);
  EXPECT_EQ(overall.counts.candidate_only_correct, 1);
  EXPECT_DOUBLE_EQ(overall.difference, -9.0 / 228);
  EXPECT_DOUBLE_EQ(overall.flipped, 11.0 / 228);
  EXPECT_NEAR(overall.mcnemar_p, 2 * (1 + 11) / 2048.0, 1e-12);
  EXPECT_EQ(overall.holm_p, overall.mcnemar_p);
  EXPECT_LT(overall.ci95.high, 0);
  EXPECT_EQ(Group(compared->subjects(), "virology").comparison->counts.candidate_only_correct, 1);
  EXPECT_EQ(Group(compared->subjects(), "anatomy").comparison->counts.reference_only_correct, 1);
  EXPECT_EQ(Group(compared->subjects(), "marketing").comparison->flipped, 0);

  // Each family is corrected by itself: the smallest of the categories' p-values times 4.
  double smallest = 1;
  for (const GroupResult& group : compared->categories()) {
    smallest = std::min(smallest, group.comparison->mcnemar_p);
  }
  int at_smallest = 0;
  for (const GroupResult& group : compared->categories()) {
    if (group.comparison->mcnemar_p != smallest) continue;
    ++at_smallest;
    EXPECT_NEAR(group.comparison->holm_p, std::min(1.0, 4 * smallest), 1e-12);
  }
  EXPECT_EQ(at_smallest, 1);
}

TEST(EvalResultTest, ComparisonJson) {
  const EvalResult reference = Evaluate([](int, int) { return true; });
  const auto compared =
      Compare(reference, Evaluate([](int subject, int i) { return subject != 1 || i > 1; }));
  ASSERT_TRUE(compared.has_value());
  const Json json = compared->ToJson();
  EXPECT_EQ(json["reference"]["model"], "tiny");
  const Json& paired = json["subjects"]["anatomy"]["comparison"];
  EXPECT_EQ(paired["difference"], -0.5);
  EXPECT_EQ(paired["flipped"], 0.5);
  EXPECT_EQ(paired["reference_only_correct"], 2);
  EXPECT_EQ(paired["candidate_only_correct"], 0);
  EXPECT_NEAR(paired["mcnemar_p"].get<double>(), 0.5, 1e-12);
  EXPECT_EQ(paired["holm_p"], 1.0);
  EXPECT_EQ(paired["ci95"].size(), 2u);
  EXPECT_TRUE(json["overall"].contains("comparison"));
  EXPECT_TRUE(json["subcategories"]["health"].contains("comparison"));
  EXPECT_TRUE(json["categories"]["STEM"].contains("comparison"));
}

TEST(EvalResultTest, RefusesToCompareWhatDiffers) {
  const auto all = [](int, int) { return true; };
  const EvalResult reference = Evaluate(all);
  EvalSettings settings = Settings();
  settings.format.prompt_template = MmluTemplate::kLmEval;
  EXPECT_THAT(ErrorOf(Compare(reference, Evaluate(all, settings))),
              HasSubstr("its template is original, here it is lm-eval"));
  settings = Settings();
  settings.format.scoring = MmluScoring::kCloze;
  EXPECT_THAT(ErrorOf(Compare(reference, Evaluate(all, settings))),
              HasSubstr("its scoring is letters, here it is cloze"));
  settings = Settings();
  settings.options.shots = 6;
  EXPECT_THAT(ErrorOf(Compare(reference, Evaluate(all, settings))),
              HasSubstr("its number of shots is 5, here it is 6"));
  settings = Settings();
  settings.data.fingerprint = "fedcba9876543210";
  EXPECT_THAT(ErrorOf(Compare(reference, Evaluate(all, settings))),
              HasSubstr("the texts of its questions or shots differ"));

  std::vector<QuestionResult> questions = reference.questions();
  questions.erase(questions.begin() + 5);
  EXPECT_THAT(ErrorOf(Compare(reference, *EvalResult::Make(Settings(), questions))),
              HasSubstr("anatomy, question 1 is only in the reference"));
  EXPECT_THAT(ErrorOf(Compare(*EvalResult::Make(Settings(), questions), reference)),
              HasSubstr("anatomy, question 1 is only in this result"));
  questions = reference.questions();
  questions.pop_back();
  EXPECT_THAT(ErrorOf(Compare(reference, *EvalResult::Make(Settings(), questions))),
              HasSubstr("world_religions, question 3 is only in the reference"));
  questions = reference.questions();
  questions[0].answer = 2;
  EXPECT_THAT(ErrorOf(Compare(reference, *EvalResult::Make(Settings(), questions))),
              HasSubstr("abstract_algebra, question 0: the right answer is A there, C here"));
}

class EvalResultJsonTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const EvalResult reference = Evaluate([](int, int i) { return i != 3; });
    EvalSettings settings = Settings();
    settings.options.questions_per_subject = std::nullopt;
    settings.options.selection = MmluSelection::kSample;
    settings.options.seed = UINT64_MAX;
    settings.origin = WeightsOrigin::kSynthetic;
    settings.prompt_tokens = 900;
    settings.computed_tokens = 500;
    auto compared = Compare(reference, Evaluate([](int s, int i) { return i != s % 3; }, settings));
    ASSERT_TRUE(compared.has_value());
    json_ = compared->ToJson();
  }
  std::string ErrorAfter(const std::function<void(Json&)>& edit) const {
    Json json = json_;
    edit(json);
    const std::string message = ErrorOf(EvalResult::FromJson(json, "r.json"));
    EXPECT_THAT(message, StartsWith("r.json"));
    return message;
  }
  Json json_;
};

TEST_F(EvalResultJsonTest, RoundTrip) {
  const auto parsed = ParseJson(json_.dump(), "r.json");
  ASSERT_TRUE(parsed.has_value());
  const auto result = EvalResult::FromJson(*parsed, "r.json");
  ASSERT_TRUE(result.has_value()) << result.error().message();
  EXPECT_EQ(result->ToJson().dump(), json_.dump());
  EXPECT_EQ(json_["synthetic"], true);
  EXPECT_EQ(json_["computed_tokens"], 500);
  EXPECT_THAT(ErrorAfter([](Json& json) { json["computed_tokens"] = 901; }),
              HasSubstr("computed_tokens"));
  EXPECT_TRUE(json_["questions_per_subject"].is_null());
}

TEST_F(EvalResultJsonTest, RefusesEditedFiles) {
  EXPECT_THAT(ErrorOf(EvalResult::FromJson(Json::array(), "r.json")), HasSubstr("want an object"));
  EXPECT_THAT(ErrorAfter([](Json& j) { j["schema"] = "nibble.bench/1"; }),
              HasSubstr("nibble.evaluate/1"));
  EXPECT_THAT(ErrorAfter([](Json& j) { j["template"] = "x"; }), HasSubstr("\"template\""));
  EXPECT_THAT(ErrorAfter([](Json& j) { j["scoring"] = "x"; }), HasSubstr("\"scoring\""));
  EXPECT_THAT(ErrorAfter([](Json& j) { j["shots"] = -1; }), HasSubstr("\"shots\""));
  EXPECT_THAT(ErrorAfter([](Json& j) { j["seed"] = -1; }), HasSubstr("\"seed\""));
  EXPECT_THAT(ErrorAfter([](Json& j) { j["selection"] = "last"; }), HasSubstr("\"selection\""));
  EXPECT_THAT(ErrorAfter([](Json& j) { j["questions_per_subject"] = 0; }), HasSubstr("from 1"));
  EXPECT_THAT(ErrorAfter([](Json& j) { j.erase("questions"); }), HasSubstr("\"questions\""));
  EXPECT_THAT(ErrorAfter([](Json& j) { j["questions"] = Json::array(); }),
              HasSubstr("at least one question"));
  EXPECT_THAT(ErrorAfter([](Json& j) { j["questions"][2] = 1; }), HasSubstr("questions[2]"));
  EXPECT_THAT(ErrorAfter([](Json& j) { j["questions"][2]["subject"] = "alchemy"; }),
              HasSubstr("questions[2]: \"subject\""));
  EXPECT_THAT(ErrorAfter([](Json& j) { j["questions"][2]["index"] = 1; }),
              HasSubstr("abstract_algebra, question 1: occurs twice"));
  EXPECT_THAT(ErrorAfter([](Json& j) { j["questions"][2]["index"] = 1.5; }),
              HasSubstr("questions[2]: \"index\""));
  EXPECT_THAT(ErrorAfter([](Json& j) { j["questions"][2]["answer"] = "E"; }),
              HasSubstr("questions[2]: \"answer\": want A, B, C or D"));
  EXPECT_THAT(ErrorAfter([](Json& j) { j["questions"][2]["choice"] = ""; }),
              HasSubstr("questions[2]: \"choice\": want A, B, C or D"));
  EXPECT_THAT(ErrorAfter([](Json& j) { j["questions"][2]["logprobs"].push_back(-1); }),
              HasSubstr("questions[2]: \"logprobs\": want four numbers"));
  EXPECT_THAT(ErrorAfter([](Json& j) { j["questions"][2]["logprobs"][1] = nullptr; }),
              HasSubstr("questions[2]: \"logprobs\": want four numbers"));
  EXPECT_THAT(ErrorAfter([](Json& j) { j["questions"][2]["logprobs"][0] = 5.0; }),
              HasSubstr("questions[2]: \"choice\" is not the largest"));
  EXPECT_THAT(ErrorAfter([](Json& j) { j["questions"][2]["shots"] = 9; }),
              HasSubstr("9 shots, of 5"));
  EXPECT_THAT(ErrorAfter([](Json& j) { j["overall"]["correct"] = 3; }),
              HasSubstr("\"overall\" says 3 of 228"));
  EXPECT_THAT(ErrorAfter([](Json& j) { j.erase("data"); }), HasSubstr("\"data\""));
  EXPECT_THAT(ErrorAfter([](Json& j) { j["reference"] = 1; }), HasSubstr("\"reference\""));
  EXPECT_THAT(ErrorAfter([](Json& j) { j["subjects"].erase("virology"); }),
              HasSubstr("\"virology\" is missing"));
  EXPECT_THAT(ErrorAfter([](Json& j) {
                j["subjects"]["virology"]["comparison"]["reference_only_correct"] = 1000;
              }),
              HasSubstr("\"reference_only_correct\": want an integer from 0 to"));
}

TEST_F(EvalResultJsonTest, ComparisonsAreComputedAnew) {
  Json json = json_;
  json["overall"]["comparison"]["mcnemar_p"] = 1e-30;
  json["subjects"]["anatomy"]["comparison"]["holm_p"] = "none";
  const auto result = EvalResult::FromJson(json, "r.json");
  ASSERT_TRUE(result.has_value()) << result.error().message();
  EXPECT_EQ(result->ToJson().dump(), json_.dump());
}

}  // namespace
}  // namespace nibble

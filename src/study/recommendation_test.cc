#include "src/study/recommendation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>
#include <string>

#include "src/eval/statistics.h"
#include "src/report/study_record.h"

namespace nibble {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr uint64_t kGiB = uint64_t{1} << 30;

struct Made {
  int64_t questions = 14'042;
  int64_t lost = 0;    // questions that only the baseline answers
  int64_t gained = 0;  // and that only the method answers
  double speed = 1;    // tokens per second at batch size 1; eight times that at 8
  uint64_t peak = kGiB;
  std::optional<double> kl = 0.01;
  double perplexity_ratio = 1.01;
};

Json Evaluation(const Made& made, bool baseline, double baseline_accuracy) {
  const auto right = static_cast<int64_t>(baseline_accuracy * static_cast<double>(made.questions));
  const int64_t correct = right - made.lost + made.gained;
  const Interval ci = WilsonInterval(correct, made.questions);
  Json overall = {{"correct", correct},
                  {"total", made.questions},
                  {"accuracy", static_cast<double>(correct) / static_cast<double>(made.questions)},
                  {"ci95", {ci.low, ci.high}}};
  if (!baseline) {
    const PairedCounts counts{made.questions, made.lost, made.gained};
    const Interval difference = PairedDifferenceInterval(counts);
    overall["comparison"] = {{"difference", counts.Difference()},
                             {"ci95", {difference.low, difference.high}},
                             {"reference_only_correct", made.lost},
                             {"candidate_only_correct", made.gained}};
  }
  return {{"overall", std::move(overall)}};
}

Json Run(int64_t batch, double tokens_per_second, uint64_t peak) {
  return {{"batch_size", batch},
          {"input_length", 512},
          {"output_length", 200},
          {"prefill_seconds", 1},
          {"decode_seconds", 1},
          {"output_tokens_per_second", tokens_per_second},
          {"decode_tokens_per_second", tokens_per_second},
          {"peak_memory_bytes",
           {{"weights", peak}, {"kv_cache", 0}, {"workspace", 0}, {"total", peak}}}};
}

Json Method(const Made& made, bool baseline = false, double baseline_accuracy = 0.46) {
  Json perplexity = {{"perplexity", 6.0}, {"perplexity_se", 0.01}, {"tokens", 1000}};
  if (!baseline && made.kl) {
    perplexity["kl_divergence"] = {{"mean", *made.kl}};
    perplexity["perplexity_ratio"] = made.perplexity_ratio;
  }
  return {{"evaluate", Evaluation(made, baseline, baseline_accuracy)},
          {"perplexity", std::move(perplexity)},
          {"bench",
           {{"runs", Json::array({Run(1, made.speed, made.peak),
                                  Run(8, 8 * made.speed, made.peak + kGiB)})}}}};
}

Json Fp16(double speed = 10, uint64_t peak = 14 * kGiB, int64_t questions = 14'042,
          double accuracy = 0.46) {
  return Method({.questions = questions, .speed = speed, .peak = peak}, true, accuracy);
}

Json MustRecommend(const Json& methods, const RecommendationLimits& limits = {}) {
  const Result<Json> result = Recommend(methods, limits);
  if (!result) {
    ADD_FAILURE() << result.error().message();
    return {};
  }
  return *result;
}

std::string TextOf(const Json& recommendation) { return recommendation.dump(); }

TEST(Recommendation, FastestWithinTolerance) {
  const Json result = MustRecommend({
      {"fp16", Fp16()},
      {"rtn", Method({.lost = 900, .gained = 600, .speed = 30})},   // 2.1 points: too much
      {"awq", Method({.lost = 500, .gained = 480, .speed = 25})},   // 0.1 points
      {"gptq", Method({.lost = 500, .gained = 490, .speed = 20})},  // slower
  });
  EXPECT_EQ(result["method"], "awq");
  EXPECT_FALSE(result["provisional"].get<bool>());
  EXPECT_EQ(result["batch_sizes"], Json::array({1, 8}));
  EXPECT_EQ(result["candidates"][1]["fits_accuracy"], "no");
  EXPECT_EQ(result["candidates"][2]["fits_accuracy"], "yes");
  EXPECT_DOUBLE_EQ(result["candidates"][2]["speedup"].get<double>(), 2.5);
  EXPECT_DOUBLE_EQ(result["candidates"][2]["output_tokens_per_second"].get<double>(), 200);
  EXPECT_NEAR(result["candidates"][1]["accuracy_drop_points"].get<double>(), 2.136, 0.001);
  // The default tolerance is said, and what would admit the faster one.
  EXPECT_THAT(TextOf(result), HasSubstr("No tolerance was given, so 1 point"));
  ASSERT_EQ(result["would_have_to_give"].size(), 1);
  EXPECT_THAT(result["would_have_to_give"][0].get<std::string>(),
              AllOf(HasSubstr("rtn would need a tolerance of 2."), HasSubstr("3.00× fp16’s")));
}

TEST(Recommendation, TheToleranceNamedDoesAdmitTheMethod) {
  const Json methods = {{"fp16", Fp16()},
                        {"rtn", Method({.lost = 900, .gained = 600, .speed = 30})}};
  const Json before = MustRecommend(methods);
  EXPECT_EQ(before["method"], "fp16");
  EXPECT_FALSE(before["provisional"].get<bool>());
  const std::string text = before["would_have_to_give"][0].get<std::string>();
  const std::string key = "tolerance of ";
  const double named = std::stod(text.substr(text.find(key) + key.size()));
  EXPECT_EQ(MustRecommend(methods, {.max_accuracy_drop_points = named})["method"], "rtn");
}

TEST(Recommendation, MemoryBudget) {
  const Json methods = {
      {"fp16", Fp16()},
      {"rtn", Method({.lost = 500, .gained = 500, .speed = 30, .peak = 5 * kGiB})},
      {"awq", Method({.lost = 500, .gained = 500, .speed = 20, .peak = 4 * kGiB})}};
  EXPECT_EQ(MustRecommend(methods)["method"], "rtn");
  // rtn fits at batch size 1 alone, so that is where speeds are compared.
  const Json five = MustRecommend(methods, {.memory_budget_bytes = 5 * kGiB});
  EXPECT_EQ(five["method"], "rtn");
  EXPECT_EQ(five["batch_sizes"], Json::array({1}));
  EXPECT_EQ(five["candidates"][0]["fits_memory"], false);
  EXPECT_EQ(MustRecommend(methods, {.memory_budget_bytes = 4 * kGiB})["method"], "awq");

  const Json none = MustRecommend(methods, {.memory_budget_bytes = 2 * kGiB});
  EXPECT_TRUE(none["method"].is_null());
  EXPECT_THAT(none["summary"].get<std::string>(), HasSubstr("2.00 GiB"));
  ASSERT_EQ(none["would_have_to_give"].size(), 3);
  EXPECT_THAT(none["would_have_to_give"][2].get<std::string>(),
              HasSubstr("awq would need a memory budget of 4.00 GiB"));
}

TEST(Recommendation, NamesTheLargestBatch) {
  Json methods = {{"fp16", Fp16()}, {"awq", Method({.lost = 500, .gained = 500, .speed = 20})}};
  methods["awq"]["bench"]["largest_batch"] = {{"memory_bytes", 24 * kGiB}, {"batch_size", 57}};
  EXPECT_THAT(TextOf(MustRecommend(methods)),
              HasSubstr("The largest batch that fits 24.0 GiB is 57."));
  methods["fp16"]["bench"]["largest_batch"] = {{"memory_bytes", 24 * kGiB}, {"batch_size", 21}};
  const Json both = MustRecommend(methods);
  EXPECT_THAT(TextOf(both), HasSubstr("The largest batch that fits 24.0 GiB is 57, fp16’s is 21."));
  EXPECT_EQ(both["candidates"][1]["largest_batch"], 57);
}

TEST(Recommendation, BothLimitsMayHaveToGive) {
  const Json result =
      MustRecommend({{"fp16", Fp16()},
                     {"rtn", Method({.lost = 900, .gained = 600, .speed = 30, .peak = 5 * kGiB})}},
                    {.memory_budget_bytes = 2 * kGiB});
  EXPECT_TRUE(result["method"].is_null());
  EXPECT_THAT(result["would_have_to_give"][1].get<std::string>(),
              AllOf(HasSubstr("5.00 GiB"), HasSubstr("and a tolerance of 2.")));
}

TEST(Recommendation, TooFewQuestionsGiveAProvisionalChoiceByDivergence) {
  const Json result = MustRecommend(
      {{"fp16", Fp16(10, 14 * kGiB, 171)},
       {"rtn", Method({.questions = 171, .lost = 6, .gained = 6, .speed = 30, .kl = 0.04})},
       {"awq", Method({.questions = 171, .lost = 8, .gained = 5, .speed = 29, .kl = 0.02})}});
  EXPECT_EQ(result["method"], "awq");
  EXPECT_TRUE(result["provisional"].get<bool>());
  EXPECT_EQ(result["candidates"][2]["fits_accuracy"], "undecided");
  EXPECT_THAT(result["summary"].get<std::string>(), HasSubstr("too few to be sure"));
  EXPECT_THAT(result["uncertainty"].get<std::string>(), HasSubstr("questions would decide"));
}

TEST(Recommendation, VisibleDamageIsNotGuessedHarmless) {
  const Json result = MustRecommend(
      {{"fp16", Fp16(10, 14 * kGiB, 171)},
       {"rtn",
        Method({.questions = 171, .lost = 6, .gained = 6, .speed = 30, .perplexity_ratio = 1.3})}});
  EXPECT_EQ(result["method"], "fp16");
  EXPECT_TRUE(result["provisional"].get<bool>());
  // Where the baseline does not fit, the damaged one is the best there is.
  const Json small = MustRecommend(
      {{"fp16", Fp16(10, 14 * kGiB, 171)},
       {"rtn",
        Method({.questions = 171, .lost = 6, .gained = 6, .speed = 30, .perplexity_ratio = 1.3})}},
      {.memory_budget_bytes = 8 * kGiB});
  EXPECT_EQ(small["method"], "rtn");
  EXPECT_TRUE(small["provisional"].get<bool>());
}

TEST(Recommendation, EquallyFastMethodsAreChosenByDivergence) {
  const Json result =
      MustRecommend({{"fp16", Fp16()},
                     {"awq", Method({.lost = 500, .gained = 490, .speed = 30.3, .kl = 0.02})},
                     {"gptq", Method({.lost = 500, .gained = 490, .speed = 30, .kl = 0.01})}});
  EXPECT_EQ(result["method"], "gptq");
}

TEST(Recommendation, NoGainMeansTheBaseline) {
  const Json result =
      MustRecommend({{"fp16", Fp16()}, {"rtn", Method({.lost = 500, .gained = 490, .speed = 7})}});
  EXPECT_EQ(result["method"], "fp16");
  EXPECT_FALSE(result["provisional"].get<bool>());
  EXPECT_THAT(TextOf(result), HasSubstr("rtn is no faster"));
}

TEST(Recommendation, AtChanceLettersDecideNothing) {
  Json methods = {{"fp16", Fp16(10, 14 * kGiB, 14'042, 0.25)},
                  {"rtn", Method({.lost = 500, .gained = 500, .speed = 30}, false, 0.25)}};
  const Json at_chance = MustRecommend(methods);
  EXPECT_EQ(at_chance["candidates"][1]["fits_accuracy"], "undecided");
  EXPECT_TRUE(at_chance["provisional"].get<bool>());
  EXPECT_TRUE(at_chance["scoring"].is_null());
  EXPECT_THAT(at_chance["uncertainty"].get<std::string>(), HasSubstr("no better than chance"));

  // By answer text the baseline knows something, and then rtn loses too much of it.
  methods["fp16"]["evaluate_cloze"] = Fp16(10, 14 * kGiB, 14'042, 0.35)["evaluate"];
  methods["rtn"]["evaluate_cloze"] = Method({.lost = 900, .gained = 500}, false, 0.35)["evaluate"];
  const Json by_text = MustRecommend(methods);
  EXPECT_EQ(by_text["scoring"], "cloze");
  EXPECT_EQ(by_text["candidates"][1]["fits_accuracy"], "no");
  EXPECT_EQ(by_text["method"], "fp16");
}

TEST(Recommendation, MissingDocumentsAreUnknownNotZero) {
  Json methods = {{"fp16", Fp16()},
                  {"rtn", Json{{"error", "failed"}}},
                  {"awq", Method({.lost = 500, .gained = 490, .speed = 30})}};
  methods["awq"].erase("evaluate");
  const Json result = MustRecommend(methods);
  EXPECT_TRUE(result["candidates"][1]["fits_memory"].is_null());
  EXPECT_TRUE(result["candidates"][1]["output_tokens_per_second"].is_null());
  EXPECT_EQ(result["candidates"][2]["fits_accuracy"], "undecided");
  EXPECT_EQ(result["method"], "awq");  // by its small divergence
  EXPECT_TRUE(result["provisional"].get<bool>());

  methods["fp16"].erase("bench");
  methods["awq"].erase("bench");
  EXPECT_TRUE(MustRecommend(methods)["method"].is_null());
}

TEST(Recommendation, OnlyTheBaseline) {
  const Json result = MustRecommend({{"fp16", Fp16()}});
  EXPECT_EQ(result["method"], "fp16");
  EXPECT_THAT(result["summary"].get<std::string>(), HasSubstr("only method"));
}

TEST(Recommendation, ItsOutputIsWhatAReportReads) {
  const Json methods = {{"fp16", Fp16()},
                        {"rtn", Method({.lost = 900, .gained = 600, .speed = 30})}};
  const Json study = {{"schema", "nibble.study/1"},
                      {"methods", methods},
                      {"recommendation", MustRecommend(methods)}};
  const Result<StudyRecord> record = StudyRecord::FromJson(study, "study.json");
  ASSERT_TRUE(record) << record.error().message();
  EXPECT_EQ(record->recommendation->method, "fp16");
  EXPECT_EQ(record->recommendation->candidates.size(), 2);
  EXPECT_EQ(record->recommendation->max_accuracy_drop_points, 1.0);
}

TEST(Recommendation, MalformedMethodsAreAnError) {
  EXPECT_FALSE(Recommend(Json::array(), {}));
  EXPECT_FALSE(Recommend({{"fp16", {{"bench", "fast"}}}}, {}));
}

TEST(QuestionsToDecide, FollowsTheDetectableDifference) {
  // (1.96 + 0.84)² · 0.08 ÷ 0.01² = 6279.
  EXPECT_NEAR(static_cast<double>(QuestionsToDecide(0.08, 1)), 6279, 2);
  EXPECT_NEAR(DetectableDifference(QuestionsToDecide(0.1, 0.5), 0.1), 0.005, 1e-6);
}

}  // namespace
}  // namespace nibble

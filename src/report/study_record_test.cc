#include "src/report/study_record.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "src/report/mock_study.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

std::string ErrorOf(const Json& json) {
  const Result<StudyRecord> record = StudyRecord::FromJson(json, "study.json");
  return record ? "" : record.error().message();
}

TEST(StudyRecord, ReadsEverything) {
  const Result<StudyRecord> record =
      StudyRecord::FromJson(MockStudy({.cloze = true}), "study.json");
  ASSERT_TRUE(record) << record.error().message();
  EXPECT_EQ(record->model_name, "Llama-2-7b-chat-hf");
  EXPECT_EQ(record->repetitions, 3);
  EXPECT_FALSE(record->sample_questions);
  ASSERT_EQ(record->methods.size(), 4);
  EXPECT_EQ(record->methods[0].name, "fp16");
  EXPECT_FALSE(record->methods[0].quantize);
  const MethodRecord& awq = record->methods[2];
  EXPECT_EQ(awq.evaluate->subjects.size(), 57);
  EXPECT_EQ(awq.evaluate->subcategories.size(), 17);
  EXPECT_EQ(awq.evaluate_cloze->categories.size(), 4);
  ASSERT_TRUE(awq.evaluate->overall.comparison);
  EXPECT_LT(awq.evaluate->overall.comparison->difference, 0);
  EXPECT_EQ(awq.bench.size(), 8);
  EXPECT_EQ(awq.quantize->modules.size(), 96);
  EXPECT_DOUBLE_EQ(awq.perplexity->kl_divergence->mean, 0.0187);
}

TEST(StudyRecord, DocumentsMayBeMissingOrNull) {
  Json study = MockStudy();
  study["methods"]["awq-g128-asym"] = {{"evaluate", nullptr}, {"error", "out of memory"}};
  study["methods"]["gptq-g128-sym"] = Json::object();
  study.erase("hardware");
  study.erase("model");
  const Result<StudyRecord> record = StudyRecord::FromJson(study, "study.json");
  ASSERT_TRUE(record) << record.error().message();
  EXPECT_FALSE(record->methods[2].evaluate);
  EXPECT_EQ(record->methods[2].error, "out of memory");
  EXPECT_TRUE(record->methods[3].bench.empty());
}

TEST(StudyRecord, RunsAreSortedByBatchSize) {
  Json study = MockStudy({.batch_sizes = {8, 1, 4}});
  const Result<StudyRecord> record = StudyRecord::FromJson(study, "study.json");
  ASSERT_TRUE(record);
  EXPECT_EQ(record->methods[0].bench.front().batch_size, 1);
  EXPECT_EQ(record->methods[0].bench.back().batch_size, 8);
}

TEST(StudyRecord, MeasurementsThatOverflowedAreNotNumbers) {
  Json study = MockStudy();
  study["methods"]["awq-g128-asym"]["perplexity"]["perplexity"] = nullptr;
  const Result<StudyRecord> record = StudyRecord::FromJson(study, "study.json");
  ASSERT_TRUE(record) << record.error().message();
  EXPECT_TRUE(std::isnan(record->methods[2].perplexity->perplexity));
}

TEST(StudyRecord, ErrorsNameTheField) {
  EXPECT_THAT(ErrorOf(Json::array()), HasSubstr("study.json"));
  EXPECT_THAT(ErrorOf({{"schema", "nibble.bench/1"}}), HasSubstr("nibble.study/1"));
  EXPECT_THAT(ErrorOf({{"schema", "nibble.study/1"}}), HasSubstr("methods"));

  Json study = MockStudy();
  study["methods"]["fp16"]["evaluate"]["subjects"]["anatomy"]["correct"] = 1'000'000;
  EXPECT_THAT(ErrorOf(study), HasSubstr("anatomy"));

  study = MockStudy();
  study["methods"]["fp16"]["evaluate"]["overall"]["ci95"] = {0.5, 0.4};
  EXPECT_THAT(ErrorOf(study), HasSubstr("\"ci95\""));

  study = MockStudy();
  study["methods"]["fp16"]["evaluate"]["overall"]["total"] = 0;
  EXPECT_THAT(ErrorOf(study), HasSubstr("\"total\""));

  study = MockStudy();
  study["methods"]["fp16"]["bench"]["runs"][3]["output_tokens_per_second"] = "fast";
  EXPECT_THAT(ErrorOf(study), HasSubstr("run 3"));

  study = MockStudy();
  study["methods"]["fp16"]["bench"]["runs"][3]["batch_size"] = 1;
  EXPECT_THAT(ErrorOf(study), HasSubstr("twice"));

  study = MockStudy();
  study["methods"]["fp16"]["bench"]["runs"][0]["peak_memory_bytes"]["total"] = -1;
  EXPECT_THAT(ErrorOf(study), HasSubstr("\"total\""));

  study = MockStudy();
  study["methods"] = Json::object();
  for (int i = 0; i < 100; ++i) study["methods"][fmt::format("m{}", i)] = Json::object();
  EXPECT_THAT(ErrorOf(study), HasSubstr("methods"));
}

}  // namespace
}  // namespace nibble

#include "src/eval/mmlu_data.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <set>
#include <string>

#include "src/base/file.h"
#include "src/eval/mmlu_subjects.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// A complete tiny dataset in a temporary directory: two dev rows and `test_rows` test rows each.
class MmluDataTest : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_ = fs::path(::testing::TempDir()) / fmt::format("mmlu_{}", ::getpid()) / "tiny";
    fs::remove_all(directory_.parent_path());
    for (const MmluSubject& subject : kMmluSubjects) {
      Write("dev", subject.name, "d0,1,2,3,4,A\nd1,1,2,3,4,D\n");
      std::string rows;
      for (int i = 0; i < 8; ++i) {
        rows += fmt::format("{} {},1,2,3,None,{}\n", subject.name, i, "ABCD"[i % 4]);
      }
      Write("test", subject.name, rows);
    }
  }
  void TearDown() override { fs::remove_all(directory_.parent_path()); }

  fs::path PathOf(std::string_view split, std::string_view subject) const {
    return directory_ / split / fmt::format("{}_{}.csv", subject, split);
  }
  void Write(std::string_view split, std::string_view subject, const std::string& text) const {
    fs::create_directories(directory_ / split);
    std::ofstream(PathOf(split, subject), std::ios::binary) << text;
  }
  MmluDataset Load(const MmluDataOptions& options) const {
    auto dataset = MmluDataset::Load(directory_.string(), options);
    EXPECT_TRUE(dataset.has_value()) << dataset.error().message();
    return dataset.value_or(MmluDataset());
  }
  std::string ErrorOf(const MmluDataOptions& options) const {
    const auto dataset = MmluDataset::Load(directory_.string(), options);
    EXPECT_FALSE(dataset.has_value());
    return dataset ? "" : dataset.error().message();
  }

  fs::path directory_;
};

TEST_F(MmluDataTest, LoadsEverySubject) {
  const MmluDataset data = Load({.shots = 2});
  ASSERT_EQ(data.subjects().size(), 57u);
  EXPECT_EQ(data.question_count(), 57 * 8);
  EXPECT_EQ(data.form(), (MmluDataForm{"absent", "letters"}));
  EXPECT_EQ(data.directory_name(), "tiny");
  for (size_t i = 0; i < 57; ++i) EXPECT_EQ(data.subjects()[i].subject, static_cast<int>(i));
  const MmluSubjectData& law = data.subjects()[34];
  EXPECT_EQ(law.questions[3].question, "international_law 3");
  EXPECT_THAT(law.questions[3].choices, ElementsAre("1", "2", "3", "None"));
  EXPECT_EQ(law.questions[3].answer, 3);
  ASSERT_EQ(law.shots.size(), 2u);
  EXPECT_EQ(law.shots[1].question, "d1");
}

TEST_F(MmluDataTest, FirstQuestions) {
  const MmluDataset data = Load({.shots = 1, .questions_per_subject = 3});
  EXPECT_EQ(data.question_count(), 57 * 3);
  EXPECT_EQ(data.subjects()[0].shots.size(), 1u);
  EXPECT_EQ(data.subjects()[0].questions[2].question, "abstract_algebra 2");
  EXPECT_EQ(Load({.shots = 1, .questions_per_subject = 100}).question_count(), 57 * 8);
}

TEST_F(MmluDataTest, SampledQuestionsFollowTheSeedAlone) {
  const MmluDataOptions options{
      .shots = 2, .questions_per_subject = 3, .selection = MmluSelection::kSample, .seed = 7};
  const MmluDataset data = Load(options);
  EXPECT_EQ(data.FingerprintHex(), Load(options).FingerprintHex());
  std::set<std::vector<int64_t>> draws;
  std::map<int64_t, int> uses;
  for (const MmluSubjectData& subject : data.subjects()) {
    std::vector<int64_t> draw;
    for (const MmluQuestion& question : subject.questions) {
      draw.push_back(question.index);
      ++uses[question.index];
      EXPECT_EQ(question.question,
                fmt::format("{} {}", kMmluSubjects[subject.subject].name, question.index));
    }
    ASSERT_EQ(draw.size(), 3u);
    EXPECT_LT(draw[0], draw[1]);
    EXPECT_LT(draw[1], draw[2]);
    draws.insert(draw);
  }
  EXPECT_GT(draws.size(), 20u);  // subjects do not share a draw: 56 are possible
  // Each of 8 questions is drawn 57 · 3/8 = 21.4 times on average, with a deviation of 3.7.
  for (int64_t i = 0; i < 8; ++i) EXPECT_NEAR(uses[i], 21.4, 15);
  MmluDataOptions other = options;
  other.seed = 8;
  EXPECT_NE(data.FingerprintHex(), Load(other).FingerprintHex());
}

TEST_F(MmluDataTest, FingerprintSeesTextAndSelection) {
  const std::string all = Load({.shots = 2}).FingerprintHex();
  EXPECT_NE(all, Load({.shots = 1}).FingerprintHex());
  EXPECT_NE(all, Load({.shots = 2, .questions_per_subject = 7}).FingerprintHex());
  Write("dev", "virology", "d0,1,2,3,4,A\nd1,1,2,3,4,C\n");
  EXPECT_NE(all, Load({.shots = 2}).FingerprintHex());
}

TEST_F(MmluDataTest, HubFormAndMixedForms) {
  for (const MmluSubject& subject : kMmluSubjects) {
    const std::string header = "question,A,B,C,D,answer\n";
    Write("dev", subject.name, header + "d0,1,2,3,4,0\nd1,1,2,3,4,3\n");
    Write("test", subject.name, header + "t0,1,2,3,4,2\n");
  }
  const MmluDataset hub = Load({.shots = 2});
  EXPECT_EQ(hub.form(), (MmluDataForm{"present", "digits"}));
  EXPECT_EQ(hub.question_count(), 57);
  EXPECT_EQ(hub.subjects()[5].questions[0].answer, 2);
  Write("test", "virology", "t0,1,2,3,4,C\n");
  EXPECT_EQ(Load({.shots = 2}).form(), (MmluDataForm{"mixed", "mixed"}));
}

TEST_F(MmluDataTest, NoShotsNeedNoDevFiles) {
  fs::remove_all(directory_ / "dev");
  EXPECT_EQ(Load({.shots = 0}).question_count(), 57 * 8);
  EXPECT_THAT(ErrorOf({.shots = 1}), HasSubstr("abstract_algebra_dev.csv: no such file"));
}

TEST_F(MmluDataTest, ErrorsNameTheFile) {
  EXPECT_THAT(ErrorOf({.shots = 3}),
              HasSubstr("abstract_algebra_dev.csv: want at least 3 rows for 3 shots, got 2"));
  Write("test", "sociology", "a,1,2,3,4,A\nb,1,2,3,4,Z\n");
  EXPECT_THAT(ErrorOf({.shots = 2}), HasSubstr("sociology_test.csv:2: the answer"));
  Write("test", "sociology", "a,1,2,3,\xFF,A\n");
  EXPECT_THAT(ErrorOf({.shots = 2}), HasSubstr("sociology_test.csv:1: not UTF-8"));
  Write("test", "sociology", "");
  EXPECT_THAT(ErrorOf({.shots = 2}), HasSubstr("sociology_test.csv: no questions"));
  fs::remove(PathOf("test", "sociology"));
  EXPECT_THAT(ErrorOf({.shots = 2}), HasSubstr("test/sociology_test.csv: no such file"));
  EXPECT_THAT(ErrorOf({.shots = -1}), HasSubstr("shots: want 0 or more"));
  EXPECT_THAT(ErrorOf({.shots = 2, .questions_per_subject = 0}),
              HasSubstr("want 1 or more, got 0"));
}

TEST(MmluDatasetTest, AMissingDirectoryIsAnError) {
  const auto dataset = MmluDataset::Load("/nonexistent/mmlu", {});
  ASSERT_FALSE(dataset.has_value());
  EXPECT_THAT(dataset.error().message(), HasSubstr("/nonexistent/mmlu: no such directory"));
}

TEST(MmluDatasetTest, TheBenchmarkItself) {
  const std::string directory = std::string(NIBBLE_SHARED_DATA) + "/data/mmlu";
  if (!IsDirectory(directory)) GTEST_SKIP() << directory << " is absent";
  const auto dataset = MmluDataset::Load(directory, {});
  ASSERT_TRUE(dataset.has_value()) << dataset.error().message();
  EXPECT_EQ(dataset->question_count(), 14042);
  EXPECT_EQ(dataset->form(), (MmluDataForm{"absent", "letters"}));
  EXPECT_EQ(dataset->directory_name(), "mmlu");
  size_t shots = 0;
  int none_cells = 0;
  for (const MmluSubjectData& subject : dataset->subjects()) {
    shots += subject.shots.size();
    for (const auto* questions : {&subject.shots, &subject.questions}) {
      for (const MmluQuestion& question : *questions) {
        for (const std::string& choice : question.choices) none_cells += choice == "None" ? 1 : 0;
      }
    }
  }
  EXPECT_EQ(shots, 285u);
  EXPECT_EQ(none_cells, 10);
  EXPECT_EQ(dataset->subjects()[0].questions.size(), 100u);    // abstract_algebra
  EXPECT_EQ(dataset->subjects()[48].questions.size(), 1534u);  // professional_law
}

TEST(MmluSubjectsTest, CountsOfSubcategoriesAndNames) {
  std::map<std::string_view, int> counts;
  for (const MmluSubject& subject : kMmluSubjects) {
    ++counts[kMmluSubcategories[subject.subcategory].name];
  }
  // From categories.py of the benchmark.
  const std::map<std::string_view, int> expected = {
      {"math", 5},       {"health", 8},      {"physics", 4},    {"business", 3},
      {"biology", 2},    {"chemistry", 2},   {"economics", 3},  {"computer science", 4},
      {"philosophy", 6}, {"engineering", 1}, {"other", 3},      {"history", 4},
      {"geography", 1},  {"politics", 4},    {"psychology", 2}, {"culture", 2},
      {"law", 3}};
  int total = 0;
  for (const auto& [name, count] : expected) total += count;
  EXPECT_EQ(total, 57);
  EXPECT_EQ(counts, expected);
  for (size_t i = 1; i < 57; ++i) EXPECT_LT(kMmluSubjects[i - 1].name, kMmluSubjects[i].name);
  EXPECT_EQ(kMmluCategories[MmluCategoryOf(*FindMmluSubject("high_school_geography"))],
            "social sciences");
  EXPECT_EQ(kMmluCategories[MmluCategoryOf(*FindMmluSubject("nutrition"))],
            "other (business, health, misc.)");
  EXPECT_EQ(FindMmluSubject("nutrition_test"), std::nullopt);
}

}  // namespace
}  // namespace nibble

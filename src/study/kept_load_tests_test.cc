#include "src/study/kept_load_tests.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "src/base/file.h"
#include "src/base/json.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

class KeptLoadTests : public ::testing::Test {
 protected:
  void SetUp() override { std::filesystem::create_directories(directory_); }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  std::string Write(const std::string& name, const std::string& text) {
    const std::string path = JoinPath(directory_, name);
    EXPECT_TRUE(WriteFileAtomic(path, text));
    return path;
  }
  std::string WriteLoadTest(const std::string& model) {
    const Json run = {{"concurrency", 1},
                      {"requests", 1},
                      {"completed", 1},
                      {"output_tokens_per_second", 1.5},
                      {"requests_per_second", 0.5}};
    const Json document = {{"schema", "nibble.load-test/1"},
                           {"model", model},
                           {"workload", {{"input_length", 512}, {"output_length", 200}}},
                           {"slo", Json::object()},
                           {"runs", Json::array({run})}};
    return Write(model + ".json", document.dump());
  }
  std::vector<std::string> Models() {
    const auto kept = ReadKeptLoadTests(directory_);
    EXPECT_TRUE(kept) << kept.error().message();
    std::vector<std::string> models;
    for (const LoadSeries& series : *kept) models.push_back(series.model);
    return models;
  }

  const std::string directory_ =
      ::testing::TempDir() + "/kept_load_tests_" + std::to_string(getpid());
};

TEST_F(KeptLoadTests, StayUntilOthersTakeTheirPlace) {
  EXPECT_TRUE(Models().empty());
  const std::vector<std::string> two = {WriteLoadTest("fp16"), WriteLoadTest("awq")};
  ASSERT_TRUE(KeepLoadTests(directory_, two));
  std::filesystem::remove(two[0]);
  EXPECT_EQ(Models(), (std::vector<std::string>{"fp16", "awq"}));
  ASSERT_TRUE(KeepLoadTests(directory_, std::vector<std::string>{WriteLoadTest("gptq")}));
  EXPECT_EQ(Models(), std::vector<std::string>{"gptq"});
}

TEST_F(KeptLoadTests, NothingChangesWhereOneIsNone) {
  ASSERT_TRUE(KeepLoadTests(directory_, std::vector<std::string>{WriteLoadTest("fp16")}));
  const std::vector<std::string> bad = {WriteLoadTest("awq"), Write("bad.json", R"({"schema":1})")};
  const Status status = KeepLoadTests(directory_, bad);
  ASSERT_FALSE(status);
  EXPECT_THAT(status.error().message(), HasSubstr("bad.json"));
  EXPECT_EQ(Models(), std::vector<std::string>{"fp16"});
}

TEST_F(KeptLoadTests, ADamagedFileIsNamed) {
  for (const char* text : {"[]", "{", R"({"schema":"nibble.load-tests/1"})",
                           R"({"schema":"nibble.load-tests/1","load_tests":[{}]})",
                           R"({"schema":"nibble.load-tests/2","load_tests":[]})"}) {
    Write("load_tests.json", text);
    const auto kept = ReadKeptLoadTests(directory_);
    ASSERT_FALSE(kept) << text;
    EXPECT_THAT(kept.error().message(), HasSubstr("load_tests.json")) << text;
  }
}

}  // namespace
}  // namespace nibble

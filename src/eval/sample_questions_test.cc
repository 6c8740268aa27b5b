// The questions and texts that come with the program: their shape, not their meaning.
#include <gtest/gtest.h>
#include <utf8proc.h>

#include <array>
#include <set>
#include <string>

#include "src/base/file.h"
#include "src/eval/mmlu_data.h"
#include "src/eval/mmlu_subjects.h"

namespace nibble {
namespace {

int64_t Characters(const std::string& text) {
  int64_t count = 0;
  for (const char c : text) count += (static_cast<unsigned char>(c) & 0xC0) != 0x80 ? 1 : 0;
  return count;
}

bool IsUtf8(const std::string& text) {
  const auto* bytes = reinterpret_cast<const utf8proc_uint8_t*>(text.data());
  for (size_t i = 0; i < text.size();) {
    utf8proc_int32_t code_point = 0;
    const utf8proc_ssize_t length =
        utf8proc_iterate(bytes + i, static_cast<utf8proc_ssize_t>(text.size() - i), &code_point);
    if (length <= 0) return false;
    i += static_cast<size_t>(length);
  }
  return true;
}

void CheckBalance(const std::array<int, 4>& answers, int total, std::string_view split) {
  for (size_t i = 0; i < 4; ++i) {
    const double share = static_cast<double>(answers[i]) / total;
    EXPECT_GE(share, 0.20) << split << ": "
                           << "ABCD"[i];
    EXPECT_LE(share, 0.30) << split << ": "
                           << "ABCD"[i];
  }
}

TEST(SampleQuestionsTest, Shape) {
  const auto data =
      MmluDataset::Load(std::string(NIBBLE_SOURCE_DIR) + "/examples/mmlu-sample", {.shots = 5});
  ASSERT_TRUE(data.has_value()) << data.error().message();
  EXPECT_EQ(data->form(), (MmluDataForm{"absent", "letters"}));
  std::array<int, 4> dev_answers{};
  std::array<int, 4> test_answers{};
  std::set<std::string> questions;
  for (const MmluSubjectData& subject : data->subjects()) {
    const std::string_view name = kMmluSubjects[static_cast<size_t>(subject.subject)].name;
    EXPECT_EQ(subject.shots.size(), 5u) << name;
    EXPECT_EQ(subject.questions.size(), 3u) << name;
    for (const auto* part : {&subject.shots, &subject.questions}) {
      for (const MmluQuestion& question : *part) {
        int64_t characters = Characters(question.question);
        for (const std::string& choice : question.choices) characters += Characters(choice);
        EXPECT_LE(characters, 250) << name << ": " << question.question;
        EXPECT_TRUE(questions.insert(question.question).second)
            << name << ": occurs twice: " << question.question;
        EXPECT_EQ(std::set<std::string>(question.choices.begin(), question.choices.end()).size(),
                  4u)
            << name << ": two choices are equal: " << question.question;
        ++(part == &subject.shots ? dev_answers
                                  : test_answers)[static_cast<size_t>(question.answer)];
      }
    }
  }
  CheckBalance(dev_answers, 57 * 5, "dev");
  CheckBalance(test_answers, 57 * 3, "test");
}

TEST(SampleQuestionsTest, DevFilesHoldFiveRows) {
  const auto more =
      MmluDataset::Load(std::string(NIBBLE_SOURCE_DIR) + "/examples/mmlu-sample", {.shots = 6});
  EXPECT_FALSE(more.has_value());
}

TEST(SampleTextsTest, SizeAndEncoding) {
  const struct {
    std::string name;
    size_t min_bytes;
  } texts[] = {{"perplexity.txt", 40'000}, {"calibration.txt", 120'000}};
  for (const auto& text : texts) {
    const auto content = ReadFile(std::string(NIBBLE_SOURCE_DIR) + "/examples/text/" + text.name);
    ASSERT_TRUE(content.has_value()) << content.error().message();
    EXPECT_GE(content->size(), text.min_bytes) << text.name;
    EXPECT_TRUE(IsUtf8(*content)) << text.name;
    EXPECT_EQ(content->find('\0'), std::string::npos) << text.name;
  }
}

}  // namespace
}  // namespace nibble

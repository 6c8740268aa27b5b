// The interpreter against Python's jinja2, on what tests/oracles/make_chat_vectors.py wrote.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "src/base/file.h"
#include "src/tokenizer/chat_template.h"

namespace nibble {
namespace {

ChatTemplateOptions OptionsOf(const Json& line) {
  ChatTemplateOptions options;
  options.add_generation_prompt = line["add_generation_prompt"].get<bool>();
  if (line["bos_token"].is_string()) options.bos_token = line["bos_token"].get<std::string>();
  if (line["eos_token"].is_string()) options.eos_token = line["eos_token"].get<std::string>();
  if (line["now"].is_array()) {
    std::tm now = {};
    now.tm_year = line["now"][0].get<int>() - 1900;
    now.tm_mon = line["now"][1].get<int>() - 1;
    now.tm_mday = line["now"][2].get<int>();
    now.tm_hour = line["now"][3].get<int>();
    now.tm_min = line["now"][4].get<int>();
    options.now = now;
  }
  options.variables = line["variables"];
  return options;
}

// nullopt where a message is more than a role and text.
std::optional<std::vector<ChatMessage>> PlainMessages(const Json& line) {
  std::vector<ChatMessage> messages;
  for (const Json& message : line["messages"]) {
    if (message.size() != 2 || !message.contains("content") || !message["content"].is_string()) {
      return std::nullopt;
    }
    messages.push_back({message["role"].get<std::string>(), message["content"].get<std::string>()});
  }
  return messages;
}

struct Tally {
  int cases = 0;
  int raised = 0;
  int wrong = 0;
};

Tally CheckFile(const std::filesystem::path& path) {
  Tally tally;
  std::ifstream file(path);
  std::string text;
  std::string template_text;
  Result<ChatTemplate> parsed = BadInput("no template yet");
  while (std::getline(file, text)) {
    const Json line = Json::parse(text);
    if (line.contains("template")) {
      template_text = line["template"].get<std::string>();
      parsed = ChatTemplate::Parse(template_text, "template");
      continue;
    }
    ++tally.cases;
    const Json& expected = line["expected"];
    if (expected.is_null()) ++tally.raised;
    if (!parsed) {
      ++tally.wrong;
      ADD_FAILURE() << parsed.error().message() << "\n" << template_text;
      continue;
    }
    const Result<std::string> rendered = parsed->RenderJson(line["messages"], OptionsOf(line));
    bool right = expected.is_null() ? !rendered.has_value()
                                    : rendered && *rendered == expected.get<std::string>();
    if (const auto plain = PlainMessages(line)) {
      const Result<std::string> again = parsed->Render(*plain, OptionsOf(line));
      right = right && (rendered ? again && *again == *rendered : !again);
    }
    if (right) continue;
    if (++tally.wrong <= 20) {
      ADD_FAILURE() << "template: " << template_text << "\ncase: " << text
                    << "\ngot: " << (rendered ? *rendered : rendered.error().message());
    }
  }
  return tally;
}

TEST(ChatTemplateVectors, AgreeWithPython) {
  const std::filesystem::path directory = NIBBLE_BUILD_DIR "/chat_vectors";
  if (!std::filesystem::is_directory(directory)) {
    GTEST_SKIP() << "make them with tests/oracles/make_chat_vectors.py " << directory;
  }
  int files = 0;
  int cases = 0;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    if (entry.path().extension() != ".jsonl") continue;
    SCOPED_TRACE(entry.path().string());
    const Tally tally = CheckFile(entry.path());
    EXPECT_EQ(tally.wrong, 0) << "of " << tally.cases;
    EXPECT_GT(tally.cases, tally.raised);
    ++files;
    cases += tally.cases;
  }
  EXPECT_GT(files, 20);
  EXPECT_GT(cases, 2000);
}

}  // namespace
}  // namespace nibble

#include "src/tokenizer/chat_template_families.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "src/base/file.h"

namespace nibble {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

const std::vector<ChatMessage> kChat = {
    {"system", "Be brief."}, {"user", " Hi "}, {"assistant", " Hello. "}, {"user", "Why?"}};
const std::vector<ChatMessage> kQuestion = {{"user", "Hi"}};

std::string Render(const std::string& family, const std::vector<ChatMessage>& messages,
                   const std::vector<NamedChatTemplate>& of_model = {}) {
  const Result<ChatTemplate> chosen = ChooseChatTemplate(family, of_model, "m");
  if (!chosen) return "REFUSED " + chosen.error().message();
  ChatTemplateOptions options;
  options.bos_token = "<s>";
  options.eos_token = "</s>";
  const Result<std::string> text = chosen->Render(messages, options);
  return text ? *text : "FAILED " + text.error().message();
}

struct Expected {
  std::string family;
  std::string question;  // of kQuestion
  std::string chat;      // of kChat
};

class Families : public ::testing::TestWithParam<Expected> {};

// As the families' documentation shows their formats.
TEST_P(Families, RenderAsTheyWereTrained) {
  EXPECT_EQ(Render(GetParam().family, kQuestion), GetParam().question);
  EXPECT_EQ(Render(GetParam().family, kChat), GetParam().chat);
}

constexpr std::string_view kImChat =
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n Hi <|im_end|>\n"
    "<|im_start|>assistant\n Hello. <|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n"
    "<|im_start|>assistant\n";
constexpr std::string_view kZephyrChat =
    "<|system|>\nBe brief.</s>\n<|user|>\n Hi </s>\n<|assistant|>\n Hello. </s>\n"
    "<|user|>\nWhy?</s>\n<|assistant|>\n";

INSTANTIATE_TEST_SUITE_P(
    All, Families,
    ::testing::Values(
        Expected{"chatml", "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
                 std::string(kImChat)},
        Expected{"qwen2.5",
                 "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful "
                 "assistant.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
                 std::string(kImChat)},
        Expected{"smollm2",
                 "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by "
                 "Hugging Face<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
                 std::string(kImChat)},
        Expected{"llama2", "<s>[INST] Hi [/INST]",
                 "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n Hi [/INST] Hello. </s>"
                 "<s>[INST] Why? [/INST]"},
        Expected{"llama3",
                 "<s><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
                 "<|start_header_id|>assistant<|end_header_id|>\n\n",
                 "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
                 "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
                 "<|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|>"
                 "<|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|>"
                 "<|start_header_id|>assistant<|end_header_id|>\n\n"},
        Expected{"llama3.1",
                 "<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: "
                 "December 2023\nToday Date: 26 Jul 2024\n\n<|eot_id|>"
                 "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
                 "<|start_header_id|>assistant<|end_header_id|>\n\n",
                 "<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: "
                 "December 2023\nToday Date: 26 Jul 2024\n\nBe brief.<|eot_id|>"
                 "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
                 "<|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|>"
                 "<|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|>"
                 "<|start_header_id|>assistant<|end_header_id|>\n\n"},
        Expected{"mistral", "<s>[INST] Hi [/INST]",
                 "<s>[INST] Be brief.\n\n Hi  [/INST] Hello.</s>[INST] Why? [/INST]"},
        Expected{"mistral-v3", "<s>[INST] Hi[/INST]",
                 "<s>[INST]  Hi [/INST] Hello.</s>[INST] Be brief.\n\nWhy?[/INST]"},
        Expected{"zephyr", "<|user|>\nHi</s>\n<|assistant|>\n", std::string(kZephyrChat)},
        Expected{"tinyllama", "<|user|>\nHi</s>\n<|assistant|>\n", std::string(kZephyrChat)}));

TEST(ChatTemplateFamilies, AllAreTested) {
  EXPECT_EQ(ChatTemplateFamilies().size(), 10u);
  for (const ChatTemplateFamily& family : ChatTemplateFamilies()) {
    EXPECT_TRUE(ChatTemplate::Parse(family.jinja, "t").has_value()) << family.name;
  }
}

TEST(ChatTemplateFamilies, RaiseOnRolesThatTheyDoNotKnow) {
  for (const char* family : {"llama2", "mistral", "mistral-v3"}) {
    EXPECT_THAT(Render(family, {{"user", "a"}, {"user", "b"}}), HasSubstr("take turns")) << family;
    EXPECT_THAT(Render(family, {{"assistant", "a"}}), HasSubstr("take turns")) << family;
  }
  EXPECT_THAT(Render("zephyr", {{"tool", "a"}}), HasSubstr("the roles are"));
}

TEST(ChooseChatTemplate, FamiliesThenTheModelsThenFiles) {
  const std::vector<NamedChatTemplate> of_model = {
      {"tool_use", "tools"}, {"default", "own"}, {"bad", "{{ a|wordwrap }}"}, {"zephyr", "mine"}};
  EXPECT_EQ(Render("", kQuestion, of_model), "own");
  EXPECT_EQ(Render("default", kQuestion, of_model), "own");
  EXPECT_EQ(Render("tool_use", kQuestion, of_model), "tools");
  EXPECT_EQ(Render("zephyr", kQuestion, of_model), "<|user|>\nHi</s>\n<|assistant|>\n");
  EXPECT_EQ(Render("bad", kQuestion, of_model),
            "REFUSED m: the chat template \"bad\": line 1: the filter 'wordwrap' is not supported");

  const std::string file = ::testing::TempDir() + "/chosen.jinja";
  ASSERT_TRUE(WriteFileAtomic(file, "{{ messages[0].content }}!"));
  EXPECT_EQ(Render(file, kQuestion, of_model), "Hi!");
  ASSERT_TRUE(WriteFileAtomic(file, "\n{% include 'x' %}"));
  EXPECT_EQ(Render(file, kQuestion),
            "REFUSED " + file + ": line 2: the statement 'include' is not supported");
  ASSERT_TRUE(WriteFileAtomic(file, std::string(kMaxChatTemplateBytes + 1, 'x')));
  EXPECT_THAT(Render(file, kQuestion), AllOf(HasSubstr("REFUSED"), HasSubstr(file)));
  std::filesystem::remove(file);
  EXPECT_THAT(Render(file, kQuestion, of_model),
              AllOf(HasSubstr("neither a file"), HasSubstr("llama3.1"), HasSubstr("tool_use")));
  EXPECT_THAT(Render(::testing::TempDir(), kQuestion), HasSubstr("REFUSED"));
}

TEST(ChooseChatTemplate, SaysWhatIsMissing) {
  EXPECT_EQ(Render("", kQuestion),
            "REFUSED m: the model has no chat template; --chat-template gives it one");
  EXPECT_EQ(Render("", kQuestion, {{"rag", "r"}, {"tool_use", "t"}}),
            "REFUSED m: no chat template is named \"default\"; --chat-template chooses among rag, "
            "tool_use");
  EXPECT_EQ(Render("", kQuestion, {{"default", "{% extends 'x' %}"}}),
            "REFUSED m: the chat template: line 1: the statement 'extends' is not supported");
}

TEST(AddChatTemplate, EachNameOnceAndNotTooMany) {
  std::vector<NamedChatTemplate> templates;
  for (size_t i = 0; i < kMaxChatTemplates; ++i) {
    ASSERT_TRUE(AddChatTemplate({std::to_string(i), "t"}, "f", templates).has_value());
    if (i != 3) continue;
    EXPECT_EQ(AddChatTemplate({"2", "t"}, "f", templates).error().message(),
              "f: two chat templates are named \"2\"");
  }
  EXPECT_EQ(AddChatTemplate({"more", "t"}, "f", templates).error().message(),
            "f: more than 64 chat templates");
}

}  // namespace
}  // namespace nibble

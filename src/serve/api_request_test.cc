#include "src/serve/api_request.h"

#include <gtest/gtest.h>

namespace nibble {
namespace {

TEST(ApiRequestTest, ReadsEveryMemberOfACompletion) {
  const auto request = ParseCompletionRequest(R"({
      "model": "m", "prompt": "Once", "max_tokens": 7, "temperature": 0.5, "top_p": 0.9, "top_k": 40,
      "min_p": 0.1, "n": 3, "stop": ["a", "bc"], "seed": -1, "logprobs": 5, "echo": true,
      "presence_penalty": -2, "frequency_penalty": 1.5, "logit_bias": {"5": -100, "6": 2.5},
      "user": "u", "ignore_eos": true, "stream": true, "stream_options": {"include_usage": true},
      "best_of": 1})");
  ASSERT_TRUE(request) << request.error().message;
  const GenerationParameters& p = request->parameters;
  EXPECT_EQ(p.model, "m");
  EXPECT_EQ(std::get<std::string>(request->prompts.at(0)), "Once");
  EXPECT_EQ(p.max_tokens, 7);
  EXPECT_EQ(p.temperature, 0.5);
  EXPECT_EQ(p.top_p, 0.9);
  EXPECT_EQ(p.top_k, 40);
  EXPECT_EQ(p.min_p, 0.1);
  EXPECT_EQ(p.n, 3);
  EXPECT_EQ(p.stop, (std::vector<std::string>{"a", "bc"}));
  EXPECT_EQ(p.seed, UINT64_MAX);
  EXPECT_EQ(p.top_logprobs, 5);
  EXPECT_TRUE(request->echo);
  EXPECT_EQ(p.presence_penalty, -2);
  EXPECT_EQ(p.frequency_penalty, 1.5);
  EXPECT_EQ(p.logit_bias, (std::vector<std::pair<int32_t, float>>{{5, -100.f}, {6, 2.5f}}));
  EXPECT_EQ(p.delivery, Delivery::kStream);
  EXPECT_TRUE(p.include_usage);
  EXPECT_TRUE(p.ignore_eos);
  EXPECT_EQ(p.unknown_members, std::vector<std::string>{"best_of"});
}

TEST(ApiRequestTest, ReadsPromptsOfEveryForm) {
  const auto prompts = [](const std::string& prompt) {
    return ParseCompletionRequest("{\"prompt\": " + prompt + "}").value().prompts;
  };
  EXPECT_EQ(prompts("\"\"").size(), 1u);
  EXPECT_EQ(prompts("[\"a\", \"b\"]").size(), 2u);
  EXPECT_EQ(std::get<std::vector<int32_t>>(prompts("[1, 2]").at(0)), (std::vector<int32_t>{1, 2}));
  const auto mixed = prompts("[[1], \"a\", [2147483647]]");
  ASSERT_EQ(mixed.size(), 3u);
  EXPECT_EQ(std::get<std::vector<int32_t>>(mixed[2]), std::vector<int32_t>{2147483647});
}

TEST(ApiRequestTest, Defaults) {
  const auto completion = ParseCompletionRequest(R"({"prompt": "a", "n": null, "stop": null})");
  ASSERT_TRUE(completion);
  EXPECT_EQ(completion->parameters.max_tokens, kDefaultMaxTokens);
  EXPECT_EQ(completion->parameters.n, 1);
  EXPECT_EQ(completion->parameters.delivery, Delivery::kWhole);
  EXPECT_EQ(completion->parameters.top_logprobs, std::nullopt);
  EXPECT_EQ(completion->parameters.seed, std::nullopt);
  const auto chat = ParseChatRequest(R"({"messages": [{"role": "user", "content": "hi"}]})");
  ASSERT_TRUE(chat);
  EXPECT_EQ(chat->parameters.max_tokens, std::nullopt);
  EXPECT_EQ(chat->parameters.temperature, 1);
}

TEST(ApiRequestTest, ReadsAChat) {
  const auto request = ParseChatRequest(R"({"messages": [
      {"role": "system", "content": "Be brief."},
      {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
      {"role": "assistant", "content": null}],
      "max_tokens": 5, "max_completion_tokens": 6, "logprobs": true, "top_logprobs": 2})");
  ASSERT_TRUE(request) << request.error().message;
  ASSERT_EQ(request->messages.size(), 3u);
  EXPECT_EQ(request->messages[1].content, "ab");
  EXPECT_EQ(request->messages[2].content, "");
  EXPECT_EQ(request->parameters.max_tokens, 6);
  EXPECT_EQ(request->parameters.top_logprobs, 2);
  EXPECT_EQ(
      ParseChatRequest(R"({"messages": [{"role": "user", "content": "a"}], "logprobs": true})")
          ->parameters.top_logprobs,
      0);
}

struct Bad {
  const char* member;
  const char* param;
};

TEST(ApiRequestTest, NamesTheMemberThatIsWrong) {
  for (const Bad& bad : std::initializer_list<Bad>{
           {R"("temperature": 2.1)", "temperature"},
           {R"("temperature": -0.1)", "temperature"},
           {R"("temperature": "1")", "temperature"},
           {R"("top_p": 0)", "top_p"},
           {R"("top_p": 1.1)", "top_p"},
           {R"("top_k": -2)", "top_k"},
           {R"("top_k": 1.5)", "top_k"},
           {R"("min_p": 2)", "min_p"},
           {R"("n": 0)", "n"},
           {R"("n": 129)", "n"},
           {R"("n": 1e2)", "n"},
           {R"("n": 18446744073709551615)", "n"},
           {R"("stop": [])", nullptr},
           {R"("stop": "")", "stop"},
           {R"("stop": [1])", "stop"},
           {R"("stop": ["1", "2", "3", "4", "5"])", "stop"},
           {R"("seed": 0.5)", "seed"},
           {R"("seed": 9223372036854775808)", "seed"},
           {R"("presence_penalty": 2.5)", "presence_penalty"},
           {R"("frequency_penalty": [])", "frequency_penalty"},
           {R"("logit_bias": [])", "logit_bias"},
           {R"("logit_bias": {"-1": 1})", "logit_bias"},
           {R"("logit_bias": {"x": 1})", "logit_bias"},
           {R"("logit_bias": {"1": 101})", "logit_bias"},
           {R"("logit_bias": {"99999999999": 1})", "logit_bias"},
           {R"("logprobs": -1)", "logprobs"},
           {R"("logprobs": true)", "logprobs"},
           {R"("logprobs": 21)", "logprobs"},
           {R"("max_tokens": 0)", "max_tokens"},
           {R"("max_tokens": -1)", "max_tokens"},
           {R"("max_tokens": 0, "echo": true)", nullptr},
           {R"("max_tokens": 4294967296)", "max_tokens"},
           {R"("stream": 1)", "stream"},
           {R"("stream_options": {})", "stream_options"},
           {R"("stream": true, "stream_options": 1)", "stream_options"},
           {R"("stream": true, "stream_options": {"include_usage": 1})", "stream_options"},
           {R"("echo": "yes")", "echo"},
           {R"("user": 1)", "user"},
           {R"("model": 1)", "model"}}) {
    const auto got = ParseCompletionRequest(fmt::format("{{\"prompt\": \"a\", {}}}", bad.member));
    EXPECT_EQ(!got, bad.param != nullptr) << bad.member;
    if (got || bad.param == nullptr) continue;
    EXPECT_EQ(got.error().status, 400);
    EXPECT_EQ(got.error().param, bad.param) << got.error().message;
    EXPECT_EQ(got.error().message.find(bad.param), 0u) << got.error().message;
  }
}

TEST(ApiRequestTest, RefusesWrongPromptsAndMessages) {
  for (const char* prompt : {"null", "1", "[]", "[[]]", "[1, \"a\"]", "[\"a\", 1]", "[-1]", "[1.5]",
                             "[2147483648]", "{}", "[[1], [null]]", "true"}) {
    const auto got = ParseCompletionRequest(fmt::format("{{\"prompt\": {}}}", prompt));
    ASSERT_FALSE(got) << prompt;
    EXPECT_EQ(got.error().param, "prompt");
  }
  for (const char* messages :
       {"null", "[]", "{}", "[1]", "[{}]", R"([{"role": 1, "content": "a"}])",
        R"([{"content": "a"}])", R"([{"role": "user", "content": 1}])",
        R"([{"role": "user", "content": [{"type": "image_url"}]}])"}) {
    const auto got = ParseChatRequest(fmt::format("{{\"messages\": {}}}", messages));
    ASSERT_FALSE(got) << messages;
    EXPECT_EQ(got.error().param, "messages");
  }
  EXPECT_EQ(
      ParseChatRequest(R"({"messages": [{"role": "user", "content": "a"}], "top_logprobs": 2})")
          .error()
          .param,
      "top_logprobs");
}

TEST(ApiRequestTest, CapsTheChoicesOfAllPrompts) {
  EXPECT_TRUE(ParseCompletionRequest(R"({"prompt": ["a", "b"], "n": 64})"));
  EXPECT_EQ(ParseCompletionRequest(R"({"prompt": ["a", "b"], "n": 65})").error().param, "n");
}

TEST(ApiRequestTest, RefusesBodiesThatAreNoObjects) {
  for (const char* body :
       {"", "{", "[]", "1", "{\"prompt\": \"a\"} x", "{\"n\":1,\"n\":1}", "\xff"}) {
    EXPECT_EQ(ParseCompletionRequest(body).error().status, 400) << body;
    EXPECT_EQ(ParseChatRequest(body).error().status, 400) << body;
  }
  EXPECT_FALSE(ParseCompletionRequest(std::string(1000, '[')));
}

TEST(ApiRequestTest, TokenizeAndDetokenize) {
  const auto text =
      ParseTokenizeRequest(R"({"model": "m", "prompt": "a", "return_token_strs": true})");
  ASSERT_TRUE(text);
  EXPECT_EQ(text->model, "m");
  EXPECT_EQ(std::get<std::string>(text->input), "a");
  EXPECT_TRUE(text->add_special_tokens);
  EXPECT_TRUE(text->return_token_strs);
  const auto chat = ParseTokenizeRequest(
      R"({"messages": [{"role": "user", "content": "a"}], "add_generation_prompt": false})");
  ASSERT_TRUE(chat);
  EXPECT_EQ(std::get<std::vector<ChatMessage>>(chat->input).size(), 1u);
  EXPECT_FALSE(chat->add_special_tokens);
  EXPECT_FALSE(chat->add_generation_prompt);
  for (const char* body :
       {"{}", R"({"prompt": 1})", R"({"prompt": "a", "messages": [{"role": "r", "content": ""}]})",
        R"({"messages": []})", R"({"prompt": "a", "add_special_tokens": 1})", "[]"}) {
    EXPECT_EQ(ParseTokenizeRequest(body).error().status, 400) << body;
  }
  EXPECT_EQ(ParseDetokenizeRequest(R"({"tokens": [1, 2]})")->tokens, (std::vector<int32_t>{1, 2}));
  for (const char* body : {"{}", R"({"tokens": 1})", R"({"tokens": [-1]})", R"({"tokens": [1.5]})",
                           R"({"tokens": [99999999999]})"}) {
    const auto got = ParseDetokenizeRequest(body);
    ASSERT_FALSE(got) << body;
    EXPECT_EQ(got.error().param, "tokens");
  }
}

}  // namespace
}  // namespace nibble

#include "src/serve/api_response.h"

#include <gtest/gtest.h>

#include <cmath>

namespace nibble {
namespace {

const AnswerHead kHead{"cmpl-1", 1700000000, "m"};

ChoicePart Part() {
  return {.index = 1,
          .text = "é!",
          .tokens = {{.bytes = "\xc3", .text_offset = 0, .logprob = {}, .top = {}},
                     {.bytes = "!",
                      .text_offset = 1,
                      .logprob = -1.5,
                      .top = {{"?", -0.5}, {"!", -1.5}, {"\xff", -INFINITY}}}},
          .end = ChoiceEnd::kStop};
}

TEST(ApiResponseTest, Completion) {
  const ChoicePart part = Part();
  const Json document = CompletionDocument(kHead, {&part, 1}, {3, 2, 1}, Logprobs::kYes);
  EXPECT_EQ(document, Json::parse(R"({"id": "cmpl-1", "object": "text_completion",
      "created": 1700000000, "model": "m", "choices": [{"index": 1, "text": "é!", "logprobs": {
        "tokens": ["bytes:\\xc3", "!"], "token_logprobs": [null, -1.5],
        "top_logprobs": [null, {"!": -1.5, "?": -0.5, "bytes:\\xff": -9999.0}],
        "text_offset": [0, 1]}, "finish_reason": "stop"}],
      "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5,
                "prompt_tokens_details": {"cached_tokens": 1}}})"));
  EXPECT_TRUE(CompletionChunk(kHead, part, Logprobs::kNo)["choices"][0]["logprobs"].is_null());
}

TEST(ApiResponseTest, Chat) {
  const ChoicePart part = Part();
  const Json document = ChatDocument(kHead, {&part, 1}, {3, 2, 1}, Logprobs::kYes);
  EXPECT_EQ(document["object"], "chat.completion");
  const Json& choice = document["choices"][0];
  EXPECT_EQ(choice["message"], Json::parse(R"({"role": "assistant", "content": "é!"})"));
  ASSERT_EQ(choice["logprobs"]["content"].size(), 1u);
  const Json& token = choice["logprobs"]["content"][0];
  EXPECT_EQ(token["bytes"], Json::parse("[33]"));
  EXPECT_EQ(token["top_logprobs"].size(), 3u);
  EXPECT_EQ(token["top_logprobs"][2]["bytes"], Json::parse("[255]"));
}

TEST(ApiResponseTest, ChatChunks) {
  EXPECT_EQ(ChatRoleChunk(kHead, 2)["choices"][0]["delta"]["role"], "assistant");
  EXPECT_EQ(ChatRoleChunk(kHead, 2)["choices"][0]["index"], 2);
  const Json last = ChatChunk(kHead, {.end = ChoiceEnd::kLength}, Logprobs::kNo);
  EXPECT_EQ(last["choices"][0]["delta"], Json::object());
  EXPECT_EQ(last["choices"][0]["finish_reason"], "length");
  const Json usage = ChatUsageChunk(kHead, {1, 2});
  EXPECT_TRUE(usage["choices"].empty());
  EXPECT_EQ(usage["usage"]["total_tokens"], 3);
}

TEST(ApiResponseTest, EventsAreOneLine) {
  const std::string event = EventText({{"text", "a\nb"}});
  EXPECT_EQ(event, "data: {\"text\":\"a\\nb\"}\n\n");
}

TEST(ApiResponseTest, Errors) {
  EXPECT_EQ(ErrorDocument({.message = "m", .param = "n"}),
            Json::parse(R"({"error": {"message": "m", "type": "invalid_request_error", "param": "n",
                            "code": null}})"));
}

}  // namespace
}  // namespace nibble

#include "src/load/load_level.h"

#include <gmock/gmock.h>

#include <set>

#include "src/base/must.h"
#include "src/load/event_stream.h"
#include "src/load/load_result.h"
#include "src/load/target.h"

namespace nibble {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

TEST(LoadTargetTest, ReadsUrls) {
  const std::tuple<const char*, const char*, int, const char*> urls[] = {
      {"http://localhost", "localhost", 80, ""},
      {"http://localhost:8000/", "localhost", 8000, ""},
      {"http://localhost:8000/v1", "localhost", 8000, ""},
      {"http://127.0.0.1:65535/proxy/v1/", "127.0.0.1", 65535, "/proxy"},
      {"http://[::1]:81/a", "::1", 81, "/a"},
      {"http://[::1]", "::1", 80, ""},
      {"http://host/avt1", "host", 80, "/avt1"}};
  for (const auto& [url, host, port, path] : urls) {
    const LoadTarget target = Must(ParseLoadTarget(url));
    EXPECT_EQ(target.host, host) << url;
    EXPECT_EQ(target.port, port) << url;
    EXPECT_EQ(target.path, path) << url;
  }
  EXPECT_EQ(Must(ParseLoadTarget("http://[::1]:81")).authority(), "[::1]:81");
}

TEST(LoadTargetTest, RefusesWhatItCannotReach) {
  for (const char* url : {"", "localhost:8000", "https://host", "http://", "http://:80",
                          "http://host:", "http://host:0", "http://host:65536", "http://host:8x",
                          "http://[::1", "http://[::1]x", "http://u:p@host", "http://host/a?b",
                          "http://host/a b", "http://host/\r\nX: y", "http://[]:80"}) {
    EXPECT_FALSE(ParseLoadTarget(url)) << url;
  }
}

TEST(EventStreamTest, TakesPiecesOfAnySize) {
  const std::string text =
      "data: {\"a\": 1}\n\n: comment\ndata:two\r\n\r\nevent: x\ndata: [DONE]\n\n";
  for (size_t size = 1; size <= text.size(); ++size) {
    EventStream stream;
    std::vector<std::string> events;
    for (size_t i = 0; i < text.size(); i += size) {
      ASSERT_TRUE(stream.Push(std::string_view(text).substr(i, size), events));
    }
    EXPECT_THAT(events, ElementsAre("{\"a\": 1}", "two", "[DONE]")) << size;
  }
}

TEST(EventStreamTest, BoundsALine) {
  EventStream stream;
  std::vector<std::string> events;
  EXPECT_TRUE(stream.Push(std::string(kMaxEventBytes, 'a'), events));
  EXPECT_FALSE(stream.Push("a", events));
}

TEST(LoadRequestTest, PromptsDifferAndComeBack) {
  const LoadWorkload workload{
      .model = "m", .input_length = 40, .output_length = 7, .vocabulary = 10};
  std::set<std::string> prompts;
  for (int64_t i = 0; i < 50; ++i) {
    const std::string body = LoadRequestBody(workload, i);
    EXPECT_EQ(body, LoadRequestBody(workload, i));
    const Json json = Json::parse(body);
    EXPECT_EQ(json["prompt"].size(), 40u);
    for (const Json& token : json["prompt"]) {
      EXPECT_GE(token.get<int>(), 3);
      EXPECT_LT(token.get<int>(), 10);
    }
    EXPECT_EQ(json["max_tokens"], 7);
    EXPECT_EQ(json["stream"], true);
    EXPECT_EQ(json["ignore_eos"], true);
    prompts.insert(json["prompt"].dump());
  }
  EXPECT_EQ(prompts.size(), 50u);
}

TEST(LoadRequestTest, TakesTextsInTurn) {
  const LoadWorkload workload{.texts = {"a", "b"}, .end = EndOfSequence::kStop};
  const Json second = Json::parse(LoadRequestBody(workload, 3));
  EXPECT_EQ(second["prompt"], "b");
  EXPECT_FALSE(second.contains("ignore_eos"));
}

TEST(LoadResultTest, PercentilesAreNumpys) {
  EXPECT_FALSE(DistributionOf({}));
  const Distribution one = *DistributionOf({4});
  EXPECT_EQ(one.p50, 4);
  EXPECT_EQ(one.p99, 4);
  // numpy.percentile([1, 2, 3, 4, 10], [50, 90, 99]) = 3, 7.6, 9.76
  const Distribution d = *DistributionOf({10, 1, 3, 2, 4});
  EXPECT_EQ(d.mean, 4);
  EXPECT_EQ(d.p50, 3);
  EXPECT_NEAR(d.p90, 7.6, 1e-12);
  EXPECT_NEAR(d.p99, 9.76, 1e-12);
  EXPECT_EQ(d.max, 10);
}

LoadRecord Complete(double sent_s, double first_s, double last_s, int64_t tokens) {
  return {.sent_s = sent_s,
          .first_s = first_s,
          .last_s = last_s,
          .input_tokens = 5,
          .output_tokens = tokens};
}

TEST(LoadResultTest, SumsUpRecords) {
  const LoadRecord records[] = {Complete(1, 1.1, 2.1, 11),
                                Complete(1.5, 1.8, 3, 5),
                                Complete(2, 2.2, 2.2, 1),
                                {.sent_s = 1.2, .failure = "HTTP 429"},
                                {.sent_s = 9, .failure = "HTTP 429"},
                                {.sent_s = 0.5, .failure = "timeout"}};
  const LoadSummary summary = Summarize({.value = 2}, records, {.first_token_ms = 250});
  EXPECT_EQ(summary.requests, 6);
  EXPECT_EQ(summary.completed, 3);
  EXPECT_THAT(summary.failures,
              ElementsAre(testing::Pair("HTTP 429", 2), testing::Pair("timeout", 1)));
  EXPECT_DOUBLE_EQ(summary.seconds, 2.5);  // from 0.5 to 3
  EXPECT_EQ(summary.output_tokens, 17);
  EXPECT_NEAR(summary.first_token_ms->p50, 200, 1e-9);
  EXPECT_NEAR(summary.per_token_ms->mean, (100 + 300) / 2, 1e-9);
  EXPECT_NEAR(summary.end_to_end_ms->max, 1500, 1e-9);
  EXPECT_EQ(summary.good, 2);
  EXPECT_EQ(Summarize({}, records, {.per_token_ms = 200}).good, 2);  // a single token has no rate
  EXPECT_FALSE(Summarize({}, records, {}).good);
}

TEST(LoadResultTest, WritesWhatItFound) {
  const LoadRecord records[] = {Complete(0, 0.1, 1.1, 11), {.failure = "timeout"}};
  const LoadSummary runs[] = {
      Summarize({.value = 16}, records, {.first_token_ms = 250}),
      Summarize({.arrivals = Arrivals::kPoisson, .value = 0.5}, {}, {.first_token_ms = 250})};
  const Json json = LoadDocument("http://host", {.model = "m"}, {.first_token_ms = 250}, runs);
  EXPECT_EQ(json["schema"], "nibble.load-test/1");
  EXPECT_EQ(json["runs"][0]["concurrency"], 16);
  EXPECT_EQ(json["runs"][0]["request_rate"], nullptr);
  EXPECT_EQ(json["runs"][0]["failures"]["timeout"], 1);
  EXPECT_NEAR(json["runs"][0]["output_tokens_per_second"].get<double>(), 10, 1e-9);
  EXPECT_EQ(json["runs"][0]["goodput_share"], 0.5);
  EXPECT_EQ(json["runs"][1]["request_rate"], 0.5);
  EXPECT_EQ(json["runs"][1]["time_to_first_token_ms"], nullptr);
  const std::string table = LoadTable(runs);
  EXPECT_THAT(table, HasSubstr("16 clients"));
  EXPECT_THAT(table, HasSubstr("1 of 2 requests failed at 16 clients: timeout"));
}

}  // namespace
}  // namespace nibble

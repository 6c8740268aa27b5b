#include "src/serve/engine_loop.h"

#include <gtest/gtest.h>

#include <future>
#include <map>

#include "src/engine/late_backend.h"
#include "src/ops/cpu/cpu_backend.h"
#include "src/serve/test_tokenizer.h"

namespace nibble {
namespace {

// The tokens of random:tiny, each a printable character but the last.
std::unique_ptr<Tokenizer> MakeTokenizer() {
  Json vocabulary = Json::object();
  for (int i = 0; i < 63; ++i) vocabulary[std::string(1, static_cast<char>('@' + i))] = i;
  return MakeByteTokenizer(vocabulary);
}

enum class Tokens { kOnTime, kLate };

class EngineLoopTest : public ::testing::TestWithParam<Tokens> {
 protected:
  void SetUp() override {
    checkpoint_ = OpenCheckpoint("random:tiny").value();
    const ModelDescription description = DescribeModel(*checkpoint_).value();
    backend_ = MakeCpuBackend({.threads = 1}).value();
    if (GetParam() == Tokens::kLate) backend_ = std::make_unique<LateBackend>(std::move(backend_));
    weights_ = LoadModel(
                   *checkpoint_, description, *backend_, [](int64_t, int64_t) {}, CancelToken())
                   .value();
    engine_ =
        Engine::Create(weights_, *backend_,
                       {.kv_dtype = DType::kF32,
                        .kv_tokens = 256,
                        .limits = {.rows = 16, .sequences = 8, .context = 128, .logit_rows = 16}})
            .value();
    loop_.emplace(*engine_, *tokenizer_,
                  EngineLoopOptions{.max_choices = 16, .prefix_cache = PrefixCache::kOn});
  }

  struct Got {
    std::map<int64_t, ChoicePart> choices;
    int64_t parts = 0;
  };
  // An answer that is on its way.
  std::future<Got> Ask(std::vector<ChoiceRequest> requests) {
    auto promise = std::make_shared<std::promise<Got>>();
    auto got = std::make_shared<Got>();
    auto open = std::make_shared<size_t>(requests.size());
    const auto answer = loop_->Submit(
        std::move(requests),
        [=](ChoicePart part) {
          ChoicePart& choice = got->choices[part.index];
          EXPECT_EQ(choice.end, ChoiceEnd::kNone);
          choice.text += part.text;
          for (const ScoredToken& token : part.tokens) choice.tokens.push_back(token);
          choice.generated += part.generated;
          choice.cached += part.cached;
          choice.end = part.end;
          ++got->parts;
          if (part.end != ChoiceEnd::kNone && --*open == 0) promise->set_value(*got);
        },
        [](const ApiError& error) { ADD_FAILURE() << error.message; });
    EXPECT_TRUE(answer);
    return promise->get_future();
  }
  static ChoiceRequest Request(uint64_t seed, int64_t max_tokens) {
    ChoiceRequest request;
    request.generation = {.prompt = {1, static_cast<int32_t>(seed % 60), 3},
                          .max_tokens = max_tokens,
                          .sampling = {.temperature = 1, .seed = seed}};
    return request;
  }
  ServeMetrics MetricsWhenIdle() {
    for (int i = 0; i < 1000; ++i) {
      const ServeMetrics metrics = loop_->metrics();
      if (metrics.running + metrics.waiting + metrics.kv_tokens_used == 0) return metrics;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    ADD_FAILURE() << "it is never idle";
    return loop_->metrics();
  }

  std::unique_ptr<Tokenizer> tokenizer_ = MakeTokenizer();
  std::unique_ptr<Checkpoint> checkpoint_;
  std::unique_ptr<Backend> backend_;
  ModelWeights weights_;
  std::unique_ptr<Engine> engine_;
  std::optional<EngineLoop> loop_;
};

INSTANTIATE_TEST_SUITE_P(All, EngineLoopTest, ::testing::Values(Tokens::kOnTime, Tokens::kLate),
                         [](const auto& info) {
                           return info.param == Tokens::kLate ? "late" : "on_time";
                         });

TEST_P(EngineLoopTest, GivesEachChoiceItsOwnText) {
  std::vector<std::string> alone;
  for (uint64_t i = 0; i < 16; ++i) {
    const Got got = Ask({Request(i, 60)}).get();
    alone.push_back(got.choices.at(0).text);
    EXPECT_EQ(got.choices.at(0).generated, 60);
    EXPECT_EQ(got.choices.at(0).end, ChoiceEnd::kLength);
    EXPECT_GT(got.parts, 10);
  }
  std::vector<std::future<Got>> answers;
  for (uint64_t i = 0; i < 16; i += 2) answers.push_back(Ask({Request(i, 60), Request(i + 1, 60)}));
  for (size_t i = 0; i < answers.size(); ++i) {
    const Got got = answers[i].get();
    EXPECT_EQ(got.choices.at(0).text, alone[2 * i]);
    EXPECT_EQ(got.choices.at(1).text, alone[2 * i + 1]);
  }
  const ServeMetrics metrics = MetricsWhenIdle();
  EXPECT_GT(metrics.preemptions, 0);  // 16 of 63 tokens in a cache of 256
  EXPECT_EQ(metrics.length, 32);
  EXPECT_EQ(metrics.generation_tokens, 32 * 60);
  EXPECT_EQ(metrics.prompt_tokens, 32 * 3);
}

TEST_P(EngineLoopTest, StopStringsEndAChoice) {
  const std::string text = Ask({Request(1, 60)}).get().choices.at(0).text;
  ChoiceRequest request = Request(1, 60);
  request.stops = {text.substr(20, 3)};
  request.top_logprobs = 2;
  const ChoicePart choice = Ask({request}).get().choices.at(0);
  EXPECT_EQ(choice.text, text.substr(0, text.find(request.stops[0])));
  EXPECT_EQ(choice.end, ChoiceEnd::kStop);
  EXPECT_EQ(choice.tokens.size(), choice.text.size());
  EXPECT_EQ(MetricsWhenIdle().stopped, 1);
}

TEST_P(EngineLoopTest, EchoesWithScores) {
  ChoiceRequest request = Request(1, 0);
  request.echo = EchoPrompt::kYes;
  request.top_logprobs = 1;
  ChoicePart choice = Ask({request}).get().choices.at(0);
  ASSERT_EQ(choice.tokens.size(), 3u);
  EXPECT_EQ(choice.text, choice.tokens[0].bytes + choice.tokens[1].bytes + choice.tokens[2].bytes);
  EXPECT_EQ(choice.tokens[0].logprob, std::nullopt);
  EXPECT_LE(*choice.tokens[1].logprob, choice.tokens[1].top.at(0).second);
  EXPECT_EQ(choice.tokens[2].text_offset, 2);
  request.top_logprobs = std::nullopt;
  EXPECT_EQ(Ask({request}).get().choices.at(0).text, choice.text);
}

// The second answer finds the first one's prompt; a choice that repeats one does not count it
// again.
TEST_P(EngineLoopTest, TellsWhatWasCached) {
  ChoiceRequest request = Request(1, 4);
  request.generation.prompt.assign(50, 7);
  ChoiceRequest again = request;
  again.repeats_prompt = true;
  const Got first = Ask({request, again}).get();
  EXPECT_EQ(first.choices.at(0).cached + first.choices.at(1).cached, 0);
  EXPECT_EQ(first.choices.at(0).text, first.choices.at(1).text);
  const Got second = Ask({request, again}).get();
  EXPECT_EQ(second.choices.at(0).cached, 48);
  EXPECT_EQ(second.choices.at(1).cached, 0);
  EXPECT_EQ(second.choices.at(0).text, first.choices.at(0).text);
  const ServeMetrics metrics = MetricsWhenIdle();
  EXPECT_EQ(metrics.prefix_cache.queries, 4 * 50);
  EXPECT_EQ(metrics.prefix_cache.hits, 3 * 48);
}

TEST_P(EngineLoopTest, RefusesWhatNeverFitsAndWhatIsTooMuch) {
  const auto submit = [&](std::vector<ChoiceRequest> requests) {
    return loop_->Submit(
        std::move(requests), [](ChoicePart) {}, [](const ApiError&) {});
  };
  const ApiError too_long = submit({Request(1, 126)}).error();
  EXPECT_EQ(too_long.status, 400);
  EXPECT_EQ(too_long.message, "3 prompt tokens and 126 new ones exceed the context of 128 tokens");
  EXPECT_EQ(submit(std::vector<ChoiceRequest>(17, Request(1, 5))).error().status, 429);
  const auto held = submit(std::vector<ChoiceRequest>(16, Request(1, 120)));
  ASSERT_TRUE(held);
  EXPECT_EQ(submit({Request(1, 5)}).error().status, 429);
  loop_->Cancel(*held);
  loop_->Cancel(*held);
  const ServeMetrics metrics = MetricsWhenIdle();
  EXPECT_EQ(metrics.aborted + metrics.length, 16);
  EXPECT_EQ(too_long.param, "max_tokens");
  EXPECT_EQ(Ask({Request(1, 5)}).get().choices.at(0).generated, 5);
}

}  // namespace
}  // namespace nibble

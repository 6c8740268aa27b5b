#include "src/engine/scheduler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "src/base/random.h"
#include "src/engine/late_backend.h"
#include "src/ops/cpu/cpu_backend.h"

namespace nibble {
namespace {

const CancelToken kNever;

enum class Tokens { kOnTime, kLate };

class SchedulerTest : public ::testing::TestWithParam<Tokens> {
 protected:
  void SetUp() override {
    checkpoint_ = OpenCheckpoint("random:tiny").value();
    const ModelDescription description = DescribeModel(*checkpoint_).value();
    backend_ = MakeCpuBackend({.threads = 2}).value();
    if (GetParam() == Tokens::kLate) backend_ = std::make_unique<LateBackend>(std::move(backend_));
    weights_ = LoadModel(
                   *checkpoint_, description, *backend_, [](int64_t, int64_t) {}, kNever)
                   .value();
  }
  std::unique_ptr<Engine> MakeEngine(int64_t rows, int64_t kv_tokens) {
    return Engine::Create(
               weights_, *backend_,
               {.kv_dtype = DType::kF32,
                .kv_tokens = kv_tokens,
                .limits = {.rows = rows, .sequences = 8, .context = 512, .logit_rows = rows}})
        .value();
  }

  std::unique_ptr<Checkpoint> checkpoint_;
  std::unique_ptr<Backend> backend_;
  ModelWeights weights_;
};

INSTANTIATE_TEST_SUITE_P(All, SchedulerTest, ::testing::Values(Tokens::kOnTime, Tokens::kLate),
                         [](const auto& info) {
                           return info.param == Tokens::kLate ? "late" : "on_time";
                         });

std::vector<int32_t> RandomTokens(int64_t count, int64_t vocabulary, uint64_t seed) {
  Random random(seed);
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < count; ++i) {
    tokens.push_back(static_cast<int32_t>(random.Below(static_cast<uint64_t>(vocabulary))));
  }
  return tokens;
}

// Requests of many lengths, more than run at once: each text is what it is alone.
TEST_P(SchedulerTest, GivesEachRequestItsOwnText) {
  const auto run = [&](const std::vector<GenerationRequest>& requests) {
    const std::unique_ptr<Engine> engine = MakeEngine(16, /*kv_tokens=*/512);
    std::map<Scheduler::RequestId, std::vector<int32_t>> texts;
    int finished = 0;
    Scheduler scheduler(
        *engine, [&](Scheduler::RequestId id, int32_t token) { texts[id].push_back(token); },
        [&](Scheduler::RequestId, FinishReason) { ++finished; });
    for (const GenerationRequest& request : requests) EXPECT_TRUE(scheduler.Add(request));
    while (scheduler.Step(kNever).value()) {
    }
    EXPECT_EQ(finished, static_cast<int>(requests.size()));
    EXPECT_EQ(engine->free_kv_tokens(), 512);
    return texts;
  };
  std::vector<GenerationRequest> requests;
  for (uint64_t i = 0; i < 20; ++i) {
    requests.push_back({.prompt = RandomTokens(1 + static_cast<int64_t>(i * 7 % 40), 64, i),
                        .max_tokens = 1 + static_cast<int64_t>(i * 5 % 23),
                        .sampling = {.temperature = i % 2 == 0 ? 0.0 : 1.0, .seed = i}});
  }
  const auto together = run(requests);
  ASSERT_EQ(together.size(), requests.size());
  for (size_t i = 0; i < requests.size(); ++i) {
    EXPECT_EQ(run({requests[i]}).at(1), together.at(static_cast<int64_t>(i) + 1)) << i;
  }
}

TEST_P(SchedulerTest, StopsAtStopTokensAndRefusesWhatNeverFits) {
  const std::unique_ptr<Engine> engine = MakeEngine(16, /*kv_tokens=*/64);
  std::vector<int32_t> tokens;
  FinishReason reason = FinishReason::kLength;
  Scheduler scheduler(
      *engine, [&](Scheduler::RequestId, int32_t token) { tokens.push_back(token); },
      [&](Scheduler::RequestId, FinishReason why) { reason = why; });
  ASSERT_TRUE(scheduler.Add({.prompt = {1, 2, 3}, .max_tokens = 8}));
  while (scheduler.Step(kNever).value()) {
  }
  ASSERT_EQ(tokens.size(), 8u);
  const auto first_time = std::find(tokens.begin(), tokens.end(), tokens.back()) - tokens.begin();
  const int32_t stop = tokens.back();
  tokens.clear();
  ASSERT_TRUE(scheduler.Add({.prompt = {1, 2, 3}, .max_tokens = 8, .stop_tokens = {stop}}));
  while (scheduler.Step(kNever).value()) {
  }
  EXPECT_EQ(reason, FinishReason::kStop);
  EXPECT_EQ(static_cast<int64_t>(tokens.size()), first_time);
  EXPECT_EQ(engine->free_kv_tokens(), 64);

  EXPECT_EQ(scheduler.Add({.prompt = {1}, .max_tokens = 100}).error().code(),
            ErrorCode::kResources);
  EXPECT_EQ(scheduler.Add({.prompt = {1}, .max_tokens = 512}).error().code(), ErrorCode::kBadInput);
  EXPECT_EQ(scheduler.Add({.prompt = {-5}, .max_tokens = 1}).error().code(), ErrorCode::kBadInput);
}

// What a run of requests gave.
struct Outcome {
  std::map<Scheduler::RequestId, std::vector<int32_t>> texts;
  std::map<Scheduler::RequestId, std::vector<std::pair<int32_t, double>>> scores;  // token, logit
  std::vector<Scheduler::RequestId> finished;
  std::map<Scheduler::RequestId, int64_t> shared;  // tokens that were computed when it began
  int64_t preemptions = 0;
  int64_t computed = 0;  // tokens
  PrefixCacheCounts counts;
};

Outcome RunAll(Engine& engine, const std::vector<GenerationRequest>& requests,
               PrefixCache prefix_cache = PrefixCache::kOff) {
  Outcome outcome;
  const int64_t free = engine.free_kv_tokens();
  Scheduler scheduler(
      engine, [&](Scheduler::RequestId id, int32_t token) { outcome.texts[id].push_back(token); },
      [&](Scheduler::RequestId id, FinishReason) { outcome.finished.push_back(id); },
      [&](Scheduler::RequestId id, int32_t token, std::span<const float> logits) {
        outcome.scores[id].emplace_back(token, logits[static_cast<size_t>(token)]);
      },
      prefix_cache,
      [&](Scheduler::RequestId id, int64_t shared) {
        EXPECT_TRUE(outcome.shared.emplace(id, shared).second);
      });
  for (const GenerationRequest& request : requests) EXPECT_TRUE(scheduler.Add(request));
  for (int step = 0; scheduler.Step(kNever).value(); ++step) {
    if (step == 100000) {
      ADD_FAILURE() << "it does not end";
      break;
    }
  }
  EXPECT_EQ(engine.free_kv_tokens(), free);
  outcome.preemptions = scheduler.preemptions();
  outcome.computed = scheduler.computed_tokens();
  outcome.counts = scheduler.prefix_cache_counts();
  return outcome;
}

// Requests that together exceed the cache by far: all finish with the text that they have alone,
// the oldest first.
TEST_P(SchedulerTest, PreemptsWhereTheCacheIsFull) {
  std::vector<GenerationRequest> requests;
  for (uint64_t i = 0; i < 10; ++i) {
    requests.push_back({.prompt = RandomTokens(5 + static_cast<int64_t>(i), 64, i),
                        .max_tokens = 90,
                        .sampling = {.temperature = i % 2 == 0 ? 0.0 : 1.0, .seed = i}});
    if (i % 3 == 0) requests.back().rules.frequency_penalty = 0.5;
    if (i % 4 == 0) requests.back().scores = WantScores::kPromptAndGenerated;
  }
  const Outcome together = RunAll(*MakeEngine(16, /*kv_tokens=*/256), requests);
  EXPECT_GT(together.preemptions, 0);
  ASSERT_EQ(together.finished.size(), requests.size());
  EXPECT_EQ(together.finished.front(), 1);
  for (size_t i = 0; i < requests.size(); ++i) {
    const auto id = static_cast<Scheduler::RequestId>(i) + 1;
    const Outcome alone = RunAll(*MakeEngine(16, /*kv_tokens=*/256), {requests[i]});
    EXPECT_EQ(alone.preemptions, 0);
    EXPECT_EQ(together.texts.at(id), alone.texts.at(1)) << i;
    if (i % 4 != 0) continue;
    EXPECT_EQ(together.scores.at(id), alone.scores.at(1)) << i;
    EXPECT_EQ(together.scores.at(id).size(), requests[i].prompt.size() - 1 + 90);
  }
}

TEST_P(SchedulerTest, CancelFreesAtOnceAndLeavesOthersAlone) {
  const GenerationRequest first{.prompt = {1, 2, 3}, .max_tokens = 40};
  const Outcome alone = RunAll(*MakeEngine(4, /*kv_tokens=*/64), {first});
  const std::unique_ptr<Engine> engine = MakeEngine(4, /*kv_tokens=*/64);
  std::map<Scheduler::RequestId, std::vector<int32_t>> texts;
  std::vector<Scheduler::RequestId> finished;
  Scheduler scheduler(
      *engine, [&](Scheduler::RequestId id, int32_t token) { texts[id].push_back(token); },
      [&](Scheduler::RequestId id, FinishReason) { finished.push_back(id); });
  const auto kept = scheduler.Add(first).value();
  const auto running = scheduler.Add({.prompt = {4, 5}, .max_tokens = 40}).value();
  const auto waiting = scheduler.Add({.prompt = RandomTokens(60, 64, 1), .max_tokens = 4}).value();
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(scheduler.Step(kNever).value());
  EXPECT_EQ(scheduler.running(), 2);
  EXPECT_EQ(scheduler.waiting(), 1);
  EXPECT_TRUE(scheduler.Cancel(running));
  EXPECT_FALSE(scheduler.Cancel(running));
  EXPECT_TRUE(scheduler.Cancel(waiting));
  const size_t delivered = texts[running].size();
  EXPECT_GT(delivered, 0u);
  while (scheduler.Step(kNever).value()) {
  }
  EXPECT_EQ(texts[running].size(), delivered);
  EXPECT_EQ(finished, std::vector<Scheduler::RequestId>{kept});
  EXPECT_EQ(texts[kept], alone.texts.at(1));
  EXPECT_EQ(scheduler.kv_tokens_used(), 0);
  // Where all were cancelled with tokens on their way, nothing is left either.
  const auto last = scheduler.Add(first).value();
  ASSERT_TRUE(scheduler.Step(kNever).value());
  EXPECT_TRUE(scheduler.Cancel(last));
  while (scheduler.Step(kNever).value()) {
  }
  EXPECT_EQ(scheduler.kv_tokens_used(), 0);
}

// Scores are the logits that Extend gives for the same text.
TEST_P(SchedulerTest, ScoresPromptAndText) {
  const std::vector<int32_t> prompt = RandomTokens(21, 64, 3);
  GenerationRequest request{.prompt = prompt, .max_tokens = 5};
  const auto text = RunAll(*MakeEngine(8, 128), {request}).texts.at(1);
  request.scores = WantScores::kPromptAndGenerated;
  const Outcome scored = RunAll(*MakeEngine(8, 128), {request});
  EXPECT_EQ(scored.texts.at(1), text);
  std::vector<int32_t> whole = prompt;
  whole.insert(whole.end(), text.begin(), text.end());
  std::vector<std::pair<int32_t, double>> expected;
  const std::unique_ptr<Engine> engine = MakeEngine(8, 128);
  const Extension all{engine->Open(), whole, WantLogits::kAll, {}};
  ASSERT_TRUE(engine->Extend(
      {{all}},
      [&](std::span<const LogitRun> runs) {
        const auto& [extension, first, logits] = runs.front();
        for (int64_t r = 0; r < logits.rows; ++r) {
          const auto next = static_cast<size_t>(first + r + 1);
          if (next < whole.size()) {
            expected.emplace_back(whole[next], logits.row<float>(r)[whole[next]]);
          }
        }
      },
      kNever));
  EXPECT_EQ(scored.scores.at(1), expected);

  request.max_tokens = 0;
  const Outcome prompt_only = RunAll(*MakeEngine(8, 128), {request});
  EXPECT_EQ(prompt_only.finished.size(), 1u);
  expected.resize(prompt.size() - 1);
  EXPECT_EQ(prompt_only.scores.at(1), expected);
}

TEST_P(SchedulerTest, RulesChangeWhatIsChosen) {
  GenerationRequest request{.prompt = {1, 2, 3}, .max_tokens = 12};
  const auto text = [&] { return RunAll(*MakeEngine(8, 128), {request}).texts.at(1); };
  const std::vector<int32_t> plain = text();
  request.rules.bias = {{plain[0], -100.f}};
  const std::vector<int32_t> biased = text();
  EXPECT_EQ(std::count(biased.begin(), biased.end(), plain[0]), 0);
  request.rules = {.presence_penalty = 1e6};
  std::vector<int32_t> different = text();
  std::sort(different.begin(), different.end());
  EXPECT_EQ(std::unique(different.begin(), different.end()), different.end());
  // Of a hot distribution min_p leaves the most probable alone.
  request.sampling = {.temperature = 2, .seed = 5};
  request.rules = {.min_p = 1};
  EXPECT_EQ(text(), plain);
  request.rules = {.bias = {{64, 1.f}}};
  const std::unique_ptr<Engine> engine = MakeEngine(8, 128);
  Scheduler scheduler(
      *engine, [](Scheduler::RequestId, int32_t) {}, [](Scheduler::RequestId, FinishReason) {});
  EXPECT_EQ(scheduler.Add(request).error().code(), ErrorCode::kBadInput);
}

std::vector<int32_t> Joined(std::vector<int32_t> first, const std::vector<int32_t>& second) {
  first.insert(first.end(), second.begin(), second.end());
  return first;
}

// A second text with the same beginning computes only what is its own.
TEST_P(SchedulerTest, PrefixCacheSkipsWhatWasComputed) {
  const std::vector<int32_t> system = RandomTokens(400, 64, 1);
  const GenerationRequest first{.prompt = Joined(system, {1, 2, 3}), .max_tokens = 4};
  GenerationRequest second{.prompt = Joined(system, {4, 5}), .max_tokens = 4};
  const auto alone = [&](const GenerationRequest& request) {
    return RunAll(*MakeEngine(64, 512), {request});
  };
  const std::unique_ptr<Engine> engine = MakeEngine(64, 512);
  const Outcome one = RunAll(*engine, {first}, PrefixCache::kOn);
  EXPECT_EQ(one.shared.at(1), 0);
  EXPECT_EQ(one.texts.at(1), alone(first).texts.at(1));
  EXPECT_GE(one.computed, 403);
  const Outcome two = RunAll(*engine, {second}, PrefixCache::kOn);
  EXPECT_EQ(two.shared.at(1), 400);
  EXPECT_EQ(two.texts.at(1), alone(second).texts.at(1));
  EXPECT_LE(two.computed, 2 + 4);
  EXPECT_EQ(two.counts.queries, 402);
  EXPECT_EQ(two.counts.hits, 400);
  // Of the very same prompt the last block is computed again, for the logits after it.
  second.prompt = system;
  EXPECT_EQ(RunAll(*engine, {second}, PrefixCache::kOn).shared.at(1), 400 - 16);
  // Scores of the prompt are of all its tokens.
  second.scores = WantScores::kPromptAndGenerated;
  const Outcome scored = RunAll(*engine, {second}, PrefixCache::kOn);
  EXPECT_EQ(scored.shared.at(1), 0);
  EXPECT_EQ(scored.scores.at(1), alone(second).scores.at(1));
  EXPECT_EQ(scored.counts.queries, 0);
  second.scores = WantScores::kGenerated;
  const Outcome generated = RunAll(*engine, {second}, PrefixCache::kOn);
  EXPECT_EQ(generated.shared.at(1), 400 - 16);
  EXPECT_EQ(generated.scores.at(1), alone(second).scores.at(1));
  // Others' texts take the memory in the end.
  const Outcome other =
      RunAll(*engine, {{.prompt = RandomTokens(500, 64, 2), .max_tokens = 4}}, PrefixCache::kOn);
  EXPECT_EQ(other.shared.at(1), 0);
  second.prompt = Joined(system, {4, 5});
  EXPECT_LT(RunAll(*engine, {second}, PrefixCache::kOn).shared.at(1), 32);
}

// Texts that come at once share what one of them computes, be it of one group or of the cache.
TEST_P(SchedulerTest, ThoseThatComeAtOnceShareTheirBeginning) {
  const std::vector<int32_t> prompt = RandomTokens(200, 64, 1);
  std::vector<GenerationRequest> requests;
  for (uint64_t i = 0; i < 6; ++i) {
    requests.push_back(
        {.prompt = prompt, .max_tokens = 10, .sampling = {.temperature = 1, .seed = i}});
  }
  const Outcome apart = RunAll(*MakeEngine(32, 2048), requests);
  EXPECT_GE(apart.computed, 6 * 200);
  const Outcome cached = RunAll(*MakeEngine(32, 2048), requests, PrefixCache::kOn);
  for (GenerationRequest& request : requests) request.group = 7;
  const Outcome grouped = RunAll(*MakeEngine(32, 2048), requests);
  for (const Outcome* outcome : {&cached, &grouped}) {
    EXPECT_EQ(outcome->texts, apart.texts);
    EXPECT_LE(outcome->computed, 200 + 5 * 8 + 6 * 10);
    EXPECT_EQ(outcome->shared.at(1), 0);
    for (int64_t i = 2; i <= 6; ++i) EXPECT_EQ(outcome->shared.at(i), 192);
  }
  EXPECT_EQ(apart.shared.at(6), 0);
  EXPECT_EQ(grouped.counts.queries, 0);
}

// Requests of a few beginnings, rules, scores, groups, cancelled ones, in a cache that holds a few
// of them: each text is what it is alone, where nothing is shared.
TEST_P(SchedulerTest, SharingAndPreemptingChangeNoText) {
  Random random(3);
  for (const PrefixCache prefix_cache : {PrefixCache::kOn, PrefixCache::kOff}) {
    const std::unique_ptr<Engine> engine = MakeEngine(24, /*kv_tokens=*/192);
    std::map<Scheduler::RequestId, GenerationRequest> requests;
    std::map<Scheduler::RequestId, std::vector<int32_t>> texts;
    std::map<Scheduler::RequestId, std::vector<std::pair<int32_t, double>>> scores;
    std::vector<Scheduler::RequestId> finished;
    Scheduler scheduler(
        *engine, [&](Scheduler::RequestId id, int32_t token) { texts[id].push_back(token); },
        [&](Scheduler::RequestId id, FinishReason) { finished.push_back(id); },
        [&](Scheduler::RequestId id, int32_t token, std::span<const float> logits) {
          scores[id].emplace_back(token, logits[static_cast<size_t>(token)]);
        },
        prefix_cache);
    for (int step = 0; step < 1500; ++step) {
      if (step < 1000 && random.Below(5) == 0 && scheduler.waiting() < 8) {
        GenerationRequest request{
            .prompt = Joined(
                RandomTokens(16 * static_cast<int64_t>(random.Below(5)), 64, random.Below(3)),
                RandomTokens(1 + static_cast<int64_t>(random.Below(20)), 64, random.Below(4))),
            .max_tokens = 1 + static_cast<int64_t>(random.Below(100)),
            .sampling = {.temperature = 1, .seed = random.Next()},
            .scores = random.Below(4) == 0   ? WantScores::kPromptAndGenerated
                      : random.Below(4) == 0 ? WantScores::kGenerated
                                             : WantScores::kNone};
        if (random.Below(4) == 0) request.rules.presence_penalty = 0.5;
        request.group = static_cast<int64_t>(requests.size()) / 3;
        requests.emplace(scheduler.Add(request).value(), request);
      }
      if (random.Below(40) == 0 && !requests.empty()) {
        auto it = requests.begin();
        std::advance(it, static_cast<int64_t>(random.Below(requests.size())));
        if (scheduler.Cancel(it->first)) requests.erase(it);
      }
      ASSERT_TRUE(scheduler.Step(kNever));
    }
    EXPECT_EQ(finished.size(), requests.size());
    EXPECT_EQ(scheduler.kv_tokens_used(), 0);
    EXPECT_GT(scheduler.preemptions(), 3);
    if (prefix_cache == PrefixCache::kOn) {
      EXPECT_GT(scheduler.prefix_cache_counts().hits, 300);
    }
    for (const auto& [id, request] : requests) {
      const Outcome alone = RunAll(*MakeEngine(64, 512), {request});
      ASSERT_EQ(texts.at(id), alone.texts.at(1)) << id;
      ASSERT_EQ(scores[id].size(), alone.scores.contains(1) ? alone.scores.at(1).size() : 0);
      if (!scores[id].empty()) {
        ASSERT_EQ(scores[id], alone.scores.at(1)) << id;
      }
    }
  }
}

}  // namespace
}  // namespace nibble

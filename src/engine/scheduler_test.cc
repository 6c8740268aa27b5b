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

}  // namespace
}  // namespace nibble

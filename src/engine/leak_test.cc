// A thousand generations on a GPU leave nothing behind.
#include <gtest/gtest.h>

#include "src/base/random.h"
#include "src/engine/scheduler.h"
#include "src/ops/cuda/cuda_backend.h"
#include "src/ops/cuda/device.h"

namespace nibble {
namespace {

const CancelToken kNever;

// Requests of many lengths, some sampled, some that stop early.
void Generate(Engine& engine, int count, Random& random) {
  int finished = 0;
  Scheduler scheduler(
      engine, [](Scheduler::RequestId, int32_t) {},
      [&](Scheduler::RequestId, FinishReason) { ++finished; });
  const auto below = [&](uint64_t bound) { return static_cast<int64_t>(random.Below(bound)); };
  for (int i = 0; i < count; ++i) {
    GenerationRequest request{.max_tokens = 1 + below(20)};
    for (int64_t t = below(60); t >= 0; --t) {
      request.prompt.push_back(static_cast<int32_t>(below(64)));
    }
    if (i % 2 == 0)
      request.sampling = {.temperature = 1, .top_k = 20, .top_p = 0.9, .seed = random.Next()};
    if (i % 3 == 0) request.stop_tokens = {static_cast<int32_t>(below(64)), 5, 6, 7};
    ASSERT_TRUE(scheduler.Add(std::move(request)));
  }
  while (true) {
    const Result<bool> more = scheduler.Step(kNever);
    ASSERT_TRUE(more) << more.error().message();
    if (!*more) break;
  }
  EXPECT_EQ(finished, count);
}

TEST(GpuLeakTest, AThousandGenerationsLeaveNothing) {
  if (ListCudaDevices().empty()) GTEST_SKIP() << "there is no NVIDIA GPU here";
  const std::unique_ptr<Checkpoint> checkpoint = OpenCheckpoint("random:tiny:rtn-g32").value();
  const ModelDescription description = DescribeModel(*checkpoint).value();
  const std::unique_ptr<Backend> backend = MakeCudaBackend({}).value();
  const ModelWeights weights =
      LoadModel(
          *checkpoint, description, *backend, [](int64_t, int64_t) {}, kNever)
          .value();
  const uint64_t without_engine = backend->memory().current().total();
  constexpr int64_t kTokens = 1024;
  Random random(1);
  uint64_t first = 0;
  for (int round = 0; round < 5; ++round) {
    {
      const std::unique_ptr<Engine> engine =
          Engine::Create(weights, *backend,
                         {.kv_dtype = DType::kF16,
                          .kv_tokens = kTokens,
                          .limits = {.rows = 64, .sequences = 8, .context = 256, .logit_rows = 8}})
              .value();
      Generate(*engine, 200, random);
      EXPECT_EQ(engine->free_kv_tokens(), kTokens);
    }
    EXPECT_EQ(backend->memory().current().total(), without_engine);
    // The first round loads kernels, whose code stays.
    if (round == 0) first = backend->SystemBytes();
    EXPECT_EQ(backend->SystemBytes(), first) << "after round " << round;
  }
}

}  // namespace
}  // namespace nibble

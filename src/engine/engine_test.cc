#include "src/engine/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <map>

#include "src/base/file.h"
#include "src/base/random.h"
#include "src/checkpoint/safetensors.h"
#include "src/engine/scheduler.h"
#include "src/ops/cpu/cpu_backend.h"
#include "src/ops/cuda/cuda_backend.h"
#include "src/ops/cuda/device.h"
#include "src/ops/ref/ref_backend.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

const CancelToken kNever;

struct TestModel {
  std::unique_ptr<Checkpoint> checkpoint;
  ModelDescription description;
  std::unique_ptr<Backend> backend;
  ModelWeights weights;
};

TestModel Load(const std::string& path, std::unique_ptr<Backend> backend) {
  TestModel model;
  auto checkpoint = OpenCheckpoint(path);
  CHECK(checkpoint, "{}", checkpoint.error().message());
  model.checkpoint = *std::move(checkpoint);
  auto description = DescribeModel(*model.checkpoint);
  CHECK(description, "{}", description.error().message());
  model.description = *std::move(description);
  model.backend = std::move(backend);
  auto weights = LoadModel(
      *model.checkpoint, model.description, *model.backend, [](int64_t, int64_t) {}, kNever);
  CHECK(weights, "{}", weights.error().message());
  model.weights = *std::move(weights);
  return model;
}

TestModel Load(const std::string& path, bool ref) {
  return Load(path, ref ? MakeRefBackend(2) : MakeCpuBackend({.threads = 2}).value());
}

std::unique_ptr<Engine> MakeEngine(TestModel& model, int64_t rows = 16, int64_t kv_tokens = 4096,
                                   DType kv_dtype = DType::kF32) {
  auto engine = Engine::Create(
      model.weights, *model.backend,
      {.kv_dtype = kv_dtype,
       .kv_tokens = kv_tokens,
       .limits = {.rows = rows, .sequences = 8, .context = 512, .logit_rows = rows}});
  CHECK(engine, "{}", engine.error().message());
  return *std::move(engine);
}

std::vector<int32_t> RandomTokens(int64_t count, int64_t vocabulary, uint64_t seed) {
  Random random(seed);
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < count; ++i) {
    tokens.push_back(static_cast<int32_t>(random.Below(static_cast<uint64_t>(vocabulary))));
  }
  return tokens;
}

using Rows = std::vector<std::vector<float>>;

// Appends the logits of `extension` 0 to rows.
LogitsSink Collect(std::vector<Rows>& rows) {
  return [&rows](std::span<const LogitRun> runs) {
    for (const auto& [extension, first, logits] : runs) {
      for (int64_t r = 0; r < logits.rows; ++r) {
        rows[extension].emplace_back(logits.row<float>(r), logits.row<float>(r) + logits.columns);
      }
    }
  };
}

Rows AllLogits(Engine& engine, std::span<const int32_t> tokens) {
  std::vector<Rows> rows(1);
  const SequenceId sequence = engine.Open();
  const Extension all{sequence, tokens, WantLogits::kAll};
  const Status status = engine.Extend({{all}}, Collect(rows), kNever);
  CHECK(status, "{}", status.error().message());
  engine.Close(sequence);
  return rows[0];
}

TensorView ReadTensor(const MappedFile& file, std::string_view name) {
  const auto entries = ParseSafetensors(file.bytes(), file.path());
  CHECK(entries, "{}", entries.error().message());
  for (const SafetensorsEntry& entry : *entries) {
    if (entry.name == name) {
      return {*entry.dtype, entry.shape,
              file.bytes().subspan(entry.begin, entry.end - entry.begin)};
    }
  }
  CHECK(false, "{} has no {}", file.path(), name);
}

// The models of the reference data, whose logits transformers computed.
class FixtureTest : public ::testing::TestWithParam<std::tuple<const char*, bool>> {};

TEST_P(FixtureTest, LogProbabilitiesMatchTransformers) {
  const auto [name, ref] = GetParam();
  const std::string directory = fmt::format("{}/fixtures/{}", NIBBLE_SHARED_DATA, name);
  if (!IsDirectory(directory)) GTEST_SKIP() << directory << " is absent";
  const auto file = MappedFile::Open(directory + "/expected.safetensors");
  ASSERT_TRUE(file) << file.error().message();
  const TensorView ids = ReadTensor(*file, "input_ids");
  const TensorView logits = ReadTensor(*file, "logits");
  const int64_t vocabulary = logits.shape[logits.shape.rank() - 1];
  const auto id = [&](int64_t i) {
    int64_t wide = 0;
    std::memcpy(&wide, ids.bytes.data() + static_cast<size_t>(i) * BytesOf(ids.dtype),
                BytesOf(ids.dtype));
    return static_cast<int32_t>(wide);
  };
  const auto* values = reinterpret_cast<const float*>(logits.bytes.data());

  TestModel model = Load(directory, ref);
  const std::unique_ptr<Engine> engine = MakeEngine(model);
  const int64_t sequences = ids.shape.rank() == 2 ? ids.shape[0] : 1;
  const int64_t length = ids.shape[ids.shape.rank() - 1];
  double worst = 0;
  for (int64_t s = 0; s < sequences; ++s) {
    std::vector<int32_t> tokens;
    for (int64_t t = 0; t < length; ++t) tokens.push_back(id(s * length + t));
    const Rows rows = AllLogits(*engine, tokens);
    for (int64_t t = 0; t < length; ++t) {
      const float* want = values + (s * length + t) * vocabulary;
      const std::vector<float>& got = rows[static_cast<size_t>(t)];
      double want_sum = 0, got_sum = 0;
      for (int64_t v = 0; v < vocabulary; ++v) {
        want_sum += std::exp(static_cast<double>(want[v]));
        got_sum += std::exp(static_cast<double>(got[static_cast<size_t>(v)]));
      }
      for (int64_t v = 0; v < vocabulary; ++v) {
        worst = std::max(worst, std::abs((want[v] - std::log(want_sum)) -
                                         (got[static_cast<size_t>(v)] - std::log(got_sum))));
      }
    }
  }
  EXPECT_LT(worst, 1e-4);
}

INSTANTIATE_TEST_SUITE_P(
    All, FixtureTest,
    ::testing::Combine(::testing::Values("llama2-mha-f16-sharded", "llama3-gqa-rope-bf16-tied",
                                         "mistral-gqa-bf16", "qwen2-bias-f16-tied"),
                       ::testing::Bool()),
    [](const auto& info) {
      std::string name = std::get<0>(info.param);
      std::replace(name.begin(), name.end(), '-', '_');
      return name + (std::get<1>(info.param) ? "_ref" : "_cpu");
    });

// stories260K's beginning, as its readers know it.
TEST(StoriesTest, ContinuesFromBosAsItAlwaysDoes) {
  const std::string directory = std::string(NIBBLE_SHARED_DATA) + "/models/stories260K";
  if (!IsDirectory(directory)) GTEST_SKIP() << directory << " is absent";
  TestModel model = Load(directory, /*ref=*/false);
  const std::unique_ptr<Engine> engine = MakeEngine(model);
  std::vector<int32_t> tokens;
  Scheduler scheduler(
      *engine, [&](Scheduler::RequestId, int32_t token) { tokens.push_back(token); },
      [](Scheduler::RequestId, FinishReason) {});
  ASSERT_TRUE(scheduler.Add({.prompt = {1}, .max_tokens = 60}));
  while (scheduler.Step(kNever).value()) {
  }
  const std::unique_ptr<Tokenizer> tokenizer = model.checkpoint->LoadTokenizer().value();
  EXPECT_THAT(tokenizer->Decode(tokens),
              HasSubstr("Once upon a time, there was a little girl named Lily. She loved to play "
                        "outside in the park. One day, she saw a big, red ball."));
}

class SyntheticTest : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override { model_ = Load(GetParam(), /*ref=*/false); }
  int64_t vocabulary() const { return model_.weights.config.vocabulary; }
  TestModel model_;
};

// Models on a batch-invariant device: "cpu" or "gpu".
class BatchInvarianceTest : public ::testing::TestWithParam<std::tuple<const char*, const char*>> {
 protected:
  void SetUp() override {
    const auto [device, path] = GetParam();
    if (std::string_view(device) == "cpu") {
      model_ = Load(path, /*ref=*/false);
      return;
    }
    if (ListCudaDevices().empty()) GTEST_SKIP() << "there is no NVIDIA GPU here";
    model_ = Load(path, MakeCudaBackend({.kernels = CudaKernels::kBatchInvariant}).value());
    kv_dtype_ = DType::kF16;
  }
  int64_t vocabulary() const { return model_.weights.config.vocabulary; }
  std::unique_ptr<Engine> EngineOf(int64_t rows) {
    return MakeEngine(model_, rows, /*kv_tokens=*/4096, kv_dtype_);
  }
  TestModel model_;
  DType kv_dtype_ = DType::kF32;
};

TEST_P(BatchInvarianceTest, PromptCutIntoStepsGivesTheSameBits) {
  const std::vector<int32_t> tokens = RandomTokens(145, vocabulary(), 1);
  const Rows whole = AllLogits(*EngineOf(256), tokens);
  for (const int64_t rows : {1, 7, 16, 64}) {
    EXPECT_EQ(AllLogits(*EngineOf(rows), tokens), whole) << rows << " rows a step";
  }
}

TEST_P(BatchInvarianceTest, BatchGivesTheSameBits) {
  const std::unique_ptr<Engine> engine = EngineOf(256);
  std::vector<std::vector<int32_t>> prompts;
  std::vector<Extension> extensions;
  for (uint64_t i = 0; i < 5; ++i) {
    prompts.push_back(RandomTokens(1 + static_cast<int64_t>(i) * 31, vocabulary(), i));
  }
  for (const std::vector<int32_t>& prompt : prompts) {
    extensions.push_back({engine->Open(), prompt, WantLogits::kAll});
  }
  std::vector<Rows> together(prompts.size());
  ASSERT_TRUE(engine->Extend(extensions, Collect(together), kNever));
  for (const Extension& extension : extensions) engine->Close(extension.sequence);
  for (size_t i = 0; i < prompts.size(); ++i) {
    EXPECT_EQ(AllLogits(*engine, prompts[i]), together[i]) << i;
  }
}

// A sequence that begins with blocks found in the cache, computed in other steps beside another,
// has the bits of one that computes them.
TEST_P(BatchInvarianceTest, FoundPrefixGivesTheSameBits) {
  const std::vector<int32_t> tokens = RandomTokens(145, vocabulary(), 1);
  const std::vector<int32_t> other = RandomTokens(50, vocabulary(), 2);
  const Rows whole = AllLogits(*EngineOf(256), tokens);
  const std::unique_ptr<Engine> engine = EngineOf(32);
  const std::vector<Extension> first = {{engine->Open(), other, WantLogits::kNone},
                                        {engine->Open(), tokens, WantLogits::kNone}};
  std::vector<Rows> none(2);
  ASSERT_TRUE(engine->Extend(first, Collect(none), kNever));
  engine->Publish(first[1].sequence, tokens);
  engine->Close(first[1].sequence);
  const SequenceId found = engine->Open(std::span(tokens).first(144));
  const int64_t length = engine->length(found);
  ASSERT_GE(length, 128);
  std::vector<Rows> rest(1);
  const Extension extension{found, std::span(tokens).subspan(static_cast<size_t>(length)),
                            WantLogits::kAll};
  ASSERT_TRUE(engine->Extend({&extension, 1}, Collect(rest), kNever));
  EXPECT_EQ(rest[0], Rows(whole.begin() + length, whole.end()));
}

// A model's name as GoogleTest wants it.
std::string TestName(std::string name) {
  std::replace_if(
      name.begin(), name.end(), [](char c) { return !std::isalnum(c); }, '_');
  return name;
}

std::string InvarianceName(const ::testing::TestParamInfo<BatchInvarianceTest::ParamType>& info) {
  return TestName(std::get<1>(info.param));
}
INSTANTIATE_TEST_SUITE_P(Cpu, BatchInvarianceTest,
                         ::testing::Combine(::testing::Values("cpu"),
                                            ::testing::Values("random:tiny",
                                                              "random:tiny:rtn-g32-asym",
                                                              "random:tiny:rtn-g16-sym")),
                         InvarianceName);
// Wide enough that a product's algorithm would depend on the rows.
INSTANTIATE_TEST_SUITE_P(Gpu, BatchInvarianceTest,
                         ::testing::Combine(::testing::Values("gpu"),
                                            ::testing::Values("random:tiny:rtn-g32-asym",
                                                              "random:smollm2-135m",
                                                              "random:smollm2-135m:gptq-g64-sym",
                                                              "random:smollm2-135m:awq-g32-asym")),
                         InvarianceName);

TEST_P(SyntheticTest, GreedyTokensAreTheMostProbable) {
  // Two prompts, one longer than a step, and one whose next token nobody asks for.
  const auto engine = MakeEngine(model_);
  const int64_t vocabulary = model_.weights.config.vocabulary;
  const std::vector<std::vector<int32_t>> prompts = {RandomTokens(40, vocabulary, 5),
                                                     RandomTokens(3, vocabulary, 6),
                                                     RandomTokens(7, vocabulary, 7)};
  std::vector<Extension> extensions;
  for (size_t i = 0; i < prompts.size(); ++i) {
    extensions.push_back(
        {engine->Open(), prompts[i], i == 1 ? WantLogits::kNone : WantLogits::kLast});
  }
  std::map<size_t, int32_t> tokens;
  ASSERT_TRUE(engine->Issue(extensions, kNever));
  ASSERT_TRUE(engine->Receive([&](size_t extension, int32_t token) { tokens[extension] = token; }));
  ASSERT_EQ(tokens.size(), 2u);
  for (const size_t i : {size_t{0}, size_t{2}}) {
    EXPECT_EQ(tokens[i], MostProbable(AllLogits(*engine, prompts[i]).back()));
  }
}

// Steps issued before the tokens of the last are seen, greedy and sampled, against one step at a
// time with the tokens from the host; and the choice from the logits themselves.
TEST_P(SyntheticTest, TokensThatTheHostHasNotSeenContinueTheirSequences) {
  constexpr int kSteps = 12;
  const auto engine = MakeEngine(model_);
  const std::vector<std::vector<int32_t>> prompts = {RandomTokens(5, vocabulary(), 1),
                                                     RandomTokens(3, vocabulary(), 2)};
  const SamplingOptions sampling[2] = {{},
                                       {.temperature = 1.5, .top_k = 40, .top_p = 0.9, .seed = 7}};
  std::vector<Extension> extensions;
  for (size_t i = 0; i < 2; ++i) {
    extensions.push_back({engine->Open(), prompts[i], WantLogits::kLast, sampling[i]});
  }
  for (int step = 0; step < kSteps; ++step) {
    ASSERT_TRUE(engine->Issue(extensions, kNever));
    for (Extension& extension : extensions) extension.tokens = {};
  }
  std::vector<int32_t> texts[2];
  for (int step = 0; step < kSteps; ++step) {
    ASSERT_TRUE(engine->Receive(
        [&](size_t extension, int32_t token) { texts[extension].push_back(token); }));
  }
  for (size_t i = 0; i < 2; ++i) {
    ASSERT_EQ(texts[i].size(), static_cast<size_t>(kSteps));
    std::vector<int32_t> tokens = prompts[i];
    for (const int32_t token : texts[i]) {
      const TokenChoice choice = ChoiceAt(sampling[i], static_cast<int64_t>(tokens.size()));
      ASSERT_EQ(token, ChooseToken(AllLogits(*engine, tokens).back(), choice));
      tokens.push_back(token);
    }
  }
}

TEST_P(SyntheticTest, ForksShareTheirPrefixAndNothingElse) {
  const std::unique_ptr<Engine> engine = MakeEngine(model_, 64);
  const int64_t all_free = engine->free_kv_tokens();
  // 21 tokens: a whole block and a partly filled one.
  const std::vector<int32_t> prefix = RandomTokens(21, vocabulary(), 3);
  const SequenceId parent = engine->Open();
  const Extension shared{parent, prefix, WantLogits::kNone};
  ASSERT_TRUE(engine->Extend({{shared}}, {}, kNever));
  const int64_t before_forks = engine->free_kv_tokens();
  std::vector<std::vector<int32_t>> tails = {RandomTokens(4, vocabulary(), 4),
                                             RandomTokens(30, vocabulary(), 5)};
  std::vector<Extension> extensions;
  for (const std::vector<int32_t>& tail : tails) {
    extensions.push_back({engine->Fork(parent), tail, WantLogits::kAll});
  }
  EXPECT_EQ(engine->free_kv_tokens(), before_forks);
  std::vector<Rows> forked(2);
  ASSERT_TRUE(engine->Extend(extensions, Collect(forked), kNever));
  // One block copied for the first; one copied and two new for the second.
  EXPECT_EQ(before_forks - engine->free_kv_tokens(), 4 * model_.backend->kv_block_tokens());
  EXPECT_EQ(engine->length(parent), 21);
  engine->Close(parent);
  for (size_t i = 0; i < 2; ++i) {
    engine->Close(extensions[i].sequence);
    std::vector<int32_t> whole = prefix;
    whole.insert(whole.end(), tails[i].begin(), tails[i].end());
    Rows rows = AllLogits(*engine, whole);
    rows.erase(rows.begin(), rows.begin() + 21);
    EXPECT_EQ(rows, forked[i]) << i;
  }
  EXPECT_EQ(engine->free_kv_tokens(), all_free);
}

// Σ (got - want)² / Σ want²
double NormalizedSquareError(const Rows& got, const Rows& want) {
  double error = 0, square = 0;
  for (size_t r = 0; r < want.size(); ++r) {
    for (size_t v = 0; v < want[r].size(); ++v) {
      error += std::pow(static_cast<double>(got[r][v]) - want[r][v], 2);
      square += std::pow(static_cast<double>(want[r][v]), 2);
    }
  }
  return error / square;
}

TEST_P(SyntheticTest, RefAgrees) {
  TestModel ref = Load(GetParam(), /*ref=*/true);
  const std::vector<int32_t> tokens = RandomTokens(20, vocabulary(), 6);
  const Rows want = AllLogits(*MakeEngine(ref), tokens);
  // 16-bit activations in the 4-bit products, float32 elsewhere.
  EXPECT_LT(NormalizedSquareError(AllLogits(*MakeEngine(model_), tokens), want), 1e-8);
  // Everything that a GPU rounds, whose own tolerances these are (tests/gpu_test.py).
  for (const auto& [type, most] : {std::pair(DType::kF16, 1e-5), std::pair(DType::kBF16, 1e-3)}) {
    TestModel rounded = Load(GetParam(), MakeRefBackend(2, type));
    const Rows got = AllLogits(*MakeEngine(rounded, 16, 4096, type), tokens);
    const double error = NormalizedSquareError(got, want);
    EXPECT_GT(error, most * 1e-4) << Name(type);
    EXPECT_LT(error, most) << Name(type);
  }
}

TEST_P(SyntheticTest, MemoryIsPredictedExactly) {
  const EngineOptions options{
      .kv_dtype = DType::kF16,
      .kv_tokens = 100,
      .limits = {.rows = 32, .sequences = 4, .context = 64, .logit_rows = 8}};
  const MemoryUse predicted =
      PredictMemory(*model_.checkpoint, model_.description, *model_.backend, options).use;
  const auto engine = Engine::Create(model_.weights, *model_.backend, options);
  ASSERT_TRUE(engine);
  const MemoryUse used = model_.backend->memory().current();
  EXPECT_EQ(used[MemoryClass::kWeights], predicted[MemoryClass::kWeights]);
  EXPECT_EQ(used[MemoryClass::kKvCache], predicted[MemoryClass::kKvCache]);
  EXPECT_EQ(used[MemoryClass::kWorkspace], predicted[MemoryClass::kWorkspace]);
}

INSTANTIATE_TEST_SUITE_P(Models, SyntheticTest,
                         ::testing::Values("random:tiny", "random:tiny:rtn-g32-asym",
                                           "random:tiny:rtn-g32-sym"),
                         [](const auto& info) { return TestName(info.param); });

class EngineErrorTest : public ::testing::Test {
 protected:
  TestModel model_ = Load("random:tiny", /*ref=*/false);
};

TEST_F(EngineErrorTest, FullCacheIsAnErrorAndChangesNothing) {
  const std::unique_ptr<Engine> engine = MakeEngine(model_, 64, /*kv_tokens=*/32);
  const SequenceId sequence = engine->Open();
  const std::vector<int32_t> tokens = RandomTokens(33, 64, 7);
  const Extension extension{sequence, tokens, WantLogits::kNone};
  const Status status = engine->Extend({{extension}}, {}, kNever);
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code(), ErrorCode::kResources);
  EXPECT_EQ(engine->length(sequence), 0);
  EXPECT_EQ(engine->free_kv_tokens(), 32);
}

TEST_F(EngineErrorTest, TokensOutsideTheVocabularyAndTheContext) {
  const std::unique_ptr<Engine> engine = MakeEngine(model_);
  const SequenceId sequence = engine->Open();
  const auto extend = [&](std::vector<int32_t> tokens) {
    const Extension extension{sequence, tokens, WantLogits::kNone};
    return engine->Extend({{extension}}, {}, kNever);
  };
  for (const int32_t bad : {-1, static_cast<int32_t>(model_.weights.config.vocabulary)}) {
    const Status status = extend({1, bad});
    ASSERT_FALSE(status);
    EXPECT_EQ(status.error().code(), ErrorCode::kBadInput);
    EXPECT_THAT(status.error().message(), HasSubstr(std::to_string(bad)));
  }
  const Status status = extend(std::vector<int32_t>(513, 1));
  ASSERT_FALSE(status);
  EXPECT_THAT(status.error().message(), HasSubstr("context"));
}

TEST_F(EngineErrorTest, ARequestToStopEndsBetweenSteps) {
  const std::unique_ptr<Engine> engine = MakeEngine(model_);
  CancelToken cancel;
  cancel.Request();
  const std::vector<int32_t> tokens(40, 1);
  const Extension extension{engine->Open(), tokens, WantLogits::kNone};
  const Status status = engine->Extend({{extension}}, {}, cancel);
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code(), ErrorCode::kInterrupted);
}

TEST_F(EngineErrorTest, KvCacheIsCutDownToWhatFits) {
  const Backend& backend = *model_.backend;
  const ModelConfig& config = model_.weights.config;
  const EngineOptions wanted{
      .kv_dtype = DType::kF16,
      .kv_tokens = 4096,
      .limits = {.rows = 8, .sequences = 8, .context = 512, .logit_rows = 8}};
  const uint64_t workspace = Forward::WorkspaceBytes(config, backend, wanted.limits);
  const uint64_t block = KvLayoutFor(config, backend, DType::kF16).BlockBytes();
  const int64_t block_tokens = backend.kv_block_tokens();
  const auto fit = [&](uint64_t available, int64_t least) {
    return FitKvCache(wanted, least, config, backend, available);
  };
  EXPECT_EQ(fit(uint64_t{1} << 40, 512)->kv_tokens, 4096);
  EXPECT_EQ(fit(workspace + 100 * block + block / 2, 512)->kv_tokens, 100 * block_tokens);
  const auto refused = fit(workspace + 10 * block, 512);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code(), ErrorCode::kResources);
  EXPECT_THAT(refused.error().message(),
              HasSubstr(fmt::format("would hold {} tokens", 10 * block_tokens)));
}

}  // namespace
}  // namespace nibble

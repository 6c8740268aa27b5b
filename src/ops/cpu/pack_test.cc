#include "src/ops/cpu/pack.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "src/ops/cpu/test_util.h"

namespace nibble::cpu {
namespace {

using ::testing::HasSubstr;

std::vector<Weight> Weights(int64_t out, int64_t in, Random& random) {
  std::vector<Weight> weights;
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    weights.push_back(RandomDense(dtype, out, in, random));
  }
  for (const Grid grid : {Grid::kAsymmetric, Grid::kSymmetric, Grid::kSymmetricFull}) {
    for (const int64_t group : {int64_t{12}, int64_t{36}, kPerChannel}) {
      weights.push_back(RandomQuantized({.group_size = group, .grid = grid}, out, in, random));
      weights.push_back(RandomQuantized(
          {.group_size = group, .grid = grid, .order = GroupOrder::kIndexed}, out, in, random));
    }
  }
  return weights;
}

const QuantSpec* SpecOf(const Weight& weight) {
  const auto* quantized = std::get_if<QuantizedWeight>(&weight);
  return quantized ? &quantized->spec : nullptr;
}

DType TypeOf(const Weight& weight) {
  const auto* dense = std::get_if<DenseWeight>(&weight);
  return dense ? dense->dtype : DType::kF16;
}

TEST(PackTest, KeepsEveryElement) {
  Random random(1);
  auto cpu = MakeCpu(2);
  for (const Weight& weight : Weights(37, 216, random)) {
    const Weight second = weight;
    const std::vector<LinearSource> sources = {{.weight = &weight}, {.weight = &second}};
    auto prepared = Must(cpu->Prepare(sources, Interleave::kNone));
    const auto& linear = static_cast<const CpuLinear&>(*prepared);
    for (int64_t n = 0; n < 74; ++n) {
      for (int64_t k = 0; k < 216; ++k) {
        const int64_t input = linear.order() == nullptr ? k : linear.order()[k];
        const float want = std::visit([&](const auto& w) { return w.At(n % 37, input); }, weight);
        ASSERT_EQ(linear.At(n, k), want) << n << ", " << k;
      }
    }
  }
}

TEST(PackTest, BytesAreAsPredictedAndCounted) {
  Random random(2);
  auto cpu = MakeCpu(1);
  for (const int64_t out : {8, 37, 576}) {
    for (const Weight& weight : Weights(out, 216, random)) {
      for (const bool has_bias : {false, true}) {
        const std::vector<float> bias(has_bias ? static_cast<size_t>(out) : 0);
        const LinearSource source{.weight = &weight, .bias = bias};
        cpu->memory().ResetPeak();
        const uint64_t before = cpu->memory().current()[MemoryClass::kWeights];
        auto linear = Must(cpu->Prepare({&source, 1}, Interleave::kNone));
        const uint64_t predicted =
            cpu->PreparedBytes(out, 216, TypeOf(weight), SpecOf(weight), has_bias);
        EXPECT_EQ(linear->bytes(), predicted);
        EXPECT_EQ(cpu->memory().current()[MemoryClass::kWeights] - before, predicted);
        EXPECT_EQ(cpu->memory().peak().total(), cpu->memory().current().total());
        linear.reset();
        EXPECT_EQ(cpu->memory().current()[MemoryClass::kWeights], before);
      }
    }
  }
}

TEST(PackTest, FourBitsTakeHalfAByteEachAndTheirScales) {
  const QuantSpec asymmetric{.group_size = 128};
  const QuantSpec symmetric{.group_size = 128, .grid = Grid::kSymmetric};
  auto cpu = MakeCpu(1);
  constexpr uint64_t kElements = uint64_t{2048} * 2048;
  EXPECT_EQ(cpu->PreparedBytes(2048, 2048, DType::kF16, &symmetric, false),
            kElements / 2 + kElements / 128 * 2);
  EXPECT_EQ(cpu->PreparedBytes(2048, 2048, DType::kF16, &asymmetric, false),
            kElements / 2 + kElements / 128 * 3);
  EXPECT_EQ(cpu->PreparedBytes(2048, 2048, DType::kF16, nullptr, true), kElements * 2 + 2048 * 4);
}

TEST(PackTest, PlanAndCacheTakeWhatIsPredicted) {
  auto cpu = MakeCpu(3);
  const StepLimits limits{.rows = 700, .sequences = 5, .context = 1000, .logit_rows = 40};
  const ModelExtents model{.hidden = 576,
                           .intermediate = 1536,
                           .heads = 9,
                           .kv_heads = 3,
                           .head_dim = 64,
                           .vocabulary = 49152};
  auto plan = Must(cpu->CreatePlan(limits, model));
  EXPECT_EQ(cpu->memory().current()[MemoryClass::kWorkspace], cpu->PlanBytes(limits, model));
  const KvLayout layout{.layers = 30, .kv_heads = 3, .head_dim = 64, .block_tokens = 16};
  auto cache = Must(cpu->CreateKvCache(layout, 7));
  EXPECT_EQ(cpu->memory().current()[MemoryClass::kKvCache], 7 * layout.BlockBytes());
}

TEST(PackTest, RefusesWhatItCannotRepresent) {
  Random random(3);
  auto cpu = MakeCpu(1);
  Weight weight = RandomQuantized({.group_size = 32, .grid = Grid::kSymmetric}, 24, 64, random);
  std::get<QuantizedWeight>(weight).zeros[17] = 7;
  LinearSource source{.weight = &weight};
  auto refused = cpu->Prepare({&source, 1}, Interleave::kNone);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code(), ErrorCode::kBadInput);
  EXPECT_THAT(refused.error().message(), HasSubstr("zero other than 8"));

  weight = RandomQuantized({.group_size = 4}, 24, 64, random);
  refused = cpu->Prepare({&source, 1}, Interleave::kNone);
  ASSERT_FALSE(refused);
  EXPECT_THAT(refused.error().message(), HasSubstr("groups of 4 columns"));
  EXPECT_EQ(cpu->memory().current().total(), 0u);
}

TEST(BackendTest, WantsAThread) {
  const auto backend = MakeCpuBackend({.threads = 0});
  ASSERT_FALSE(backend);
  EXPECT_EQ(backend.error().code(), ErrorCode::kUsage);
  EXPECT_THAT(MakeCpu(2)->description(), HasSubstr("2 threads"));
}

}  // namespace
}  // namespace nibble::cpu

#include "src/checkpoint/random_checkpoint.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "src/base/fingerprint.h"
#include "src/base/random.h"
#include "src/checkpoint/test_files.h"

namespace nibble {
namespace {

int64_t Parameters(const Checkpoint& checkpoint) {
  int64_t count = 0;
  for (const TensorInfo& tensor : checkpoint.tensors()) count += *tensor.shape.Elements();
  return count;
}

TEST(RandomCheckpoint, PresetsHaveTheirModelsParameterCounts) {
  const std::pair<const char*, int64_t> cases[] = {
      {"tiny", 69952},
      {"small", 886144},
      {"llama-2-7b", 6738415616},
      {"llama-2-13b", 13015864320},
      {"llama-3-8b", 8030261248},
      {"llama-3.2-1b", 1235814400},
      {"mistral-7b", 7241732096},
      {"qwen2.5-0.5b", 494032768},
      {"qwen2.5-7b", 7615616512},
      {"tinyllama-1.1b", 1100048384},
      {"smollm2-135m", 134515008},
      {"smollm2-360m", 361821120},
      {"smollm2-1.7b", 1711376384},
  };
  EXPECT_EQ(RandomPresets().size(), std::size(cases));
  for (const auto& [preset, parameters] : cases) {
    const auto checkpoint = OpenCheckpoint(std::string("random:") + preset);
    ASSERT_OK(checkpoint);
    EXPECT_EQ(Parameters(**checkpoint), parameters) << preset;
    EXPECT_TRUE((*checkpoint)->synthetic());
    EXPECT_EQ((*checkpoint)->label(), "fp16");
    EXPECT_EQ((*checkpoint)->config()["nibble_synthetic"], true);
  }
}

// Heavier tails than a normal distribution's, whose fourth moment is 3, and a few outlying
// channels.
TEST(RandomCheckpoint, WeightsAreLikeTrainedOnesAndReproducible) {
  const auto checkpoint = OpenCheckpoint("random:smollm2-135m");
  ASSERT_OK(checkpoint);
  const std::string name = "model.layers.3.self_attn.q_proj";
  const auto weight = ReadWeight(**checkpoint, name, 576, 576, std::nullopt);
  ASSERT_OK(weight);
  const auto& dense = std::get<DenseWeight>(*weight);
  double sum = 0, squares = 0, fourth = 0;
  for (int64_t r = 0; r < 576; ++r) {
    for (int64_t c = 0; c < 576; ++c) {
      const double v = dense.At(r, c);
      sum += v;
      squares += v * v;
      fourth += std::pow(v, 4);
    }
  }
  const double n = 576 * 576;
  EXPECT_NEAR(sum / n, 0, 5 * 0.02 / std::sqrt(n));
  EXPECT_NEAR(std::sqrt(squares / n), 0.02, 0.02 * 0.01);
  EXPECT_GT(fourth / n, 8 * std::pow(squares / n, 2));

  const auto again = (*OpenCheckpoint("random:smollm2-135m"))->Read(name + ".weight");
  ASSERT_OK(again);
  EXPECT_EQ(std::memcmp(again->bytes.data(), dense.data, again->bytes.size()), 0);
  const auto other = (*checkpoint)->Read("model.layers.4.self_attn.q_proj.weight");
  EXPECT_NE(std::memcmp(other->bytes.data(), dense.data, other->bytes.size()), 0);
  const std::vector<float> gains = *ReadVector(**checkpoint, "model.norm.weight", 576);
  const auto outliers = std::count_if(gains.begin(), gains.end(), [](float g) { return g > 2; });
  EXPECT_GE(outliers, 1);
  EXPECT_LE(outliers, 576 / 32);
  for (const float gain : gains) {
    EXPECT_TRUE((gain >= 0.75f && gain <= 1.25f) || (gain >= 6 && gain <= 10)) << gain;
  }
}

// Large tensors are made in parts; the parts must continue one stream of random numbers.
TEST(RandomCheckpoint, PartsAreOneStream) {
  const auto checkpoint = OpenCheckpoint("random:smollm2-135m");
  ASSERT_OK(checkpoint);
  const std::string name = "model.embed_tokens.weight";
  const auto tensor = (*checkpoint)->Read(name);
  ASSERT_OK(tensor);
  const auto* values = reinterpret_cast<const uint16_t*>(tensor->bytes.data());
  Random random(Fingerprint().Add(name).value());
  std::map<uint64_t, uint16_t> value_of;  // twelve random bits
  uint64_t bits = 0, wrong = 0;
  for (size_t i = 0; i < tensor->bytes.size() / 2; ++i, bits >>= 12) {
    if (i % 5 == 0) bits = random.Next();
    wrong += value_of.try_emplace(bits % 4096, values[i]).first->second != values[i] ? 1 : 0;
  }
  EXPECT_EQ(wrong, 0u);
  EXPECT_EQ(value_of.size(), 4096u);
}

TEST(RandomCheckpoint, QuantizedByEachMethod) {
  struct Case {
    const char* method;
    QuantSpec spec;
    QuantLayout layout;
  };
  for (const Case& c : {
           Case{"rtn-g64-asym", {4, 64, Grid::kAsymmetric}, QuantLayout::kAwqGemm},
           Case{"awq-g32", {4, 32, Grid::kAsymmetric}, QuantLayout::kAwqGemm},
           Case{"gptq-g64", {4, 64, Grid::kSymmetric}, QuantLayout::kGptqV1},
           Case{"rtn-g64-sym-full", {4, 64, Grid::kSymmetric}, QuantLayout::kGptqV1},
       }) {
    SCOPED_TRACE(c.method);
    const auto checkpoint = OpenCheckpoint(std::string("random:smollm2-135m:") + c.method);
    ASSERT_OK(checkpoint);
    EXPECT_EQ((*checkpoint)->label(), c.method);
    const auto config = ParseQuantizationConfig((*checkpoint)->config(), "config");
    ASSERT_OK(config);
    EXPECT_EQ((*config)->layout, c.layout);
    EXPECT_EQ((*config)->spec, c.spec);
    const auto weight =
        ReadWeight(**checkpoint, "model.layers.0.mlp.gate_proj", 1536, 576, *config);
    ASSERT_OK(weight);
    const auto& quantized = std::get<QuantizedWeight>(*weight);
    double squares = 0;
    for (int64_t r = 0; r < 1536; r += 3) {
      for (int64_t k = 0; k < 576; ++k) squares += std::pow(quantized.At(r, k), 2);
    }
    EXPECT_NEAR(std::sqrt(squares / (512 * 576)), 0.02, 0.02 * 0.05);
    EXPECT_OK(ReadWeight(**checkpoint, "model.embed_tokens", 49152, 576, std::nullopt));
  }
}

TEST(RandomCheckpoint, Refuses) {
  EXPECT_ERROR(OpenCheckpoint("random:llama-9"), ErrorCode::kUsage,
               "there is no preset \"llama-9\"; presets: tiny, small, llama-2-7b, ");
  EXPECT_ERROR(OpenCheckpoint("random:"), ErrorCode::kUsage, "there is no preset \"\"");
  for (const char* method : {"int3", "rtn-", "rtn-g", "rtn-g0", "rtn-g-5", "rtn-g64asym",
                             "rtn-g64-odd", "rtn-g99999999999999999999", "awq+rtn"}) {
    EXPECT_ERROR(OpenCheckpoint(std::string("random:smollm2-135m:") + method), ErrorCode::kUsage,
                 "is not a method");
  }
  EXPECT_ERROR(OpenCheckpoint("random:smollm2-135m:rtn-g128"), ErrorCode::kUsage,
               "want a group size that divides 576");
  const auto checkpoint = OpenCheckpoint("random:smollm2-135m");
  EXPECT_ERROR((*checkpoint)->LoadTokenizer(), ErrorCode::kBadInput, "has no tokenizer");
}

}  // namespace
}  // namespace nibble

// What Forward gives Backend::RunLayers, on a device that does not need it.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "src/base/must.h"
#include "src/engine/engine.h"
#include "src/ops/cpu/cpu_backend.h"
#include "src/ops/delegating_backend.h"
#include "src/ops/layers_test_util.h"

namespace nibble {
namespace {

const CancelToken kNever;

// Runs the layers that it is given one operation after the other.
class AtOnceBackend final : public DelegatingBackend {
 public:
  explicit AtOnceBackend(std::unique_ptr<Backend> backend)
      : DelegatingBackend(std::move(backend)) {}

  bool RunLayers(BatchPlan& plan, std::span<const DecoderLayer> layers, const RopeSpec& rope,
                 float epsilon, KvCache& cache, const LayerActivations& activations) override {
    ++calls;
    for (const DecoderLayer& layer : layers) {
      EXPECT_EQ(layer.largest_input_gain, LargestGain(layer.input_norm));
      EXPECT_EQ(layer.largest_post_attention_gain, LargestGain(layer.post_attention_norm));
    }
    RunLayersApart(*this, plan, layers, rope, epsilon, cache, activations);
    return true;
  }

  int calls = 0;

 private:
  static float LargestGain(MatrixView gain) {
    float largest = 0;
    for (int64_t i = 0; i < gain.columns; ++i) {
      largest = std::max(largest, std::abs(gain.row<float>(0)[i]));
    }
    return largest;
  }
};

std::vector<std::vector<float>> Logits(Backend& backend) {
  const auto checkpoint = Must(OpenCheckpoint("random:tiny:rtn-g32-asym"));
  const ModelWeights weights = Must(LoadModel(
      *checkpoint, Must(DescribeModel(*checkpoint)), backend, [](int64_t, int64_t) {}, kNever));
  const auto engine =
      Must(Engine::Create(weights, backend,
                          {.kv_dtype = DType::kF32,
                           .kv_tokens = 64,
                           .limits = {.rows = 4, .sequences = 1, .context = 64, .logit_rows = 4}}));
  const std::vector<int32_t> tokens = {1, 5, 3, 2, 7, 11, 13};
  std::vector<std::vector<float>> rows;
  const Extension all{engine->Open(), tokens, WantLogits::kAll};
  Must(engine->Extend(
      {{all}},
      [&](std::span<const LogitRun> runs) {
        for (const auto& [extension, first, logits] : runs) {
          for (int64_t r = 0; r < logits.rows; ++r) {
            rows.emplace_back(logits.row<float>(r), logits.row<float>(r) + logits.columns);
          }
        }
      },
      kNever));
  return rows;
}

TEST(LayersAtOnceTest, GiveTheSameLogitsAsTheForwardPass) {
  const auto cpu = Must(MakeCpuBackend({.threads = 2}));
  AtOnceBackend at_once(Must(MakeCpuBackend({.threads = 2})));
  EXPECT_EQ(Logits(at_once), Logits(*cpu));
  EXPECT_EQ(at_once.calls, 2);  // steps of four and of three rows
}

}  // namespace
}  // namespace nibble

#include "src/quantize/awq.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "src/base/json.h"
#include "src/ops/cpu/cpu_backend.h"
#include "src/ops/cpu/cpu_quantize.h"
#include "src/quantize/fixture_util.h"

namespace nibble {
namespace {

using ::testing::Each;
using ::testing::FloatEq;

TEST(AwqScalesTest, RatioZeroOfTheFirstFormIsTheIdentity) {
  const std::vector<float> x = {0.1f, 3, 0, 20}, w = {0.3f, 0.2f, 0.5f, 0.1f};
  EXPECT_THAT(AwqScales(AwqForm::kActivations, 0, x, w), Each(FloatEq(1)));
}

TEST(AwqScalesTest, LargerActivationsScaleMoreAndTheExtremesCancel) {
  const std::vector<float> x = {0.25f, 1, 4}, w = {0.5f, 0.5f, 0.5f};
  const std::vector<float> s = AwqScales(AwqForm::kActivations, 0.5, x, w);
  EXPECT_FLOAT_EQ(s[0], 0.5f);
  EXPECT_FLOAT_EQ(s[1], 1);
  EXPECT_FLOAT_EQ(s[2], 2);
}

// The loss of the MLP's output at each ratio, against the oracle's.
TEST(AwqSearchTest, AgreesWithTheOracle) {
  const auto tensors = ReadQuantFixture("awq_mlp_256x384");
  const auto text =
      ReadFile(std::string(NIBBLE_SHARED_DATA) + "/fixtures/quant/awq_mlp_256x384.json");
  if (!tensors || !text) GTEST_SKIP() << "no reference data";
  const Json oracle = Json::parse(*text);
  const FloatMatrix &gate = tensors->at("gate"), &up = tensors->at("up"),
                    &down = tensors->at("down"), &inputs = tensors->at("inputs");
  const auto backend = *MakeCpuBackend({.threads = 2});
  const auto plan = *backend->CreatePlan({.rows = inputs.rows, .sequences = 1, .context = 16},
                                         {.hidden = 256,
                                          .intermediate = 384,
                                          .heads = 4,
                                          .kv_heads = 4,
                                          .head_dim = 64,
                                          .vocabulary = 32});
  const auto prepare = [&](std::initializer_list<MatrixView> parts, Interleave interleave) {
    std::vector<Weight> weights;
    for (const MatrixView& part : parts) {
      weights.push_back(DenseWeight{.dtype = DType::kF32,
                                    .rows = part.rows,
                                    .columns = part.columns,
                                    .data = static_cast<const std::byte*>(part.data)});
    }
    std::vector<LinearSource> sources;
    for (const Weight& weight : weights) sources.push_back({.weight = &weight});
    return *backend->Prepare(sources, interleave);
  };
  const auto down_linear = prepare({down.view()}, Interleave::kNone);
  const auto run = [&](MatrixView g, MatrixView u) {
    FloatMatrix gated(inputs.rows, 384), out(inputs.rows, 256);
    const auto gate_up = prepare({g, u}, Interleave::kGateUp);
    backend->Linear(*plan, *gate_up, inputs.view(), Epilogue::kSiluMul, gated.view());
    backend->Linear(*plan, *down_linear, gated.view(), Epilogue::kNone, out.view());
    return out;
  };
  const FloatMatrix want = run(gate.view(), up.view());

  ThreadPool pool(2);
  MemoryTracker memory;
  const auto ops = MakeCpuQuantizeOps(pool, memory);
  auto statistics = *ops->CreateStatistics(256);
  ops->Accumulate(inputs.view(), *statistics);
  const MatrixView weights[] = {gate.view(), up.view()};
  const AwqForm forms[] = {AwqForm::kActivations};
  const auto search = SearchAwqScales(*ops, weights, ops->MeanMagnitudes(*statistics),
                                      {.spec = {.group_size = 128}}, forms,
                                      [&](std::span<const MatrixView> trial) -> Result<double> {
                                        const FloatMatrix got = run(trial[0], trial[1]);
                                        double sum = 0;
                                        for (size_t i = 0; i < got.values.size(); ++i) {
                                          sum += std::pow(got.values[i] - want.values[i], 2);
                                        }
                                        return sum / static_cast<double>(got.values.size());
                                      });
  ASSERT_TRUE(search);
  for (int i = 0; i < kAwqRatios; ++i) {
    const double loss = oracle["loss"][static_cast<size_t>(i)];
    EXPECT_NEAR(search->trials[static_cast<size_t>(i)].loss, loss, 0.01 * loss) << "ratio " << i;
  }
  EXPECT_DOUBLE_EQ(search->best.ratio, oracle["best"].get<double>() / kAwqRatios);
  EXPECT_LE(search->best.loss, search->rtn_loss());
}

}  // namespace
}  // namespace nibble

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
  const auto prepare = [&](std::span<const Weight> weights, Interleave interleave) {
    std::vector<LinearSource> sources;
    for (const Weight& weight : weights) sources.push_back({.weight = &weight});
    return *backend->Prepare(sources, interleave);
  };
  const auto dense = [](const FloatMatrix& matrix) -> Weight {
    return DenseWeight{.dtype = DType::kF32,
                       .rows = matrix.rows,
                       .columns = matrix.columns,
                       .data = reinterpret_cast<const std::byte*>(matrix.values.data())};
  };
  const Weight downs[] = {dense(down)};
  const auto down_linear = prepare(downs, Interleave::kNone);
  const auto run = [&](std::span<const Weight> gate_and_up, const FloatMatrix& x) {
    FloatMatrix gated(x.rows, 384), out(x.rows, 256);
    const auto gate_up = prepare(gate_and_up, Interleave::kGateUp);
    backend->Linear(*plan, *gate_up, x.view(), Epilogue::kSiluMul, gated.view());
    backend->Linear(*plan, *down_linear, gated.view(), Epilogue::kNone, out.view());
    return out;
  };
  const Weight unquantized[] = {dense(gate), dense(up)};
  const FloatMatrix want = run(unquantized, inputs);

  ThreadPool pool(2);
  MemoryTracker memory;
  const auto ops = MakeCpuQuantizeOps(pool, memory);
  auto statistics = *ops->CreateStatistics(256);
  ops->Accumulate(inputs.view(), *statistics);
  const MatrixView weights[] = {gate.view(), up.view()};
  const AwqForm forms[] = {AwqForm::kActivations};
  const GridOptions grid{.spec = {.group_size = 128}};
  // As it would become: rounded weights, and inputs divided by their scales.
  const auto scaled = [](FloatMatrix matrix, std::span<const float> scales, double power) {
    for (int64_t r = 0; r < matrix.rows; ++r) {
      for (int64_t k = 0; k < matrix.columns; ++k) {
        matrix.At(r, k) *= static_cast<float>(std::pow(scales[static_cast<size_t>(k)], power));
      }
    }
    return matrix;
  };
  const auto loss = [&](std::span<const float> scales) -> Result<double> {
    const Weight trial[] = {*ops->Round(scaled(gate, scales, 1).view(), grid, nullptr),
                            *ops->Round(scaled(up, scales, 1).view(), grid, nullptr)};
    const FloatMatrix got = run(trial, scaled(inputs, scales, -1));
    double sum = 0;
    for (size_t i = 0; i < got.values.size(); ++i) {
      sum += std::pow(got.values[i] - want.values[i], 2);
    }
    return sum / static_cast<double>(got.values.size());
  };
  const auto search = SearchAwqScales(ops->MeanMagnitudes(*statistics),
                                      MeanNormalizedWeights(weights, grid.spec), forms, loss);
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

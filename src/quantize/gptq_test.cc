#include "src/quantize/gptq.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "src/base/json.h"
#include "src/base/random.h"
#include "src/ops/cpu/cpu_quantize.h"
#include "src/quantize/fixture_util.h"

namespace nibble {
namespace {

using ::testing::ElementsAre;

TEST(SweepOrderTest, Orders) {
  const std::vector<float> h = {1, 5, 2, 9, 3, 3};
  EXPECT_THAT(SweepOrder(ColumnOrder::kNatural, h, 2), ElementsAre(0, 1, 2, 3, 4, 5));
  EXPECT_THAT(SweepOrder(ColumnOrder::kActivation, h, 2), ElementsAre(3, 1, 4, 5, 2, 0));
  EXPECT_THAT(SweepOrder(ColumnOrder::kGroup, h, 2), ElementsAre(3, 2, 1, 0, 4, 5));
}

class GptqTest : public ::testing::Test {
 protected:
  ThreadPool pool_{2};
  MemoryTracker memory_;
  std::unique_ptr<QuantizeOps> ops_ = MakeCpuQuantizeOps(pool_, memory_);

  std::unique_ptr<InputStatistics> Statistics(const FloatMatrix& inputs, int64_t step) {
    auto statistics = *ops_->CreateStatistics(inputs.columns);
    for (int64_t r = 0; r < inputs.rows; r += step) {
      ops_->Accumulate(inputs.view().Rows(r, std::min(step, inputs.rows - r)), *statistics);
    }
    return statistics;
  }

  double Error(const FloatMatrix& weight, const QuantizedWeight& quantized,
               const InputStatistics& statistics) {
    const FloatMatrix values = Dequantize(quantized);
    return ops_->OutputError(weight.view(), values.view(), statistics);
  }
};

TEST(GptqOptionsTest, DriftSamplesAreAShareAndAtLeastOne) {
  const GptqOptions quarter{.drift_samples = 0.25};
  EXPECT_EQ(quarter.DriftSamples(32), 8);
  EXPECT_EQ(quarter.DriftSamples(33), 9);
  EXPECT_EQ(quarter.DriftSamples(1), 1);
  EXPECT_EQ(GptqOptions{.drift_samples = 1}.DriftSamples(7), 7);
  EXPECT_EQ((GptqOptions{.drift_share = 0, .drift_samples = 1}.DriftSamples(7)), 0);
}

// Inputs of 1.25 times the size want weights of 1.25 times the size, which few tokens show exactly
// to a solver that saw the same ones: but for one that saw others too, not so.
TEST_F(GptqTest, RetargetsByTheTokensOfTheDrift) {
  constexpr int64_t kTokens = 256, kFew = 48, kColumns = 32;
  Random random(3);
  FloatMatrix weight(16, kColumns), inputs(kTokens, kColumns), unquantized(kTokens, kColumns);
  for (float& value : weight.values) value = static_cast<float>(random.Normal());
  for (size_t i = 0; i < inputs.values.size(); ++i) {
    inputs.values[i] = static_cast<float>(random.Normal());
    unquantized.values[i] = 1.25f * inputs.values[i];
  }
  const MatrixView view = weight.view();
  const auto statistics = *ops_->CreateStatistics(kColumns);
  const auto drift = *ops_->CreateDrift({&view, 1});
  const std::vector<float> ones(kColumns, 1.0f);
  ops_->AccumulateDrift(unquantized.view().Rows(0, kFew), ones, inputs.view().Rows(0, kFew),
                        *drift);
  ops_->Accumulate(inputs.view().Rows(0, kFew), *statistics);
  const GptqOptions options{.damping = 1e-6, .drift_share = 1};
  const QuantSpec spec{.group_size = 32};
  const auto worst = [&] {
    const auto solver = GptqSolver::Create(*ops_, *statistics, spec, options);
    const Matrix target = *solver->Retarget(view, *drift);
    double difference = 0;
    for (int64_t n = 0; n < weight.rows; ++n) {
      for (int64_t k = 0; k < kColumns; ++k) {
        const double want = 1.25 * weight.At(n, k);
        difference = std::max(difference, std::abs(target.view().row<float>(n)[k] - want));
      }
    }
    return difference;
  };
  EXPECT_LT(worst(), 1e-3);
  ops_->Accumulate(inputs.view().Rows(kFew, kTokens - kFew), *statistics);
  EXPECT_GT(worst(), 0.1);
}

struct OracleCase {
  const char* file;
  const char* tensor;
  Grid grid;
  ColumnOrder order;
};

// In the tests' names, instead of its bytes.
void PrintTo(const OracleCase& c, std::ostream* out) { *out << c.file << " " << c.tensor; }

class GptqOracleTest : public GptqTest, public ::testing::WithParamInterface<OracleCase> {};

// With the scales that the original keeps, its codes; with the ones that are stored, its error.
TEST_P(GptqOracleTest, AgreesWithTheOriginal) {
  const OracleCase& c = GetParam();
  const auto tensors = ReadQuantFixture(c.file);
  if (!tensors) GTEST_SKIP() << "no reference data";
  const FloatMatrix& weight = tensors->at("weight");
  const FloatMatrix& oracle = tensors->at(c.tensor);
  const auto statistics = Statistics(tensors->at("inputs"), 256);
  const QuantSpec spec{.group_size = 128, .grid = c.grid};
  const double oracle_error = ops_->OutputError(weight.view(), oracle.view(), *statistics);

  GptqOptions options{.order = c.order, .rounding = ScaleRounding::kNone, .damping = 0.01};
  const auto exact = GptqSolver::Create(*ops_, *statistics, spec, options)->Solve(weight.view());
  ASSERT_TRUE(exact);
  int64_t equal = 0;
  for (int64_t n = 0; n < weight.rows; ++n) {
    for (int64_t k = 0; k < weight.columns; ++k) {
      const auto group = static_cast<size_t>(n * exact->groups() + k / 128);
      const float scale = FloatFromF16(exact->scales[group]);
      const auto code = std::lrint(oracle.At(n, k) / scale) + exact->zeros[group];
      equal += code == exact->Code(n, k);
    }
  }
  EXPECT_GE(static_cast<double>(equal) / static_cast<double>(weight.rows * weight.columns), 0.995);

  options.rounding = ScaleRounding::kFloat16;
  const auto stored = GptqSolver::Create(*ops_, *statistics, spec, options)->Solve(weight.view());
  ASSERT_TRUE(stored);
  EXPECT_LE(Error(weight, *stored, *statistics), 1.01 * oracle_error);
}

INSTANTIATE_TEST_SUITE_P(
    Fixtures, GptqOracleTest,
    ::testing::Values(
        OracleCase{"linear_96x256", "gptq_sym", Grid::kSymmetric, ColumnOrder::kNatural},
        OracleCase{"linear_96x256", "gptq_asym", Grid::kAsymmetric, ColumnOrder::kNatural},
        OracleCase{"linear_96x256", "gptq_sym_actorder_static", Grid::kSymmetric,
                   ColumnOrder::kActivation},
        OracleCase{"linear_96x256", "gptq_asym_actorder_static", Grid::kAsymmetric,
                   ColumnOrder::kActivation},
        OracleCase{"linear_192x512", "gptq_sym", Grid::kSymmetric, ColumnOrder::kNatural},
        OracleCase{"linear_192x512", "gptq_asym", Grid::kAsymmetric, ColumnOrder::kNatural},
        OracleCase{"linear_192x512", "gptq_sym_actorder_static", Grid::kSymmetric,
                   ColumnOrder::kActivation},
        OracleCase{"linear_192x512", "gptq_asym_actorder_static", Grid::kAsymmetric,
                   ColumnOrder::kActivation}),
    [](const ::testing::TestParamInfo<OracleCase>& info) {
      return std::string(info.param.file) + "_" + info.param.tensor;
    });

}  // namespace
}  // namespace nibble

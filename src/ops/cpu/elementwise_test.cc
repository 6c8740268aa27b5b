#include <gtest/gtest.h>

#include "src/ops/cpu/test_util.h"
#include "src/ops/ref/ref_backend.h"

namespace nibble::cpu {
namespace {

std::unique_ptr<BatchPlan> MakePlan(Backend& backend, int64_t rows) {
  return Must(backend.CreatePlan(
      {.rows = rows, .sequences = 1, .context = rows, .logit_rows = rows},
      {.hidden = 8, .intermediate = 8, .heads = 1, .kv_heads = 1, .head_dim = 8, .vocabulary = 8}));
}

void SetTokens(Backend& backend, BatchPlan& plan, const std::vector<int32_t>& tokens,
               const std::vector<int32_t>& logit_rows) {
  const auto rows = static_cast<int32_t>(tokens.size());
  const std::vector<int32_t> positions(tokens.size(), 0), row_begin{0, rows}, lengths{rows};
  backend.SetBatch(plan, {.tokens = tokens,
                          .positions = positions,
                          .row_begin = row_begin,
                          .context_lengths = lengths,
                          .logit_rows = logit_rows});
}

TEST(ElementwiseTest, NormalizationAgreesWithRef) {
  Random random(1);
  auto ref = MakeRefBackend(1);
  auto cpu = MakeCpu(2);
  for (const int64_t n : {1, 8, 31, 111, 172, 576, 4096}) {
    GuardedMatrix x = GuardedMatrix::Normal(70, n, random);
    for (int64_t c = 0; c < n; ++c) x.row(3)[c] = 0;
    GuardedMatrix gains = GuardedMatrix::Normal(1, n, random);
    const std::span<const float> gain(gains.row(0), static_cast<size_t>(n));
    GuardedMatrix want(70, n), got(70, n), one(1, n);
    ref->RmsNorm(x.view(), Must(ref->Upload(gain)).view(), 1e-5f, want.view());
    const Matrix uploaded = Must(cpu->Upload(gain));
    cpu->RmsNorm(x.view(), uploaded.view(), 1e-5f, got.view());
    EXPECT_TRUE(got.Intact());
    for (int64_t r = 0; r < 70; ++r) {
      for (int64_t c = 0; c < n; ++c) {
        // The sum of squares: n / 32 roundings in a row; then five more.
        const double bound = (static_cast<double>(n) / 32 + 8) * 0x1p-24;
        ASSERT_NEAR(got.row(r)[c], want.row(r)[c], bound * std::abs(want.row(r)[c])) << n;
      }
      cpu->RmsNorm(x.view().Rows(r, 1), uploaded.view(), 1e-5f, one.view());
      ASSERT_TRUE(SameBits(one.row(0), got.row(r), n));
    }
    // In place.
    cpu->RmsNorm(x.view(), uploaded.view(), 1e-5f, x.view());
    for (int64_t r = 0; r < 70; ++r) ASSERT_TRUE(SameBits(x.row(r), got.row(r), n));
    x.row(0)[n - 1] = kNaN;
    cpu->RmsNorm(x.view(), uploaded.view(), 1e-5f, got.view());
    EXPECT_TRUE(std::isnan(got.row(0)[0]));
    EXPECT_FALSE(std::isnan(got.row(1)[0]));
  }
}

TEST(ElementwiseTest, EmbeddingIsTheWeightsRow) {
  Random random(2);
  std::vector<Weight> tables;
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    tables.push_back(RandomDense(dtype, 111, 72, random));
  }
  for (const Grid grid : {Grid::kAsymmetric, Grid::kSymmetric}) {
    tables.push_back(RandomQuantized({.group_size = 36, .grid = grid}, 111, 72, random));
    tables.push_back(RandomQuantized({.group_size = kPerChannel, .grid = grid}, 111, 172, random));
    tables.push_back(RandomQuantized(
        {.group_size = 36, .grid = grid, .order = GroupOrder::kIndexed}, 111, 72, random));
  }
  auto cpu = MakeCpu(2);
  auto plan = MakePlan(*cpu, 300);
  std::vector<int32_t> tokens;
  for (int i = 0; i < 300; ++i) tokens.push_back(static_cast<int32_t>(random.Below(111)));
  SetTokens(*cpu, *plan, tokens, {});
  for (const Weight& table : tables) {
    const LinearSource source{.weight = &table};
    auto linear = Must(cpu->Prepare({&source, 1}, Interleave::kNone));
    GuardedMatrix out(300, ColumnsOf(table));
    cpu->Embed(*plan, *linear, out.view());
    EXPECT_TRUE(out.Intact());
    for (int64_t r = 0; r < 300; ++r) {
      for (int64_t c = 0; c < ColumnsOf(table); ++c) {
        const float want = std::visit(
            [&](const auto& w) { return w.At(tokens[static_cast<size_t>(r)], c); }, table);
        ASSERT_EQ(out.row(r)[c], want) << r << ", " << c;
      }
    }
  }
}

TEST(ElementwiseTest, NormalizesTheRowsWhoseLogitsAreWanted) {
  Random random(3);
  auto cpu = MakeCpu(1);
  auto plan = MakePlan(*cpu, 9);
  SetTokens(*cpu, *plan, std::vector<int32_t>(9, 0), {0, 4, 8});
  GuardedMatrix x = GuardedMatrix::Normal(9, 13, random);
  GuardedMatrix out(3, 13), want(9, 13);
  GuardedMatrix gains = GuardedMatrix::Normal(1, 13, random);
  const Matrix gain = Must(cpu->Upload(std::span<const float>(gains.row(0), 13)));
  cpu->RmsNorm(x.view(), gain.view(), 1e-5f, want.view());
  cpu->NormLogitRows(*plan, x.view(), gain.view(), 1e-5f, out.view());
  EXPECT_TRUE(out.Intact());
  for (const int64_t i : {0, 1, 2}) EXPECT_TRUE(SameBits(out.row(i), want.row(4 * i), 13));
  const MatrixView host = Must(cpu->ToHost(out.view()));
  EXPECT_EQ(host.data, out.view().data);  // no copy
}

}  // namespace
}  // namespace nibble::cpu

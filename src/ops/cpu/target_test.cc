// The kernels are compiled for several instruction sets; those that this machine has are all run.
#include <gtest/gtest.h>

#include "src/ops/cpu/targets.h"
#include "src/ops/cpu/test_util.h"
// After targets.h, which selects them.
#include "hwy/highway.h"
#include "src/ops/ref/ref_backend.h"

namespace nibble::cpu {
namespace {

class TargetTest : public ::testing::TestWithParam<int64_t> {
 protected:
  void SetUp() override { Select(GetParam()); }
  void TearDown() override { Select(0); }  // what the machine has

 private:
  static void Select(int64_t targets) {
    hwy::SetSupportedTargetsForTest(targets);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  }
};

struct Outputs {
  GuardedMatrix product, normalized, attended;
};

// One step with every operation that has a kernel.
Outputs Step(Backend& backend, const Weight& weight) {
  constexpr int64_t kRows = 23;
  constexpr int64_t kHeads = 4, kKvHeads = 2, kHeadDim = 24;
  constexpr int64_t kQkv = (kHeads + 2 * kKvHeads) * kHeadDim;
  const int64_t in = ColumnsOf(weight);
  Random random(1);
  GuardedMatrix x = GuardedMatrix::Normal(kRows, in, random);
  GuardedMatrix gain = GuardedMatrix::Normal(1, in, random);
  GuardedMatrix qkv = GuardedMatrix::Normal(kRows, kQkv, random);
  Outputs out{GuardedMatrix(kRows, RowsOf(weight) / 2), GuardedMatrix(kRows, in),
              GuardedMatrix(kRows, kHeads * kHeadDim)};

  const LinearSource source{.weight = &weight};
  auto linear = Must(backend.Prepare({&source, 1}, Interleave::kGateUp));
  auto plan = Must(backend.CreatePlan(
      {.rows = kRows, .sequences = 1, .context = 32, .logit_rows = 1},
      {.hidden = in, .heads = kHeads, .kv_heads = kKvHeads, .head_dim = kHeadDim}));
  auto cache = Must(backend.CreateKvCache({.layers = 1,
                                           .kv_heads = kKvHeads,
                                           .head_dim = kHeadDim,
                                           .block_tokens = 16,
                                           .dtype = DType::kF16},
                                          2));
  std::vector<int32_t> tokens(kRows), positions(kRows);
  for (int32_t r = 0; r < kRows; ++r) positions[static_cast<size_t>(r)] = r;
  const std::vector<int32_t> row_begin{0, kRows}, lengths{kRows}, table{1, 0};
  backend.SetBatch(*plan, {.tokens = tokens,
                           .positions = positions,
                           .row_begin = row_begin,
                           .context_lengths = lengths,
                           .block_tables = table,
                           .max_blocks = 2});
  backend.Linear(*plan, *linear, x.view(), Epilogue::kSiluMul, out.product.view());
  backend.RmsNorm(x.view(), gain.view(), 1e-5f, out.normalized.view());
  const AttentionSpec attention{
      .heads = kHeads, .kv_heads = kKvHeads, .head_dim = kHeadDim, .scale = 0.2f};
  const std::vector<float> frequencies(kHeadDim / 2, 0.3f);
  backend.RopeAndStoreKv(*plan, {frequencies}, attention, 0, qkv.view(), *cache);
  backend.Attend(*plan, attention, 0, qkv.view().Columns(0, kHeads * kHeadDim), *cache,
                 out.attended.view());
  return out;
}

TEST_P(TargetTest, AgreesWithRef) {
  Random random(2);
  std::vector<Weight> weights;
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    weights.push_back(RandomDense(dtype, 2 * 37, 72, random, 0.1));
  }
  for (const Grid grid : {Grid::kAsymmetric, Grid::kSymmetric}) {
    weights.push_back(RandomQuantized({.group_size = 24, .grid = grid}, 2 * 37, 72, random));
    weights.push_back(RandomQuantized({.group_size = kPerChannel, .grid = grid}, 74, 172, random));
  }
  auto cpu = MakeCpu(1);
  auto ref = MakeRefBackend(1);
  EXPECT_NE(cpu->description().find(hwy::TargetName(GetParam())), std::string::npos);
  for (const Weight& weight : weights) {
    const Outputs got = Step(*cpu, weight);
    const Outputs want = Step(*ref, weight);
    // 4-bit: each of two factors may be off by half a step of 1 / 32767; see linear_test.cc.
    const bool dense = std::holds_alternative<DenseWeight>(weight);
    EXPECT_LT(NormalizedSquareError(got.product, want.product), dense ? 1e-12 : 1e-8);
    EXPECT_LT(NormalizedSquareError(got.normalized, want.normalized), 1e-13);
    EXPECT_LT(NormalizedSquareError(got.attended, want.attended), 1e-7);
  }
}

INSTANTIATE_TEST_SUITE_P(All, TargetTest, ::testing::ValuesIn(hwy::SupportedAndGeneratedTargets()),
                         [](const ::testing::TestParamInfo<int64_t>& info) {
                           return std::string(hwy::TargetName(info.param));
                         });

}  // namespace
}  // namespace nibble::cpu

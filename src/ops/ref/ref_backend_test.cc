#include "src/ops/ref/ref_backend.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "src/base/must.h"
#include "src/tensor/host_floats.h"

namespace nibble {
namespace {

using ::testing::ElementsAre;

constexpr float kHalfUlp = 0x1p-11f;  // of float16 at 1

class RefBackendTest : public ::testing::Test {
 protected:
  static Matrix MatrixOf(Backend& backend, DType type,
                         const std::vector<std::vector<float>>& rows) {
    Matrix matrix =
        Must(backend.Allocate(MemoryClass::kWorkspace, type, static_cast<int64_t>(rows.size()),
                              static_cast<int64_t>(rows[0].size())));
    for (size_t r = 0; r < rows.size(); ++r) {
      for (size_t c = 0; c < rows[r].size(); ++c) {
        SetFloat(matrix.view(), static_cast<int64_t>(r), static_cast<int64_t>(c), rows[r][c]);
      }
    }
    return matrix;
  }

  // out after x · weightᵀ with the epilogue.
  static std::vector<float> Linear(Backend& backend, std::vector<float> weight, int64_t columns,
                                   const Matrix& x, Epilogue epilogue, const Matrix& out) {
    const Weight source = DenseWeight{.dtype = DType::kF32,
                                      .rows = static_cast<int64_t>(weight.size()) / columns,
                                      .columns = columns,
                                      .data = reinterpret_cast<const std::byte*>(weight.data())};
    const LinearSource sources[] = {{.weight = &source}};
    const auto interleave =
        epilogue == Epilogue::kSiluMul ? Interleave::kGateUp : Interleave::kNone;
    const auto linear = Must(backend.Prepare(sources, interleave));
    const auto plan = Must(backend.CreatePlan({}, {}));
    backend.Linear(*plan, *linear, x.view(), epilogue, out.view());
    return FloatsOf(out.view());
  }

  // One head of two dimensions, two tokens: the second's output, whose scores are 0 and `score`.
  static std::vector<float> Attend(Backend& backend, float score, const Matrix& out) {
    const DType type = backend.activation_type();
    const AttentionSpec spec{.heads = 1, .kv_heads = 1, .head_dim = 2, .scale = 1};
    const auto plan = Must(backend.CreatePlan({}, {}));
    const auto cache = Must(backend.CreateKvCache(
        {.layers = 1, .kv_heads = 1, .head_dim = 2, .block_tokens = 16, .dtype = type}, 1));
    const int32_t tokens[] = {0, 0}, positions[] = {0, 1}, begin[] = {0, 2}, lengths[] = {2},
                  blocks[] = {0};
    backend.SetBatch(*plan, {.tokens = tokens,
                             .positions = positions,
                             .row_begin = begin,
                             .context_lengths = lengths,
                             .block_tables = blocks,
                             .max_blocks = 1,
                             .logit_rows = {}});
    const float still[] = {0};  // no turning
    const Matrix qkv = MatrixOf(backend, type, {{1, 0, 0, 0, 0, 0}, {1, 0, score, 0, 1, 3}});
    backend.RopeAndAttend(*plan, {still}, spec, 0, qkv.view(), *cache, out.view());
    return FloatsOf(out.view().Rows(1, 1));
  }

  std::unique_ptr<Backend> exact_ = MakeRefBackend(2);
  std::unique_ptr<Backend> half_ = MakeRefBackend(2, DType::kF16);
  std::unique_ptr<Backend> bfloat_ = MakeRefBackend(2, DType::kBF16);
};

TEST_F(RefBackendTest, RoundsWeightsToTheActivationsType) {
  const std::vector<float> weight = {1 + kHalfUlp, 1 + 3 * kHalfUlp, 1 + 0x1p-7f, 1 + 0x1p-8f};
  const auto product = [&](Backend& backend) {
    const Matrix x = MatrixOf(backend, backend.activation_type(), {{1}});
    const Matrix logits = MatrixOf(backend, DType::kF32, {{0, 0, 0, 0}});
    return Linear(backend, weight, 1, x, Epilogue::kNone, logits);
  };
  EXPECT_EQ(product(*exact_), weight);
  EXPECT_THAT(product(*half_), ElementsAre(1, 1 + 4 * kHalfUlp, weight[2], weight[3]));  // to even
  EXPECT_THAT(product(*bfloat_), ElementsAre(1, 1, weight[2], 1));
}

TEST_F(RefBackendTest, RoundsASumOnceAndLogitsNever) {
  // 2048 + 1.0004 lies above the middle of 2048 and 2050; 1.0004 rounded first would not.
  const std::vector<float> weight = {1, 0x1p-11f};
  const Matrix x = MatrixOf(*half_, DType::kF16, {{1, 0.875f}});
  const Matrix residual = MatrixOf(*half_, DType::kF16, {{2048}});
  EXPECT_THAT(Linear(*half_, weight, 2, x, Epilogue::kAdd, residual), ElementsAre(2050));
  const Matrix logits = MatrixOf(*half_, DType::kF32, {{0}});
  EXPECT_THAT(Linear(*half_, weight, 2, x, Epilogue::kNone, logits),
              ElementsAre(1 + 0.875f * kHalfUlp));
}

TEST_F(RefBackendTest, RoundsGateAndUpBeforeTheirProduct) {
  // Gate 1 + 3/4 of half a step, up 1024 times as much.
  const std::vector<float> weight = {1, 0.75f * kHalfUlp, 1024, 768 * kHalfUlp};
  const auto gated = [&](Backend& backend) {
    const Matrix x = MatrixOf(backend, backend.activation_type(), {{1, 1}});
    return Linear(backend, weight, 2, x, Epilogue::kSiluMul,
                  MatrixOf(backend, DType::kF32, {{0}}))[0];
  };
  const double silu = 1 / (1 + std::exp(-1.0));
  EXPECT_FLOAT_EQ(gated(*half_), static_cast<float>(silu * 1024));
  EXPECT_GT(gated(*exact_), silu * 1024 * (1 + kHalfUlp));
}

TEST_F(RefBackendTest, RoundsWhatSoftmaxMultipliesButNotItsSum) {
  const double weight = std::exp(-2.0), total = 1 + weight;
  for (Backend* const backend : {exact_.get(), half_.get(), bfloat_.get()}) {
    const DType type = backend->activation_type();
    const double seen = type == DType::kF32 ? weight : RoundTo(type, static_cast<float>(weight));
    const Matrix out = MatrixOf(*backend, DType::kF32, {{0, 0}, {0, 0}});
    const std::vector<float> got = Attend(*backend, -2, out);
    EXPECT_FLOAT_EQ(got[0], static_cast<float>(seen / total)) << Name(type);
    EXPECT_FLOAT_EQ(got[1], static_cast<float>(3 * seen / total)) << Name(type);
  }
}

TEST_F(RefBackendTest, NormsRoundWhatTheyWrite) {
  const std::vector<float> gain = {1, 0.3f, -0.7f};
  const auto norm = [&](Backend& backend) {
    const Matrix x = MatrixOf(backend, backend.activation_type(), {{1, 2, 4}});
    backend.RmsNorm(x.view(), Must(backend.Upload(gain)).view(), 1e-5f, x.view());
    return FloatsOf(x.view());
  };
  const std::vector<float> want = norm(*exact_);
  for (Backend* const backend : {half_.get(), bfloat_.get()}) {
    const std::vector<float> got = norm(*backend);
    for (size_t i = 0; i < want.size(); ++i) {
      EXPECT_EQ(got[i], RoundTo(backend->activation_type(), want[i]));
      EXPECT_NE(got[i], want[i]);
    }
  }
}

}  // namespace
}  // namespace nibble

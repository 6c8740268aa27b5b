// Choosing tokens on the device against the host's definition: the very same tokens.
#include "src/ops/sampling.h"

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "src/base/must.h"
#include "src/base/random.h"
#include "src/ops/cuda/cuda_backend.h"
#include "src/ops/cuda/device.h"

namespace nibble {
namespace {

// Of the most columns: a row alone, the most rows of which clusters take the most probable token,
// the most of which they draw, and one more, which have a block each.
constexpr int64_t kRowCounts[] = {1, 8, 32, 33};

class CudaSamplingTest : public testing::Test {
 protected:
  void SetUp() override {
    if (ListCudaDevices().empty()) GTEST_SKIP() << "there is no NVIDIA GPU here";
    cuda_ = Must(MakeCudaBackend({}));
  }

  void MakePlan(int64_t rows) {
    rows_ = rows;
    plan_ = Must(cuda_->CreatePlan(
        {.rows = rows, .sequences = rows, .context = 32, .logit_rows = rows},
        {.hidden = 64, .intermediate = 64, .heads = 1, .kv_heads = 1, .head_dim = 64}));
  }

  // A step of one row a sequence whose logits are all wanted.
  void SetBatch(const std::vector<TokenChoice>& choices,
                std::span<const int32_t> chosen_rows = {}) {
    const std::vector<int32_t> zeros(static_cast<size_t>(rows_)), ones(zeros.size(), 1);
    std::vector<int32_t> rows(zeros.size() + 1);
    std::iota(rows.begin(), rows.end(), 0);
    cuda_->SetBatch(*plan_, {.tokens = zeros,
                             .positions = zeros,
                             .row_begin = rows,
                             .context_lengths = ones,
                             .block_tables = zeros,
                             .max_blocks = 1,
                             .logit_rows = std::span(rows).first(zeros.size()),
                             .chosen_rows = chosen_rows,
                             .choices = choices});
  }

  // Strided, with what a kernel must not read between the rows.
  MatrixView Upload(const std::vector<std::vector<float>>& rows) {
    const auto columns = static_cast<int64_t>(rows[0].size()), stride = columns + 5;
    std::vector<float> values(static_cast<size_t>(rows_ * stride),
                              std::numeric_limits<float>::infinity());
    for (size_t r = 0; r < rows.size(); ++r) {
      std::copy(rows[r].begin(), rows[r].end(), values.begin() + static_cast<int64_t>(r) * stride);
    }
    logits_ = Must(cuda_->Allocate(MemoryClass::kWorkspace, DType::kF32, rows_, stride));
    EXPECT_EQ(cudaMemcpy(logits_.view().data, values.data(), values.size() * sizeof(float),
                         cudaMemcpyHostToDevice),
              cudaSuccess);
    cudaDeviceSynchronize();
    MatrixView view = logits_.view().Columns(0, columns);
    view.stride = stride;
    return view;
  }

  std::vector<int32_t> Choose(const std::vector<std::vector<float>>& rows,
                              const std::vector<TokenChoice>& choices) {
    SetBatch(choices);
    cuda_->ChooseTokens(*plan_, Upload(rows));
    const std::span<const int32_t> tokens = Must(cuda_->ReceiveTokens(*plan_));
    return {tokens.begin(), tokens.end()};
  }

  int64_t rows_ = 0;
  std::unique_ptr<Backend> cuda_;
  std::unique_ptr<BatchPlan> plan_;
  Matrix logits_;
};

// Of several kinds: spread wide, narrow, with many equals, with outliers, with NaN and infinities.
std::vector<float> RandomLogits(int64_t columns, int kind, Random& random) {
  std::vector<float> logits(static_cast<size_t>(columns));
  for (float& logit : logits) {
    const auto normal = static_cast<float>(random.Normal());
    logit = kind == 0   ? normal * 3
            : kind == 1 ? normal * 0.01f
            : kind == 2 ? std::round(normal * 2)
            : kind == 3 ? 1.0f
                        : normal * 20;
    if (kind == 4 && random.Below(4) == 0) logit = std::numeric_limits<float>::quiet_NaN();
    if (kind == 4 && random.Below(4) == 0) logit = -std::numeric_limits<float>::infinity();
  }
  return logits;
}

TEST_F(CudaSamplingTest, ChoosesWhatTheHostChooses) {
  Random random(1);
  for (const int64_t row_count : kRowCounts) {
    MakePlan(row_count);
    for (const int64_t columns :
         {1, 2, 31, 33, 111, 1024, 1025, 8191, 8192, 8193, 8200, 32000, 128256}) {
      for (int kind = 0; kind < 5; ++kind) {
        std::vector<std::vector<float>> rows;
        std::vector<TokenChoice> choices;
        for (int64_t r = 0; r < row_count; ++r) {
          rows.push_back(RandomLogits(columns, kind, random));
          SamplingOptions options{.seed = random.Next()};
          const double temperatures[] = {0, 0.05, 0.7, 1, 30};
          options.temperature = temperatures[random.Below(5)];
          if (random.Below(2) == 0)
            options.top_k =
                1 + static_cast<int64_t>(random.Below(
                        random.Below(2) == 0 ? 50 : static_cast<uint64_t>(2 * columns)));
          if (random.Below(2) == 0) options.top_p = random.Uniform();
          choices.push_back(ChoiceAt(options, r));
        }
        const std::vector<int32_t> got = Choose(rows, choices);
        ASSERT_EQ(got.size(), rows.size());
        for (size_t r = 0; r < rows.size(); ++r) {
          EXPECT_EQ(got[r], ChooseToken(rows[r], choices[r]))
              << "row " << r << " of " << row_count << ", " << columns << " columns, kind " << kind
              << ": scale " << choices[r].scale << ", top_k " << choices[r].top_k << ", top_p "
              << choices[r].top_p;
        }
      }
    }
  }
}

TEST_F(CudaSamplingTest, WithoutChoicesTakesTheFirstOfTheGreatest) {
  Random random(2);
  for (const int64_t row_count : kRowCounts) {
    MakePlan(row_count);
    for (const int64_t columns : {1, 31, 1024, 8191, 8192, 8200, 32000, 128256}) {
      std::vector<std::vector<float>> rows;
      for (int64_t r = 0; r < row_count; ++r) {
        rows.push_back(RandomLogits(columns, static_cast<int>(r % 5), random));
      }
      if (columns > 40) rows.back()[17] = rows.back()[40] = 100;
      // In two blocks of a cluster.
      if (columns > 8000) rows[0][3000] = rows[0][8000] = 100;
      const std::vector<int32_t> got = Choose(rows, {});
      for (size_t r = 0; r < rows.size(); ++r) {
        EXPECT_EQ(got[r], MostProbable(rows[r]))
            << "row " << r << " of " << row_count << ", " << columns << " columns";
      }
    }
  }
}

// Many steps ahead of the host: the tokens come one step after the other, and each step's rows have
// those of the step before.
TEST_F(CudaSamplingTest, TokensWaitUntilTheyAreReceived) {
  constexpr int kSteps = 20;
  constexpr int64_t kRows = 24;
  MakePlan(kRows);
  std::vector<std::vector<int32_t>> want;
  for (int step = 0; step < kSteps; ++step) {
    std::vector<std::vector<float>> rows(kRows, std::vector<float>(100, 0.0f));
    std::vector<int32_t>& tokens = want.emplace_back();
    for (int64_t r = 0; r < kRows; ++r) {
      tokens.push_back(static_cast<int32_t>((step * 7 + r * 3) % 100));
      rows[static_cast<size_t>(r)][static_cast<size_t>(tokens.back())] = 1;
    }
    SetBatch({});
    cuda_->ChooseTokens(*plan_, Upload(rows));
    // Upload frees the last step's logits, which cudaFree does once their kernel is done.
  }
  for (int step = 0; step < kSteps; ++step) {
    const std::span<const int32_t> got = Must(cuda_->ReceiveTokens(*plan_));
    EXPECT_EQ(std::vector<int32_t>(got.begin(), got.end()), want[static_cast<size_t>(step)]);
  }
  // The last step's tokens, in another order, are the embedded ones.
  std::vector<float> table(100 * 8);
  for (size_t i = 0; i < table.size(); ++i) table[i] = static_cast<float>(i / 8);
  const Weight weight = DenseWeight{.dtype = DType::kF32,
                                    .rows = 100,
                                    .columns = 8,
                                    .data = reinterpret_cast<const std::byte*>(table.data())};
  const LinearSource source{&weight, {}};
  const auto embedding = Must(cuda_->Prepare({&source, 1}, Interleave::kNone));
  std::vector<int32_t> chosen_rows(kRows);
  for (int64_t r = 0; r < kRows; ++r) chosen_rows[static_cast<size_t>(r)] = kRows - 1 - r;
  chosen_rows[3] = -1;
  SetBatch({}, chosen_rows);
  const Matrix out = Must(cuda_->Allocate(MemoryClass::kWorkspace, DType::kF16, kRows, 8));
  cuda_->Embed(*plan_, *embedding, out.view());
  const MatrixView on_host = Must(cuda_->ToHost(out.view()));
  for (int64_t r = 0; r < kRows; ++r) {
    const float token =
        r == 3 ? 0 : static_cast<float>(want.back()[static_cast<size_t>(kRows - 1 - r)]);
    EXPECT_EQ(FloatFromF16(on_host.row<uint16_t>(r)[5]), token) << r;
  }
}

}  // namespace
}  // namespace nibble

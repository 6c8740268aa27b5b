// 4-bit products that take over the norms beside them: what the one before a norm writes, and what
// the one behind it makes of that.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "src/ops/cuda/linear_q4_test_util.cuh"

namespace nibble::cuda::q4 {
namespace {

constexpr float kEpsilon = 0.05f;

// A norm, with canaries around what is written for it.
struct NormCase {
  LinkedNorm norm;
  std::vector<float> host_gain;
  Buffer gain, scaled, squares;
  std::vector<uint16_t> scaled_before;
  std::vector<float> squares_before;
};

class LinearQ4LinksTest : public LinearQ4Test {
 protected:
  // A product, the norm behind it, and another product behind that.
  void CheckLinks(Problem first, Problem second, uint64_t seed);

 private:
  NormCase MakeNorm(const Problem& first, uint64_t seed);
  // Checks the first product and what it writes for the norm; the factors of the norm's rows.
  std::vector<double> CheckBehind(const Case& c, const NormCase& norm);

  void Multiply(const Case& c, const LinkedNorms& norms) {
    LinearQ4(*stream_, c.layout, c.packed.data(), c.bias_data, c.x_view, c.problem.epilogue,
             c.out_view, nullptr, CudaKernels::kAuto, norms);
  }
};

NormCase LinearQ4LinksTest::MakeNorm(const Problem& first, uint64_t seed) {
  Random random(seed);
  NormCase c;
  float largest = 0;
  for (int64_t i = 0; i < first.out; ++i) {
    c.host_gain.push_back(static_cast<float>(2 * random.Normal()));
    largest = std::max(largest, std::abs(c.host_gain.back()));
  }
  const int64_t stride = first.out + 8;
  c.scaled_before.assign(static_cast<size_t>(first.rows * stride + 2 * kMargin), kCanary);
  c.squares_before.assign(static_cast<size_t>(LinkedSquares(first.out) + 2 * kMargin), -1.0f);
  c.gain = Upload(c.host_gain);
  c.scaled = Upload(c.scaled_before);
  c.squares = Upload(c.squares_before);
  c.norm = {
      .gain = c.gain.as<float>(),
      .scale = ScaleOfGain(largest),
      .epsilon = kEpsilon,
      .scaled = {c.scaled.as<uint16_t>() + kMargin, first.dtype, first.rows, first.out, stride},
      .squares = c.squares.as<float>() + kMargin};
  EXPECT_LE(largest * c.norm.scale, 1);
  EXPECT_GE(largest * c.norm.scale, 0.5f);
  return c;
}

std::vector<double> LinearQ4LinksTest::CheckBehind(const Case& c, const NormCase& norm) {
  const Problem& p = c.problem;
  std::vector<uint16_t> scaled;
  std::vector<float> squares;
  CheckProduct(c, [&] {
    Copy(norm.scaled_before, norm.scaled.data());
    Copy(norm.squares_before, norm.squares.data());
    Multiply(c, {.behind = &norm.norm});
    auto scaled_now = Download<uint16_t>(norm.scaled.data(), norm.scaled_before.size());
    auto squares_now = Download<float>(norm.squares.data(), norm.squares_before.size());
    if (!scaled.empty()) {
      EXPECT_EQ(scaled_now, scaled) << "not repeatable";
      EXPECT_EQ(squares_now, squares) << "not repeatable";
    }
    scaled = std::move(scaled_now);
    squares = std::move(squares_now);
  });

  const auto out = Download<uint16_t>(c.out.data(), c.before.size());
  const int64_t stride = norm.norm.scaled.stride;
  std::vector<uint16_t> want = norm.scaled_before;
  std::vector<double> factors;
  for (int64_t r = 0; r < p.rows; ++r) {
    double sum = 0;
    for (int64_t n = 0; n < p.out; ++n) {
      const double x =
          Value(p.dtype, out[static_cast<size_t>(kMargin + r * c.out_view.stride + n)]);
      const float by = norm.host_gain[static_cast<size_t>(n)] * norm.norm.scale;
      want[static_cast<size_t>(kMargin + r * stride + n)] =
          Bits(p.dtype, static_cast<float>(x) * by);
      sum += x * x;
    }
    factors.push_back(1 / std::sqrt(sum / static_cast<double>(p.out) + kEpsilon) / norm.norm.scale);
  }
  EXPECT_EQ(scaled, want);
  for (int64_t i = 0; i < kMargin; ++i) {
    EXPECT_EQ(squares[static_cast<size_t>(i)], -1) << "written before the squares";
    EXPECT_EQ(squares[squares.size() - 1 - static_cast<size_t>(i)], -1) << "and behind them";
  }
  return factors;
}

void LinearQ4LinksTest::CheckLinks(Problem first, Problem second, uint64_t seed) {
  first.epilogue = Epilogue::kAdd;
  second.rows = first.rows;
  second.in = first.out;
  second.dtype = first.dtype;
  SCOPED_TRACE(first.text() + "; " + second.text());
  const Case made = MakeCase(first, seed);
  const NormCase norm = MakeNorm(first, seed + 1);
  const std::vector<double> factors = CheckBehind(made, norm);
  Case next = MakeCase(second, seed + 2);  // whose x is as good as what was written for the norm
  for (size_t i = 0; i < next.sums.size(); ++i) {
    const double factor = factors[i / static_cast<size_t>(second.out)];
    const auto [value, terms, inputs, partial] = next.sums[i];
    next.sums[i] = {value * factor, terms * factor, inputs * factor, partial * factor};
  }
  LinkedNorm before = norm.norm;
  before.scaled = next.x_view;
  CheckProduct(next, [&] { Multiply(next, {.before = &before}); });
}

TEST_F(LinearQ4LinksTest, EveryRowCount) {
  for (int64_t rows = 1; rows <= kMostLinkedRows; ++rows) {
    for (const DType dtype : {DType::kF16, DType::kBF16}) {
      CheckLinks({.rows = rows, .out = 1024, .in = 384, .dtype = dtype},
                 {.out = 592, .epilogue = rows % 2 == 0 ? Epilogue::kSiluMul : Epilogue::kNone},
                 static_cast<uint64_t>(rows));
      if (HasFatalFailure()) return;
    }
  }
}

// Of one piece of the sums of squares and less, to many, the last of which are not whole.
TEST_F(LinearQ4LinksTest, HiddenSizes) {
  for (const int64_t hidden : {8, 16, 56, 64, 72, 200, 576, 1000, 4104}) {
    for (const int64_t rows : {3, 8}) {
      CheckLinks({.rows = rows, .out = hidden, .in = 512},
                 {.out = 136, .group = kPerChannel, .grid = Grid::kSymmetric}, 40);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_F(LinearQ4LinksTest, EveryGroupLength) {
  for (const Grid grid : {Grid::kAsymmetric, Grid::kSymmetric, Grid::kSymmetricFull}) {
    for (const DType dtype : {DType::kF16, DType::kBF16}) {
      for (const int64_t group :
           {int64_t{32}, int64_t{64}, int64_t{128}, int64_t{384}, kPerChannel}) {
        for (const int64_t rows : {2, 7}) {
          CheckLinks(
              {.rows = rows, .out = 1152, .in = 1536, .group = group, .grid = grid, .dtype = dtype},
              {.out = 200, .group = group, .grid = grid}, 41);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

// Rows that do not follow each other, outputs that are not aligned, biases on both sides.
TEST_F(LinearQ4LinksTest, GapsAndBiases) {
  for (const int64_t rows : {2, 5, 8}) {
    for (const Epilogue epilogue : {Epilogue::kNone, Epilogue::kSiluMul}) {
      CheckLinks({.rows = rows, .out = 328, .in = 256, .bias = true, .x_gap = 8, .out_gap = 24},
                 {.out = 202,
                  .group = kPerChannel,
                  .epilogue = epilogue,
                  .bias = true,
                  .x_gap = 16,
                  .out_gap = 5},
                 42);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_F(LinearQ4LinksTest, ModelShapes) {
  for (const int64_t rows : {2, 5, 8}) {
    CheckLinks({.rows = rows, .out = 4096, .in = 4096, .grid = Grid::kSymmetric},
               {.out = 22016, .grid = Grid::kSymmetric, .epilogue = Epilogue::kSiluMul}, 43);
    CheckLinks({.rows = rows, .out = 4096, .in = 11008, .grid = Grid::kSymmetric},
               {.out = 12288, .grid = Grid::kSymmetric}, 44);
    CheckLinks({.rows = rows, .out = 576, .in = 1536, .group = 32}, {.out = 960, .group = 32}, 45);
    if (HasFatalFailure()) return;
  }
}

TEST(ScaleOfGainTest, IsAPowerOfTwoThatBringsGainsToOne) {
  for (const float gain : {1e-20f, 0.02f, 0.5f, 0.99f, 1.0f, 1.01f, 7.9f, 8.0f, 3e4f}) {
    const float scale = ScaleOfGain(gain);
    EXPECT_EQ(scale, std::exp2(std::round(std::log2(scale))));
    EXPECT_LE(gain * scale, 1);
    EXPECT_GE(gain * scale, 0.5f);
  }
  EXPECT_EQ(ScaleOfGain(0), 1);
}

}  // namespace
}  // namespace nibble::cuda::q4

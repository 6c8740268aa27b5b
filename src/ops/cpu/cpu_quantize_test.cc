#include "src/ops/cpu/cpu_quantize.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "src/base/random.h"
#include "src/ops/ref/ref_quantize.h"

namespace nibble {
namespace {

struct Floats {
  int64_t rows, columns;
  std::vector<float> values;

  Floats(int64_t r, int64_t c) : rows(r), columns(c), values(static_cast<size_t>(r * c)) {}
  static Floats Random(int64_t rows, int64_t columns, uint64_t seed, double size = 1) {
    nibble::Random random(seed);
    Floats floats(rows, columns);
    for (float& v : floats.values) v = static_cast<float>(random.Normal() * size);
    return floats;
  }
  float& At(int64_t r, int64_t c) { return values[static_cast<size_t>(r * columns + c)]; }
  float At(int64_t r, int64_t c) const { return values[static_cast<size_t>(r * columns + c)]; }
  MatrixView view() const {
    return {const_cast<float*>(values.data()), DType::kF32, rows, columns, columns};
  }
};

class CpuQuantizeTest : public ::testing::Test {
 protected:
  std::unique_ptr<InputStatistics> Statistics(const Floats& x) {
    auto statistics = *ops_->CreateStatistics(x.columns);
    ops_->Accumulate(x.view().Rows(0, x.rows / 3), *statistics);
    ops_->Accumulate(x.view().Rows(x.rows / 3, x.rows - x.rows / 3), *statistics);
    return statistics;
  }

  ThreadPool pool_{2};
  MemoryTracker memory_;
  std::unique_ptr<QuantizeOps> ops_ = MakeCpuQuantizeOps(pool_, memory_);
};

constexpr Grid kGrids[] = {Grid::kAsymmetric, Grid::kSymmetric, Grid::kSymmetricFull};

// Every weight goes to the nearest of the 16 values that its group's grid has, and the grid is the
// format's own.
TEST_F(CpuQuantizeTest, RoundTakesTheNearestGridValue) {
  const Floats w = Floats::Random(45, 128, 1, 0.05);  // a last tile that is not full
  for (const Grid grid : kGrids) {
    for (const int64_t group : {int64_t{32}, int64_t{64}, int64_t{128}, kPerChannel}) {
      const QuantizedWeight q =
          ops_->Round(w.view(), {.spec = {.group_size = group, .grid = grid}}, nullptr).value();
      for (int64_t n = 0; n < q.rows; ++n) {
        for (int64_t g = 0; g < q.groups(); ++g) {
          const auto at = static_cast<size_t>(n * q.groups() + g);
          const std::span<const float> values(
              &w.values[static_cast<size_t>(n * 128 + g * q.group_length())],
              static_cast<size_t>(q.group_length()));
          const GroupGrid want = *FindGrid(values, grid);
          ASSERT_EQ(FloatFromF16(q.scales[at]), want.scale);
          ASSERT_EQ(q.zeros[at], want.zero);
          for (int64_t i = 0; i < q.group_length(); ++i) {
            ASSERT_EQ(q.Code(n, g * q.group_length() + i),
                      want.Code(values[static_cast<size_t>(i)]));
          }
        }
      }
    }
  }
}

TEST_F(CpuQuantizeTest, StatisticsAreMeansOverAllTokens) {
  const Floats x = Floats::Random(50, 24, 2);
  const auto statistics = Statistics(x);
  EXPECT_EQ(statistics->tokens(), 50);
  const auto squares = ops_->MeanSquares(*statistics), sizes = ops_->MeanMagnitudes(*statistics);
  for (int64_t k = 0; k < 24; ++k) {
    double square = 0, size = 0;
    for (int64_t r = 0; r < 50; ++r) {
      square += std::pow(x.At(r, k), 2) / 50;
      size += std::abs(x.At(r, k)) / 50;
    }
    EXPECT_NEAR(squares[static_cast<size_t>(k)], square, 1e-5 * square);
    EXPECT_NEAR(sizes[static_cast<size_t>(k)], size, 1e-5 * size);
  }
}

TEST_F(CpuQuantizeTest, OutputErrorIsThatOfTheOutputs) {
  const Floats x = Floats::Random(60, 32, 3), a = Floats::Random(10, 32, 4),
               b = Floats::Random(10, 32, 5);
  const auto statistics = Statistics(x);
  double want = 0;
  for (int64_t r = 0; r < x.rows; ++r) {
    for (int64_t n = 0; n < a.rows; ++n) {
      double difference = 0;
      for (int64_t k = 0; k < 32; ++k) difference += (a.At(n, k) - b.At(n, k)) * x.At(r, k);
      want += difference * difference / 60;
    }
  }
  EXPECT_NEAR(ops_->OutputError(a.view(), b.view(), *statistics), want, 1e-4 * want);
}

// UᵀU is the inverse of the damped Hessian, in the order asked for.
TEST_F(CpuQuantizeTest, FactorIsOfTheInverse) {
  constexpr int64_t n = 20;
  Floats x = Floats::Random(100, n, 6);
  for (int64_t r = 0; r < x.rows; ++r) x.At(r, 7) = 0;  // an input that is never there
  const auto statistics = Statistics(x);
  std::vector<int32_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  std::reverse(order.begin() + 3, order.end());
  const Matrix factor = *ops_->Factorize(*statistics, order, 0.02);
  std::vector<double> h(n * n);
  double trace = 0;
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      double sum = 0;
      for (int64_t r = 0; r < x.rows; ++r) {
        sum += x.At(r, order[static_cast<size_t>(i)]) * x.At(r, order[static_cast<size_t>(j)]);
      }
      h[static_cast<size_t>(i * n + j)] = 2 * sum / 100;
    }
    double& diagonal = h[static_cast<size_t>(i * n + i)];
    if (diagonal == 0) diagonal = 1;
    trace += diagonal;
  }
  for (int64_t i = 0; i < n; ++i) h[static_cast<size_t>(i * n + i)] += 0.02 * trace / n;
  const MatrixView u = factor.view();
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      if (j < i) EXPECT_EQ(u.row<float>(i)[j], 0);
      double product = 0;  // (UᵀU · H)_ij
      for (int64_t k = 0; k < n; ++k) {
        double inverse = 0;
        for (int64_t l = 0; l < n; ++l) inverse += u.row<float>(l)[i] * u.row<float>(l)[k];
        product += inverse * h[static_cast<size_t>(k * n + j)];
      }
      EXPECT_NEAR(product, i == j, 1e-4);
    }
  }
}

// With drifted inputs, the new target's outputs are nearer to those on the inputs without drift
// than the weight's are, and no nearby weight's are nearer: it is the least squares' solution.
TEST_F(CpuQuantizeTest, RetargetMakesUpForDrift) {
  constexpr int64_t n = 48, tokens = 300;
  const Floats w = Floats::Random(9, n, 19);
  Floats x = Floats::Random(tokens, n, 20), scaled(tokens, n);
  const Floats noise = Floats::Random(tokens, n, 21, 0.1);
  std::vector<float> scales;
  for (int64_t k = 0; k < n; ++k) scales.push_back(0.5f + 0.02f * static_cast<float>(k));
  Floats before = x;  // x̃: what is lost of an input can be told from its neighbor
  for (int64_t r = 0; r < tokens; ++r) {
    for (int64_t k = 0; k < n; ++k) {
      before.At(r, k) += 0.3f * x.At(r, (k + 1) % n) + noise.At(r, k);
      scaled.At(r, k) = before.At(r, k) * scales[static_cast<size_t>(k)];
    }
  }
  const auto statistics = Statistics(x);
  const MatrixView weights[] = {w.view()};
  const auto drift = *ops_->CreateDrift(weights);
  for (const int64_t first : {int64_t{0}, int64_t{100}}) {
    const int64_t rows = first == 0 ? 100 : 200;
    ops_->AccumulateDrift(scaled.view().Rows(first, rows), scales, x.view().Rows(first, rows),
                          *drift);
  }
  std::vector<int32_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  std::rotate(order.begin(), order.begin() + 5, order.end());
  const Matrix factor = *ops_->Factorize(*statistics, order, 1e-6);
  const auto error = [&](MatrixView weight) {
    double sum = 0;
    for (int64_t r = 0; r < tokens; ++r) {
      for (int64_t o = 0; o < w.rows; ++o) {
        double difference = 0;
        for (int64_t k = 0; k < n; ++k) {
          difference += w.At(o, k) * before.At(r, k) - weight.row<float>(o)[k] * x.At(r, k);
        }
        sum += difference * difference;
      }
    }
    return sum;
  };
  const double least = error(ops_->Retarget(w.view(), *drift, factor, order, 1)->view());
  EXPECT_LT(least, 0.3 * error(w.view()));
  for (const double share : {0.9, 1.1}) {
    EXPECT_GT(error(ops_->Retarget(w.view(), *drift, factor, order, share)->view()), least);
  }
  for (const uint64_t seed : {22, 23, 24}) {
    const Matrix target = *ops_->Retarget(w.view(), *drift, factor, order, 1);
    const Floats step = Floats::Random(w.rows, n, seed, 0.01);
    for (int64_t o = 0; o < w.rows; ++o) {
      for (int64_t k = 0; k < n; ++k) target.view().row<float>(o)[k] += step.At(o, k);
    }
    EXPECT_GT(error(target.view()), least);
  }
}

TEST_F(CpuQuantizeTest, AnInputOfOneTokenNeedsDamping) {
  const Floats x = Floats::Random(3, 16, 7);
  const auto statistics = Statistics(x);
  std::vector<int32_t> order(16);
  std::iota(order.begin(), order.end(), 0);
  EXPECT_EQ(ops_->Factorize(*statistics, order, -1e-3).error().code(), ErrorCode::kBadInput);
  EXPECT_TRUE(ops_->Factorize(*statistics, order, 0.01));
}

TEST_F(CpuQuantizeTest, PseudoQuantizeUndoesTheScales) {
  const Floats w = Floats::Random(33, 64, 8);
  Floats scaled = w, out(33, 64);
  std::vector<float> scales;
  for (int64_t k = 0; k < 64; ++k) scales.push_back(0.5f + 0.03f * static_cast<float>(k));
  for (int64_t n = 0; n < 33; ++n) {
    for (int64_t k = 0; k < 64; ++k) scaled.At(n, k) *= scales[static_cast<size_t>(k)];
  }
  const GridOptions options{.spec = {.group_size = 32}};
  const QuantizedWeight q = *ops_->Round(scaled.view(), options, nullptr);
  ops_->PseudoQuantize(w.view(), options, scales, out.view());
  for (int64_t n = 0; n < 33; ++n) {
    for (int64_t k = 0; k < 64; ++k) {
      EXPECT_FLOAT_EQ(out.At(n, k), q.At(n, k) / scales[static_cast<size_t>(k)]);
    }
  }
}

// The search can only find ranges that cost less than the whole one, by its own measure.
TEST_F(CpuQuantizeTest, ScaleSearchLowersItsLoss) {
  const Floats w = Floats::Random(40, 128, 9), x = Floats::Random(300, 128, 10);
  const auto statistics = Statistics(x);
  const std::vector<float> squares = ops_->MeanSquares(*statistics);
  const auto loss = [&](ScaleSearch search, const QuantizedWeight& q) {
    double sum = 0;
    for (int64_t n = 0; n < 40; ++n) {
      for (int64_t k = 0; k < 128; ++k) {
        const double error = std::abs(w.At(n, k) - q.At(n, k));
        sum += search == ScaleSearch::kMse ? std::pow(error, 2.4)
                                           : error * error * squares[static_cast<size_t>(k)];
      }
    }
    return sum;
  };
  for (const Grid grid : kGrids) {
    const QuantSpec spec{.group_size = 64, .grid = grid};
    const QuantizedWeight whole = *ops_->Round(w.view(), {.spec = spec}, nullptr);
    for (const ScaleSearch search : {ScaleSearch::kMse, ScaleSearch::kHessian}) {
      const QuantizedWeight found =
          *ops_->Round(w.view(), {.spec = spec, .search = search}, statistics.get());
      EXPECT_LT(loss(search, found), loss(search, whole));
    }
  }
}

TEST_F(CpuQuantizeTest, ClippingNeverCostsOutput) {
  Floats w = Floats::Random(40, 64, 11);
  for (int64_t n = 0; n < 40; ++n) w.At(n, n % 64) *= 6;  // outliers that do not matter much
  const Floats x = Floats::Random(300, 64, 12);
  const auto statistics = Statistics(x);
  const std::vector<float> ones(64, 1.0f);
  for (const int64_t group : {int64_t{64}, kPerChannel}) {
    const GridOptions options{.spec = {.group_size = group}};
    Floats clipped = w, rounded(40, 64), rounded_clipped(40, 64);
    ops_->Clip(clipped.view(), options, ones, *statistics);
    ops_->PseudoQuantize(w.view(), options, ones, rounded.view());
    ops_->PseudoQuantize(clipped.view(), options, ones, rounded_clipped.view());
    EXPECT_LT(ops_->OutputError(w.view(), rounded_clipped.view(), *statistics),
              ops_->OutputError(w.view(), rounded.view(), *statistics));
  }
}

TEST_F(CpuQuantizeTest, TheResultDoesNotDependOnTheThreads) {
  constexpr int64_t n = 1152;  // several of a product's blocks
  const Floats w = Floats::Random(230, n, 13), x = Floats::Random(300, n, 14);
  const Floats before = Floats::Random(300, n, 26);
  std::vector<int32_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  const std::vector<float> ones(n, 1.0f);
  const MatrixView weights[] = {w.view()};
  std::vector<QuantizedWeight> results;
  std::vector<double> errors;
  for (const int threads : {1, 3}) {
    ThreadPool pool(threads);
    const auto ops = MakeCpuQuantizeOps(pool, memory_);
    auto statistics = *ops->CreateStatistics(n);
    ops->Accumulate(x.view(), *statistics);
    const Matrix factor = *ops->Factorize(*statistics, order, 0.05);
    const auto drift = *ops->CreateDrift(weights);
    ops->AccumulateDrift(before.view(), ones, x.view(), *drift);
    const Matrix target = *ops->Retarget(w.view(), *drift, factor, order, 0.5);
    results.push_back(*ops->Sweep(target.view(), *statistics, factor, {.order = order}));
    errors.push_back(ops->OutputError(w.view(), target.view(), *statistics));
  }
  EXPECT_EQ(results[0].codes, results[1].codes);
  EXPECT_EQ(results[0].scales, results[1].scales);
  EXPECT_EQ(errors[0], errors[1]);
}

// Against the oracle, step by step: the same codes but where a value lies at a boundary.
TEST_F(CpuQuantizeTest, AgreesWithTheReference) {
  const auto ref = MakeRefQuantizeOps(pool_, memory_);
  Floats x = Floats::Random(200, 192, 16);
  for (int64_t r = 0; r < x.rows; ++r) {
    x.At(r, 20) *= 8;
    x.At(r, 31) = 0;
  }
  const Floats w = Floats::Random(37, 192, 17, 0.1);
  const auto statistics = Statistics(x);
  auto ref_statistics = *ref->CreateStatistics(192);
  ref->Accumulate(x.view(), *ref_statistics);
  std::vector<float> scales;
  for (int64_t k = 0; k < 192; ++k) scales.push_back(0.5f + 0.01f * static_cast<float>(k));
  const Floats unquantized = Floats::Random(200, 192, 25);
  // Of one weight with few rows, and of several.
  const MatrixView weights[] = {w.view(), w.view()};
  const auto one = *ops_->CreateDrift({weights, 1}), several = *ops_->CreateDrift(weights);
  const auto ref_drift = *ref->CreateDrift(weights);
  for (const auto& [first, rows] : {std::pair{0, 150}, {150, 50}}) {
    const MatrixView before = unquantized.view().Rows(first, rows);
    ops_->AccumulateDrift(before, scales, x.view().Rows(first, rows), *one);
    ops_->AccumulateDrift(before, scales, x.view().Rows(first, rows), *several);
    ref->AccumulateDrift(before, scales, x.view().Rows(first, rows), *ref_drift);
  }

  const auto expect_same = [&](const QuantizedWeight& got, const QuantizedWeight& want) {
    int64_t equal = 0;
    for (int64_t n = 0; n < 37; ++n) {
      for (int64_t k = 0; k < 192; ++k) equal += got.Code(n, k) == want.Code(n, k);
    }
    EXPECT_GE(equal, 37 * 192 * 995 / 1000);
  };
  const auto expect_near = [&](const Floats& got, const Floats& want) {
    int64_t equal = 0;
    for (size_t i = 0; i < got.values.size(); ++i) {
      equal += std::abs(got.values[i] - want.values[i]) <= 1e-6f;
    }
    EXPECT_GE(equal, 37 * 192 * 995 / 1000);
  };
  for (const Grid grid : kGrids) {
    for (const int64_t group : {int64_t{32}, int64_t{64}, kPerChannel}) {
      const QuantSpec spec{.group_size = group, .grid = grid};
      for (const ScaleSearch search :
           {ScaleSearch::kNone, ScaleSearch::kMse, ScaleSearch::kHessian}) {
        const GridOptions options{.spec = spec, .search = search};
        expect_same(*ops_->Round(w.view(), options, statistics.get()),
                    *ref->Round(w.view(), options, ref_statistics.get()));
      }
      Floats got(37, 192), want(37, 192);
      ops_->PseudoQuantize(w.view(), {.spec = spec}, scales, got.view());
      ref->PseudoQuantize(w.view(), {.spec = spec}, scales, want.view());
      expect_near(got, want);
      got = want = w;
      ops_->Clip(got.view(), {.spec = spec}, scales, *statistics);
      ref->Clip(want.view(), {.spec = spec}, scales, *ref_statistics);
      expect_near(got, want);

      // Groups in another order, as --order group sweeps them, and columns in any, as act does.
      for (const GridTime time : {GridTime::kUpdated, GridTime::kStatic}) {
        std::vector<int32_t> order(192);
        std::iota(order.begin(), order.end(), 0);
        if (time == GridTime::kStatic) {
          std::reverse(order.begin(), order.end());
        } else {
          std::rotate(order.begin(), order.begin() + 64, order.end());
        }
        const Matrix factor = *ops_->Factorize(*statistics, order, 0.05);
        const Matrix ref_factor = *ref->Factorize(*ref_statistics, order, 0.05);
        for (int64_t i = 0; i < 192; ++i) {
          for (int64_t j = 0; j < 192; ++j) {
            EXPECT_NEAR(factor.view().row<float>(i)[j], ref_factor.view().row<float>(i)[j], 1e-4);
          }
        }
        const Matrix ref_target = *ref->Retarget(w.view(), *ref_drift, ref_factor, order, 0.5);
        for (const InputDrift* drift : {one.get(), several.get()}) {
          const Matrix target = *ops_->Retarget(w.view(), *drift, factor, order, 0.5);
          for (int64_t n = 0; n < 37; ++n) {
            for (int64_t k = 0; k < 192; ++k) {
              EXPECT_NEAR(target.view().row<float>(n)[k], ref_target.view().row<float>(n)[k], 1e-4);
            }
          }
        }
        const SweepOptions sweep{.grid = {.spec = spec}, .grid_time = time, .order = order};
        expect_same(*ops_->Sweep(w.view(), *statistics, factor, sweep),
                    *ref->Sweep(w.view(), *ref_statistics, factor, sweep));
      }
    }
  }
  const Floats other = Floats::Random(37, 192, 18, 0.1);
  const double error = ref->OutputError(w.view(), other.view(), *ref_statistics);
  EXPECT_NEAR(ops_->OutputError(w.view(), other.view(), *statistics), error, 1e-4 * error);
}

// Values far from zero need a scale that float16 does not have.
TEST_F(CpuQuantizeTest, NamesAGroupWithoutAScale) {
  Floats w = Floats::Random(3, 64, 15);
  w.At(1, 40) = 3e7f;
  const auto result = ops_->Round(w.view(), {.spec = {.group_size = 32}}, nullptr);
  ASSERT_FALSE(result);
  EXPECT_NE(result.error().message().find("row 1, group 1"), std::string::npos);
}

}  // namespace
}  // namespace nibble

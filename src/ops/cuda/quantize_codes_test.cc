// Codes found on a GPU against the reference's: rounding, clipping, the sweep.
#include "src/ops/cuda/quantize_test_util.h"

namespace nibble {
namespace {

class CudaQuantizeCodesTest : public CudaQuantizeTestBase {};

// The arithmetic of grids and codes is the reference's own, so all codes are equal where no search
// compares sums; with one, sums that are nearly equal may decide otherwise.
TEST_P(CudaQuantizeCodesTest, RoundsAsTheReference) {
  for (const auto& [rows, columns] : {std::pair{37, 192}, {5, 384}, {130, 96}, {3, 300}}) {
    Floats w = Floats::Normal(rows, columns, 19, 0.1);
    for (int64_t k = 0; k < 32; ++k) w.At(rows - 1, k) = 0;
    for (int64_t k = 32; k < 64; ++k) w.At(rows - 1, k) = std::abs(w.At(rows - 1, k));
    const Matrix w_device = ToDevice(w);
    const BothStatistics s = Statistics(Inputs(200, columns, 20));
    const std::vector<float> scales = SomeScales(columns);
    for (const int64_t group : {int64_t{32}, int64_t{64}, int64_t{128}, kPerChannel}) {
      if (group != kPerChannel && columns % group != 0) continue;
      for (const Grid grid : kGrids) {
        for (const auto& [search, rounding] :
             {std::pair{ScaleSearch::kNone, ScaleRounding::kFloat16},
              {ScaleSearch::kNone, ScaleRounding::kNone},
              {ScaleSearch::kMse, ScaleRounding::kFloat16},
              {ScaleSearch::kHessian, ScaleRounding::kFloat16}}) {
          SCOPED_TRACE(fmt::format("[{}, {}], groups of {}, {}, search {}", rows, columns, group,
                                   Name(grid), static_cast<int>(search)));
          const GridOptions options{
              .spec = {.group_size = group, .grid = grid}, .search = search, .rounding = rounding};
          const QuantizedWeight got = Must(ops_->Round(w_device.view(), options, s.cuda.get())),
                                want = Must(ref_->Round(w.view(), options, s.ref.get()));
          Floats pseudo = w, trial = w;
          const Matrix out = ToDevice(w);
          ops_->PseudoQuantize(w_device.view(), options, scales, out.view());
          ref_->PseudoQuantize(w.view(), options, scales, pseudo.view());
          const Floats got_pseudo = ToHost(out.view());
          const Weight tried = Must(ops_->Trial(w_device.view(), options, scales, out.view()));
          EXPECT_EQ(std::get<DenseWeight>(tried).data,
                    static_cast<const std::byte*>(out.view().data));
          const Weight ref_tried = Must(ref_->Trial(w.view(), options, scales, trial.view()));
          ref_->Dequantize(std::get<QuantizedWeight>(ref_tried), trial.view());
          const Floats got_trial = ToHost(out.view());
          if (search == ScaleSearch::kNone) {
            EXPECT_EQ(got.codes, want.codes);
            EXPECT_EQ(got.scales, want.scales);
            EXPECT_EQ(got.zeros, want.zeros);
            EXPECT_EQ(got_pseudo.values, pseudo.values);
            if (rounding == ScaleRounding::kFloat16) {
              EXPECT_EQ(got_trial.values, trial.values);
            }
          } else {
            EXPECT_GE(ShareOfEqualCodes(got, want), 0.995);
            EXPECT_GE(ShareOfEqualValues(got_pseudo, pseudo), 0.995);
            EXPECT_GE(ShareOfEqualValues(got_trial, trial), 0.995);
            const double error = ErrorOf(w, want, *s.ref);
            EXPECT_NEAR(ErrorOf(w, got, *s.ref), error, 0.01 * error);
          }
        }
      }
    }
  }
}

TEST_P(CudaQuantizeCodesTest, ClipsAsTheReference) {
  for (const auto& [rows, columns] : {std::pair{150, 192}, {37, 384}, {20, 96}, {9, 300}}) {
    Floats w = Floats::Normal(rows, columns, 21);
    for (int64_t n = 0; n < rows; ++n) w.At(n, n % columns) *= 6;  // outliers worth clipping
    const BothStatistics s = Statistics(Inputs(300, columns, 22));
    const std::vector<float> scales = SomeScales(columns);
    for (const int64_t group : {int64_t{32}, int64_t{64}, int64_t{128}, kPerChannel}) {
      if (group != kPerChannel && columns % group != 0) continue;
      for (const Grid grid : {Grid::kAsymmetric, Grid::kSymmetric}) {
        SCOPED_TRACE(fmt::format("[{}, {}], groups of {}, {}", rows, columns, group, Name(grid)));
        const GridOptions options{.spec = {.group_size = group, .grid = grid}};
        const Matrix clipped = ToDevice(w);
        Floats want = w;
        ops_->Clip(clipped.view(), options, scales, *s.cuda);
        ref_->Clip(want.view(), options, scales, *s.ref);
        EXPECT_NE(want.values, w.values);
        EXPECT_GE(ShareOfEqualValues(ToHost(clipped.view()), want), 0.995);
      }
    }
  }
}

// A code at a boundary may fall either way and takes the rest of its row with it, which is much of
// a small weight; so what is asked of all sweeps together is more than what is asked of one.
TEST_P(CudaQuantizeCodesTest, SweepsAsTheReference) {
  double equal = 0, all = 0;
  for (const auto& [rows, columns] : {std::pair{37, 192}, {21, 384}, {130, 96}, {5, 300}}) {
    Floats x = Inputs(2 * columns, columns, 23);
    for (int64_t r = 0; r < x.rows; ++r) x.At(r, 31) = 0;
    const Floats w = Floats::Normal(rows, columns, 24, 0.1);
    const Matrix w_device = ToDevice(w);
    const BothStatistics s = Statistics(x);
    for (const GridTime time : {GridTime::kUpdated, GridTime::kStatic}) {
      for (const int64_t group : {int64_t{32}, int64_t{64}, int64_t{128}, kPerChannel}) {
        if (group != kPerChannel && columns % group != 0) continue;
        // Columns in any order, or groups in another one.
        std::vector<int32_t> order = Ascending(columns);
        if (time == GridTime::kStatic) {
          const std::vector<float> squares = ref_->MeanSquares(*s.ref);
          std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
            return squares[static_cast<size_t>(a)] > squares[static_cast<size_t>(b)];
          });
        } else if (group != kPerChannel) {
          std::rotate(order.begin(), order.begin() + group, order.end());
        }
        const Matrix factor = Must(ops_->Factorize(*s.cuda, order, 0.05));
        const Matrix ref_factor = Must(ref_->Factorize(*s.ref, order, 0.05));
        for (const Grid grid : kGrids) {
          for (const auto& [search, rounding] :
               {std::pair{ScaleSearch::kNone, ScaleRounding::kFloat16},
                {ScaleSearch::kNone, ScaleRounding::kNone},
                {ScaleSearch::kMse, ScaleRounding::kFloat16},
                {ScaleSearch::kHessian, ScaleRounding::kFloat16}}) {
            SCOPED_TRACE(fmt::format("[{}, {}], groups of {}, {}, search {}, time {}", rows,
                                     columns, group, Name(grid), static_cast<int>(search),
                                     static_cast<int>(time)));
            const SweepOptions options{.grid = {.spec = {.group_size = group, .grid = grid},
                                                .search = search,
                                                .rounding = rounding},
                                       .grid_time = time,
                                       .order = order};
            const QuantizedWeight got =
                Must(ops_->Sweep(w_device.view(), *s.cuda, factor, options));
            const QuantizedWeight want = Must(ref_->Sweep(w.view(), *s.ref, ref_factor, options));
            const double share = ShareOfEqualCodes(got, want);
            EXPECT_GE(share, 0.97);
            equal += share * static_cast<double>(rows * columns);
            all += static_cast<double>(rows * columns);
            const double error = ErrorOf(w, want, *s.ref);
            EXPECT_NEAR(ErrorOf(w, got, *s.ref), error, 0.01 * error);
          }
        }
      }
    }
  }
  RecordProperty("equal_codes", fmt::format("{:.5f}", equal / all));
  EXPECT_GE(equal / all, 0.998);
}

// Values far from zero need a scale that float16 does not have.
TEST_P(CudaQuantizeCodesTest, NamesAGroupWithoutAScale) {
  Floats w = Floats::Normal(3, 64, 25);
  w.At(1, 40) = 3e7f;
  const Matrix on_device = ToDevice(w);
  const GridOptions options{.spec = {.group_size = 32}};
  const auto result = ops_->Round(on_device.view(), options, nullptr);
  const auto want = ref_->Round(w.view(), options, nullptr);
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code(), ErrorCode::kBadInput);
  EXPECT_EQ(result.error().message(), want.error().message());
}

INSTANTIATE_TEST_SUITE_P(Types, CudaQuantizeCodesTest, testing::Values(DType::kF16, DType::kBF16),
                         [](const auto& info) { return std::string(Name(info.param)); });

}  // namespace
}  // namespace nibble

// Quantizing on a GPU against the reference: whole matrices, statistics, factors.
#include "src/ops/cuda/quantize_test_util.h"

namespace nibble {
namespace {

class CudaQuantizeTest : public CudaQuantizeTestBase {};

TEST_P(CudaQuantizeTest, LoadsWeightsAndNamesBadRows) {
  Floats want = Inputs(2500, 1999, 1);  // more than one of the loader's buffers
  for (const DType type : {DType::kF32, type_}) {
    std::vector<uint16_t> bits;
    for (const float value : want.values) bits.push_back(Bits(value));
    DenseWeight weight{.dtype = type, .rows = want.rows, .columns = want.columns};
    weight.data = type == DType::kF32 ? reinterpret_cast<const std::byte*>(want.values.data())
                                      : reinterpret_cast<const std::byte*>(bits.data());
    EXPECT_EQ(ToHost(Must(ops_->Load(weight)).view()).values, want.values);
  }
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
    Floats spoilt = want;
    spoilt.At(1234, 1998) = bad;
    const DenseWeight weight{.dtype = DType::kF32,
                             .rows = want.rows,
                             .columns = want.columns,
                             .data = reinterpret_cast<const std::byte*>(spoilt.values.data())};
    const auto result = ops_->Load(weight);
    ASSERT_FALSE(result);
    EXPECT_EQ(result.error().code(), ErrorCode::kBadInput);
    EXPECT_NE(result.error().message().find("row 1234 "), std::string::npos);
  }
}

// A trial's weight lies on the device, where Prepare takes it from.
TEST_P(CudaQuantizeTest, PreparesWhatLiesOnTheDevice) {
  const Floats w = Inputs(40, 96, 2);
  const Matrix on_device = ToDevice(w);
  const Weight here = DenseWeight{.dtype = DType::kF32,
                                  .rows = 40,
                                  .columns = 96,
                                  .data = reinterpret_cast<const std::byte*>(w.values.data())};
  const Weight there = DenseWeight{.dtype = DType::kF32,
                                   .rows = 40,
                                   .columns = 96,
                                   .data = static_cast<const std::byte*>(on_device.view().data)};
  const auto plan = Must(cuda_->CreatePlan(
      {.rows = 8, .sequences = 1, .context = 32, .logit_rows = 1},
      {.hidden = 96, .intermediate = 96, .heads = 1, .kv_heads = 1, .head_dim = 64}));
  const Activations x = ToActivations(Inputs(5, 96, 3));
  std::vector<std::vector<float>> outputs;
  for (const Weight* weight : {&here, &there}) {
    const LinearSource source{weight, {}};
    const auto linear = Must(cuda_->Prepare({&source, 1}, Interleave::kNone));
    const Matrix out = Must(cuda_->Allocate(MemoryClass::kWorkspace, DType::kF32, 5, 40));
    cuda_->Linear(*plan, *linear, x.view, Epilogue::kNone, out.view());
    outputs.push_back(ToHost(out.view()).values);
  }
  EXPECT_EQ(outputs[0], outputs[1]);
  EXPECT_NE(outputs[0][7], 0);
}

TEST_P(CudaQuantizeTest, WholeMatrices) {
  for (const auto& [rows, columns] : {std::pair{3, 96}, {41, 576}, {1300, 200}}) {
    const Floats a = Inputs(rows, columns, 4), b = Inputs(rows, columns, 5);
    const Matrix a_device = ToDevice(a), b_device = ToDevice(b);
    const double squares = ref_->SumOfSquares(a.view()),
                 difference = ref_->SquaredDifference(a.view(), b.view());
    EXPECT_NEAR(ops_->SumOfSquares(a_device.view()), squares, 1e-6 * squares);
    EXPECT_NEAR(ops_->SquaredDifference(a_device.view(), b_device.view()), difference,
                1e-6 * difference);
    const Activations a_half = ToActivations(a), b_half = ToActivations(b);
    EXPECT_NEAR(ops_->SumOfSquares(a_half.view), squares, 1e-6 * squares);
    EXPECT_NEAR(ops_->SquaredDifference(a_half.view, b_half.view), difference, 1e-6 * difference);

    const std::vector<float> row_scales = SomeScales(rows), column_scales = SomeScales(columns);
    using Span = std::span<const float>;
    for (const auto& [by_row, by_column] : {std::pair{Span(row_scales), Span()},
                                            {Span(), Span(column_scales)},
                                            {Span(row_scales), Span(column_scales)}}) {
      const Matrix out = ToDevice(b);
      Floats want = b;
      ops_->Scale(a_device.view(), by_row, by_column, out.view());
      ref_->Scale(a.view(), by_row, by_column, want.view());
      EXPECT_EQ(ToHost(out.view()).values, want.values);
    }
    const Matrix in_place = ToDevice(a);
    Floats want = a;
    ops_->Scale(in_place.view(), {}, column_scales, in_place.view());
    ref_->Scale(a.view(), {}, column_scales, want.view());
    EXPECT_EQ(ToHost(in_place.view()).values, want.values);
  }
}

TEST_P(CudaQuantizeTest, DequantizesAsTheFormatSays) {
  const Floats w = Floats::Normal(53, 192, 6);
  for (const int64_t group : {int64_t{32}, int64_t{64}, kPerChannel}) {
    const QuantizedWeight q = Must(ref_->Round(w.view(), {.spec = {.group_size = group}}, nullptr));
    const Matrix out = ToDevice(w);
    ops_->Dequantize(q, out.view());
    const Floats got = ToHost(out.view());
    for (int64_t n = 0; n < w.rows; ++n) {
      for (int64_t k = 0; k < w.columns; ++k) ASSERT_EQ(got.At(n, k), q.At(n, k));
    }
  }
}

// What a kernel reads from memory beside the device's is what lies there.
TEST_P(CudaQuantizeTest, ReadsMemoryBesideTheDevice) {
  const Floats a = Inputs(30, 96, 7);
  const Matrix beside = Must(cuda_->AllocateBeside("", type_, 30, 96));
  for (int64_t r = 0; r < a.rows; ++r) {
    for (int64_t k = 0; k < a.columns; ++k) beside.view().row<uint16_t>(r)[k] = Bits(a.At(r, k));
  }
  const double want = ref_->SumOfSquares(a.view());
  EXPECT_NEAR(ops_->SumOfSquares(beside.view()), want, 1e-6 * want);
}

TEST_P(CudaQuantizeTest, StatisticsAreMeansOverAllTokens) {
  // 4224 columns are cut into blocks; the reference takes long for more tokens.
  for (const auto& [tokens, columns] : {std::pair{50, 24}, {333, 96}, {200, 300}, {7, 4224}}) {
    const Floats x = Inputs(tokens, columns, 8);
    const BothStatistics s = Statistics(x);
    const auto squares = ops_->MeanSquares(*s.cuda), want_squares = ref_->MeanSquares(*s.ref);
    const auto sizes = ops_->MeanMagnitudes(*s.cuda), want_sizes = ref_->MeanMagnitudes(*s.ref);
    ASSERT_EQ(squares.size(), want_squares.size());
    ASSERT_EQ(sizes.size(), want_sizes.size());
    for (size_t k = 0; k < squares.size(); ++k) {
      EXPECT_NEAR(squares[k], want_squares[k], 1e-5 * want_squares[k]);
      EXPECT_NEAR(sizes[k], want_sizes[k], 1e-5 * want_sizes[k]);
    }
    // Of all pairs of columns.
    const Floats a = Floats::Normal(3, columns, 9), b = Floats::Normal(3, columns, 10);
    const Matrix a_device = ToDevice(a), b_device = ToDevice(b);
    const double want = ref_->OutputError(a.view(), b.view(), *s.ref);
    EXPECT_NEAR(ops_->OutputError(a_device.view(), b_device.view(), *s.cuda), want, 1e-3 * want);
  }
}

TEST_P(CudaQuantizeTest, OutputErrorOfManyRows) {
  const Floats x = Inputs(100, 64, 11);
  const BothStatistics s = Statistics(x);
  const Floats a = Floats::Normal(2500, 64, 12), b = Floats::Normal(2500, 64, 13, 0.9);
  const Matrix a_device = ToDevice(a), b_device = ToDevice(b);
  const double want = ref_->OutputError(a.view(), b.view(), *s.ref);
  EXPECT_NEAR(ops_->OutputError(a_device.view(), b_device.view(), *s.cuda), want, 1e-3 * want);
}

// Sums over many steps stay nearly as good as float32 is: see cuda_statistics.h.
TEST_P(CudaQuantizeTest, SumsOverManyStepsStayAccurate) {
  constexpr int64_t kSteps = 32, kRows = 4096, kColumns = 64;
  const auto statistics = Must(ops_->CreateStatistics(kColumns));
  std::vector<double> want(kColumns);
  for (int64_t step = 0; step < kSteps; ++step) {
    const Floats x = Inputs(kRows, kColumns, static_cast<uint64_t>(100 + step));
    const Activations on_device = ToActivations(x);
    ops_->Accumulate(on_device.view, *statistics);
    cudaDeviceSynchronize();
    for (int64_t r = 0; r < kRows; ++r) {
      for (int64_t k = 0; k < kColumns; ++k) {
        want[static_cast<size_t>(k)] += static_cast<double>(x.At(r, k)) * x.At(r, k);
      }
    }
  }
  const std::vector<float> squares = ops_->MeanSquares(*statistics);
  double worst = 0;
  for (size_t k = 0; k < squares.size(); ++k) {
    const double mean = want[k] / (kSteps * kRows);
    worst = std::max(worst, std::abs(squares[k] / mean - 1));
  }
  RecordProperty("worst_relative_error", fmt::format("{:.2e}", worst));
  EXPECT_LE(worst, 1.5e-5);
}

TEST_P(CudaQuantizeTest, FactorIsTheReferences) {
  for (const int64_t n : {20, 96, 300, 600}) {  // the last are inverted in parts
    Floats x = Inputs(3 * n, n, 14);
    for (int64_t r = 0; r < x.rows; ++r) x.At(r, 7) = 0;  // an input that is never there
    const BothStatistics s = Statistics(x);
    std::vector<int32_t> order = Ascending(n);
    std::reverse(order.begin() + 3, order.end());
    const Matrix factor = Must(ops_->Factorize(*s.cuda, order, 0.02));
    const Matrix want = Must(ref_->Factorize(*s.ref, order, 0.02));
    const Floats got = ToHost(factor.view());
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < n; ++j) {
        ASSERT_NEAR(got.At(i, j), want.view().row<float>(i)[j], 1e-5) << i << ", " << j;
        if (j < i) {
          ASSERT_EQ(got.At(i, j), 0);
        }
      }
    }
  }
}

TEST_P(CudaQuantizeTest, AnInputOfFewTokensNeedsDamping) {
  const BothStatistics s = Statistics(Inputs(3, 16, 15));
  const std::vector<int32_t> order = Ascending(16);
  const auto singular = ops_->Factorize(*s.cuda, order, -1e-3);
  ASSERT_FALSE(singular);
  EXPECT_EQ(singular.error().code(), ErrorCode::kBadInput);
  EXPECT_TRUE(ops_->Factorize(*s.cuda, order, 0.01));  // and nothing is left of the failure
}

TEST_P(CudaQuantizeTest, RetargetsAsTheReference) {
  for (const int64_t n : {48, 192}) {
    const Floats x = Inputs(400, n, 16), unquantized = Inputs(400, n, 17);
    const Floats w = Floats::Normal(37, n, 18, 0.1);
    const std::vector<float> scales = SomeScales(n);
    const BothStatistics s = Statistics(x);
    const Matrix w_device = ToDevice(w);
    const MatrixView weights[] = {w_device.view()}, ref_weights[] = {w.view()};
    const auto drift = Must(ops_->CreateDrift(weights));
    const auto ref_drift = Must(ref_->CreateDrift(ref_weights));
    const Activations x_device = ToActivations(x), unquantized_device = ToActivations(unquantized);
    for (const auto& [first, rows] : {std::pair{0, 150}, {150, 250}}) {
      ops_->AccumulateDrift(unquantized_device.view.Rows(first, rows), scales,
                            x_device.view.Rows(first, rows), *drift);
      ref_->AccumulateDrift(unquantized.view().Rows(first, rows), scales,
                            x.view().Rows(first, rows), *ref_drift);
    }
    std::vector<int32_t> order = Ascending(n);
    std::rotate(order.begin(), order.begin() + 5, order.end());
    const Matrix factor = Must(ops_->Factorize(*s.cuda, order, 0.05));
    const Matrix ref_factor = Must(ref_->Factorize(*s.ref, order, 0.05));
    const Matrix target = Must(ops_->Retarget(w_device.view(), *drift, factor, order, 0.5));
    const Matrix want = Must(ref_->Retarget(w.view(), *ref_drift, ref_factor, order, 0.5));
    const Floats got = ToHost(target.view());
    double moved = 0, error = 0;
    for (int64_t r = 0; r < w.rows; ++r) {
      for (int64_t k = 0; k < n; ++k) {
        const double goal = want.view().row<float>(r)[k];
        moved += std::pow(goal - w.At(r, k), 2);
        error += std::pow(goal - got.At(r, k), 2);
      }
    }
    // Differences were rounded to 16 bits.
    EXPECT_LT(std::sqrt(error / moved), type_ == DType::kF16 ? 1e-3 : 8e-3);
  }
}

// Of shapes that need every kernel, more rows than an operation without a status takes at once, and
// several of a product's blocks.
TEST_P(CudaQuantizeTest, GivesTheSameBitsAgain) {
  constexpr int64_t n = 2304, rows = 1100;
  const Matrix w = ToDevice(Floats::Normal(rows, n, 26, 0.1));
  const Activations x = ToActivations(Inputs(600, n, 27)),
                    before = ToActivations(Inputs(600, n, 28));
  const std::vector<float> scales = SomeScales(n);
  const std::vector<int32_t> order = Ascending(n);
  const MatrixView weights[] = {w.view()};
  std::vector<QuantizedWeight> swept;
  std::vector<std::vector<float>> factors, targets, clips;
  std::vector<double> errors;
  for (int time = 0; time < 2; ++time) {
    const auto ops = Must(cuda_->CreateQuantizeOps());
    const auto statistics = Must(ops->CreateStatistics(n));
    ops->Accumulate(x.view, *statistics);
    const auto drift = Must(ops->CreateDrift(weights));
    ops->AccumulateDrift(before.view, scales, x.view, *drift);
    const Matrix factor = Must(ops->Factorize(*statistics, order, 0.05));
    factors.push_back(ToHost(factor.view()).values);
    const Matrix target = Must(ops->Retarget(w.view(), *drift, factor, order, 0.5));
    targets.push_back(ToHost(target.view()).values);
    swept.push_back(Must(ops->Sweep(target.view(), *statistics, factor, {.order = order})));
    errors.push_back(ops->OutputError(w.view(), target.view(), *statistics));
    errors.push_back(ops->SquaredDifference(w.view(), target.view()));
    ops->Clip(target.view(), {.spec = {.group_size = 32}}, scales, *statistics);
    clips.push_back(ToHost(target.view()).values);
  }
  EXPECT_EQ(factors[0], factors[1]);
  EXPECT_EQ(targets[0], targets[1]);
  EXPECT_EQ(clips[0], clips[1]);
  EXPECT_EQ(swept[0].codes, swept[1].codes);
  EXPECT_EQ(swept[0].scales, swept[1].scales);
  EXPECT_EQ(errors[0], errors[2]);
  EXPECT_EQ(errors[1], errors[3]);
}

// Memory that does not suffice is an error of the call, which works again once there is more.
TEST_P(CudaQuantizeTest, SaysWhenMemoryDoesNotSuffice) {
  const Floats w = Floats::Normal(4000, 2048, 29);
  const Matrix on_device = ToDevice(w);
  const auto statistics = Must(ops_->CreateStatistics(2048));
  const std::vector<int32_t> order = Ascending(2048);
  cuda_->memory().SetLimit(cuda_->memory().current().total() + 4096);
  const auto factor = ops_->Factorize(*statistics, order, 0.05);
  ASSERT_FALSE(factor);
  EXPECT_EQ(factor.error().code(), ErrorCode::kResources);
  EXPECT_FALSE(ops_->CreateStatistics(2048));
  EXPECT_TRUE(ops_->Round(on_device.view(), {}, nullptr));  // fits the scratch memory that there is
  cuda_->memory().SetLimit(std::numeric_limits<uint64_t>::max());
  EXPECT_TRUE(ops_->CreateStatistics(2048));
}

INSTANTIATE_TEST_SUITE_P(Types, CudaQuantizeTest, testing::Values(DType::kF16, DType::kBF16),
                         [](const auto& info) { return std::string(Name(info.param)); });

}  // namespace
}  // namespace nibble

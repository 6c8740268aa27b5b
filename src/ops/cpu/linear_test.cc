#include <gtest/gtest.h>

#include <string>

#include "src/ops/cpu/test_util.h"
#include "src/ops/ref/ref_backend.h"

namespace nibble::cpu {
namespace {

constexpr int64_t kMaxRows = 70;

// A weight with everything a product with it needs.
struct Problem {
  std::vector<Weight> weights;
  std::vector<std::vector<float>> biases;
  Interleave interleave = Interleave::kNone;
  Epilogue epilogue = Epilogue::kNone;

  std::vector<LinearSource> sources() const {
    std::vector<LinearSource> sources;
    for (size_t i = 0; i < weights.size(); ++i) {
      sources.push_back({.weight = &weights[i]});
      if (!biases.empty()) sources.back().bias = biases[i];
    }
    return sources;
  }
  int64_t in() const { return ColumnsOf(weights[0]); }
  int64_t out() const {
    int64_t rows = 0;
    for (const Weight& w : weights) rows += RowsOf(w);
    return epilogue == Epilogue::kSiluMul ? rows / 2 : rows;
  }
  float At(int64_t row, int64_t column) const {
    for (const Weight& w : weights) {
      if (row < RowsOf(w)) {
        return std::visit([&](const auto& weight) { return weight.At(row, column); }, w);
      }
      row -= RowsOf(w);
    }
    return kNaN;
  }
  const QuantSpec* quant() const {
    const auto* quantized = std::get_if<QuantizedWeight>(&weights[0]);
    return quantized ? &quantized->spec : nullptr;
  }
};

// A backend with a problem's weight prepared.
class Runner {
 public:
  Runner(std::unique_ptr<Backend> backend, const Problem& problem)
      : backend_(std::move(backend)),
        epilogue_(problem.epilogue),
        linear_(Must(backend_->Prepare(problem.sources(), problem.interleave))),
        plan_(Must(
            backend_->CreatePlan({.rows = kMaxRows, .sequences = 1, .context = 16, .logit_rows = 1},
                                 {.hidden = problem.in(),
                                  .intermediate = problem.in(),
                                  .heads = 1,
                                  .kv_heads = 1,
                                  .head_dim = 8,
                                  .vocabulary = 8}))) {}

  void Run(MatrixView x, MatrixView out) { backend_->Linear(*plan_, *linear_, x, epilogue_, out); }

 private:
  std::unique_ptr<Backend> backend_;
  Epilogue epilogue_;
  std::unique_ptr<PreparedLinear> linear_;
  std::unique_ptr<BatchPlan> plan_;
};

std::vector<std::vector<float>> RandomBiases(const std::vector<Weight>& weights, Random& random) {
  std::vector<std::vector<float>> biases;
  for (const Weight& w : weights) {
    biases.emplace_back();
    for (int64_t i = 0; i < RowsOf(w); ++i) {
      biases.back().push_back(static_cast<float>(random.Normal()));
    }
  }
  return biases;
}

// What rounding can do to output n of row r before the epilogue.
//
// Dense: K products summed in float32, each step off by at most half an ulp of
// a partial sum, which Σ|x w| bounds. 4-bit: an activation is off by half a
// step of its segment (and 1 % for the rounding of the step itself), and one
// float32 rounding for each segment and its scales.
double ErrorBound(const Problem& problem, const float* x, int64_t n) {
  const int64_t in = problem.in();
  const QuantSpec* quant = problem.quant();
  double magnitudes = 0;
  for (int64_t k = 0; k < in; ++k) {
    magnitudes += std::abs(static_cast<double>(x[k]) * problem.At(n, k));
  }
  if (quant == nullptr) return (static_cast<double>(in) + 2) * 0x1p-24 * magnitudes + 0x1p-22;
  const int64_t group = quant->GroupLength(in);
  double quantization = 0;
  double offsets = 0;  // code and zero are rounded apart from each other
  int64_t segments = 0;
  for (int64_t g = 0; g < in; g += group) {
    for (int64_t begin = g; begin < g + group; begin += 128, ++segments) {
      const int64_t end = std::min(begin + 128, g + group);
      double highest = 0, weights = 0;
      for (int64_t k = begin; k < end; ++k) {
        highest = std::max(highest, std::abs(static_cast<double>(x[k])));
        weights += std::abs(static_cast<double>(problem.At(n, k)));
      }
      quantization += weights * highest / 65534 * 1.01;
      offsets += weights * highest;
    }
  }
  return quantization + static_cast<double>(segments + 4) * 0x1p-24 * (magnitudes + offsets) +
         0x1p-22;
}

double Silu(double x) { return x / (1 + std::exp(-x)); }

void CheckAgainstRef(const Problem& problem, const std::string& what) {
  SCOPED_TRACE(what);
  Random random(7);
  GuardedMatrix x = GuardedMatrix::Normal(kMaxRows, problem.in(), random);
  const GuardedMatrix before = GuardedMatrix::Normal(kMaxRows, problem.out(), random);
  const auto fresh = [&](int64_t rows) {  // kAdd reads the output, the others must not
    GuardedMatrix out(rows, problem.out(), 3);
    for (int64_t r = 0; problem.epilogue == Epilogue::kAdd && r < rows; ++r) {
      std::copy_n(before.row(r), problem.out(), out.row(r));
    }
    return out;
  };
  GuardedMatrix want = fresh(kMaxRows);
  Runner(MakeRefBackend(1), problem).Run(x.view(), want.view());

  Runner cpu(MakeCpu(1), problem);
  GuardedMatrix got = fresh(kMaxRows);
  cpu.Run(x.view(), got.view());
  EXPECT_TRUE(got.Intact());
  EXPECT_TRUE(x.Intact());
  // Dense: K roundings of 2^-25 of the sum so far, as a random walk. 4-bit:
  // half a step, evenly spread, of a segment whose largest of 128 normal
  // numbers is about 3.
  EXPECT_LT(NormalizedSquareError(got, want), problem.quant() == nullptr ? 1e-11 : 3e-9);
  for (int64_t r = 0; r < kMaxRows; r += 23) {
    for (int64_t n = 0; n < problem.out(); ++n) {
      double bound = ErrorBound(problem, x.row(r), n) +
                     0x1p-22 * std::abs(static_cast<double>(want.row(r)[n]));
      if (problem.epilogue == Epilogue::kSiluMul) {
        // |silu'| ≤ 1.1; the other factor is recomputed here.
        double gate = 0, up = 0;
        for (int64_t k = 0; k < problem.in(); ++k) {
          gate += static_cast<double>(x.row(r)[k]) * problem.At(n, k);
          up += static_cast<double>(x.row(r)[k]) * problem.At(n + problem.out(), k);
        }
        if (!problem.biases.empty()) {
          gate += problem.biases[0][static_cast<size_t>(n)];
          up += problem.biases[1][static_cast<size_t>(n)];
        }
        const double up_bound = ErrorBound(problem, x.row(r), n + problem.out());
        bound = 1.1 * bound * (std::abs(up) + up_bound) + std::abs(Silu(gate)) * up_bound +
                0x1p-20 * std::abs(static_cast<double>(want.row(r)[n]));
      }
      ASSERT_NEAR(got.row(r)[n], want.row(r)[n], bound) << "row " << r << ", output " << n;
    }
  }

  // A row's bits depend neither on the batch nor on the number of threads.
  for (const int threads : {1, 2, 3}) {
    Runner other(MakeCpu(threads), problem);
    const std::vector<int64_t> counts =
        threads > 1 ? std::vector<int64_t>{1, 7, kMaxRows}
                    : std::vector<int64_t>{1, 2, 3, 4, 5, 6, 7, 8, 13, 31, 64};
    for (const int64_t rows : counts) {
      for (const int64_t first : {int64_t{0}, kMaxRows - rows}) {
        GuardedMatrix part(rows, problem.out(), 1);
        for (int64_t r = 0; problem.epilogue == Epilogue::kAdd && r < rows; ++r) {
          std::copy_n(before.row(first + r), problem.out(), part.row(r));
        }
        other.Run(x.view().Rows(first, rows), part.view());
        ASSERT_TRUE(part.Intact());
        for (int64_t r = 0; r < rows; ++r) {
          ASSERT_TRUE(SameBits(part.row(r), got.row(first + r), problem.out()))
              << rows << " rows from " << first << ", row " << r;
        }
      }
    }
  }
}

TEST(LinearTest, DenseAgreesWithRef) {
  Random random(1);
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (const auto& [out, in] : std::vector<std::pair<int64_t, int64_t>>{
             {8, 8}, {111, 111}, {172, 172}, {24, 1000}, {576, 64}, {40, 4096}}) {
      CheckAgainstRef({.weights = {RandomDense(dtype, out, in, random)}},
                      fmt::format("{} [{}, {}]", Name(dtype), out, in));
    }
  }
}

TEST(LinearTest, DenseEpiloguesAgreeWithRef) {
  Random random(2);
  for (const int64_t out : {8, 111, 172}) {
    const auto weight = [&] { return RandomDense(DType::kF16, out, 172, random, 0.1); };
    Problem concatenated{.weights = {weight(), RandomDense(DType::kF16, 24, 172, random)}};
    concatenated.biases = RandomBiases(concatenated.weights, random);
    CheckAgainstRef(concatenated, fmt::format("bias, {}", out));
    concatenated.biases[0].clear();
    concatenated.epilogue = Epilogue::kAdd;
    CheckAgainstRef(concatenated, fmt::format("add, {}", out));

    Problem gate_up{.weights = {weight(), weight()},
                    .interleave = Interleave::kGateUp,
                    .epilogue = Epilogue::kSiluMul};
    CheckAgainstRef(gate_up, fmt::format("silu, {}", out));
    gate_up.biases = RandomBiases(gate_up.weights, random);
    CheckAgainstRef(gate_up, fmt::format("silu and bias, {}", out));
  }
}

TEST(LinearTest, FourBitsAgreeWithRef) {
  Random random(3);
  struct Case {
    int64_t out, in, group;
  };
  for (const Grid grid : {Grid::kAsymmetric, Grid::kSymmetric, Grid::kSymmetricFull}) {
    for (const Case& c : std::vector<Case>{{8, 8, 8},
                                           {111, 222, 111},
                                           {172, 172, kPerChannel},
                                           {24, 1000, 125},
                                           {24, 1000, 200},
                                           {40, 576, 32},
                                           {40, 576, kPerChannel},
                                           {576, 128, 64},
                                           {24, 4096, 128}}) {
      const QuantSpec spec{.group_size = c.group, .grid = grid};
      CheckAgainstRef({.weights = {RandomQuantized(spec, c.out, c.in, random)}},
                      fmt::format("{} [{}, {}] group {}", Name(grid), c.out, c.in, c.group));
    }
  }
}

TEST(LinearTest, FourBitsInGroupsByIndexAgreeWithRef) {
  Random random(31);
  for (const Grid grid : {Grid::kAsymmetric, Grid::kSymmetric}) {
    const auto weight = [&](int64_t out, int64_t in, int64_t group) {
      const QuantSpec spec{.group_size = group, .grid = grid, .order = GroupOrder::kIndexed};
      return RandomQuantized(spec, out, in, random);
    };
    CheckAgainstRef({.weights = {weight(24, 1000, 125)}}, fmt::format("{} ragged", Name(grid)));
    CheckAgainstRef({.weights = {weight(40, 4096, 128)}}, fmt::format("{} long", Name(grid)));
    // Packed together, with one order.
    Problem two{.weights = {weight(40, 256, 64), weight(40, 256, 64)},
                .interleave = Interleave::kGateUp,
                .epilogue = Epilogue::kSiluMul};
    std::get<QuantizedWeight>(two.weights[1]).column_of_input =
        std::get<QuantizedWeight>(two.weights[0]).column_of_input;
    two.biases = RandomBiases(two.weights, random);
    CheckAgainstRef(two, fmt::format("{} gate and up", Name(grid)));
  }
}

TEST(LinearTest, FourBitEpiloguesAgreeWithRef) {
  Random random(4);
  const QuantSpec spec{.group_size = 32};
  for (const int64_t out : {8, 111}) {
    const auto weight = [&] { return RandomQuantized(spec, out, 96, random); };
    Problem add{.weights = {weight(), weight()}, .epilogue = Epilogue::kAdd};
    add.biases = RandomBiases(add.weights, random);
    CheckAgainstRef(add, fmt::format("add, {}", out));
    Problem gate_up{.weights = {weight(), weight()},
                    .interleave = Interleave::kGateUp,
                    .epilogue = Epilogue::kSiluMul};
    gate_up.biases = RandomBiases(gate_up.weights, random);
    CheckAgainstRef(gate_up, fmt::format("silu, {}", out));
  }
}

TEST(LinearTest, MoreRowsThanArePackedAtATime) {
  Random random(5);
  constexpr int64_t kRows = 1100;
  const Problem problem{.weights = {RandomDense(DType::kBF16, 24, 72, random)}};
  auto cpu = MakeCpu(2);
  auto linear = Must(cpu->Prepare(problem.sources(), Interleave::kNone));
  auto plan = Must(cpu->CreatePlan({.rows = kRows, .sequences = 1, .context = 16},
                                   {.hidden = 72, .heads = 1, .kv_heads = 1, .head_dim = 8}));
  GuardedMatrix x = GuardedMatrix::Normal(kRows, 72, random);
  GuardedMatrix all(kRows, 24), one(1, 24);
  cpu->Linear(*plan, *linear, x.view(), Epilogue::kNone, all.view());
  for (int64_t r = 0; r < kRows; ++r) {
    cpu->Linear(*plan, *linear, x.view().Rows(r, 1), Epilogue::kNone, one.view());
    ASSERT_TRUE(SameBits(one.row(0), all.row(r), 24)) << r;
  }
}

// What is not finite must not be lost in the quantization, nor reach other
// rows.
TEST(LinearTest, NonFiniteActivationsReachTheirRowOnly) {
  Random random(6);
  for (const float poison :
       {kNaN, std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()}) {
    for (const bool quantized : {false, true}) {
      const Problem problem{.weights = {quantized
                                            ? RandomQuantized({.group_size = 32}, 40, 96, random)
                                            : RandomDense(DType::kF16, 40, 96, random)}};
      GuardedMatrix x = GuardedMatrix::Normal(9, 96, random);
      GuardedMatrix clean(9, 40), got(9, 40);
      Runner cpu(MakeCpu(1), problem);
      cpu.Run(x.view(), clean.view());
      x.row(4)[95] = poison;
      cpu.Run(x.view(), got.view());
      for (int64_t r = 0; r < 9; ++r) {
        for (int64_t n = 0; n < 40; ++n) {
          if (r == 4) {
            EXPECT_FALSE(std::isfinite(got.row(r)[n])) << poison << " " << quantized;
          } else {
            EXPECT_EQ(got.row(r)[n], clean.row(r)[n]);
          }
        }
      }
    }
  }
}

// Activations of any magnitude keep their relative precision, and zeros stay
// zeros.
TEST(LinearTest, FourBitsAtExtremeMagnitudes) {
  Random random(8);
  const Problem problem{.weights = {RandomQuantized({.group_size = 32}, 16, 64, random)}};
  Runner cpu(MakeCpu(1), problem);
  Runner ref(MakeRefBackend(1), problem);
  for (const float magnitude : {0.0f, 1e-36f, 1e-30f, 1e-5f, 1e30f}) {
    GuardedMatrix x = GuardedMatrix::Normal(1, 64, random);
    for (int64_t k = 0; k < 64; ++k) x.row(0)[k] *= magnitude;
    GuardedMatrix got(1, 16), want(1, 16);
    cpu.Run(x.view(), got.view());
    ref.Run(x.view(), want.view());
    for (int64_t n = 0; n < 16; ++n) {
      EXPECT_NEAR(got.row(0)[n], want.row(0)[n], 1e-3 * magnitude + 1e-32) << magnitude;
    }
  }
}

}  // namespace
}  // namespace nibble::cpu

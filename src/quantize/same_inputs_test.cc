// Every layer of a model quantized by a backend and by the scalar reference, from the same inputs.
//
// In a chain of layers GPTQ is chaotic: a code that rounding moves takes those behind it along, and
// the inputs of all that follows differ from then on. So the backend under test is given what the
// reference had: the residual stream before each RMS norm, and the inputs that statistics are
// gathered of. What it had itself must be close to that.
#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <deque>
#include <limits>
#include <tuple>

#include "src/base/must.h"
#include "src/base/random.h"
#include "src/ops/cpu/cpu_backend.h"
#include "src/ops/cuda/cuda_backend.h"
#include "src/ops/cuda/device.h"
#include "src/ops/delegating_backend.h"
#include "src/ops/delegating_quantize_ops.h"
#include "src/ops/ref/ref_backend.h"
#include "src/quantize/layer_quantizer.h"
#include "src/tensor/host_floats.h"

namespace nibble {
namespace {

// The activations that a run's operations read, in their order, for another run of the same ones.
class Recording {
 public:
  void Replay() { replays_ = true; }
  bool at_end() const { return inputs_.empty(); }
  // Σ(x - recorded)² ÷ Σ recorded² of what was replaced, the largest of all operations'.
  double largest_difference() const { return largest_difference_; }

  // use(x); in a replay, use(what was recorded in its place).
  template <typename Use>
  void Pass(Backend& backend, MatrixView x, const Use& use) {
    if (!replays_) {
      inputs_.push_back(FloatsOf(Must(backend.ToHost(x))));
      use(x);
      return;
    }
    CHECK(!at_end());
    const std::vector<float> input = std::move(inputs_.front());
    inputs_.pop_front();
    CHECK(static_cast<int64_t>(input.size()) == x.rows * x.columns);
    // Where both the host and the device reach it.
    const Matrix recorded =
        Must(backend.AllocateBeside(testing::TempDir(), x.dtype, x.rows, x.columns));
    double difference = 0, squares = 0;
    const std::vector<float> replaced = FloatsOf(Must(backend.ToHost(x)));
    for (size_t i = 0; i < input.size(); ++i) {
      StoreFloat(x.dtype, recorded.view().data, static_cast<int64_t>(i), input[i]);
      difference += std::pow(replaced[i] - input[i], 2);
      squares += std::pow(input[i], 2);
    }
    largest_difference_ = std::max(largest_difference_, difference / squares);
    use(recorded.view());
    Must(backend.ToHost(x));  // waits: a device may read `recorded` until then
  }

 private:
  std::deque<std::vector<float>> inputs_;
  bool replays_ = false;
  double largest_difference_ = 0;
};

class PassingOps final : public DelegatingQuantizeOps {
 public:
  PassingOps(std::unique_ptr<QuantizeOps> ops, Backend& backend, Recording& recording)
      : DelegatingQuantizeOps(std::move(ops)), backend_(backend), recording_(recording) {}

  void Accumulate(MatrixView x, InputStatistics& statistics) override {
    recording_.Pass(backend_, x, [&](MatrixView passed) {
      DelegatingQuantizeOps::Accumulate(passed, statistics);
    });
  }
  void AccumulateDrift(MatrixView unquantized, std::span<const float> scales, MatrixView x,
                       InputDrift& drift) override {
    recording_.Pass(backend_, unquantized, [&](MatrixView passed_unquantized) {
      recording_.Pass(backend_, x, [&](MatrixView passed) {
        DelegatingQuantizeOps::AccumulateDrift(passed_unquantized, scales, passed, drift);
      });
    });
  }

 private:
  Backend& backend_;
  Recording& recording_;
};

class PassingBackend final : public DelegatingBackend {
 public:
  PassingBackend(std::unique_ptr<Backend> backend, Recording& recording)
      : DelegatingBackend(std::move(backend)), recording_(recording) {}

  int64_t step_rows() const override { return 2048; }  // so that both runs have the same steps
  // Nothing else reads the residual stream, but for what adds to it.
  void RmsNorm(MatrixView x, MatrixView gain, float epsilon, MatrixView out) override {
    recording_.Pass(*this, x, [&](MatrixView passed) {
      DelegatingBackend::RmsNorm(passed, gain, epsilon, out);
    });
  }
  Result<std::unique_ptr<QuantizeOps>> CreateQuantizeOps() override {
    NIBBLE_ASSIGN_OR_RETURN(std::unique_ptr<QuantizeOps> ops,
                            DelegatingBackend::CreateQuantizeOps());
    return std::make_unique<PassingOps>(std::move(ops), *this, recording_);
  }

 private:
  Recording& recording_;
};

struct Case {
  QuantMethod method;
  Grid grid = Grid::kAsymmetric;
  double drift_samples = 1;  // the share of the samples that show GPTQ what earlier errors did

  std::string name() const {
    return fmt::format("{} {} {}", Name(method), Name(grid), drift_samples);
  }
};

// In GoogleTest's messages, instead of its bytes.
void PrintTo(const Case& c, std::ostream* out) { *out << c.name(); }

class SameInputsTest : public testing::TestWithParam<std::tuple<std::string, Case>> {
 protected:
  const std::string& device() const { return std::get<std::string>(GetParam()); }
  const Case& quantization() const { return std::get<Case>(GetParam()); }

  // `share`: of each layer's codes, how many must be the same.
  void Compare(std::unique_ptr<Backend> reference, std::unique_ptr<Backend> tested, int64_t samples,
               double share) {
    Recording recording;
    const std::vector<QuantizedLayer> want = Quantize(samples, std::move(reference), recording);
    recording.Replay();
    const std::vector<QuantizedLayer> got = Quantize(samples, std::move(tested), recording);
    EXPECT_TRUE(recording.at_end());
    for (size_t i = 0; i < want.size(); ++i) CompareLayer(i, want[i], got[i], share);
    fmt::print("{}: inputs differed by {:.1e} of their squares before they were replaced\n",
               quantization().name(), recording.largest_difference());
    // What a few codes that are not the same, in the linears before, do to them.
    EXPECT_LE(recording.largest_difference(), 1e-3);
  }

 private:
  std::vector<QuantizedLayer> Quantize(int64_t samples, std::unique_ptr<Backend> alone,
                                       Recording& recording) {
    PassingBackend backend(std::move(alone), recording);
    const auto checkpoint = Must(OpenCheckpoint("random:small"));
    const ModelDescription model = Must(DescribeModel(*checkpoint));
    const QuantizationPlan plan =
        Must(PlanQuantization(model, {.group_size = 32, .grid = quantization().grid}));
    CalibrationSet set{.samples = samples, .sequence_length = 128};
    const SolverOptions options{.gptq = {.drift_samples = quantization().drift_samples},
                                .awq = {.search_tokens = set.token_count() / 8}};
    // Tokens with which AWQ's best scales are better than others by more than rounding.
    Random random(30);
    for (int64_t i = 0; i < set.token_count(); ++i) {
      const auto vocabulary = static_cast<uint64_t>(model.config.vocabulary);
      set.tokens.push_back(static_cast<int32_t>(random.Below(vocabulary)));
    }
    const auto ops = Must(backend.CreateQuantizeOps());
    const auto quantizer = Must(LayerQuantizer::Create(
        *checkpoint, model, plan, quantization().method, options, &set, backend, *ops, {}));
    const LinearDone ignore = [](std::string_view, const Json&) {};
    std::vector<QuantizedLayer> layers;
    for (int64_t i = 0; i < model.config.layers; ++i) {
      layers.push_back(Must(quantizer->Quantize(i, ignore, CancelToken())));
    }
    return layers;
  }

  void CompareLayer(size_t layer, const QuantizedLayer& want, const QuantizedLayer& got,
                    double share) {
    ASSERT_EQ(want.linears.size(), 7u);
    ASSERT_EQ(got.linears.size(), 7u);
    int64_t same = 0, all = 0;
    double least = std::numeric_limits<double>::infinity(), most = 0;
    for (size_t i = 0; i < want.linears.size(); ++i) {
      const QuantizedWeight &a = want.linears[i].weight, &b = got.linears[i].weight;
      for (int64_t n = 0; n < a.rows; ++n) {
        for (int64_t k = 0; k < a.columns; ++k) same += a.Code(n, k) == b.Code(n, k);
      }
      all += a.rows * a.columns;
      const auto error = [i](const QuantizedLayer& l) {
        return l.modules[i]["error"].get<double>();
      };
      const double ratio = error(got) / error(want);
      EXPECT_NEAR(ratio, 1, 0.01) << want.linears[i].name;
      least = std::min(least, ratio);
      most = std::max(most, ratio);
    }
    const double same_share = static_cast<double>(same) / static_cast<double>(all);
    fmt::print("{}, layer {}: {:.3f} % of the codes are the same, errors {:+.3f} % to {:+.3f} %\n",
               quantization().name(), layer, 100 * same_share, 100 * (least - 1), 100 * (most - 1));
    EXPECT_GE(same_share, share) << "layer " << layer;
  }
};

TEST_P(SameInputsTest, EveryLayerBecomesTheSame) {
  if (device() == "cpu") {
    // Both in float32. A row in which rounding moves a code is up to 0.16 % of a layer's codes, of
    // which most stay.
    Compare(MakeRefBackend(1), Must(MakeCpuBackend({.threads = 1})), 8, 0.999);
  } else if (ListCudaDevices().empty()) {
    GTEST_SKIP() << "there is no NVIDIA GPU here";
  } else {
    // Also an eighth of so many samples has the many rows for which the reference rounds what a GPU
    // rounds.
    Compare(MakeRefBackend(4, DType::kF16), Must(MakeCudaBackend({.activations = DType::kF16})), 32,
            0.995);
  }
}

constexpr Case kCases[] = {{QuantMethod::kRtn},
                           {QuantMethod::kAwq},
                           {QuantMethod::kGptq},
                           {QuantMethod::kGptq, Grid::kAsymmetric, 0.125},
                           {QuantMethod::kGptq, Grid::kSymmetric},
                           {QuantMethod::kAwqGptq}};

std::string CaseName(const testing::TestParamInfo<SameInputsTest::ParamType>& info) {
  std::string name = std::get<Case>(info.param).name();
  std::replace_if(
      name.begin(), name.end(), [](char c) { return !std::isalnum(c); }, '_');
  return name;
}
INSTANTIATE_TEST_SUITE_P(Cpu, SameInputsTest,
                         testing::Combine(testing::Values("cpu"), testing::ValuesIn(kCases)),
                         CaseName);
INSTANTIATE_TEST_SUITE_P(Gpu, SameInputsTest,
                         testing::Combine(testing::Values("gpu"), testing::ValuesIn(kCases)),
                         CaseName);

}  // namespace
}  // namespace nibble

#include "src/quantize/quantize.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>

#include "src/base/file.h"
#include "src/base/must.h"
#include "src/base/random.h"
#include "src/ops/cpu/cpu_backend.h"
#include "src/quantize/calibration_runner.h"
#include "src/quantize/fixture_util.h"
#include "src/quantize/quantize_context.h"

namespace nibble {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

TEST(ParseMethodTest, ReadsNameGroupAndGrid) {
  const auto parse = [](std::string_view text) { return ParseMethod(text).value().quant; };
  EXPECT_EQ(parse("rtn"), (QuantSpec{4, 128, Grid::kAsymmetric}));
  EXPECT_EQ(parse("rtn-g64"), (QuantSpec{4, 64, Grid::kAsymmetric}));
  EXPECT_EQ(parse("rtn-sym"), (QuantSpec{4, 128, Grid::kSymmetric}));
  EXPECT_EQ(parse("rtn-g32-sym-full"), (QuantSpec{4, 32, Grid::kSymmetricFull}));
  EXPECT_EQ(parse("rtn-gchannel-asym"), (QuantSpec{4, kPerChannel, Grid::kAsymmetric}));
  EXPECT_EQ(parse("gptq"), (QuantSpec{4, 128, Grid::kSymmetric}));
  EXPECT_EQ(parse("gptq-asym"), (QuantSpec{4, 128, Grid::kAsymmetric}));
  EXPECT_EQ(parse("awq+gptq-g64"), (QuantSpec{4, 64, Grid::kAsymmetric}));
  EXPECT_EQ(ParseMethod("awq+gptq-g64-sym")->method, QuantMethod::kAwqGptq);
  EXPECT_EQ(ParseMethod("awq")->method, QuantMethod::kAwq);
  for (const char* bad : {"", "rtx", "rtn-g48", "rtn-g", "rtn-", "rtn-asym-g64", "rtn-g64-odd"}) {
    const auto result = ParseMethod(bad);
    ASSERT_FALSE(result) << bad;
    EXPECT_EQ(result.error().code(), ErrorCode::kUsage);
  }
}

TEST(LayoutTest, RefusesWhatItCannotExpress) {
  EXPECT_TRUE(CheckLayout(DefaultLayout(Grid::kAsymmetric), Grid::kAsymmetric));
  EXPECT_TRUE(CheckLayout(DefaultLayout(Grid::kSymmetric), Grid::kSymmetric));
  EXPECT_THAT(CheckLayout(QuantLayout::kGptqV1, Grid::kAsymmetric).error().message(),
              HasSubstr("gptq_v2"));
  EXPECT_FALSE(CheckLayout(QuantLayout::kAwqGemm, Grid::kSymmetric));
}

ModelDescription Description(int64_t hidden, int64_t intermediate, int64_t kv_heads = 2) {
  ModelDescription model;
  model.config.layers = 1;
  model.config.hidden = hidden;
  model.config.intermediate = intermediate;
  model.config.heads = 4;
  model.config.kv_heads = kv_heads;
  model.config.head_dim = hidden / 4;
  return model;
}

TEST(PlanQuantizationTest, OneGroupSizeThatDividesEveryInput) {
  const auto plan = PlanQuantization(Description(576, 1536), {.group_size = 128}).value();
  EXPECT_EQ(plan.spec.group_size, 64);
  EXPECT_THAT(plan.skipped, IsEmpty());
  ASSERT_THAT(plan.notes, SizeIs(1));
  EXPECT_THAT(plan.notes[0], HasSubstr("576"));
  EXPECT_EQ(PlanQuantization(Description(256, 512), {.group_size = 128})->spec.group_size, 128);
  EXPECT_EQ(PlanQuantization(Description(256, 512), {.group_size = 32})->spec.group_size, 32);
  EXPECT_EQ(PlanQuantization(Description(256, 512), {.group_size = kPerChannel})->spec.group_size,
            kPerChannel);
}

// stories260K's sizes: 172 is no multiple of 8, so gate, up and down stay as they are.
TEST(PlanQuantizationTest, SkipsWhatNoLayoutHolds) {
  const auto plan = PlanQuantization(Description(64, 172), {.group_size = 128}).value();
  EXPECT_EQ(plan.spec.group_size, 64);
  EXPECT_THAT(plan.quantized, SizeIs(4));
  ASSERT_THAT(plan.skipped, SizeIs(3));
  EXPECT_THAT(plan.skipped[0].reason, HasSubstr("172"));
  const auto nothing = PlanQuantization(Description(20, 44), {.group_size = 32});
  ASSERT_FALSE(nothing);
  EXPECT_EQ(nothing.error().code(), ErrorCode::kBadInput);
}

TEST(PlanQuantizationTest, RefusesAQuantizedModel) {
  ModelDescription model = Description(256, 512);
  model.quantization = QuantizationConfig{};
  EXPECT_THAT(PlanQuantization(model, {}).error().message(), HasSubstr("quantized already"));
}

struct Case {
  QuantMethod method;
  const char* layout;
  int64_t group_size = 32;
  double drift_share = 0;
  double drift_samples = 1;
};

// In the tests' names, instead of its bytes.
void PrintTo(const Case& c, std::ostream* out) {
  *out << Name(c.method) << " " << c.layout << " " << c.group_size << " " << c.drift_share << " of "
       << c.drift_samples;
}

class QuantizeCheckpointTest : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    output_ = ::testing::TempDir() + "/quantize_test_" + std::to_string(::getpid());
    Remove();
    Random random(5);
    set_.samples = 6;
    set_.sequence_length = 40;
    for (int64_t i = 0; i < set_.token_count(); ++i) {
      set_.tokens.push_back(static_cast<int32_t>(random.Below(64)));
    }
  }
  void TearDown() override { Remove(); }
  void Remove() {
    for (const char* suffix : {"", ".quantizing", "-again", "-again.quantizing"}) {
      std::filesystem::remove_all(output_ + suffix);
    }
  }

  Result<Json> Quantize(const Case& c, const std::string& output, const CancelToken& cancel,
                        const QuantizeProgress& progress) {
    const auto backend = *MakeCpuBackend({.threads = 2});
    return Quantize(c, output, UINT64_MAX, *backend, cancel, progress);
  }
  Result<Json> Quantize(const Case& c, const std::string& output, uint64_t max_host_bytes,
                        Backend& backend, const CancelToken& cancel,
                        const QuantizeProgress& progress) {
    const auto checkpoint = *OpenCheckpoint("random:tiny");
    const ModelDescription model = *DescribeModel(*checkpoint);
    const QuantLayout layout = *ParseLayout(c.layout);
    const Grid grid = layout == QuantLayout::kGptqV1 ? Grid::kSymmetric : Grid::kAsymmetric;
    return QuantizeCheckpoint(
        *checkpoint, model,
        {.method = {.method = c.method, .quant = {.group_size = c.group_size, .grid = grid}},
         .layout = layout,
         .solver = {.gptq = {.drift_share = c.drift_share, .drift_samples = c.drift_samples}},
         .calibration = c.method == QuantMethod::kRtn ? nullptr : &set_,
         .max_host_bytes = max_host_bytes,
         .output = output},
        backend, progress, cancel);
  }

  std::string output_;
  CalibrationSet set_;
};

const QuantizeProgress kIgnore = [](int64_t, int64_t, std::string_view, const Json&) {};

// What is read back from disk is exactly what rounding gave, in every layout.
TEST_P(QuantizeCheckpointTest, ReadsBackWhatItWrote) {
  const Case& c = GetParam();
  int64_t calls = 0;
  std::map<std::string, double> errors;
  const auto record = Quantize(c, output_, CancelToken(),
                               [&](int64_t done, int64_t, std::string_view name, const Json& m) {
                                 EXPECT_EQ(done, ++calls);
                                 errors[std::string(name)] = m["weight_error"].get<double>();
                               });
  ASSERT_TRUE(record) << record.error().message();
  EXPECT_EQ(calls, 14);
  EXPECT_EQ((*record)["modules"].size(), 14u);

  const auto checkpoint = Must(OpenCheckpoint("random:tiny"));
  const ModelDescription model = Must(DescribeModel(*checkpoint));
  const auto opened = OpenCheckpoint(output_);
  ASSERT_TRUE(opened) << opened.error().message();
  const Checkpoint* quantized = opened->get();
  const auto described = DescribeModel(*quantized);
  ASSERT_TRUE(described) << described.error().message();
  const ModelDescription& again = *described;
  ASSERT_TRUE(again.quantization);
  EXPECT_EQ(Name(again.quantization->layout), c.layout);
  const LayerLinears linears = LinearsOfLayer(model.config, 1);
  for (const LinearName* linear : linears.All()) {
    const Weight original = Must(ReadWeight(*checkpoint, linear->name, linear->out_features,
                                            linear->in_features, std::nullopt));
    const Weight read = Must(ReadWeight(*quantized, linear->name, linear->out_features,
                                        linear->in_features, again.quantization));
    const auto& got = std::get<QuantizedWeight>(read);
    // The error that was reported is that of what lies on disk. AWQ scales what it rounds.
    if (c.method == QuantMethod::kAwq || c.method == QuantMethod::kAwqGptq) continue;
    const DenseWeight& dense = std::get<DenseWeight>(original);
    double error = 0, square = 0;
    for (int64_t n = 0; n < got.rows; ++n) {
      for (int64_t k = 0; k < got.columns; ++k) {
        error += std::pow(dense.At(n, k) - got.At(n, k), 2);
        square += std::pow(dense.At(n, k), 2);
      }
    }
    EXPECT_NEAR(errors[linear->name], error / square, 1e-9);
  }
  // Everything else is untouched.
  EXPECT_EQ(Must(ReadVector(*quantized, "model.norm.weight", 64)),
            Must(ReadVector(*checkpoint, "model.norm.weight", 64)));
  EXPECT_TRUE(FileExists(output_ + "/quantize.json"));
  EXPECT_TRUE(FileExists(output_ + "/README.md"));
  EXPECT_FALSE(FileExists(output_ + ".quantizing"));
}

// Learning from activations pays at the outputs; AWQ's own losses are never above rounding's.
TEST_P(QuantizeCheckpointTest, CalibrationPays) {
  const Case& c = GetParam();
  if (c.method == QuantMethod::kRtn) GTEST_SKIP() << "rounding does not calibrate";
  const auto record = Quantize(c, output_, CancelToken(), kIgnore);
  ASSERT_TRUE(record) << record.error().message();
  EXPECT_LT((*record)["mean_error_ratio"].get<double>(), 1);
  for (const Json& module : (*record)["modules"]) {
    EXPECT_NE(module["error"], module["weight_error"]);
    if (!module.contains("awq")) continue;
    EXPECT_LE(module["awq"]["loss"].get<double>(), module["awq"]["rtn_loss"].get<double>());
  }
}

// What the last layer's MLP adds for the calibration tokens, behind the checkpoint's earlier
// layers.
std::vector<float> LastMlpOutput(const std::string& path, const CalibrationSet& set,
                                 const ActivationStorage& storage) {
  const auto checkpoint = Must(OpenCheckpoint(path));
  const ModelDescription model = Must(DescribeModel(*checkpoint));
  const auto backend = Must(MakeCpuBackend({.threads = 2}));
  const auto runner = Must(CalibrationRunner::Create(model.config, set, *backend, storage));
  runner->Embed(*Must(LoadEmbedding(*checkpoint, model, *backend)));
  const int64_t last = model.config.layers - 1;
  const CancelToken never;
  const auto run = [&](QuantizeContext::Stage stage, int64_t layer, const LayerWeights& weights) {
    for (const CalibrationRunner::Step& step : runner->Steps())
      (*runner.*stage)(step, layer, weights);
  };
  LayerWeights weights;
  for (int64_t layer = 0; layer <= last; ++layer) {
    weights = Must(LoadLayer(*checkpoint, model, layer, *backend));
    run(&CalibrationRunner::QkvInput, layer, weights);
    run(&CalibrationRunner::OutputInput, layer, weights);
    run(&CalibrationRunner::MlpInput, layer, weights);
    if (layer == last) break;
    run(&CalibrationRunner::DownInput, layer, weights);
    CHECK(runner->LayerOutput(layer, weights, never));
  }
  std::vector<float> out(static_cast<size_t>(set.token_count() * model.config.hidden));
  runner->MlpOutput(
      last, weights, set.samples,
      {out.data(), DType::kF32, set.token_count(), model.config.hidden, model.config.hidden});
  return out;
}

// Wherever the activations lie, and whether they wait or are computed again: the same bits. With 7
// MiB all are kept, with 6 the narrower inputs wait, with 5 none, with 0 even the residual stream
// lies beside.
TEST(CalibrationRunnerTest, StorageDoesNotMatter) {
  CalibrationSet set{.samples = 120, .sequence_length = 40};  // three steps
  Random random(6);
  for (int64_t i = 0; i < set.token_count(); ++i) {
    set.tokens.push_back(static_cast<int32_t>(random.Below(64)));
  }
  const std::vector<float> want = LastMlpOutput("random:tiny", set, {});
  using Beyond = ActivationStorage::Beyond;
  for (const Beyond beyond : {Beyond::kBeside, Beyond::kComputeAgain}) {
    for (const uint64_t megabytes : {0, 5, 6, 7}) {
      EXPECT_EQ(want, LastMlpOutput("random:tiny", set,
                                    {.max_bytes = megabytes << 20,
                                     .directory = ::testing::TempDir(),
                                     .beyond = beyond}))
          << megabytes;
    }
  }
}

// What was gathered before the boundary is of the samples before it.
TEST(CalibrationRunnerTest, AStepBeginsAtTheBoundary) {
  const CalibrationSet set{
      .samples = 120, .sequence_length = 40, .tokens = std::vector<int32_t>(120 * 40)};
  const auto checkpoint = Must(OpenCheckpoint("random:tiny"));
  const ModelDescription model = Must(DescribeModel(*checkpoint));
  const auto backend = Must(MakeCpuBackend({.threads = 1}));
  const auto firsts = [&](const CalibrationSet& samples, int64_t boundary) {
    const auto runner =
        Must(CalibrationRunner::Create(model.config, samples, *backend, {}, boundary));
    std::vector<int64_t> firsts;
    int64_t next = 0;
    for (const CalibrationRunner::Step& step : runner->Steps()) {
      EXPECT_EQ(step.first, next);
      next += step.sequences;
      firsts.push_back(step.first);
    }
    EXPECT_EQ(next, samples.samples);
    return firsts;
  };
  EXPECT_THAT(firsts(set, 0), ElementsAre(0, 51, 102));
  EXPECT_THAT(firsts(set, 70), ElementsAre(0, 51, 70));
  EXPECT_THAT(firsts(set.First(70), 0), ElementsAre(0, 51));
}

// Towards the unquantized model's outputs, a block's come out nearer to them.
TEST_F(QuantizeCheckpointTest, AsymmetricCalibrationMakesUpForEarlierErrors) {
  const std::vector<float> want = LastMlpOutput("random:tiny", set_, {});
  for (const QuantMethod method : {QuantMethod::kGptq, QuantMethod::kAwqGptq}) {
    std::vector<double> errors;
    for (const Case& c : {Case{method, "awq", 64, 0}, Case{method, "awq", 64, 1},
                          Case{method, "awq", 64, 1, 0.6}}) {
      const auto record = Quantize(c, output_, CancelToken(), kIgnore);
      ASSERT_TRUE(record) << record.error().message();
      const std::vector<float> got = LastMlpOutput(output_, set_, {});
      errors.push_back(0);
      for (size_t i = 0; i < want.size(); ++i) errors.back() += std::pow(got[i] - want[i], 2);
      Remove();
    }
    EXPECT_GT(errors[1], 0);
    EXPECT_LT(errors[1], 0.9 * errors[0]) << Name(method);
    // Fewer samples show less.
    EXPECT_LT(errors[2], errors[0]) << Name(method);
    EXPECT_NE(errors[2], errors[1]) << Name(method);
  }
}

TEST_F(QuantizeCheckpointTest, RefusesTokensThatTheModelDoesNotHave) {
  set_.tokens[7] = 64;
  const auto record = Quantize({QuantMethod::kGptq, "gptq"}, output_, CancelToken(), kIgnore);
  ASSERT_FALSE(record);
  EXPECT_THAT(record.error().message(), HasSubstr("token 64 is outside the vocabulary of 64"));
}

std::map<std::string, std::string> Contents(const std::string& directory) {
  std::map<std::string, std::string> contents;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    if (entry.path().filename() == "quantize.json") continue;  // holds times
    contents[entry.path().filename()] = *ReadFile(entry.path());
  }
  return contents;
}

// Stopped in the middle, it goes on with the layer it was in, and nothing tells afterwards.
TEST_P(QuantizeCheckpointTest, ResumesToTheSameBits) {
  const Case& c = GetParam();
  CancelToken cancel;
  const auto stopped =
      Quantize(c, output_, cancel, [&](int64_t done, int64_t, std::string_view, const Json&) {
        if (done == 9) cancel.Request();
      });
  ASSERT_FALSE(stopped);
  EXPECT_EQ(stopped.error().code(), ErrorCode::kInterrupted);
  EXPECT_THAT(stopped.error().message(), HasSubstr("kept in " + output_ + ".quantizing"));
  EXPECT_FALSE(FileExists(output_));
  EXPECT_TRUE(FileExists(output_ + ".quantizing"));
  ASSERT_TRUE(Quantize(c, output_, CancelToken(), kIgnore));
  EXPECT_FALSE(FileExists(output_ + ".quantizing"));
  ASSERT_TRUE(Quantize(c, output_ + "-again", CancelToken(), kIgnore));
  EXPECT_EQ(Contents(output_), Contents(output_ + "-again"));
}

// Layers that a stopped run corrected on one share of the samples do not join those of another.
TEST_F(QuantizeCheckpointTest, ResumesOnlyWithTheSameAsymmetricSamples) {
  const Case eighth{QuantMethod::kGptq, "awq", 32, 0.5, 0.125};
  const Case all{QuantMethod::kGptq, "awq", 32, 0.5, 1};
  CancelToken cancel;
  const auto stopped =
      Quantize(eighth, output_, cancel, [&](int64_t done, int64_t, std::string_view, const Json&) {
        if (done == 9) cancel.Request();
      });
  ASSERT_FALSE(stopped);
  ASSERT_TRUE(FileExists(output_ + ".quantizing"));
  ASSERT_TRUE(Quantize(all, output_, CancelToken(), kIgnore));
  ASSERT_TRUE(Quantize(all, output_ + "-again", CancelToken(), kIgnore));
  EXPECT_EQ(Contents(output_), Contents(output_ + "-again"));
  Remove();
  ASSERT_TRUE(Quantize(eighth, output_, CancelToken(), kIgnore));
  ASSERT_TRUE(Quantize(all, output_ + "-again", CancelToken(), kIgnore));
  EXPECT_NE(Contents(output_), Contents(output_ + "-again"));
}

// Out of memory half-way, it goes on with the activations elsewhere, to the same bits.
TEST_F(QuantizeCheckpointTest, ShortOfMemoryItGoesOn) {
  const Case c{QuantMethod::kGptq, "awq", 32, 0.5};
  const auto backend = *MakeCpuBackend({.threads = 2});
  ASSERT_TRUE(Quantize(c, output_, 0, *backend, CancelToken(), kIgnore));
  const uint64_t least = backend->memory().peak().total();
  int64_t last = 0;
  bool began_again = false;
  const auto record = Quantize(c, output_ + "-again", UINT64_MAX, *backend, CancelToken(),
                               [&](int64_t done, int64_t, std::string_view, const Json&) {
                                 if (done == 8) backend->memory().SetLimit(least);
                                 began_again |= done < last;
                                 last = done;
                               });
  ASSERT_TRUE(record) << record.error().message();
  EXPECT_TRUE(began_again);
  EXPECT_EQ(Contents(output_), Contents(output_ + "-again"));
}

INSTANTIATE_TEST_SUITE_P(
    Methods, QuantizeCheckpointTest,
    ::testing::Values(Case{QuantMethod::kRtn, "awq"}, Case{QuantMethod::kRtn, "gptq"},
                      Case{QuantMethod::kRtn, "gptq_v2"}, Case{QuantMethod::kAwq, "awq"},
                      Case{QuantMethod::kAwq, "gptq_v2", kPerChannel},
                      Case{QuantMethod::kGptq, "gptq"}, Case{QuantMethod::kGptq, "awq", 64},
                      Case{QuantMethod::kGptq, "gptq_v2", kPerChannel},
                      Case{QuantMethod::kGptq, "gptq_v2", 32, 1},
                      Case{QuantMethod::kAwqGptq, "awq"},
                      Case{QuantMethod::kGptq, "awq", 32, 0.5, 0.3},
                      Case{QuantMethod::kAwqGptq, "awq", 32, 0.5, 0.3}),
    [](const ::testing::TestParamInfo<Case>& info) {
      std::string name = fmt::format("{}_{}_{}", Name(info.param.method), info.param.layout,
                                     info.param.group_size < 0 ? 0 : info.param.group_size);
      if (info.param.drift_share > 0) name += "_asymmetric";
      std::replace(name.begin(), name.end(), '+', '_');
      return name;
    });

}  // namespace
}  // namespace nibble

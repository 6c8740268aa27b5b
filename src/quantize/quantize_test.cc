#include "src/quantize/quantize.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "src/base/file.h"
#include "src/quantize/rtn.h"

namespace nibble {
namespace {

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

class QuantizeCheckpointTest : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    output_ = ::testing::TempDir() + "/quantize_test_" + std::to_string(::getpid());
    std::filesystem::remove_all(output_);
  }
  void TearDown() override { std::filesystem::remove_all(output_); }
  std::string output_;
};

template <typename T>
T Get(Result<T> result) {
  CHECK(result, "{}", result.error().message());
  return *std::move(result);
}

// What is read back from disk is exactly what rounding gave, in every layout.
TEST_P(QuantizeCheckpointTest, ReadsBackWhatItWrote) {
  const auto checkpoint = Get(OpenCheckpoint("random:tiny"));
  const ModelDescription model = Get(DescribeModel(*checkpoint));
  const std::string layout_name = GetParam();
  const QuantLayout layout = Get(ParseLayout(layout_name));
  const Grid grid = layout == QuantLayout::kGptqV1 ? Grid::kSymmetric : Grid::kAsymmetric;
  ThreadPool pool(2);
  const CancelToken never;
  int64_t calls = 0;
  const auto record = QuantizeCheckpoint(
      *checkpoint, model,
      {.method = {.quant = {.group_size = 32, .grid = grid}}, .layout = layout, .output = output_},
      pool, [&](int64_t done, int64_t, std::string_view, double) { EXPECT_EQ(done, ++calls); },
      never);
  ASSERT_TRUE(record) << record.error().message();
  EXPECT_EQ(calls, 14);
  EXPECT_EQ((*record)["modules"].size(), 14u);

  const auto opened = OpenCheckpoint(output_);
  ASSERT_TRUE(opened) << opened.error().message();
  const Checkpoint* quantized = opened->get();
  const auto described = DescribeModel(*quantized);
  ASSERT_TRUE(described) << described.error().message();
  const ModelDescription& again = *described;
  ASSERT_TRUE(again.quantization);
  EXPECT_EQ(again.quantization->layout, layout);
  const LayerLinears linears = LinearsOfLayer(model.config, 1);
  for (const LinearName* linear : linears.All()) {
    const Weight original = Get(ReadWeight(*checkpoint, linear->name, linear->out_features,
                                           linear->in_features, std::nullopt));
    const QuantizedWeight want = Get(RoundToNearest(
        std::get<DenseWeight>(original), {.group_size = 32, .grid = grid}, linear->name, pool));
    const Weight read = Get(ReadWeight(*quantized, linear->name, linear->out_features,
                                       linear->in_features, again.quantization));
    const auto& got = std::get<QuantizedWeight>(read);
    EXPECT_EQ(got.codes, want.codes) << linear->name;
    EXPECT_EQ(got.scales, want.scales) << linear->name;
    EXPECT_EQ(got.zeros, want.zeros) << linear->name;
  }
  // Everything else is untouched.
  EXPECT_EQ(Get(ReadVector(*quantized, "model.norm.weight", 64)),
            Get(ReadVector(*checkpoint, "model.norm.weight", 64)));
  EXPECT_TRUE(FileExists(output_ + "/quantize.json"));
  EXPECT_TRUE(FileExists(output_ + "/README.md"));
}

INSTANTIATE_TEST_SUITE_P(Layouts, QuantizeCheckpointTest,
                         ::testing::Values("awq", "gptq", "gptq_v2"));

TEST_F(QuantizeCheckpointTest, LeavesNothingBehindWhenInterrupted) {
  const auto checkpoint = OpenCheckpoint("random:tiny").value();
  const ModelDescription model = DescribeModel(*checkpoint).value();
  ThreadPool pool(1);
  CancelToken cancel;
  const auto record = QuantizeCheckpoint(
      *checkpoint, model, {.method = {.quant = {.group_size = 32}}, .output = output_}, pool,
      [&](int64_t done, int64_t, std::string_view, double) {
        if (done == 5) cancel.Request();
      },
      cancel);
  ASSERT_FALSE(record);
  EXPECT_EQ(record.error().code(), ErrorCode::kInterrupted);
  for (const auto& entry : std::filesystem::directory_iterator(::testing::TempDir())) {
    EXPECT_THAT(entry.path().string(), ::testing::Not(HasSubstr(output_)));
  }
}

}  // namespace
}  // namespace nibble

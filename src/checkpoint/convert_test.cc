#include "src/checkpoint/convert.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <map>

#include "src/checkpoint/checkpoint_writer.h"
#include "src/checkpoint/quantized_linear.h"
#include "src/checkpoint/test_files.h"

namespace nibble {
namespace {

std::vector<std::string> FilesIn(const std::string& directory) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

TEST(Convert, CopiesEveryTensorAndFile) {
  const TempDirectory temp;
  const std::string fixture = JoinPath(NIBBLE_SHARED_DATA, "models/stories260K");
  if (!IsDirectory(fixture)) GTEST_SKIP() << fixture << " is absent";
  const auto source = OpenCheckpoint(fixture);
  ASSERT_OK(source);
  ASSERT_OK(ConvertToDirectory(**source, temp / "out",
                               {.model_card = "# Stories\n", .max_shard_bytes = 300'000}));
  const auto copy = OpenCheckpoint(temp / "out");
  ASSERT_OK(copy);
  EXPECT_TRUE(FileExists(temp / "out/tokenizer.model"));
  EXPECT_TRUE(FileExists(temp / "out/README.md"));
  EXPECT_TRUE(FileExists(temp / "out/model.safetensors.index.json"));
  EXPECT_EQ((*copy)->config(), (*source)->config());
  EXPECT_EQ((*copy)->tensors().size(), (*source)->tensors().size());
  for (const TensorInfo& tensor : (*source)->tensors()) {
    const auto a = (*source)->Read(tensor.name), b = (*copy)->Read(tensor.name);
    ASSERT_OK(b);
    ASSERT_EQ(a->bytes.size(), b->bytes.size());
    EXPECT_EQ(std::memcmp(a->bytes.data(), b->bytes.data(), a->bytes.size()), 0) << tensor.name;
  }
}

TEST(Convert, SyntheticModelsStayMarked) {
  const TempDirectory temp;
  const auto source = OpenCheckpoint("random:smollm2-135m:gptq-g64-sym");
  ASSERT_OK(source);
  ASSERT_OK(ConvertToDirectory(**source, temp / "out", {}));
  const auto copy = OpenCheckpoint(temp / "out");
  ASSERT_OK(copy);
  EXPECT_TRUE((*copy)->synthetic());
  EXPECT_EQ((*copy)->label(), "gptq-g64-sym");
  const auto config = ParseQuantizationConfig((*copy)->config(), "config.json");
  const auto a = ReadWeight(**source, "model.layers.7.mlp.down_proj", 576, 1536, *config);
  const auto b = ReadWeight(**copy, "model.layers.7.mlp.down_proj", 576, 1536, *config);
  ASSERT_OK(a);
  ASSERT_OK(b);
  EXPECT_EQ(std::get<QuantizedWeight>(*a).codes, std::get<QuantizedWeight>(*b).codes);
}

TEST(Convert, StopsWhenAskedAndLeavesNothing) {
  const TempDirectory temp;
  const auto source = OpenCheckpoint("random:smollm2-135m");
  ASSERT_OK(source);
  CancelToken cancel;
  cancel.Request();
  EXPECT_ERROR(ConvertToDirectory(**source, temp / "out", {.cancel = &cancel}),
               ErrorCode::kInterrupted, "interrupted");
  EXPECT_TRUE(FilesIn(temp.path()).empty());
}

// The layers of a model, by name, as they mean.
std::map<std::string, QuantizedWeight> LayersOf(const std::string& model) {
  std::map<std::string, QuantizedWeight> layers;
  const auto checkpoint = OpenCheckpoint(model);
  EXPECT_OK(checkpoint);
  const auto config = ParseQuantizationConfig((*checkpoint)->config(), "config.json");
  EXPECT_OK(config);
  for (const TensorInfo& tensor : (*checkpoint)->tensors()) {
    const auto linear = LinearOfCodes((*config)->layout, tensor);
    if (!linear) continue;
    const auto weight =
        ReadWeight(**checkpoint, linear->name, linear->out_features, linear->in_features, *config);
    EXPECT_OK(weight);
    layers.emplace(linear->name, std::get<QuantizedWeight>(*weight));
  }
  return layers;
}

void ExpectSameLayers(const std::string& model, const std::string& other) {
  const auto want = LayersOf(model), got = LayersOf(other);
  EXPECT_EQ(want.size(), 14u);
  ASSERT_EQ(got.size(), want.size());
  for (const auto& [name, weight] : want) {
    ASSERT_TRUE(got.contains(name));
    EXPECT_EQ(got.at(name).codes, weight.codes);
    EXPECT_EQ(got.at(name).scales, weight.scales);
    EXPECT_EQ(got.at(name).zeros, weight.zeros);
    EXPECT_EQ(got.at(name).column_of_input, weight.column_of_input);
  }
}

Status Relayout(const std::string& model, QuantLayout layout, const std::string& output) {
  NIBBLE_ASSIGN_OR_RETURN(const auto source, OpenCheckpoint(model));
  return ConvertToDirectory(*source, output, {.layout = layout});
}

std::string FileOf(const std::string& directory, const char* name) {
  return *ReadFile(JoinPath(directory, name));
}

TEST(Convert, BetweenLayoutsAndBackIsTheSameFile) {
  struct Case {
    const char* model;
    QuantLayout own;
    std::vector<QuantLayout> through;
  };
  for (const Case& c :
       {Case{"random:tiny:awq-g32",
             QuantLayout::kAwqGemm,
             {QuantLayout::kGptqV2, QuantLayout::kCompressedTensors, QuantLayout::kAwqGemm}},
        Case{"random:tiny:gptq-g32-sym",
             QuantLayout::kGptqV1,
             {QuantLayout::kCompressedTensors, QuantLayout::kGptqV2, QuantLayout::kGptqV1}},
        Case{"random:tiny:gptq-g32-sym",
             QuantLayout::kGptqV1,
             {QuantLayout::kAwqGemm, QuantLayout::kGptqV1}}}) {
    const TempDirectory temp;
    const std::string first = temp / "0";
    ASSERT_OK(Relayout(c.model, c.own, first));
    std::string last = first;
    for (const QuantLayout layout : c.through) {
      SCOPED_TRACE(Name(layout));
      const std::string next = last + "1";
      ASSERT_OK(Relayout(last, layout, next));
      ExpectSameLayers(first, next);
      last = next;
    }
    EXPECT_EQ(FileOf(first, "model.safetensors"), FileOf(last, "model.safetensors"));
  }
}

TEST(Convert, RefusesWhatTheLayoutCannotExpress) {
  const TempDirectory temp;
  // Its zeros are 7 and 8.
  EXPECT_ERROR(Relayout("random:tiny:awq-g32", QuantLayout::kGptqV1, temp / "out"),
               ErrorCode::kBadInput,
               "awq, gptq_v2 and asymmetric compressed-tensors can express it");
  EXPECT_ERROR(Relayout("random:tiny", QuantLayout::kAwqGemm, temp / "out"), ErrorCode::kUsage,
               "nibble quantize");
  EXPECT_TRUE(FilesIn(temp.path()).empty());
}

// A copy in version 2 with its groups in act-order: inputs are dealt to the groups in turn.
void PutInActOrder(const std::string& from, const std::string& to) {
  const auto source = OpenCheckpoint(from);
  ASSERT_OK(source);
  CheckpointPlan plan;
  plan.config = (*source)->config();
  plan.quantization = *ParseQuantizationConfig(plan.config, "config.json");
  plan.quantization->spec.order = GroupOrder::kIndexed;
  for (const TensorInfo& tensor : (*source)->tensors()) {
    plan.AddTensor(tensor.name, *tensor.dtype, tensor.shape);
  }
  auto writer = CheckpointWriter::Create(to, std::move(plan));
  ASSERT_OK(writer);
  for (const TensorInfo& tensor : (*source)->tensors()) {
    TensorView view = *(*source)->Read(tensor.name);
    std::vector<int32_t> index;
    if (tensor.name.ends_with(".g_idx")) {
      const int64_t inputs = tensor.shape[0], groups = inputs / 32;
      for (int64_t k = 0; k < inputs; ++k) index.push_back(static_cast<int32_t>(k % groups));
      view.bytes = std::as_bytes(std::span(index));
    }
    ASSERT_OK((*writer)->Add(tensor.name, view));
  }
  ASSERT_OK((*writer)->Finish());
}

TEST(Convert, KeepsActOrderWhereTheLayoutCan) {
  const TempDirectory temp;
  ASSERT_OK(Relayout("random:tiny:awq-g32", QuantLayout::kGptqV2, temp / "natural"));
  PutInActOrder(temp / "natural", temp / "ordered");
  const auto layers = LayersOf(temp / "ordered");
  EXPECT_EQ(layers.begin()->second.ColumnOf(1), 32);
  ASSERT_OK(Relayout(temp / "ordered", QuantLayout::kCompressedTensors, temp / "ct"));
  ExpectSameLayers(temp / "ordered", temp / "ct");
  ASSERT_OK(Relayout(temp / "ct", QuantLayout::kGptqV2, temp / "back"));
  EXPECT_EQ(FileOf(temp / "ordered", "model.safetensors"),
            FileOf(temp / "back", "model.safetensors"));
  EXPECT_ERROR(Relayout(temp / "ordered", QuantLayout::kAwqGemm, temp / "awq"),
               ErrorCode::kBadInput, "act-order");
}

TEST(Convert, DocumentsSayWhatBecameOfThem) {
  const TempDirectory temp;
  ASSERT_OK(Relayout("random:tiny:awq-g32", QuantLayout::kAwqGemm, temp / "a"));
  ASSERT_TRUE(WriteFileAtomic(temp / "a/README.md", "# A model\n"));
  ASSERT_TRUE(WriteFileAtomic(temp / "a/quantize.json", R"({"method":"rtn","format":"awq"})"));
  ASSERT_OK(Relayout(temp / "a", QuantLayout::kGptqV2, temp / "b"));
  EXPECT_TRUE(FileOf(temp / "b", "README.md").starts_with("# A model\n"));
  EXPECT_NE(FileOf(temp / "b", "README.md").find("`gptq_v2`"), std::string::npos);
  EXPECT_EQ((*ReadJsonFile(temp / "b/quantize.json"))["format"], "gptq_v2");
  EXPECT_EQ((*ReadJsonFile(temp / "b/quantize_config.json"))["checkpoint_format"], "gptq_v2");
  ASSERT_OK(Relayout(temp / "b", QuantLayout::kGptqV2, temp / "c"));
  EXPECT_EQ(FileOf(temp / "b", "README.md"), FileOf(temp / "c", "README.md"));
}

}  // namespace
}  // namespace nibble

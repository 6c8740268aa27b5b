#include "src/checkpoint/checkpoint_writer.h"

#include <gtest/gtest.h>
#include <sys/wait.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>

#include "src/base/random.h"
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

struct Vector {
  explicit Vector(std::vector<float> v) : values(std::move(v)) {}
  TensorView view() const {
    return {.dtype = DType::kF32,
            .shape = Shape{static_cast<int64_t>(values.size())},
            .bytes = std::as_bytes(std::span(values))};
  }
  std::vector<float> values;
};

CheckpointPlan PlanOfVectors(const std::vector<std::string>& names, int64_t length) {
  CheckpointPlan plan;
  plan.config = {{"model_type", "llama"}};
  for (const std::string& name : names) plan.AddTensor(name, DType::kF32, Shape{length});
  return plan;
}

TEST(CheckpointWriter, WritesWhatIsReadBack) {
  const TempDirectory temp;
  CheckpointPlan plan = PlanOfVectors({"a", "b"}, 3);
  plan.generation_config = {{"eos_token_id", 2}};
  plan.files = {{"README.md", "# A model\n"}};
  const std::string output = temp / "deep/er/out";
  {
    auto writer = CheckpointWriter::Create(output + "/", std::move(plan));
    ASSERT_OK(writer);
    // In any order; nothing looks whole before the end.
    EXPECT_OK((*writer)->Add("b", Vector({4, 5, 6}).view()));
    EXPECT_FALSE(FileExists(output));
    EXPECT_OK((*writer)->Add("a", Vector({1, 2, 3}).view()));
    EXPECT_OK((*writer)->Finish());
  }
  EXPECT_EQ(FilesIn(output),
            (std::vector<std::string>{"README.md", "config.json", "generation_config.json",
                                      "model.safetensors"}));
  EXPECT_EQ(FilesIn(temp / "deep/er"), std::vector<std::string>{"out"});
  const auto checkpoint = OpenCheckpoint(output);
  ASSERT_OK(checkpoint);
  EXPECT_EQ(*ReadVector(**checkpoint, "a", 3), (std::vector<float>{1, 2, 3}));
  EXPECT_EQ(*ReadVector(**checkpoint, "b", 3), (std::vector<float>{4, 5, 6}));
  const auto file = ReadFile(JoinPath(output, "model.safetensors"));
  EXPECT_EQ((file->size() - 24) % 8, 0u);  // the header is padded
  EXPECT_NE(file->find(R"("__metadata__":{"format":"pt"})"), std::string::npos);
}

TEST(CheckpointWriter, Shards) {
  const TempDirectory temp;
  CheckpointPlan plan = PlanOfVectors({"a", "b", "c", "d"}, 4);
  plan.max_shard_bytes = 32;
  plan.AddTensor("large", DType::kF32, Shape{20});
  auto writer = CheckpointWriter::Create(temp / "out", std::move(plan));
  ASSERT_OK(writer);
  float value = 0;
  for (const char* name : {"a", "b", "c", "d"}) {
    EXPECT_OK((*writer)->Add(name, Vector(std::vector<float>(4, ++value)).view()));
  }
  EXPECT_OK((*writer)->Add("large", Vector(std::vector<float>(20, ++value)).view()));
  EXPECT_OK((*writer)->Finish());
  EXPECT_EQ(
      FilesIn(temp / "out"),
      (std::vector<std::string>{
          "config.json", "model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors",
          "model-00003-of-00003.safetensors", "model.safetensors.index.json"}));
  const auto index = ReadJsonFile(temp / "out/model.safetensors.index.json");
  ASSERT_OK(index);
  EXPECT_EQ((*index)["metadata"]["total_size"], 4 * 16 + 80);
  EXPECT_EQ((*index)["weight_map"]["c"], "model-00002-of-00003.safetensors");
  const auto checkpoint = OpenCheckpoint(temp / "out");
  ASSERT_OK(checkpoint);
  EXPECT_EQ(ReadVector(**checkpoint, "d", 4)->at(3), 4.0f);
  EXPECT_EQ(ReadVector(**checkpoint, "large", 20)->at(19), 5.0f);
}

TEST(CheckpointWriter, RefusesAnExistingOutput) {
  const TempDirectory temp;
  temp.Write("file", "x");
  EXPECT_ERROR(CheckpointWriter::Create(temp.path(), PlanOfVectors({"a"}, 1)), ErrorCode::kUsage,
               "exists already");
  EXPECT_ERROR(CheckpointWriter::Create(temp / "file", PlanOfVectors({"a"}, 1)), ErrorCode::kUsage,
               "exists already");
  // One that appears while it is written.
  auto writer = CheckpointWriter::Create(temp / "out", PlanOfVectors({"a"}, 1));
  ASSERT_OK(writer);
  EXPECT_OK((*writer)->Add("a", Vector({1}).view()));
  ASSERT_OK(MakeDirectories(temp / "out"));
  EXPECT_ERROR((*writer)->Finish(), ErrorCode::kUsage, "exists already");
  writer->reset();
  EXPECT_EQ(FilesIn(temp.path()), (std::vector<std::string>{"file", "out"}));
  EXPECT_TRUE(FilesIn(temp / "out").empty());
}

TEST(CheckpointWriter, LeavesNothingWhenAbandoned) {
  const TempDirectory temp;
  auto writer = CheckpointWriter::Create(temp / "out", PlanOfVectors({"a", "b"}, 1));
  ASSERT_OK(writer);
  EXPECT_EQ(FilesIn(temp.path()).size(), 1u);
  EXPECT_OK((*writer)->Add("a", Vector({1}).view()));
  EXPECT_ERROR((*writer)->Finish(), ErrorCode::kInternal, "b was planned and not written");
  writer->reset();
  EXPECT_TRUE(FilesIn(temp.path()).empty());
}

TEST(CheckpointWriter, RefusesWhatWasNotPlanned) {
  const TempDirectory temp;
  auto writer = CheckpointWriter::Create(temp / "out", PlanOfVectors({"a"}, 2));
  ASSERT_OK(writer);
  EXPECT_ERROR((*writer)->Add("b", Vector({1, 2}).view()), ErrorCode::kInternal, "not planned");
  EXPECT_ERROR((*writer)->Add("a", Vector({1}).view()), ErrorCode::kInternal, "planned f32 [2]");
  EXPECT_OK((*writer)->Add("a", Vector({1, 2}).view()));
  EXPECT_ERROR((*writer)->Add("a", Vector({1, 2}).view()), ErrorCode::kInternal, "again");
}

TEST(CheckpointWriter, TooLittleDisk) {
  const TempDirectory temp;
  CheckpointPlan plan;
  plan.AddTensor("a", DType::kF32, Shape{int64_t{1} << 55});
  EXPECT_ERROR(CheckpointWriter::Create(temp / "out", std::move(plan)), ErrorCode::kResources,
               "of disk space");
  EXPECT_TRUE(FilesIn(temp.path()).empty());
}

TEST(CheckpointWriter, QuantizedLayersInEveryLayout) {
  for (const QuantLayout layout : kQuantLayouts) {
    SCOPED_TRACE(Name(layout));
    const TempDirectory temp;
    const bool symmetric = layout == QuantLayout::kGptqV1;
    CheckpointPlan plan;
    plan.config = {{"model_type", "llama"}};
    plan.quantization = QuantizationConfig{.layout = layout};
    plan.quantization->spec = {.group_size = 16,
                               .grid = symmetric ? Grid::kSymmetric : Grid::kAsymmetric};
    ASSERT_OK(plan.AddLinear("l", 24, 32));
    EXPECT_ERROR(plan.AddLinear("odd", 20, 32), ErrorCode::kBadInput, "odd: a weight of [20, 32]");
    EXPECT_ERROR(plan.AddLinear("odd", 24, 40), ErrorCode::kBadInput, "in groups of 16");
    QuantizedWeight weight = QuantizedWeight::Empty(plan.quantization->spec, 24, 32);
    for (size_t i = 0; i < weight.codes.size(); ++i) weight.codes[i] = static_cast<uint8_t>(7 * i);
    for (size_t i = 0; i < weight.scales.size(); ++i) {
      weight.scales[i] = static_cast<uint16_t>(0x1c00 + 5 * i);
      weight.zeros[i] = symmetric ? 8 : static_cast<uint8_t>(i % 16);
    }
    auto writer = CheckpointWriter::Create(temp / "out", std::move(plan));
    ASSERT_OK(writer);
    ASSERT_OK((*writer)->AddLinear("l", weight));
    ASSERT_OK((*writer)->Finish());
    EXPECT_EQ(FileExists(temp / "out/quantize_config.json"),
              layout == QuantLayout::kGptqV1 || layout == QuantLayout::kGptqV2);

    const auto checkpoint = OpenCheckpoint(temp / "out");
    ASSERT_OK(checkpoint);
    const auto config = ParseQuantizationConfig((*checkpoint)->config(), "config.json");
    ASSERT_OK(config);
    EXPECT_EQ((*config)->layout, layout);
    const auto read = ReadWeight(**checkpoint, "l", 24, 32, *config);
    ASSERT_OK(read);
    EXPECT_EQ(std::get<QuantizedWeight>(*read).codes, weight.codes);
    EXPECT_EQ(std::get<QuantizedWeight>(*read).scales, weight.scales);
    EXPECT_EQ(std::get<QuantizedWeight>(*read).zeros, weight.zeros);
  }
}

// tests/oracles/unpack_layouts.py knows the layouts from their description and not from this code.
TEST(CheckpointWriter, LayoutsAgreeWithAnIndependentUnpacker) {
  for (const QuantLayout layout : kQuantLayouts) {
    SCOPED_TRACE(Name(layout));
    const TempDirectory temp;
    CheckpointPlan plan;
    plan.quantization = QuantizationConfig{.layout = layout};
    plan.quantization->spec = {.group_size = 32, .grid = Grid::kAsymmetric};
    ASSERT_OK(plan.AddLinear("l", 40, 96));
    QuantizedWeight weight = QuantizedWeight::Empty(plan.quantization->spec, 40, 96);
    Random random(5);
    for (uint8_t& code : weight.codes) code = static_cast<uint8_t>(random.Next());
    for (uint8_t& zero : weight.zeros) zero = static_cast<uint8_t>(random.Below(16));
    for (uint16_t& scale : weight.scales) scale = static_cast<uint16_t>(random.Below(0x7c00));
    auto writer = CheckpointWriter::Create(temp / "out", std::move(plan));
    ASSERT_OK(writer);
    ASSERT_OK((*writer)->AddLinear("l", weight));
    ASSERT_OK((*writer)->Finish());

    const std::string command =
        fmt::format("python3 '{}/tests/oracles/unpack_layouts.py' '{}' '{}'", NIBBLE_SOURCE_DIR,
                    temp / "out", temp / "unpacked");
    const int status = std::system(command.c_str());
    if (WEXITSTATUS(status) == 77 || WEXITSTATUS(status) == 127) {
      GTEST_SKIP() << "needs python3 with numpy";
    }
    ASSERT_EQ(status, 0) << command;
    const auto unpacked = ReadFile(temp / "unpacked/l.f32");
    ASSERT_OK(unpacked);
    ASSERT_EQ(unpacked->size(), 40u * 96 * sizeof(float));
    for (int64_t n = 0; n < 40; ++n) {
      for (int64_t k = 0; k < 96; ++k) {
        float value;
        std::memcpy(&value, unpacked->data() + 4 * (n * 96 + k), 4);
        ASSERT_EQ(value, weight.At(n, k)) << n << ", " << k;
      }
    }
  }
}

TEST(CheckpointWriter, RefusesWhatTheLayoutCannotExpress) {
  for (const QuantLayout layout : {QuantLayout::kGptqV1, QuantLayout::kCompressedTensors}) {
    const TempDirectory temp;
    CheckpointPlan plan;
    plan.quantization = QuantizationConfig{.layout = layout};
    plan.quantization->spec = {.group_size = 16, .grid = Grid::kSymmetric};
    ASSERT_OK(plan.AddLinear("l", 8, 32));
    QuantizedWeight weight = QuantizedWeight::Empty({.group_size = 16}, 8, 32);
    auto writer = CheckpointWriter::Create(temp / "out", std::move(plan));
    ASSERT_OK(writer);
    EXPECT_ERROR((*writer)->AddLinear("l", weight), ErrorCode::kBadInput,
                 "l: a zero of 0, where a symmetric");
    std::fill(weight.zeros.begin(), weight.zeros.end(), uint8_t{8});
    EXPECT_OK((*writer)->AddLinear("l", weight));
    EXPECT_OK((*writer)->Finish());
  }
  const TempDirectory temp;
  CheckpointPlan plan;
  plan.quantization = QuantizationConfig{};
  plan.quantization->spec.group_size = 16;
  ASSERT_OK(plan.AddLinear("l", 8, 32));
  QuantizedWeight weight =
      QuantizedWeight::Empty({.group_size = 16, .order = GroupOrder::kIndexed}, 8, 32);
  std::swap(weight.column_of_input[3], weight.column_of_input[20]);
  auto writer = CheckpointWriter::Create(temp / "out", std::move(plan));
  ASSERT_OK(writer);
  EXPECT_ERROR((*writer)->AddLinear("l", weight), ErrorCode::kBadInput,
               "gptq, gptq_v2 and compressed-tensors can");
}

TEST(CheckpointWriter, QuantizedModelsAskForFloat16) {
  for (const auto& [before, after] :
       {std::pair<Json, Json>{{{"torch_dtype", "bfloat16"}}, {{"torch_dtype", "float16"}}},
        {{{"dtype", "bfloat16"}}, {{"dtype", "float16"}}},
        {{{"a", 1}}, {{"a", 1}, {"torch_dtype", "float16"}}}}) {
    const TempDirectory temp;
    CheckpointPlan plan;
    plan.config = before;
    plan.quantization = QuantizationConfig{};
    plan.quantization->spec.group_size = 16;
    ASSERT_OK(plan.AddLinear("l", 8, 16));
    auto writer = CheckpointWriter::Create(temp / "out", std::move(plan));
    ASSERT_OK(writer);
    ASSERT_OK((*writer)->AddLinear("l", QuantizedWeight::Empty({.group_size = 16}, 8, 16)));
    ASSERT_OK((*writer)->Finish());
    Json config = *ReadJsonFile(temp / "out/config.json");
    config.erase("quantization_config");
    EXPECT_EQ(config, after);
  }
}

}  // namespace
}  // namespace nibble

#include "src/checkpoint/checkpoint.h"

#include <gtest/gtest.h>

#include "src/checkpoint/test_files.h"
#include "src/format/awq_layout.h"
#include "src/format/compressed_layout.h"
#include "src/format/gptq_layout.h"

namespace nibble {
namespace {

// One tensor after another, as the header says.
struct FileTensor {
  std::string name, type;
  std::vector<int64_t> shape;
  std::string bytes;
};
std::string File(const std::vector<FileTensor>& tensors) {
  std::string header = "{", data;
  for (const FileTensor& t : tensors) {
    header += fmt::format("{}\"{}\":{{\"dtype\":\"{}\",\"shape\":{},\"data_offsets\":[{},{}]}}",
                          header.size() > 1 ? "," : "", t.name, t.type, Json(t.shape).dump(),
                          data.size(), data.size() + t.bytes.size());
    data += t.bytes;
  }
  return SafetensorsFile(header + "}", data);
}

TEST(Checkpoint, WhatIsNoModel) {
  const TempDirectory directory;
  EXPECT_ERROR(OpenCheckpoint(directory / "absent"), ErrorCode::kBadInput,
               "no such file or directory");
  directory.Write("x.txt", "x");
  EXPECT_ERROR(OpenCheckpoint(directory / "x.txt"), ErrorCode::kBadInput, "not a model");
  EXPECT_ERROR(OpenCheckpoint(directory.path()), ErrorCode::kBadInput, "it has no config.json");
  directory.Write("config.json", "{}");
  EXPECT_ERROR(OpenCheckpoint(directory.path()), ErrorCode::kBadInput,
               "has neither model.safetensors nor");
  directory.Write("pytorch_model.bin", "");
  EXPECT_ERROR(OpenCheckpoint(directory.path()), ErrorCode::kBadInput,
               "only PyTorch's pickled weights (pytorch_model.bin)");
  directory.Write("model.safetensors", File({}));
  EXPECT_OK(OpenCheckpoint(directory.path()));
  directory.Write("config.json", "[]");
  EXPECT_ERROR(OpenCheckpoint(directory.path()), ErrorCode::kBadInput, "want an object");
  directory.Write("config.json", "{");
  EXPECT_ERROR(OpenCheckpoint(directory.path()), ErrorCode::kBadInput, "not valid JSON");
  directory.Write("config.json", R"({"quantization_config":{"quant_method":"fp8"}})");
  EXPECT_ERROR(OpenCheckpoint(directory.path()), ErrorCode::kBadInput,
               "quant_method \"fp8\" is not supported");
  directory.Write("config.json", "{}");
  directory.Write("generation_config.json", "1");
  EXPECT_ERROR(OpenCheckpoint(directory.path()), ErrorCode::kBadInput, "generation_config.json");
}

TEST(Checkpoint, ReadsOneFile) {
  const TempDirectory directory;
  directory.Write("config.json", R"({"nibble_synthetic": true})");
  directory.Write("generation_config.json", R"({"eos_token_id": [1, 2]})");
  // The header's length is odd on purpose: the float32 values are not aligned in the file.
  std::string file = File({{"u", "U8", {1}, "x"},
                           {"f", "F32", {2, 1}, RawAll<float>({1.5f, -2.0f})},
                           {"h", "BF16", {2}, RawAll<uint16_t>({0x3f80, 0xc000})},
                           {"f8", "F8_E4M3", {1}, "y"}});
  directory.Write("model.safetensors", file);
  const auto opened = OpenCheckpoint(directory.path());
  ASSERT_OK(opened);
  const Checkpoint& checkpoint = **opened;
  EXPECT_TRUE(checkpoint.synthetic());
  EXPECT_EQ(checkpoint.path(), directory.path());
  EXPECT_EQ(checkpoint.generation_config()["eos_token_id"][1], 2);
  EXPECT_EQ(checkpoint.tensors().size(), 4u);
  EXPECT_EQ(checkpoint.Find("g"), nullptr);
  const auto view = checkpoint.Read("f");
  ASSERT_OK(view);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(view->bytes.data()) % 4, 0u);
  checkpoint.Release("f");
  const auto weight = ReadWeight(checkpoint, "f", 2, 1, std::nullopt);
  EXPECT_ERROR(weight, ErrorCode::kBadInput, "f.weight is missing");
  EXPECT_EQ(*ReadVector(checkpoint, "h", 2), (std::vector<float>{1, -2}));
  EXPECT_ERROR(ReadVector(checkpoint, "h", 3), ErrorCode::kBadInput, "want F16, BF16 or F32 [3]");
  EXPECT_ERROR(ReadVector(checkpoint, "u", 1), ErrorCode::kBadInput, "got U8 [1]");
  EXPECT_ERROR(ReadVector(checkpoint, "z", 1), ErrorCode::kBadInput, "z is missing");
  EXPECT_ERROR(checkpoint.Read("f8"), ErrorCode::kBadInput, "type F8_E4M3 are not supported");
  EXPECT_ERROR(checkpoint.Read("z"), ErrorCode::kBadInput, "there is no tensor z");
}

TEST(Checkpoint, DenseWeights) {
  const TempDirectory directory;
  directory.Write("config.json", "{}");
  directory.Write("model.safetensors",
                  File({{"a.weight", "F16", {2, 3}, std::string(10, '\0') + Raw<uint16_t>(0x3c00)},
                        {"i.weight", "I32", {1, 2}, std::string(8, '\0')}}));
  const auto checkpoint = OpenCheckpoint(directory.path());
  ASSERT_OK(checkpoint);
  EXPECT_EQ((*checkpoint)->label(), "fp16");
  const auto weight = ReadWeight(**checkpoint, "a", 2, 3, std::nullopt);
  ASSERT_OK(weight);
  EXPECT_EQ(std::get<DenseWeight>(*weight).At(1, 2), 1.0f);
  EXPECT_ERROR(ReadWeight(**checkpoint, "a", 3, 2, std::nullopt), ErrorCode::kBadInput,
               "a.weight: want [3, 2], got [2, 3]");
  EXPECT_ERROR(ReadWeight(**checkpoint, "i", 1, 2, std::nullopt), ErrorCode::kBadInput,
               "i.weight: want F16, BF16 or F32, got I32");
}

TEST(Checkpoint, Shards) {
  const TempDirectory directory;
  const auto shard = [](const std::string& name) { return File({{name, "F32", {1}, Raw(1.0f)}}); };
  const auto index = [&](std::string_view map) {
    directory.Write("model.safetensors.index.json", fmt::format(R"({{"weight_map":{}}})", map));
  };
  directory.Write("config.json", "{}");
  directory.Write("s1.safetensors", shard("a"));
  directory.Write("s2.safetensors", shard("b"));
  index(R"({"a":"s1.safetensors","b":"s2.safetensors"})");
  const auto opened = OpenCheckpoint(directory.path());
  ASSERT_OK(opened);
  EXPECT_EQ(ReadVector(**opened, "b", 1)->at(0), 1.0f);

  index(R"({"a":"s1.safetensors","b":"../s2.safetensors"})");
  EXPECT_ERROR(OpenCheckpoint(directory.path()), ErrorCode::kBadInput,
               "\"../s2.safetensors\" is not the name of a file in this directory");
  index(R"({"a":"s1.safetensors","c":"s2.safetensors"})");
  EXPECT_ERROR(OpenCheckpoint(directory.path()), ErrorCode::kBadInput,
               "c is not in s2.safetensors");
  index(R"({"a":"s2.safetensors","b":"s1.safetensors"})");
  EXPECT_ERROR(OpenCheckpoint(directory.path()), ErrorCode::kBadInput,
               "a is not in s2.safetensors");
  index(R"({"a":"s1.safetensors","b":"s3.safetensors"})");
  EXPECT_ERROR(OpenCheckpoint(directory.path()), ErrorCode::kBadInput,
               "names s3.safetensors, which does not exist");
  index("{}");
  EXPECT_ERROR(OpenCheckpoint(directory.path()), ErrorCode::kBadInput, "\"weight_map\" is empty");
  directory.Write("s2.safetensors", shard("a"));
  index(R"({"a":"s1.safetensors","b":"s2.safetensors"})");
  EXPECT_ERROR(OpenCheckpoint(directory.path()), ErrorCode::kBadInput, "a is in another shard too");
  directory.Write("s2.safetensors", shard("b").substr(0, 60));
  EXPECT_ERROR(OpenCheckpoint(directory.path()), ErrorCode::kBadInput, "s2.safetensors");
}

TEST(Checkpoint, ChatTemplates) {
  const TempDirectory directory;
  directory.Write("config.json", "{}");
  directory.Write("model.safetensors", File({}));
  const auto checkpoint = OpenCheckpoint(directory.path());
  ASSERT_OK(checkpoint);
  const auto source = [&] { return (*checkpoint)->ChatTemplates(); };
  EXPECT_TRUE(source()->empty());
  for (const char* none : {"{}", R"({"chat_template": null})", R"({"chat_template": []})"}) {
    directory.Write("tokenizer_config.json", none);
    EXPECT_TRUE(source()->empty()) << none;
  }
  directory.Write("tokenizer_config.json", R"({"chat_template": "one\n"})");
  EXPECT_EQ(source()->size(), 1u);
  EXPECT_EQ((*source())[0].name, "default");
  EXPECT_EQ((*source())[0].jinja, "one\n");
  directory.Write("tokenizer_config.json",
                  R"({"chat_template": [{"name": "tool_use", "template": "tools"},)"
                  R"({"name": "default", "template": "two"}]})");
  EXPECT_EQ(source()->size(), 2u);
  EXPECT_EQ((*source())[0].name, "tool_use");
  EXPECT_EQ((*source())[0].jinja, "tools");
  EXPECT_EQ((*source())[1].name, "default");
  EXPECT_EQ((*source())[1].jinja, "two");
  directory.Write("tokenizer_config.json", R"({"chat_template": [{"name": "a", "template": "1"},)"
                                           R"({"name": "a", "template": "2"}]})");
  EXPECT_ERROR(source(), ErrorCode::kBadInput, "two chat templates are named \"a\"");
  directory.Write("tokenizer_config.json", R"({"chat_template": [{"name": "a"}]})");
  EXPECT_ERROR(source(), ErrorCode::kBadInput, "template");
  directory.Write("tokenizer_config.json", R"({"chat_template": 3})");
  EXPECT_ERROR(source(), ErrorCode::kBadInput, "want a string or a list");
  directory.Write("chat_template.json", R"({"chat_template": "three"})");
  EXPECT_EQ((*source())[0].jinja, "three");
  directory.Write("chat_template.jinja", "four");
  EXPECT_EQ((*source())[0].jinja, "four");
  const auto files = (*checkpoint)->TokenizerFiles();
  ASSERT_OK(files);
  EXPECT_EQ(files->size(), 3u);
}

// A layer of [8, 16] in groups of 8, in each layout.
class QuantizedLayer : public testing::Test {
 protected:
  QuantizedLayer() {
    weight_.spec.group_size = 8;
    weight_ = QuantizedWeight::Empty(weight_.spec, 8, 16);
    for (int64_t n = 0; n < 8; ++n) {
      for (int64_t k = 0; k < 16; ++k) weight_.SetCode(n, k, static_cast<int>((n + 3 * k) % 16));
    }
    for (size_t i = 0; i < weight_.scales.size(); ++i) {
      weight_.scales[i] = static_cast<uint16_t>(0x2c00 + i);
      weight_.zeros[i] = static_cast<uint8_t>(i % 16);
    }
  }
  std::vector<FileTensor> Awq() const {
    const AwqTensors t = PackAwq(weight_);
    return {{"l.qweight", "I32", {16, 1}, RawAll(t.qweight)},
            {"l.qzeros", "I32", {2, 1}, RawAll(t.qzeros)},
            {"l.scales", "F16", {2, 8}, RawAll(t.scales)}};
  }
  std::vector<FileTensor> Gptq(GptqVersion version) const {
    const GptqTensors t = PackGptq(weight_, version);
    return {{"l.qweight", "I32", {2, 8}, RawAll(t.qweight)},
            {"l.qzeros", "I32", {2, 1}, RawAll(t.qzeros)},
            {"l.scales", "F16", {2, 8}, RawAll(t.scales)},
            {"l.g_idx", "I32", {16}, RawAll(t.g_idx)}};
  }
  std::vector<FileTensor> Compressed(ZeroPoints zeros = ZeroPoints::kStored) const {
    const CompressedTensors t = PackCompressed(weight_, zeros);
    std::vector<FileTensor> tensors = {{"l.weight_packed", "I32", {8, 2}, RawAll(t.weight_packed)},
                                       {"l.weight_scale", "F16", {8, 2}, RawAll(t.weight_scale)},
                                       {"l.weight_shape", "I64", {2}, RawAll<int64_t>({8, 16})}};
    if (zeros == ZeroPoints::kStored) {
      tensors.push_back({"l.weight_zero_point", "I32", {1, 2}, RawAll(t.weight_zero_point)});
    }
    return tensors;
  }
  static std::string CompressedConfig(std::string_view weights) {
    return fmt::format(
        R"({{"quant_method":"compressed-tensors","format":"pack-quantized","ignore":["lm_head"],)"
        R"("config_groups":{{"group_0":{{"targets":["Linear"],)"
        R"("weights":{{"num_bits":4,"group_size":8,{}}}}}}}}})",
        weights);
  }
  Result<Weight> Read(const std::vector<FileTensor>& tensors, std::string_view quantization,
                      int64_t out = 8, int64_t in = 16) {
    directory_.Write("config.json", fmt::format(R"({{"quantization_config":{}}})", quantization));
    directory_.Write("model.safetensors", File(tensors));
    NIBBLE_ASSIGN_OR_RETURN(checkpoint_, OpenCheckpoint(directory_.path()));
    NIBBLE_ASSIGN_OR_RETURN(const auto config,
                            ParseQuantizationConfig(checkpoint_->config(), "config.json"));
    return ReadWeight(*checkpoint_, "l", out, in, config);
  }
  void ExpectWeight(const Result<Weight>& read) {
    ASSERT_OK(read);
    const auto& weight = std::get<QuantizedWeight>(*read);
    EXPECT_EQ(weight.codes, weight_.codes);
    EXPECT_EQ(weight.scales, weight_.scales);
    EXPECT_EQ(weight.zeros, weight_.zeros);
  }

  static constexpr const char* kAwq = R"({"quant_method":"awq","bits":4,"group_size":8})";
  static constexpr const char* kGptq =
      R"({"quant_method":"gptq","bits":4,"group_size":8,"sym":false})";
  static constexpr const char* kGptqV2 =
      R"({"quant_method":"gptq","bits":4,"group_size":8,"sym":false,"checkpoint_format":"gptq_v2"})";
  static constexpr const char* kGptqActOrder =
      R"({"quant_method":"gptq","bits":4,"group_size":8,"sym":false,"desc_act":true})";
  static constexpr const char* kGptqSym =
      R"({"quant_method":"gptq","bits":4,"group_size":8,"sym":true})";
  QuantizedWeight weight_;
  TempDirectory directory_;
  std::unique_ptr<Checkpoint> checkpoint_;
};

TEST_F(QuantizedLayer, IsReadFromEveryLayout) {
  ExpectWeight(Read(Awq(), kAwq));
  EXPECT_EQ(checkpoint_->label(), "awq-g8-asym");
  ExpectWeight(Read(Gptq(GptqVersion::kV1), kGptq));
  ExpectWeight(Read(Gptq(GptqVersion::kV2), kGptqV2));
  // Without g_idx the groups are taken as consecutive.
  std::vector<FileTensor> tensors = Gptq(GptqVersion::kV2);
  tensors.pop_back();
  ExpectWeight(Read(tensors, kGptqV2));
  ExpectWeight(Read(Compressed(), CompressedConfig(R"("symmetric":false)")));
  EXPECT_EQ(checkpoint_->label(), "compressed-tensors-g8-asym");
  // weight_shape may be I32.
  tensors = Compressed();
  tensors[2] = {"l.weight_shape", "I32", {2}, RawAll<int32_t>({8, 16})};
  ExpectWeight(Read(tensors, CompressedConfig(R"("symmetric":false)")));
  std::fill(weight_.zeros.begin(), weight_.zeros.end(), uint8_t{8});
  ExpectWeight(Read(Gptq(GptqVersion::kV1), kGptqSym));
  EXPECT_EQ(checkpoint_->label(), "gptq-g8-sym");
  ExpectWeight(Read(Compressed(ZeroPoints::kImplied), CompressedConfig(R"("symmetric":true)")));
}

TEST_F(QuantizedLayer, MustAgreeWithTheConfiguration) {
  EXPECT_ERROR(Read(Awq(), "null"), ErrorCode::kBadInput,
               "l.qweight: according to the quantization config this layer is not quantized");
  EXPECT_ERROR(Read(Awq(), R"({"quant_method":"awq","bits":4,"group_size":8,)"
                           R"("modules_to_not_convert":["l"]})"),
               ErrorCode::kBadInput, "this layer is not quantized");
  EXPECT_ERROR(Read({{"l.weight", "F16", {8, 16}, std::string(256, '\0')}}, kAwq),
               ErrorCode::kBadInput, "l.weight: according to the quantization config this layer");
  EXPECT_ERROR(Read(Gptq(GptqVersion::kV1), kGptqSym), ErrorCode::kBadInput,
               "l.qzeros: a zero of 0 at output 0, group 0");
  EXPECT_ERROR(Read(Gptq(GptqVersion::kV1), kAwq), ErrorCode::kBadInput,
               "l.qweight: want i32 [16, 1], got I32 [2, 8]");
}

TEST_F(QuantizedLayer, MustHaveItsTensorsInShape) {
  for (size_t i = 0; i < 3; ++i) {
    std::vector<FileTensor> tensors = Awq();
    tensors.erase(tensors.begin() + static_cast<ptrdiff_t>(i));
    EXPECT_ERROR(Read(tensors, kAwq), ErrorCode::kBadInput, "is missing");
  }
  std::vector<FileTensor> tensors = Awq();
  tensors[2].shape = {1, 16};
  EXPECT_ERROR(Read(tensors, kAwq), ErrorCode::kBadInput,
               "l.scales: want f16 [2, 8], got F16 [1, 16]");
  tensors = Awq();
  tensors[2].type = "I32";
  tensors[2].bytes += tensors[2].bytes;
  EXPECT_ERROR(Read(tensors, kAwq), ErrorCode::kBadInput, "l.scales: want f16 [2, 8], got I32");
  tensors = Awq();
  tensors[1] = {"l.qzeros", "I64", {2, 1}, std::string(16, '\0')};
  EXPECT_ERROR(Read(tensors, kAwq), ErrorCode::kBadInput, "l.qzeros: want i32 [2, 1], got I64");
  EXPECT_ERROR(Read(Awq(), kAwq, 16, 16), ErrorCode::kBadInput, "l.qweight: want i32 [16, 2]");
  EXPECT_ERROR(Read(Awq(), kAwq, 9, 16), ErrorCode::kBadInput, "does not fit awq in groups of 8");
  EXPECT_ERROR(Read(Awq(), kAwq, 8, 20), ErrorCode::kBadInput, "does not fit awq in groups of 8");
}

TEST_F(QuantizedLayer, MustHaveFiniteScalesAndConsecutiveGroups) {
  for (const uint16_t bits : {0x7c00, 0xfc00, 0x7e01}) {
    weight_.scales[3] = bits;
    EXPECT_ERROR(Read(Awq(), kAwq), ErrorCode::kBadInput,
                 "l.scales: the scale of output 1, group 1 is not finite");
  }
  weight_.scales[3] = 0x8001;  // negative is legal: a full-range symmetric grid has them
  EXPECT_OK(Read(Awq(), kAwq));
  std::vector<FileTensor> tensors = Gptq(GptqVersion::kV1);
  tensors[3].bytes = RawAll<int32_t>({0, 1, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1});
  EXPECT_ERROR(Read(tensors, kGptq), ErrorCode::kBadInput,
               "l.g_idx: input 1 is in group 1, want 0: the quantization config says neither");
}

TEST_F(QuantizedLayer, ScalesOfOtherTypesMustBeFloat16Numbers) {
  std::vector<FileTensor> tensors = Compressed();
  for (uint16_t& scale : weight_.scales) scale = F16FromFloat(0.0078125f);
  weight_.scales[5] = F16FromFloat(-0x1.02p-17f);  // subnormal in float16, and exact
  std::vector<uint16_t> bf16;
  std::vector<float> f32;
  for (const uint16_t scale : weight_.scales) {
    f32.push_back(FloatFromF16(scale));
    bf16.push_back(BF16FromFloat(f32.back()));
  }
  const std::string config = CompressedConfig(R"("symmetric":false)");
  tensors[1] = {"l.weight_scale", "BF16", {8, 2}, RawAll(bf16)};
  ExpectWeight(Read(tensors, config));
  tensors[1] = {"l.weight_scale", "F32", {8, 2}, RawAll(f32)};
  ExpectWeight(Read(tensors, config));
  for (const float odd : {0x1.02p-18f, 0x1p17f, 0x1.ffffp-3f}) {
    f32[3] = odd;
    tensors[1] = {"l.weight_scale", "F32", {8, 2}, RawAll(f32)};
    EXPECT_ERROR(Read(tensors, config), ErrorCode::kBadInput,
                 "at [1, 1] is no float16, in which nibble keeps scales");
  }
  bf16[3] = 0x7f80;
  tensors[1] = {"l.weight_scale", "BF16", {8, 2}, RawAll(bf16)};
  EXPECT_ERROR(Read(tensors, config), ErrorCode::kBadInput, "is not finite");
}

TEST_F(QuantizedLayer, InActOrderKnowsTheColumnOfEachInput) {
  const std::vector<int32_t> index = {1, 0, 0, 1, 1, 0, 1, 0, 0, 0, 1, 1, 1, 0, 0, 1};
  const auto check = [&](const Result<Weight>& read) {
    ASSERT_OK(read);
    const auto& weight = std::get<QuantizedWeight>(*read);
    EXPECT_EQ(weight.spec.order, GroupOrder::kIndexed);
    for (int64_t n = 0; n < 8; ++n) {
      for (int64_t k = 0; k < 16; ++k) {
        const auto at = static_cast<size_t>(2 * n + index[static_cast<size_t>(k)]);
        EXPECT_EQ(weight.At(n, k), FloatFromF16(weight_.scales[at]) *
                                       static_cast<float>(weight_.Code(n, k) - weight_.zeros[at]))
            << n << ", " << k;
      }
    }
  };
  std::vector<FileTensor> tensors = Gptq(GptqVersion::kV1);
  tensors[3].bytes = RawAll(index);
  check(Read(tensors, kGptqActOrder));
  tensors[3].bytes = RawAll<int32_t>({0, 1, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1});
  EXPECT_ERROR(Read(tensors, kGptqActOrder), ErrorCode::kBadInput,
               "l.g_idx: group 0 has 7 inputs, want 8");
  tensors[3].bytes = RawAll<int32_t>({0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 2});
  EXPECT_ERROR(Read(tensors, kGptqActOrder), ErrorCode::kBadInput,
               "l.g_idx: input 15 is in group 2, want 0 to 1");
  tensors[3] = {"l.g_idx", "I32", {8}, std::string(32, '\0')};
  EXPECT_ERROR(Read(tensors, kGptqActOrder), ErrorCode::kBadInput,
               "l.g_idx: want i32 [16], got I32 [8]");
  tensors.pop_back();
  EXPECT_ERROR(Read(tensors, kGptqActOrder), ErrorCode::kBadInput, "l.g_idx is missing");

  tensors = Compressed();
  tensors.push_back({"l.weight_g_idx", "I32", {16}, RawAll(index)});
  check(Read(tensors, CompressedConfig(R"("symmetric":false,"actorder":"group")")));
  EXPECT_ERROR(Read(tensors, CompressedConfig(R"("symmetric":false,"actorder":"weight")")),
               ErrorCode::kBadInput, "l.weight_g_idx: input 0 is in group 1, want 0");
}

TEST_F(QuantizedLayer, CompressedTensorsContradictTheirConfiguration) {
  const std::string asymmetric = CompressedConfig(R"("symmetric":false)");
  const std::string symmetric = CompressedConfig(R"("symmetric":true)");
  EXPECT_ERROR(Read(Compressed(), symmetric), ErrorCode::kBadInput,
               "l.weight_zero_point is there, where the quantization config says symmetric");
  std::vector<FileTensor> tensors = Compressed();
  tensors.pop_back();
  EXPECT_ERROR(Read(tensors, asymmetric), ErrorCode::kBadInput,
               "l.weight_zero_point is missing: want i32 [1, 2]");
  tensors = Compressed();
  tensors[2].bytes = RawAll<int64_t>({8, 15});
  EXPECT_ERROR(Read(tensors, asymmetric), ErrorCode::kBadInput,
               "l.weight_shape: want [8, 16], got [8, 15]");
  tensors = Compressed();
  tensors[3].shape = {2, 1};
  EXPECT_ERROR(Read(tensors, asymmetric), ErrorCode::kBadInput,
               "l.weight_zero_point: want i32 [1, 2], got I32 [2, 1] (in groups of 8");
  EXPECT_ERROR(Read(Compressed(), "null"), ErrorCode::kBadInput,
               "l.weight_packed: according to the quantization config this layer is not");
  EXPECT_ERROR(
      Read(Compressed(), kAwq), ErrorCode::kBadInput,
      "l.weight_packed is there, which the layout of the quantization config (awq) has not");
}

TEST_F(QuantizedLayer, OldGptqCheckpointsHaveTheirConfigurationInAFileOfItsOwn) {
  directory_.Write("quantize_config.json",
                   R"({"bits":4,"group_size":8,"sym":false,"desc_act":false,"damp_percent":0.01})");
  ExpectWeight(Read(Gptq(GptqVersion::kV1), "null"));
  EXPECT_EQ(checkpoint_->label(), "gptq-g8-asym");
  directory_.Write("quantize_config.json", R"({"bits":3,"group_size":8})");
  EXPECT_ERROR(Read(Gptq(GptqVersion::kV1), "null"), ErrorCode::kBadInput, "3 bits");
}

TEST(Checkpoint, Fixtures) {
  for (const auto& [name, label] :
       {std::pair<const char*, const char*>{"fixtures/llama2-mha-f16-sharded", "fp16"},
        {"fixtures/llama3-gqa-rope-bf16-tied", "bf16"},
        {"fixtures/mistral-gqa-bf16", "bf16"},
        {"fixtures/qwen2-bias-f16-tied", "fp16"},
        {"models/stories260K", "fp32"}}) {
    const std::string path = JoinPath(NIBBLE_SHARED_DATA, name);
    if (!IsDirectory(path)) GTEST_SKIP() << path << " is absent";
    const auto checkpoint = OpenCheckpoint(path);
    ASSERT_OK(checkpoint);
    EXPECT_EQ((*checkpoint)->label(), label);
    EXPECT_FALSE((*checkpoint)->synthetic());
    const int64_t hidden = (*checkpoint)->config()["hidden_size"].get<int64_t>();
    const int64_t intermediate = (*checkpoint)->config()["intermediate_size"].get<int64_t>();
    EXPECT_OK(ReadWeight(**checkpoint, "model.layers.1.mlp.down_proj", hidden, intermediate,
                         std::nullopt));
    EXPECT_OK(ReadVector(**checkpoint, "model.norm.weight", hidden));
  }
}

}  // namespace
}  // namespace nibble

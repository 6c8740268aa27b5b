#include "src/checkpoint/quantization_config.h"

#include <gtest/gtest.h>

#include "src/checkpoint/test_files.h"

namespace nibble {
namespace {

Result<std::optional<QuantizationConfig>> Parse(std::string_view quantization) {
  const auto config = ParseJson(fmt::format(R"({{"quantization_config":{}}})", quantization), "");
  return ParseQuantizationConfig(*config, "config.json");
}

TEST(QuantizationConfig, NoneWhereThereIsNone) {
  EXPECT_EQ(ParseQuantizationConfig(Json::object(), "config.json")->has_value(), false);
  EXPECT_EQ(Parse("null")->has_value(), false);
}

TEST(QuantizationConfig, Awq) {
  const auto config =
      Parse(R"({"quant_method":"awq","bits":4,"group_size":128,"zero_point":true,"version":"gemm",)"
            R"("modules_to_not_convert":["mlp.gate"]})");
  ASSERT_OK(config);
  const QuantizationConfig& awq = **config;
  EXPECT_EQ(awq.layout, QuantLayout::kAwqGemm);
  EXPECT_EQ(awq.spec, (QuantSpec{.bits = 4, .group_size = 128, .grid = Grid::kAsymmetric}));
  EXPECT_TRUE(awq.Covers("model.layers.0.self_attn.q_proj"));
  EXPECT_FALSE(awq.Covers("model.layers.0.mlp.gate_proj"));  // contains "mlp.gate"
  EXPECT_FALSE(awq.Covers("lm_head"));
  EXPECT_EQ(awq.Label(), "awq-g128-asym");
  EXPECT_OK(Parse(R"({"quant_method":"awq","bits":4,"group_size":64,"version":"GEMM"})"));
}

TEST(QuantizationConfig, Gptq) {
  const auto config =
      Parse(R"({"quant_method":"gptq","bits":4,"group_size":-1,"desc_act":false,"sym":true,)"
            R"("lm_head":true,"checkpoint_format":"gptq_v2","pack_dtype":"int32","dynamic":{},)"
            R"("modules_in_block_to_quantize":[["mlp.up_proj"],["self_attn.q_proj"]]})");
  ASSERT_OK(config);
  const QuantizationConfig& gptq = **config;
  EXPECT_EQ(gptq.layout, QuantLayout::kGptqV2);
  EXPECT_EQ(gptq.spec.group_size, kPerChannel);
  EXPECT_EQ(gptq.spec.grid, Grid::kSymmetric);
  EXPECT_TRUE(gptq.Covers("lm_head"));
  EXPECT_TRUE(gptq.Covers("model.layers.3.mlp.up_proj"));
  EXPECT_FALSE(gptq.Covers("model.layers.3.mlp.down_proj"));
  EXPECT_EQ(gptq.Label(), "gptq-channel-sym");
  // AutoGPTQ's older files say neither format nor packing; they are version 1.
  const auto old = Parse(R"({"quant_method":"gptq","bits":4,"group_size":64,"sym":false})");
  ASSERT_OK(old);
  EXPECT_EQ((*old)->layout, QuantLayout::kGptqV1);
  EXPECT_EQ((*old)->spec.grid, Grid::kAsymmetric);
}

TEST(QuantizationConfig, WhatIsWrittenIsReadBack) {
  for (const QuantLayout layout :
       {QuantLayout::kAwqGemm, QuantLayout::kGptqV1, QuantLayout::kGptqV2}) {
    QuantizationConfig config{.layout = layout};
    config.spec.group_size = 32;
    config.spec.grid = layout == QuantLayout::kAwqGemm ? Grid::kAsymmetric : Grid::kSymmetric;
    config.modules_to_not_convert = {"model.layers.0.mlp.down_proj"};
    const auto read = Parse(config.ToJson().dump());
    ASSERT_OK(read);
    EXPECT_EQ((*read)->layout, layout);
    EXPECT_EQ((*read)->spec, config.spec);
    EXPECT_EQ((*read)->modules_to_not_convert, config.modules_to_not_convert);
    EXPECT_EQ((*read)->only_modules, config.only_modules);
  }
}

TEST(QuantizationConfig, RefusesByName) {
  const std::pair<const char*, const char*> cases[] = {
      {R"({"quant_method":"compressed-tensors"})", "\"compressed-tensors\" is not supported"},
      {R"({"quant_method":"bitsandbytes","load_in_4bit":true})", "\"bitsandbytes\""},
      {R"({"quant_method":"fp8"})", "\"fp8\""},
      {R"({"bits":4})", "\"quant_method\" is missing"},
      {R"("awq")", "want an object"},
      {R"({"quant_method":"awq","bits":8,"group_size":128})", "8 bits; nibble reads 4"},
      {R"({"quant_method":"awq","bits":"4","group_size":128})", "\"bits\": want an integer"},
      {R"({"quant_method":"awq","bits":4})", "\"group_size\" is missing"},
      {R"({"quant_method":"awq","bits":4,"group_size":0})", "group_size 0"},
      {R"({"quant_method":"awq","bits":4,"group_size":-2})", "\"group_size\": want an integer"},
      {R"({"quant_method":"awq","bits":4,"group_size":128,"version":"gemv"})", "version \"gemv\""},
      {R"({"quant_method":"awq","bits":4,"group_size":128,"zero_point":false})", "zero points"},
      {R"({"quant_method":"awq","bits":4,"group_size":128,"modules_to_not_convert":[1]})",
       "want a list of strings"},
      {R"({"quant_method":"gptq","bits":3,"group_size":128})", "3 bits; nibble reads 4"},
      {R"({"quant_method":"gptq","bits":4,"group_size":128,"checkpoint_format":"marlin"})",
       "checkpoint_format \"marlin\""},
      {R"({"quant_method":"gptq","bits":4,"group_size":128,"pack_dtype":"int8"})",
       "pack_dtype \"int8\""},
      {R"({"quant_method":"gptq","bits":4,"group_size":128,"dynamic":{"-:.*":{}}})", "\"dynamic\""},
      {R"({"quant_method":"gptq","bits":4,"group_size":128,"sym":1})", "\"sym\": want true or"},
  };
  for (const auto& [text, message] : cases) {
    SCOPED_TRACE(text);
    EXPECT_ERROR(Parse(text), ErrorCode::kBadInput, message);
  }
  const auto old = ParseJson(R"({"compression_config":{}})", "");
  EXPECT_ERROR(ParseQuantizationConfig(*old, "config.json"), ErrorCode::kBadInput,
               "compressed-tensors");
}

}  // namespace
}  // namespace nibble

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

TEST(QuantizationConfig, ActOrder) {
  const auto order = [](std::string_view members) {
    const auto config = Parse(fmt::format(R"({{"quant_method":"gptq","bits":4,{}}})", members));
    return (*config)->spec.order;
  };
  EXPECT_EQ(order(R"("group_size":128,"desc_act":true)"), GroupOrder::kIndexed);
  EXPECT_EQ(order(R"("group_size":128,"desc_act":false)"), GroupOrder::kConsecutive);
  EXPECT_EQ(order(R"("group_size":-1,"desc_act":true)"), GroupOrder::kConsecutive);
}

TEST(QuantizationConfig, ModulesThatGptqLeavesDense) {
  const auto config = Parse(R"({"quant_method":"gptq","bits":4,"group_size":64,"dynamic":{)"
                            R"("-:.*\\.(?:1|2)\\.mlp":{},"-:^model\\.layers\\.7\\.x$":false}})");
  ASSERT_OK(config);
  EXPECT_FALSE((*config)->Covers("model.layers.2.mlp.down_proj"));
  EXPECT_TRUE((*config)->Covers("model.layers.3.mlp.down_proj"));
  EXPECT_TRUE((*config)->Covers("model.layers.2.self_attn.q_proj"));
  EXPECT_FALSE((*config)->Covers("model.layers.7.x"));
  EXPECT_TRUE((*config)->Covers("model.layers.7.xy"));
  EXPECT_TRUE((*config)->Covers("a.model.layers.7.x"));  // matched from the beginning
}

// `weights` and `more` are members of config_groups.group_0.weights and of the whole.
std::string Compressed(std::string_view weights,
                       std::string_view more = R"("ignore":["lm_head"])") {
  return fmt::format(
      R"({{"quant_method":"compressed-tensors","format":"pack-quantized",{},"config_groups":)"
      R"({{"group_0":{{"targets":["Linear"],"input_activations":null,"weights":{{{}}}}}}}}})",
      more, weights);
}

TEST(QuantizationConfig, CompressedTensors) {
  const auto config = Parse(Compressed(
      R"("num_bits":4,"type":"int","symmetric":false,"strategy":"group","group_size":32,)"
      R"("dynamic":false,"actorder":"weight","observer":"mse","block_structure":null)",
      R"("ignore":["lm_head","model.layers.1.mlp.up_proj","re:.*\\.2\\.mlp\\..*"],)"
      R"("quantization_status":"compressed","kv_cache_scheme":null,"version":"0.11.0",)"
      R"("sparsity_config":{"format":"dense"},"transform_config":{})"));
  ASSERT_OK(config);
  const QuantizationConfig& ct = **config;
  EXPECT_EQ(ct.layout, QuantLayout::kCompressedTensors);
  EXPECT_EQ(ct.spec, (QuantSpec{.group_size = 32, .grid = Grid::kAsymmetric}));
  EXPECT_FALSE(ct.Covers("lm_head"));
  EXPECT_FALSE(ct.Covers("model.layers.1.mlp.up_proj"));
  EXPECT_TRUE(ct.Covers("model.layers.1.mlp.up_proj_2"));  // whole names, not parts
  EXPECT_FALSE(ct.Covers("model.layers.2.mlp.up_proj"));
  EXPECT_TRUE(ct.Covers("model.layers.3.mlp.up_proj"));
  EXPECT_EQ(ct.Label(), "compressed-tensors-g32-asym");

  const auto channel = Parse(Compressed(
      R"("num_bits":4,"symmetric":true,"strategy":"channel","group_size":null)", R"("ignore":[])"));
  ASSERT_OK(channel);
  EXPECT_EQ((*channel)->spec, (QuantSpec{.group_size = kPerChannel, .grid = Grid::kSymmetric}));
  EXPECT_TRUE((*channel)->Covers("lm_head"));
  const auto ordered = Parse(Compressed(R"("num_bits":4,"group_size":64,"actorder":"group")"));
  ASSERT_OK(ordered);
  EXPECT_EQ((*ordered)->spec.order, GroupOrder::kIndexed);
}

TEST(QuantizationConfig, CompressedTensorsRefusesByName) {
  const auto refused = [](const std::string& text, const char* message) {
    SCOPED_TRACE(text);
    EXPECT_ERROR(Parse(text), ErrorCode::kBadInput, message);
  };
  const std::string good = R"("num_bits":4,"group_size":32)";
  EXPECT_OK(Parse(Compressed(good)));
  refused(R"({"quant_method":"compressed-tensors"})", "\"format\" is missing");
  refused(Compressed(R"("num_bits":8,"group_size":32)"), "8 bits; nibble reads 4");
  refused(Compressed(good + R"(,"type":"float")"), "\"type\" is \"float\"");
  refused(Compressed(good + R"(,"dynamic":true)"), "\"dynamic\"");
  refused(Compressed(good + R"(,"strategy":"channel")"), "strategy \"channel\" with group_size 32");
  refused(Compressed(R"("num_bits":4,"strategy":"group")"), "strategy \"group\"");
  refused(Compressed(R"("num_bits":4,"strategy":"tensor")"), "strategy \"tensor\"");
  refused(Compressed(good + R"(,"actorder":"up")"), "\"actorder\"");
  refused(Compressed(good, R"("kv_cache_scheme":{"num_bits":8})"), "\"kv_cache_scheme\"");
  refused(Compressed(good, R"("transform_config":{"a":1})"), "\"transform_config\"");
  refused(Compressed(good, R"("sparsity_config":{"format":"sparse-24-bitmask"})"),
          "sparse-24-bitmask");
  refused(Compressed(good, R"("quantization_status":"calibration")"), "\"calibration\"");
  refused(Compressed(good, R"("ignore":["re:("])"), "\"ignore\"");
  refused(R"({"quant_method":"compressed-tensors","format":"int-quantized"})", "int-quantized");
  refused(R"({"quant_method":"compressed-tensors","format":"pack-quantized"})",
          "\"config_groups\" is missing");
  refused(R"({"quant_method":"compressed-tensors","format":"pack-quantized","config_groups":{}})",
          "0 config_groups");
  refused(R"({"quant_method":"compressed-tensors","format":"pack-quantized","config_groups":)"
          R"({"g":{"targets":["re:.*q_proj"],"weights":{"num_bits":4,"group_size":32}}}})",
          "\"targets\"");
  refused(R"({"quant_method":"compressed-tensors","format":"pack-quantized","config_groups":)"
          R"({"g":{"targets":["Linear"],"input_activations":{"num_bits":8},"weights":{}}}})",
          "\"input_activations\"");
}

TEST(QuantizationConfig, WhatIsWrittenIsReadBack) {
  for (const QuantLayout layout : kQuantLayouts) {
    QuantizationConfig config{.layout = layout};
    config.spec.group_size = 32;
    config.spec.grid = layout == QuantLayout::kAwqGemm ? Grid::kAsymmetric : Grid::kSymmetric;
    if (layout != QuantLayout::kAwqGemm) config.spec.order = GroupOrder::kIndexed;
    config.modules_to_not_convert = {"model.layers.0.mlp.down_proj"};
    const auto read = Parse(config.ToJson().dump());
    ASSERT_OK(read);
    EXPECT_EQ((*read)->layout, layout);
    EXPECT_EQ((*read)->spec, config.spec);
    EXPECT_EQ((*read)->modules_to_not_convert, config.modules_to_not_convert);
    EXPECT_EQ((*read)->only_modules, config.only_modules);
    EXPECT_FALSE((*read)->Covers("model.layers.0.mlp.down_proj"));
    EXPECT_TRUE((*read)->Covers("model.layers.0.mlp.up_proj"));
    EXPECT_FALSE((*read)->Covers("lm_head"));
    EXPECT_EQ(QuantLayoutFromName(Name(layout)), layout);
  }
}

TEST(QuantizationConfig, RefusesByName) {
  const std::pair<const char*, const char*> cases[] = {
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
      {R"({"quant_method":"gptq","bits":4,"group_size":128,"dynamic":{"+:a":{"bits":8}}})",
       "(\"dynamic\": \"+:a\")"},
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

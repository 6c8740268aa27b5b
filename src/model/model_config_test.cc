#include "src/model/model_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

namespace nibble {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

Json Llama() {
  return {{"architectures", {"LlamaForCausalLM"}},
          {"vocab_size", 320},
          {"hidden_size", 128},
          {"intermediate_size", 352},
          {"num_hidden_layers", 3},
          {"num_attention_heads", 4},
          {"max_position_embeddings", 512},
          {"rms_norm_eps", 1e-5},
          {"hidden_act", "silu"}};
}

Result<ModelConfig> Parse(const Json& config, const Json& generation = Json::object()) {
  return ParseModelConfig(config, generation, "config.json");
}

void ExpectRefused(const Json& config, const std::string& part) {
  const Result<ModelConfig> result = Parse(config);
  ASSERT_FALSE(result) << config.dump();
  EXPECT_EQ(result.error().code(), ErrorCode::kBadInput);
  EXPECT_THAT(result.error().message(), HasSubstr(part));
}

TEST(ModelConfigTest, ReadsBothSpellings) {
  Json old_spelling = Llama();
  old_spelling.update({{"rope_theta", 500000.0},
                       {"torch_dtype", "bfloat16"},
                       {"rope_scaling",
                        {{"rope_type", "llama3"},
                         {"factor", 8.0},
                         {"low_freq_factor", 1.0},
                         {"high_freq_factor", 4.0},
                         {"original_max_position_embeddings", 64}}}});
  Json new_spelling = Llama();
  new_spelling["dtype"] = "bfloat16";
  new_spelling["rope_parameters"] = old_spelling["rope_scaling"];
  new_spelling["rope_parameters"]["rope_theta"] = 500000.0;
  for (const Json& config : {old_spelling, new_spelling}) {
    const Result<ModelConfig> model = Parse(config);
    ASSERT_TRUE(model) << model.error().message();
    EXPECT_EQ(model->dtype, DType::kBF16);
    EXPECT_EQ(model->rope.type, RopeConfig::Type::kLlama3);
    EXPECT_EQ(model->rope.theta, 500000.0);
    EXPECT_EQ(model->rope.factor, 8.0);
    EXPECT_EQ(model->rope.original_context, 64);
    EXPECT_EQ(model->kv_heads, 4);
    EXPECT_EQ(model->head_dim, 32);
  }
}

TEST(ModelConfigTest, HeadDimMayDifferAndEosMayBeAList) {
  Json config = Llama();
  config["head_dim"] = 48;
  config["eos_token_id"] = {2, 3};
  Result<ModelConfig> model = Parse(config);
  ASSERT_TRUE(model);
  EXPECT_EQ(model->q_features(), 4 * 48);
  EXPECT_THAT(model->eos, ElementsAre(2, 3));
  model = Parse(config, {{"eos_token_id", 7}});
  ASSERT_TRUE(model);
  EXPECT_THAT(model->eos, ElementsAre(7));
}

TEST(ModelConfigTest, BiasesFollowTheArchitecture) {
  Json config = Llama();
  config["attention_bias"] = true;
  config["mlp_bias"] = true;
  Result<ModelConfig> model = Parse(config);
  ASSERT_TRUE(model);
  EXPECT_TRUE(model->qkv_bias && model->output_bias && model->mlp_bias);
  config = Llama();
  config["architectures"] = {"Qwen2ForCausalLM"};
  model = Parse(config);
  ASSERT_TRUE(model);
  EXPECT_TRUE(model->qkv_bias && !model->output_bias && !model->mlp_bias);
}

TEST(ModelConfigTest, SlidingWindows) {
  Json config = Llama();
  config["sliding_window"] = 16;
  EXPECT_THAT(Parse(config)->windows, ElementsAre(std::nullopt, std::nullopt, std::nullopt));
  EXPECT_EQ(Parse(config)->extents().window, std::nullopt);
  config["architectures"] = {"MistralForCausalLM"};
  EXPECT_THAT(Parse(config)->windows, ElementsAre(16, 16, 16));
  EXPECT_EQ(Parse(config)->extents().window, 16);
  config["architectures"] = {"Qwen2ForCausalLM"};
  config["max_window_layers"] = 1;
  EXPECT_THAT(Parse(config)->windows, ElementsAre(std::nullopt, std::nullopt, std::nullopt));
  config["use_sliding_window"] = true;
  EXPECT_THAT(Parse(config)->windows, ElementsAre(std::nullopt, 16, 16));
  config["layer_types"] = {"sliding_attention", "full_attention", "full_attention"};
  EXPECT_THAT(Parse(config)->windows, ElementsAre(16, std::nullopt, std::nullopt));
  EXPECT_EQ(Parse(config)->extents().window, 16);
}

TEST(ModelConfigTest, RefusesWhatWouldChangeTheResult) {
  const auto with = [](const std::string& key, const Json& value) {
    Json config = Llama();
    config[key] = value;
    return config;
  };
  ExpectRefused(with("architectures", {"GPT2LMHeadModel"}), "GPT2LMHeadModel");
  ExpectRefused(with("hidden_act", "gelu"), "gelu");
  ExpectRefused(with("rope_scaling", {{"rope_type", "yarn"}, {"factor", 2.0}}), "yarn");
  ExpectRefused(with("rope_scaling", {{"type", "dynamic"}, {"factor", 2.0}}), "dynamic");
  ExpectRefused(with("rope_scaling", {{"type", "linear"}, {"factor", 2.0}, {"beta", 1}}), "beta");
  ExpectRefused(with("partial_rotary_factor", 0.5), "partial_rotary_factor");
  ExpectRefused(with("num_key_value_heads", 3), "3 key-value heads");
  ExpectRefused(with("hidden_size", -1), "hidden_size");
  ExpectRefused(with("hidden_size", "128"), "hidden_size");
  ExpectRefused(with("vocab_size", int64_t{1} << 40), "vocab_size");
  ExpectRefused(with("dtype", "float8"), "float8");
  ExpectRefused(with("eos_token_id", 320), "eos_token_id");
  ExpectRefused(with("rms_norm_eps", "small"), "rms_norm_eps");
  Json missing = Llama();
  missing.erase("num_hidden_layers");
  ExpectRefused(missing, "num_hidden_layers");
}

TEST(ModelConfigTest, NamesWhatItDidNotLookAt) {
  Json config = Llama();
  config["some_new_setting"] = 3;
  config["use_cache"] = true;
  EXPECT_THAT(Parse(config)->unrecognized, ElementsAre("some_new_setting"));
}

TEST(RopeFrequenciesTest, FollowTheirDefinitions) {
  const std::vector<float> plain = RopeFrequencies({.theta = 10000}, 8);
  ASSERT_EQ(plain.size(), 4u);
  EXPECT_FLOAT_EQ(plain[0], 1.0f);
  EXPECT_FLOAT_EQ(plain[1], 0.1f);
  EXPECT_FLOAT_EQ(plain[3], 0.001f);
  const std::vector<float> linear =
      RopeFrequencies({.type = RopeConfig::Type::kLinear, .theta = 10000, .factor = 4}, 8);
  EXPECT_FLOAT_EQ(linear[1], 0.025f);
  // llama3, original context 64: wavelengths below 16 stay, above 64 are divided by the factor.
  const std::vector<float> llama3 = RopeFrequencies({.type = RopeConfig::Type::kLlama3,
                                                     .theta = 10000,
                                                     .factor = 8,
                                                     .low_frequency_factor = 1,
                                                     .high_frequency_factor = 4,
                                                     .original_context = 64},
                                                    8);
  EXPECT_FLOAT_EQ(llama3[0], 1.0f);               // wavelength 6.3
  EXPECT_FLOAT_EQ(llama3[3], 0.001f / 8);         // wavelength 6283
  const double periods = 64 * 0.1 / 6.283185307;  // wavelength 62.8: between
  const double share = (periods - 1) / 3;
  EXPECT_NEAR(llama3[1], (1 - share) * 0.1 / 8 + share * 0.1, 1e-7);
}

}  // namespace
}  // namespace nibble

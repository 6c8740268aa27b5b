#include "src/checkpoint/gguf_checkpoint.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

#include "src/checkpoint/test_files.h"

namespace nibble {
namespace {

constexpr uint32_t kF32 = 0, kF16 = 1, kQ8_0 = 8, kBF16 = 30;

std::string F32s(size_t n, float from) {
  std::vector<float> values(n);
  for (size_t i = 0; i < n; ++i) values[i] = from + static_cast<float>(i);
  return RawAll(values);
}
// n values of Q8_0 with scale 1: code i % 100.
std::string Q8s(size_t n, float scale = 1) {
  std::string bytes;
  for (size_t i = 0; i < n; ++i) {
    if (i % 32 == 0) bytes += Raw(F16FromFloat(scale));
    bytes += static_cast<char>(i % 100);
  }
  return bytes;
}

// A model of hidden size 32, 2 heads of 16, 1 for keys, 1 layer, 5 tokens.
struct ModelOptions {
  std::string arch = "llama";
  bool tied = false;
  bool qkv_bias = false;
  std::string q = Q8s(32 * 32);
  std::vector<uint64_t> q_extents = {32, 32};
  std::vector<float> rope_factors;
};

GgufBuilder Metadata(const std::string& arch) {
  GgufBuilder builder;
  builder.String("general.architecture", arch)
      .U32(arch + ".block_count", 1)
      .U32(arch + ".context_length", 64)
      .U32(arch + ".embedding_length", 32)
      .U32(arch + ".feed_forward_length", 64)
      .U32(arch + ".attention.head_count", 2)
      .U32(arch + ".attention.head_count_kv", 1)
      .F32(arch + ".attention.layer_norm_rms_epsilon", 1e-5f)
      .F32(arch + ".rope.freq_base", 500000.0f);
  return builder;
}

GgufBuilder& AddTensors(GgufBuilder& builder, const ModelOptions& o = {}) {
  builder.Tensor("token_embd.weight", {32, 5}, kQ8_0, Q8s(160));
  if (!o.rope_factors.empty()) {
    builder.Tensor("rope_freqs.weight", {o.rope_factors.size()}, kF32, RawAll(o.rope_factors));
  }
  builder.Tensor("blk.0.attn_norm.weight", {32}, kF32, F32s(32, 0))
      .Tensor("blk.0.attn_q.weight", o.q_extents, kQ8_0, o.q)
      .Tensor("blk.0.attn_k.weight", {32, 16}, kF32, F32s(512, 0))
      .Tensor("blk.0.attn_v.weight", {32, 16}, kF32, F32s(512, 0))
      .Tensor("blk.0.attn_output.weight", {32, 32}, kQ8_0, Q8s(1024))
      .Tensor("blk.0.ffn_norm.weight", {32}, kF32, F32s(32, 0))
      .Tensor("blk.0.ffn_gate.weight", {32, 64}, kF16, std::string(4096, '\0'))
      .Tensor("blk.0.ffn_up.weight", {32, 64}, kBF16, std::string(4096, '\0'))
      .Tensor("blk.0.ffn_down.weight", {64, 32}, kQ8_0, Q8s(2048))
      .Tensor("output_norm.weight", {32}, kF32, F32s(32, 0));
  if (o.qkv_bias) {
    builder.Tensor("blk.0.attn_q.bias", {32}, kF32, F32s(32, 0))
        .Tensor("blk.0.attn_k.bias", {16}, kF32, F32s(16, 0))
        .Tensor("blk.0.attn_v.bias", {16}, kF32, F32s(16, 0));
  }
  if (!o.tied) builder.Tensor("output.weight", {32, 5}, kQ8_0, Q8s(160));
  return builder;
}

Result<std::unique_ptr<Checkpoint>> Open(const TempDirectory& directory,
                                         const GgufBuilder& builder) {
  directory.Write("m.gguf", builder.Build());
  return OpenGgufCheckpoint(directory / "m.gguf");
}
Result<std::unique_ptr<Checkpoint>> OpenModel(const TempDirectory& directory,
                                              const ModelOptions& options = {}) {
  GgufBuilder builder = Metadata(options.arch);
  return Open(directory, AddTensors(builder, options));
}

template <typename T>
std::vector<T> Values(const TensorView& view) {
  std::vector<T> values(view.bytes.size() / sizeof(T));
  std::memcpy(values.data(), view.bytes.data(), view.bytes.size());
  return values;
}

TEST(GgufCheckpoint, MakesTheConfiguration) {
  const TempDirectory directory;
  GgufBuilder builder = Metadata("llama");
  builder.U32("tokenizer.ggml.bos_token_id", 1)
      .U32("tokenizer.ggml.eos_token_id", 2)
      .U32("tokenizer.ggml.eot_token_id", 4);
  const auto checkpoint = Open(directory, AddTensors(builder));
  ASSERT_OK(checkpoint);
  const Json want = Json::parse(R"({
      "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32,
      "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
      "num_key_value_heads": 1, "head_dim": 16, "hidden_act": "silu",
      "max_position_embeddings": 64, "rms_norm_eps": 1e-05, "vocab_size": 5,
      "tie_word_embeddings": false, "torch_dtype": "float16", "attention_bias": false,
      "mlp_bias": false, "rope_theta": 500000.0, "rope_scaling": null, "bos_token_id": 1,
      "eos_token_id": 2})");
  EXPECT_EQ((*checkpoint)->config(), want);
  EXPECT_EQ((*checkpoint)->generation_config(),
            Json::parse(R"({"bos_token_id": 1, "eos_token_id": [2, 4]})"));
  EXPECT_EQ((*checkpoint)->label(), "fp16 (from Q8_0)");
  EXPECT_FALSE((*checkpoint)->synthetic());
}

TEST(GgufCheckpoint, ChatTemplates) {
  const TempDirectory directory;
  const auto templates = [&](GgufBuilder builder) {
    const auto checkpoint = Open(directory, AddTensors(builder));
    return checkpoint ? (*checkpoint)->ChatTemplates()
                      : Result<std::vector<NamedChatTemplate>>(BadInput("not opened"));
  };
  GgufBuilder builder = Metadata("llama");
  ASSERT_OK(templates(builder));
  EXPECT_TRUE(templates(builder)->empty());
  builder.String("tokenizer.chat_template", "plain");
  EXPECT_EQ(templates(builder)->size(), 1u);
  EXPECT_EQ((*templates(builder))[0].name, "default");
  EXPECT_EQ((*templates(builder))[0].jinja, "plain");
  builder.Array("tokenizer.chat_templates", 8, 1, GgufBuilder::Text("tool_use"));
  EXPECT_ERROR(templates(builder), ErrorCode::kBadInput, "names \"tool_use\", which is not there");
  builder.String("tokenizer.chat_template.tool_use", "tools");
  ASSERT_OK(templates(builder));
  EXPECT_EQ(templates(builder)->size(), 2u);
  EXPECT_EQ((*templates(builder))[1].name, "tool_use");
  EXPECT_EQ((*templates(builder))[1].jinja, "tools");
}

TEST(GgufCheckpoint, DeliversTensors) {
  const TempDirectory directory;
  const auto opened = OpenModel(directory);
  ASSERT_OK(opened);
  const Checkpoint& checkpoint = **opened;
  EXPECT_EQ(checkpoint.tensors().size(), 12u);
  const TensorInfo* down = checkpoint.Find("model.layers.0.mlp.down_proj.weight");
  ASSERT_NE(down, nullptr);
  EXPECT_EQ(down->dtype, DType::kF16);
  EXPECT_EQ(down->stored_type, "Q8_0");
  EXPECT_EQ(down->stored_bytes, 2048u / 32 * 34);
  EXPECT_EQ(down->shape, (Shape{32, 64}));
  const auto view = checkpoint.Read("model.layers.0.mlp.down_proj.weight");
  ASSERT_OK(view);
  EXPECT_EQ(FloatFromF16(Values<uint16_t>(*view)[99]), 99.0f);
  EXPECT_EQ(checkpoint.Find("model.layers.0.mlp.gate_proj.weight")->dtype, DType::kF16);
  EXPECT_EQ(checkpoint.Find("model.layers.0.mlp.up_proj.weight")->dtype, DType::kBF16);
  EXPECT_EQ(checkpoint.Find("model.norm.weight")->dtype, DType::kF32);
  const auto norm = ReadVector(checkpoint, "model.norm.weight", 32);
  ASSERT_OK(norm);
  EXPECT_EQ(norm->at(31), 31.0f);
  EXPECT_ERROR(checkpoint.Read("x"), ErrorCode::kBadInput, "there is no tensor x");
  EXPECT_NE(checkpoint.Find("lm_head.weight"), nullptr);
}

TEST(GgufCheckpoint, PutsRowsOfQAndKIntoOrder) {
  const TempDirectory directory;
  const auto opened = OpenModel(directory, {.qkv_bias = true});
  ASSERT_OK(opened);
  // k: row r of the file holds 32 r … . Hugging Face's row 3 is the file's row 6, row 8 + 3 its 7.
  const auto k = (*opened)->Read("model.layers.0.self_attn.k_proj.weight");
  ASSERT_OK(k);
  const std::vector<float> values = Values<float>(*k);
  EXPECT_EQ(values[3 * 32 + 5], 6 * 32 + 5);
  EXPECT_EQ(values[11 * 32 + 5], 7 * 32 + 5);
  // v is as it is.
  const auto v = (*opened)->Read("model.layers.0.self_attn.v_proj.weight");
  EXPECT_EQ(Values<float>(*v)[3 * 32 + 5], 3 * 32 + 5);
  // q: two heads, quantized. Row 16 + 3 is the file's 16 + 6.
  const auto q = (*opened)->Read("model.layers.0.self_attn.q_proj.weight");
  ASSERT_OK(q);
  EXPECT_EQ(FloatFromF16(Values<uint16_t>(*q)[19 * 32]), (22 * 32) % 100);
  // Biases too.
  const auto bias = ReadVector(**opened, "model.layers.0.self_attn.q_proj.bias", 32);
  ASSERT_OK(bias);
  EXPECT_EQ(bias->at(19), 22.0f);
  EXPECT_EQ((*opened)->config()["attention_bias"], true);
}

TEST(GgufCheckpoint, Qwen2IsNotPermuted) {
  const TempDirectory directory;
  const auto opened = OpenModel(directory, {.arch = "qwen2", .tied = true, .qkv_bias = true});
  ASSERT_OK(opened);
  const Json& config = (*opened)->config();
  EXPECT_EQ(config["architectures"][0], "Qwen2ForCausalLM");
  EXPECT_EQ(config["tie_word_embeddings"], true);
  EXPECT_EQ(config.contains("attention_bias"), false);
  EXPECT_EQ((*opened)->Find("lm_head.weight"), nullptr);
  const auto bias = ReadVector(**opened, "model.layers.0.self_attn.q_proj.bias", 32);
  EXPECT_EQ(bias->at(19), 19.0f);
}

TEST(GgufCheckpoint, RefusesValuesThatFloat16CannotHold) {
  const TempDirectory directory;
  const auto opened = OpenModel(directory, {.q = Q8s(1024, 1000)});
  ASSERT_OK(opened);
  EXPECT_ERROR((*opened)->Read("model.layers.0.self_attn.q_proj.weight"), ErrorCode::kBadInput,
               "blk.0.attn_q.weight: row 2, element 2: 66000 does not fit float16");
  const auto nan = OpenModel(directory, {.q = Q8s(1024, NAN)});
  ASSERT_OK(nan);
  EXPECT_ERROR((*nan)->Read("model.layers.0.self_attn.q_proj.weight"), ErrorCode::kBadInput,
               "does not fit float16");
}

// As convert_hf_to_gguf.py writes them.
std::vector<float> Llama3Factors(int64_t half, double theta, double factor, double low, double high,
                                 double original) {
  std::vector<float> factors;
  for (int64_t i = 0; i < half; ++i) {
    const double wavelength = 2 * std::numbers::pi * std::pow(theta, double(i) / double(half));
    if (wavelength < original / high) {
      factors.push_back(1);
    } else if (wavelength > original / low) {
      factors.push_back(static_cast<float>(factor));
    } else {
      const double smooth = (original / wavelength - low) / (high - low);
      factors.push_back(static_cast<float>(1 / ((1 - smooth) / factor + smooth)));
    }
  }
  return factors;
}

TEST(GgufCheckpoint, RecognizesLlama3Rope) {
  const TempDirectory directory;
  for (const double factor : {8.0, 32.0}) {
    const auto opened =
        OpenModel(directory, {.rope_factors = Llama3Factors(8, 500000, factor, 1, 4, 8192)});
    ASSERT_OK(opened);
    const Json& scaling = (*opened)->config()["rope_scaling"];
    EXPECT_EQ(scaling["rope_type"], "llama3");
    EXPECT_EQ(scaling["factor"], factor);
    EXPECT_EQ(scaling["original_max_position_embeddings"], 8192);
  }
  const auto ones = OpenModel(directory, {.rope_factors = std::vector<float>(8, 1.0f)});
  ASSERT_OK(ones);
  EXPECT_TRUE((*ones)->config()["rope_scaling"].is_null());
  EXPECT_ERROR(OpenModel(directory, {.rope_factors = Llama3Factors(8, 500000, 16, 1, 4, 8192)}),
               ErrorCode::kBadInput, "rope_freqs.weight: these frequency factors");
  EXPECT_ERROR(OpenModel(directory, {.rope_factors = std::vector<float>(8, NAN)}),
               ErrorCode::kBadInput, "rope_freqs.weight");
  EXPECT_ERROR(OpenModel(directory, {.rope_factors = {1, 1, 1}}), ErrorCode::kBadInput,
               "rope_freqs.weight: want F32 [8], got F32 [3]");
}

TEST(GgufCheckpoint, OtherRopeScaling) {
  const TempDirectory directory;
  GgufBuilder linear = Metadata("llama");
  linear.String("llama.rope.scaling.type", "linear").F32("llama.rope.scaling.factor", 4);
  const auto opened = Open(directory, AddTensors(linear));
  ASSERT_OK(opened);
  EXPECT_EQ((*opened)->config()["rope_scaling"],
            Json::parse(R"({"rope_type": "linear", "factor": 4.0})"));
  GgufBuilder yarn = Metadata("llama");
  yarn.String("llama.rope.scaling.type", "yarn").F32("llama.rope.scaling.factor", 4);
  EXPECT_ERROR(Open(directory, AddTensors(yarn)), ErrorCode::kBadInput,
               "RoPE scaling of type \"yarn\" is not supported");
}

TEST(GgufCheckpoint, SlidingWindowIsMistral) {
  const TempDirectory directory;
  GgufBuilder builder = Metadata("llama");
  builder.U32("llama.attention.sliding_window", 16);
  const auto opened = Open(directory, AddTensors(builder));
  ASSERT_OK(opened);
  EXPECT_EQ((*opened)->config()["architectures"][0], "MistralForCausalLM");
  EXPECT_EQ((*opened)->config()["sliding_window"], 16);
}

TEST(GgufCheckpoint, RefusesByName) {
  const TempDirectory directory;
  const auto with = [&](const auto& change) {
    GgufBuilder builder = Metadata("llama");
    change(builder);
    return Open(directory, AddTensors(builder));
  };
  EXPECT_ERROR(OpenModel(directory, {.arch = "gemma2"}), ErrorCode::kBadInput,
               "architecture \"gemma2\" is not supported");
  EXPECT_ERROR(Open(directory, GgufBuilder().Tensor("a", {8}, 0, F32s(8, 0))), ErrorCode::kBadInput,
               "general.architecture is missing");
  EXPECT_ERROR(with([](GgufBuilder& b) { b.F32("llama.logit_scale", 2); }), ErrorCode::kBadInput,
               "metadata \"llama.logit_scale\" is not understood");
  EXPECT_ERROR(with([](GgufBuilder& b) { b.U32("llama.expert_count", 8); }), ErrorCode::kBadInput,
               "mixtures of experts");
  EXPECT_ERROR(with([](GgufBuilder& b) { b.U32("split.count", 3); }), ErrorCode::kBadInput,
               "one of 3 files");
  EXPECT_ERROR(with([](GgufBuilder& b) { b.U32("llama.rope.dimension_count", 8); }),
               ErrorCode::kBadInput, "llama.rope.dimension_count of 8 differs");
  EXPECT_ERROR(
      with([](GgufBuilder& b) { b.Tensor("blk.0.attn_q_norm.weight", {16}, kF32, F32s(16, 0)); }),
      ErrorCode::kBadInput, "tensor \"blk.0.attn_q_norm.weight\" is not understood");
  for (const char* name : {"blk.1.ffn_up.weight", "blk.00.ffn_up.weight", "blk.-1.ffn_up.weight",
                           "blk.99999999999999999999.ffn_up.weight", "blk..ffn_up.weight",
                           "blk.0ffn_up.weight", "blk.0", "blk.0.attn_norm.bias"}) {
    EXPECT_ERROR(with([&](GgufBuilder& b) { b.Tensor(name, {8}, kF32, F32s(8, 0)); }),
                 ErrorCode::kBadInput, "is not understood");
  }
  EXPECT_ERROR(OpenModel(directory, {.q = Q8s(32 * 24), .q_extents = {32, 24}}),
               ErrorCode::kBadInput, "blk.0.attn_q.weight: want 2 heads of 16 rows");
  EXPECT_ERROR(OpenModel(directory, {.q_extents = {1024}}), ErrorCode::kBadInput,
               "Q8_0 of shape [1024] is not supported");
  // Sizes.
  const auto sized = [&](const char* key, uint32_t value) {
    GgufBuilder builder;
    builder.String("general.architecture", "llama");
    for (const auto& [name, usual] : {std::pair<const char*, uint32_t>{"llama.block_count", 1},
                                      {"llama.context_length", 64},
                                      {"llama.embedding_length", 32},
                                      {"llama.feed_forward_length", 64},
                                      {"llama.attention.head_count", 2},
                                      {"llama.attention.head_count_kv", 1}}) {
      builder.U32(name, std::string_view(name) == key ? value : usual);
    }
    builder.F32("llama.attention.layer_norm_rms_epsilon", 1e-5f);
    return Open(directory, AddTensors(builder));
  };
  EXPECT_ERROR(sized("llama.attention.head_count", 0), ErrorCode::kBadInput, "head_count");
  EXPECT_ERROR(sized("llama.attention.head_count", 3), ErrorCode::kBadInput, "do not divide");
  EXPECT_ERROR(sized("llama.attention.head_count_kv", 0), ErrorCode::kBadInput, "head_count_kv");
  EXPECT_ERROR(sized("llama.embedding_length", 64), ErrorCode::kBadInput,
               "token_embd.weight: want [tokens, 64], got [5, 32]");
  EXPECT_ERROR(sized("llama.block_count", 4'000'000'000), ErrorCode::kBadInput, "block_count");
  EXPECT_ERROR(Open(directory, Metadata("llama").Tensor("a", {8}, 0, F32s(8, 0))),
               ErrorCode::kBadInput, "token_embd.weight is missing");
}

TEST(GgufCheckpoint, AMissingTensorIsNamedWhereItIsRead) {
  const TempDirectory directory;
  GgufBuilder builder = Metadata("llama");
  const auto opened =
      Open(directory, builder.Tensor("token_embd.weight", {32, 5}, kQ8_0, Q8s(160)));
  ASSERT_OK(opened);
  EXPECT_ERROR(ReadWeight(**opened, "model.layers.0.mlp.up_proj", 64, 32, std::nullopt),
               ErrorCode::kBadInput, "model.layers.0.mlp.up_proj.weight is missing");
  EXPECT_ERROR(ReadWeight(**opened, "model.embed_tokens", 6, 32, std::nullopt),
               ErrorCode::kBadInput, "want [6, 32], got [5, 32]");
}

}  // namespace
}  // namespace nibble

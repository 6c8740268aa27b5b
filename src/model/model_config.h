// What a Llama-family model is, read from a Hugging Face config.json in either spelling.
//
// Covered: Llama 2, 3, 3.1/3.2 (and TinyLlama, SmolLM2), Mistral, Qwen2/2.5. A setting that would
// change the result and is not understood is an error that names it.
#ifndef NIBBLE_MODEL_MODEL_CONFIG_H_
#define NIBBLE_MODEL_MODEL_CONFIG_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "src/base/error.h"
#include "src/base/json.h"
#include "src/ops/backend.h"

namespace nibble {

// Rotary embedding: how a dimension's frequency follows from theta (transformers,
// modeling_rope_utils).
struct RopeConfig {
  enum class Type { kDefault, kLinear, kLlama3 };
  Type type = Type::kDefault;
  double theta = 10000;
  double factor = 1;                 // linear, llama3
  double low_frequency_factor = 1;   // llama3
  double high_frequency_factor = 4;  // llama3
  double original_context = 8192;    // llama3, tokens
};

struct ModelConfig {
  std::string architecture;  // "LlamaForCausalLM", …
  int64_t vocabulary = 0;
  int64_t hidden = 0;
  int64_t intermediate = 0;
  int64_t layers = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t max_context = 0;  // tokens
  float rms_epsilon = 0;
  bool qkv_bias = false;
  bool output_bias = false;
  bool mlp_bias = false;
  bool tied_embeddings = false;
  RopeConfig rope;
  std::vector<std::optional<int64_t>> windows;  // [layers] sliding-window length, or none
  std::optional<int32_t> bos;
  std::vector<int32_t> eos;
  DType dtype = DType::kF16;              // as the config declares it
  std::vector<std::string> unrecognized;  // members that were not looked at, for `inspect`

  int64_t q_features() const { return heads * head_dim; }
  int64_t kv_features() const { return kv_heads * head_dim; }
  int64_t qkv_features() const { return q_features() + 2 * kv_features(); }
  int64_t ParameterCount() const;
  ModelExtents extents() const {
    std::optional<int64_t> window;
    for (const std::optional<int64_t>& of_layer : windows) {
      if (of_layer) window = of_layer;  // all that have one have the same
    }
    return {hidden, intermediate, heads, kv_heads, head_dim, vocabulary, window};
  }
  AttentionSpec attention(int64_t layer) const;
};

// `generation_config` (may be an empty object) overrides the end-of-sequence ids.
Result<ModelConfig> ParseModelConfig(const Json& config, const Json& generation_config,
                                     std::string_view source);

// Radians per position, [head_dim / 2].
std::vector<float> RopeFrequencies(const RopeConfig& rope, int64_t head_dim);

}  // namespace nibble

#endif  // NIBBLE_MODEL_MODEL_CONFIG_H_

#include "src/model/model_config.h"

#include <cmath>
#include <numbers>
#include <set>

namespace nibble {
namespace {

constexpr int64_t kMaxExtent = int64_t{1} << 24;  // of any one dimension; keeps products in range
constexpr int64_t kMaxLayers = 4096;

// Members that ParseModelConfig reads.
const std::set<std::string_view>& ReadMembers() {
  static const std::set<std::string_view> kMembers = {"architectures",
                                                      "model_type",
                                                      "vocab_size",
                                                      "hidden_size",
                                                      "intermediate_size",
                                                      "num_hidden_layers",
                                                      "num_attention_heads",
                                                      "num_key_value_heads",
                                                      "head_dim",
                                                      "max_position_embeddings",
                                                      "rms_norm_eps",
                                                      "attention_bias",
                                                      "mlp_bias",
                                                      "hidden_act",
                                                      "tie_word_embeddings",
                                                      "rope_theta",
                                                      "rope_scaling",
                                                      "rope_parameters",
                                                      "sliding_window",
                                                      "use_sliding_window",
                                                      "max_window_layers",
                                                      "layer_types",
                                                      "bos_token_id",
                                                      "eos_token_id",
                                                      "torch_dtype",
                                                      "dtype",
                                                      "quantization_config",
                                                      "nibble_synthetic"};
  return kMembers;
}

// Members that do not change what the model computes.
const std::set<std::string_view>& NeutralMembers() {
  static const std::set<std::string_view> kMembers = {"_name_or_path",
                                                      "transformers_version",
                                                      "use_cache",
                                                      "pad_token_id",
                                                      "unk_token_id",
                                                      "initializer_range",
                                                      "attention_dropout",
                                                      "hidden_dropout",
                                                      "resid_pdrop",
                                                      "pretraining_tp",
                                                      "output_attentions",
                                                      "output_hidden_states",
                                                      "return_dict",
                                                      "is_llama_config",
                                                      "id2label",
                                                      "label2id",
                                                      "problem_type",
                                                      "torchscript",
                                                      "pruned_heads",
                                                      "chunk_size_feed_forward",
                                                      "is_encoder_decoder",
                                                      "is_decoder",
                                                      "add_cross_attention",
                                                      "tie_encoder_decoder",
                                                      "finetuning_task",
                                                      "task_specific_params",
                                                      "auto_map",
                                                      "transformers.js_config",
                                                      "max_length",
                                                      "_attn_implementation_autoset",
                                                      "attn_implementation"};
  return kMembers;
}

// Members of Llama-like families beyond these that change the result: accepted at the value that
// leaves it alone, refused otherwise.
Status RefuseUnsupported(const JsonObject& config) {
  struct Neutral {
    std::string_view key;
    Json value;
  };
  static const std::vector<Neutral> kNeutral = {{"partial_rotary_factor", 1.0},
                                                {"rope_interleaved", false},
                                                {"attn_logit_softcapping", nullptr},
                                                {"final_logit_softcapping", nullptr},
                                                {"logit_scale", 1.0},
                                                {"logits_scaling", 1.0},
                                                {"embedding_multiplier", 1.0},
                                                {"residual_multiplier", 1.0},
                                                {"query_pre_attn_scalar", nullptr},
                                                {"attention_multiplier", nullptr},
                                                {"clip_qkv", nullptr},
                                                {"qk_layernorm", false},
                                                {"use_qk_norm", false},
                                                {"qk_norm", false},
                                                {"attention_out_bias", false},
                                                {"use_mrope", false},
                                                {"num_experts", 0},
                                                {"num_local_experts", 0},
                                                {"n_routed_experts", 0},
                                                {"attention_chunk_size", nullptr},
                                                {"no_rope_layers", nullptr},
                                                {"alibi", false},
                                                {"position_embedding_type", "rope"},
                                                {"scale_embeddings", false}};
  for (const Neutral& neutral : kNeutral) {
    const Json* value = config.Find(neutral.key);
    if (value == nullptr || *value == neutral.value) continue;
    return BadInput("{}: \"{}\" is {}, which nibble does not implement", config.source(),
                    neutral.key, value->dump());
  }
  return {};
}

Result<std::string> Architecture(const JsonObject& config) {
  std::string name;
  if (const Json* list = config.Find("architectures"); list != nullptr) {
    if (!list->is_array() || list->size() != 1 || !list->front().is_string()) {
      return BadInput("{}: \"architectures\": want a list of one name, got {}", config.source(),
                      list->dump());
    }
    name = list->front().get<std::string>();
  } else {
    NIBBLE_ASSIGN_OR_RETURN(const std::string type, config.String("model_type"));
    name = type == "llama"     ? "LlamaForCausalLM"
           : type == "mistral" ? "MistralForCausalLM"
           : type == "qwen2"   ? "Qwen2ForCausalLM"
                               : type;
  }
  if (name != "LlamaForCausalLM" && name != "MistralForCausalLM" && name != "Qwen2ForCausalLM") {
    return BadInput(
        "{}: architecture \"{}\" is not supported; want LlamaForCausalLM, MistralForCausalLM or "
        "Qwen2ForCausalLM",
        config.source(), name);
  }
  return name;
}

Result<RopeConfig> ParseRope(const JsonObject& config) {
  // Old spelling: rope_theta beside rope_scaling {type | rope_type, …}; new: rope_parameters
  // {rope_type, rope_theta, …}.
  RopeConfig rope;
  NIBBLE_ASSIGN_OR_RETURN(rope.theta, config.NumberOr("rope_theta", rope.theta));
  const std::string_view key = config.Has("rope_parameters") ? "rope_parameters" : "rope_scaling";
  if (config.Has("rope_parameters") && config.Has("rope_scaling") &&
      *config.Find("rope_parameters") != *config.Find("rope_scaling")) {
    return BadInput("{}: has both \"rope_parameters\" and \"rope_scaling\", which differ",
                    config.source());
  }
  std::set<std::string_view> known = {"type", "rope_type", "rope_theta"};
  if (config.Has(key)) {
    NIBBLE_ASSIGN_OR_RETURN(const JsonObject scaling, config.Object(key));
    NIBBLE_ASSIGN_OR_RETURN(rope.theta, scaling.NumberOr("rope_theta", rope.theta));
    NIBBLE_ASSIGN_OR_RETURN(const std::string old_type, scaling.StringOr("type", "default"));
    NIBBLE_ASSIGN_OR_RETURN(const std::string type, scaling.StringOr("rope_type", old_type));
    if (type == "linear") {
      rope.type = RopeConfig::Type::kLinear;
      NIBBLE_ASSIGN_OR_RETURN(rope.factor, scaling.Number("factor"));
      known.insert("factor");
    } else if (type == "llama3") {
      rope.type = RopeConfig::Type::kLlama3;
      NIBBLE_ASSIGN_OR_RETURN(rope.factor, scaling.Number("factor"));
      NIBBLE_ASSIGN_OR_RETURN(rope.low_frequency_factor, scaling.Number("low_freq_factor"));
      NIBBLE_ASSIGN_OR_RETURN(rope.high_frequency_factor, scaling.Number("high_freq_factor"));
      NIBBLE_ASSIGN_OR_RETURN(rope.original_context,
                              scaling.Number("original_max_position_embeddings"));
      known.insert(
          {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"});
      if (rope.high_frequency_factor <= rope.low_frequency_factor || rope.original_context < 1 ||
          rope.low_frequency_factor <= 0) {
        return BadInput(
            "{}: want 0 < low_freq_factor < high_freq_factor and a positive "
            "original_max_position_embeddings, got {}",
            scaling.source(), scaling.json().dump());
      }
    } else if (type != "default") {
      return BadInput("{}: RoPE type \"{}\" is not supported; want default, linear or llama3",
                      scaling.source(), type);
    }
    for (const auto& [name, value] : scaling.json().items()) {
      const bool neutral = name == "partial_rotary_factor" && value == 1.0;
      if (!known.contains(name) && !value.is_null() && !neutral) {
        return BadInput("{}: \"{}\" is not understood for RoPE type \"{}\"", scaling.source(), name,
                        type);
      }
    }
  }
  if (rope.theta <= 0 || rope.factor < 1) {
    return BadInput("{}: RoPE wants theta > 0 and factor ≥ 1, got {} and {}", config.source(),
                    rope.theta, rope.factor);
  }
  return rope;
}

Result<std::vector<std::optional<int64_t>>> ParseWindows(const JsonObject& config,
                                                         const std::string& architecture,
                                                         int64_t layers) {
  std::vector<std::optional<int64_t>> windows(static_cast<size_t>(layers));
  // Llama has no window whatever its config says; Qwen2's is off unless use_sliding_window.
  if (architecture == "LlamaForCausalLM") return windows;
  NIBBLE_ASSIGN_OR_RETURN(const bool qwen_window, config.BooleanOr("use_sliding_window", false));
  const bool used = architecture == "MistralForCausalLM" || qwen_window;
  std::optional<int64_t> window;
  if (used && config.Has("sliding_window")) {
    NIBBLE_ASSIGN_OR_RETURN(window, config.Integer("sliding_window", 1, INT32_MAX));
  }
  int64_t first = 0;
  if (architecture == "Qwen2ForCausalLM") {
    NIBBLE_ASSIGN_OR_RETURN(first, config.IntegerOr("max_window_layers", 0, INT32_MAX, 28));
  }
  for (int64_t i = first; i < layers; ++i) windows[static_cast<size_t>(i)] = window;

  if (const Json* types = config.Find("layer_types"); types != nullptr) {
    if (!types->is_array() || types->size() != windows.size()) {
      return BadInput("{}: \"layer_types\": want a list of {} names, got {}", config.source(),
                      layers, types->dump());
    }
    for (size_t i = 0; i < windows.size(); ++i) {
      const Json& type = (*types)[i];
      if (type == "full_attention") {
        windows[i].reset();
      } else if (type == "sliding_attention") {
        if (!window) {
          return BadInput(
              "{}: layer {} is \"sliding_attention\" but there is no \"sliding_window\"",
              config.source(), i);
        }
        windows[i] = window;
      } else {
        return BadInput("{}: \"layer_types\": {} is not supported", config.source(), type.dump());
      }
    }
  }
  return windows;
}

Result<std::vector<int32_t>> ParseTokenIds(const JsonObject& config, std::string_view key,
                                           int64_t vocabulary) {
  std::vector<int32_t> ids;
  const Json* value = config.Find(key);
  if (value == nullptr) return ids;
  const Json list = value->is_array() ? *value : Json::array({*value});
  for (const Json& id : list) {
    if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() >= vocabulary) {
      return BadInput("{}: \"{}\": want token ids from 0 to {}, got {}", config.source(), key,
                      vocabulary - 1, value->dump());
    }
    ids.push_back(id.get<int32_t>());
  }
  return ids;
}

Result<DType> ParseDType(const JsonObject& config) {
  const std::string_view key = config.Has("dtype") ? "dtype" : "torch_dtype";
  NIBBLE_ASSIGN_OR_RETURN(std::string name, config.StringOr(key, "float16"));
  if (name == "float16") return DType::kF16;
  if (name == "bfloat16") return DType::kBF16;
  if (name == "float32") return DType::kF32;
  return BadInput("{}: \"{}\": want float16, bfloat16 or float32, got \"{}\"", config.source(), key,
                  name);
}

}  // namespace

int64_t ModelConfig::ParameterCount() const {
  const int64_t attention = hidden * qkv_features() + q_features() * hidden +
                            (qkv_bias ? qkv_features() : 0) + (output_bias ? hidden : 0);
  const int64_t mlp = 3 * hidden * intermediate + (mlp_bias ? 2 * intermediate + hidden : 0);
  return vocabulary * hidden * (tied_embeddings ? 1 : 2) + hidden +
         layers * (attention + mlp + 2 * hidden);
}

AttentionSpec ModelConfig::attention(int64_t layer) const {
  return {.heads = heads,
          .kv_heads = kv_heads,
          .head_dim = head_dim,
          .scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(head_dim))),
          .window = windows[static_cast<size_t>(layer)]};
}

Result<ModelConfig> ParseModelConfig(const Json& json, const Json& generation_config,
                                     std::string_view source) {
  NIBBLE_ASSIGN_OR_RETURN(const JsonObject config, JsonObject::Of(json, source));
  ModelConfig model;
  NIBBLE_ASSIGN_OR_RETURN(model.architecture, Architecture(config));
  NIBBLE_RETURN_IF_ERROR(RefuseUnsupported(config));
  NIBBLE_ASSIGN_OR_RETURN(model.vocabulary, config.Integer("vocab_size", 1, kMaxExtent));
  NIBBLE_ASSIGN_OR_RETURN(model.hidden, config.Integer("hidden_size", 1, kMaxExtent));
  NIBBLE_ASSIGN_OR_RETURN(model.intermediate, config.Integer("intermediate_size", 1, kMaxExtent));
  NIBBLE_ASSIGN_OR_RETURN(model.layers, config.Integer("num_hidden_layers", 1, kMaxLayers));
  NIBBLE_ASSIGN_OR_RETURN(model.heads, config.Integer("num_attention_heads", 1, 65536));
  NIBBLE_ASSIGN_OR_RETURN(model.kv_heads,
                          config.IntegerOr("num_key_value_heads", 1, 65536, model.heads));
  if (model.heads % model.kv_heads != 0) {
    return BadInput("{}: {} attention heads do not divide among {} key-value heads", source,
                    model.heads, model.kv_heads);
  }
  if (!config.Has("head_dim") && model.hidden % model.heads != 0) {
    return BadInput("{}: hidden_size {} is not a multiple of the {} heads and there is no head_dim",
                    source, model.hidden, model.heads);
  }
  NIBBLE_ASSIGN_OR_RETURN(model.head_dim,
                          config.IntegerOr("head_dim", 2, 65536, model.hidden / model.heads));
  if (model.head_dim % 2 != 0) {
    return BadInput("{}: head_dim {} is odd; rotary embedding pairs dimensions", source,
                    model.head_dim);
  }
  NIBBLE_ASSIGN_OR_RETURN(model.max_context,
                          config.Integer("max_position_embeddings", 1, INT32_MAX));
  NIBBLE_ASSIGN_OR_RETURN(const double epsilon, config.NumberOr("rms_norm_eps", 1e-6));
  if (epsilon < 0 || epsilon > 1) {
    return BadInput("{}: \"rms_norm_eps\": want a number from 0 to 1, got {}", source, epsilon);
  }
  model.rms_epsilon = static_cast<float>(epsilon);
  NIBBLE_ASSIGN_OR_RETURN(const std::string activation, config.StringOr("hidden_act", "silu"));
  if (activation != "silu" && activation != "swish") {
    return BadInput("{}: activation \"{}\" is not supported; want silu", source, activation);
  }
  const bool llama = model.architecture == "LlamaForCausalLM";
  NIBBLE_ASSIGN_OR_RETURN(const bool attention_bias, config.BooleanOr("attention_bias", false));
  NIBBLE_ASSIGN_OR_RETURN(const bool mlp_bias, config.BooleanOr("mlp_bias", false));
  model.qkv_bias = model.architecture == "Qwen2ForCausalLM" || (llama && attention_bias);
  model.output_bias = llama && attention_bias;
  model.mlp_bias = llama && mlp_bias;
  NIBBLE_ASSIGN_OR_RETURN(model.tied_embeddings, config.BooleanOr("tie_word_embeddings", false));
  NIBBLE_ASSIGN_OR_RETURN(model.rope, ParseRope(config));
  NIBBLE_ASSIGN_OR_RETURN(model.windows, ParseWindows(config, model.architecture, model.layers));
  NIBBLE_ASSIGN_OR_RETURN(model.dtype, ParseDType(config));

  NIBBLE_ASSIGN_OR_RETURN(const std::vector<int32_t> bos,
                          ParseTokenIds(config, "bos_token_id", model.vocabulary));
  if (!bos.empty()) model.bos = bos.front();
  NIBBLE_ASSIGN_OR_RETURN(model.eos, ParseTokenIds(config, "eos_token_id", model.vocabulary));
  NIBBLE_ASSIGN_OR_RETURN(
      const JsonObject generation,
      JsonObject::Of(generation_config, fmt::format("{} (generation_config)", source)));
  NIBBLE_ASSIGN_OR_RETURN(std::vector<int32_t> generation_eos,
                          ParseTokenIds(generation, "eos_token_id", model.vocabulary));
  if (!generation_eos.empty()) model.eos = std::move(generation_eos);

  for (const auto& [key, value] : json.items()) {
    if (!ReadMembers().contains(key) && !NeutralMembers().contains(key) && !value.is_null()) {
      model.unrecognized.push_back(key);
    }
  }
  return model;
}

std::vector<float> RopeFrequencies(const RopeConfig& rope, int64_t head_dim) {
  std::vector<float> frequencies(static_cast<size_t>(head_dim / 2));
  for (int64_t i = 0; i < head_dim / 2; ++i) {
    const double plain =
        std::pow(rope.theta, -2.0 * static_cast<double>(i) / static_cast<double>(head_dim));
    double frequency = plain;
    if (rope.type == RopeConfig::Type::kLinear) {
      frequency = plain / rope.factor;
    } else if (rope.type == RopeConfig::Type::kLlama3) {
      // Wavelengths the original context holds often stay, those it holds rarely are stretched by
      // the factor, those between are interpolated.
      const double periods = rope.original_context * plain / (2 * std::numbers::pi);
      const double share = std::clamp((periods - rope.low_frequency_factor) /
                                          (rope.high_frequency_factor - rope.low_frequency_factor),
                                      0.0, 1.0);
      frequency = (1 - share) * plain / rope.factor + share * plain;
    }
    frequencies[static_cast<size_t>(i)] = static_cast<float>(frequency);
  }
  return frequencies;
}

}  // namespace nibble

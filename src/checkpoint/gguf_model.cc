#include "src/checkpoint/gguf_model.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstring>
#include <numbers>
#include <set>

namespace nibble {
namespace {

constexpr int64_t kMaxExtent = int64_t{1} << 31;  // of any size in a model's configuration
constexpr int64_t kMaxLayers = 10'000;
constexpr int64_t kMaxTokenId = (int64_t{1} << 31) - 1;

// Keys of the architecture (after "llama.") whose meaning is known; what the configuration does not
// say is checked to have a value that changes nothing.
constexpr std::array kKnownKeys = {
    std::string_view("attention.head_count"),
    std::string_view("attention.head_count_kv"),
    std::string_view("attention.key_length"),
    std::string_view("attention.layer_norm_rms_epsilon"),
    std::string_view("attention.sliding_window"),
    std::string_view("attention.value_length"),
    std::string_view("block_count"),
    std::string_view("context_length"),
    std::string_view("embedding_length"),
    std::string_view("expert_count"),
    std::string_view("expert_used_count"),
    std::string_view("feed_forward_length"),
    std::string_view("rope.dimension_count"),
    std::string_view("rope.freq_base"),
    std::string_view("rope.scale_linear"),
    std::string_view("rope.scaling.factor"),
    std::string_view("rope.scaling.finetuned"),
    std::string_view("rope.scaling.original_context_length"),
    std::string_view("rope.scaling.type"),
    std::string_view("tensor_data_layout"),
    std::string_view("use_parallel_residual"),
    std::string_view("vocab_size"),
};

// The frequency factors of Llama 3.1's and 3.2's rotary embedding, which the conversion works out
// from the configuration. Published checkpoints use two sets of parameters.
struct Llama3Rope {
  double factor = 8;
  double low_freq_factor = 1;
  double high_freq_factor = 4;
  double original_context = 8192;

  // What frequency i of head_dim / 2 is divided by.
  double FactorAt(int64_t i, int64_t head_dim, double theta) const {
    const double frequency =
        std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(head_dim));
    const double wavelength = 2 * std::numbers::pi / frequency;
    if (wavelength < original_context / high_freq_factor) return 1;
    if (wavelength > original_context / low_freq_factor) return factor;
    const double smooth =
        (original_context / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
    return 1 / ((1 - smooth) / factor + smooth);
  }
};
constexpr std::array kLlama3Ropes = {Llama3Rope{.factor = 8}, Llama3Rope{.factor = 32}};
constexpr double kFactorTolerance = 1e-3;  // relative; the files' factors come from float32

struct NamePair {
  std::string_view gguf, hugging_face;
};
constexpr std::array kBlockModules = {
    NamePair{"attn_norm", "input_layernorm"},    NamePair{"attn_q", "self_attn.q_proj"},
    NamePair{"attn_k", "self_attn.k_proj"},      NamePair{"attn_v", "self_attn.v_proj"},
    NamePair{"attn_output", "self_attn.o_proj"}, NamePair{"ffn_norm", "post_attention_layernorm"},
    NamePair{"ffn_gate", "mlp.gate_proj"},       NamePair{"ffn_up", "mlp.up_proj"},
    NamePair{"ffn_down", "mlp.down_proj"},
};

// Text of the file in an error: in ASCII, bounded.
std::string Quoted(std::string_view text) {
  return Json(text.substr(0, 80)).dump(-1, ' ', true, Json::error_handler_t::replace);
}

class Interpreter {
 public:
  explicit Interpreter(const GgufFile& file) : file_(file) {}

  Result<GgufModel> Run() {
    NIBBLE_RETURN_IF_ERROR(ReadArchitecture());
    NIBBLE_RETURN_IF_ERROR(ReadSizes());
    NIBBLE_RETURN_IF_ERROR(MapTensors());
    NIBBLE_RETURN_IF_ERROR(MakeConfig());
    NIBBLE_RETURN_IF_ERROR(AddRope());
    NIBBLE_RETURN_IF_ERROR(AddTokenIds());
    return std::move(model_);
  }

 private:
  template <typename... Args>
  tl::unexpected<Error> Refuse(fmt::format_string<Args...> format, Args&&... args) const {
    return BadInput("{}: {}", file_.source(), fmt::format(format, std::forward<Args>(args)...));
  }
  std::string Key(std::string_view name) const { return fmt::format("{}.{}", arch_, name); }

  Result<int64_t> Size(std::string_view name, int64_t max) const {
    NIBBLE_ASSIGN_OR_RETURN(const std::optional<int64_t> size, file_.Integer(Key(name), 1, max));
    if (!size) return Refuse("metadata {} is missing", Key(name));
    return *size;
  }

  Status ReadArchitecture() {
    NIBBLE_ASSIGN_OR_RETURN(const std::optional<std::string> arch,
                            file_.String("general.architecture"));
    if (!arch) return Refuse("metadata general.architecture is missing");
    if (*arch != "llama" && *arch != "qwen2") {
      return Refuse("architecture {} is not supported; nibble reads \"llama\" and \"qwen2\"",
                    Quoted(*arch));
    }
    arch_ = *arch;
    for (const std::string& key : file_.Keys()) {
      if (!key.starts_with(arch_ + ".")) continue;
      const std::string_view name = std::string_view(key).substr(arch_.size() + 1);
      if (std::find(kKnownKeys.begin(), kKnownKeys.end(), name) == kKnownKeys.end()) {
        return Refuse("metadata {} is not understood", Quoted(key));
      }
    }
    NIBBLE_ASSIGN_OR_RETURN(const auto splits, file_.Integer("split.count", 0, kMaxTokenId));
    if (splits.value_or(0) > 1) {
      return Refuse("one of {} files of a split model; merge them first", *splits);
    }
    NIBBLE_ASSIGN_OR_RETURN(const auto experts, file_.Integer(Key("expert_count"), 0, kMaxExtent));
    if (experts.value_or(0) != 0) return Refuse("mixtures of experts are not supported");
    NIBBLE_ASSIGN_OR_RETURN(const auto parallel, file_.Boolean(Key("use_parallel_residual")));
    if (parallel.value_or(false)) return Refuse("parallel residuals are not supported");
    return {};
  }

  Status ReadSizes() {
    NIBBLE_ASSIGN_OR_RETURN(layers_, Size("block_count", kMaxLayers));
    NIBBLE_ASSIGN_OR_RETURN(hidden_, Size("embedding_length", kMaxExtent));
    NIBBLE_ASSIGN_OR_RETURN(heads_, Size("attention.head_count", hidden_));
    kv_heads_ = heads_;
    if (file_.Has(Key("attention.head_count_kv"))) {
      NIBBLE_ASSIGN_OR_RETURN(kv_heads_, Size("attention.head_count_kv", heads_));
    }
    head_dim_ = hidden_ / heads_;
    if (file_.Has(Key("attention.key_length"))) {
      NIBBLE_ASSIGN_OR_RETURN(head_dim_, Size("attention.key_length", kMaxExtent));
    } else if (hidden_ % heads_ != 0) {
      return Refuse("{} heads do not divide the embedding length of {}", heads_, hidden_);
    }
    if (head_dim_ % 2 != 0 || heads_ % kv_heads_ != 0) {
      return Refuse("{} heads, {} for keys, of {} elements each", heads_, kv_heads_, head_dim_);
    }
    for (const char* name : {"attention.value_length", "rope.dimension_count"}) {
      if (!file_.Has(Key(name))) continue;
      NIBBLE_ASSIGN_OR_RETURN(const int64_t length, Size(name, kMaxExtent));
      if (length != head_dim_) {
        return Refuse("metadata {} of {} differs from the head's {}, which is not supported",
                      Key(name), length, head_dim_);
      }
    }
    const GgufTensor* embedding = file_.FindTensor("token_embd.weight");
    if (embedding == nullptr) return Refuse("token_embd.weight is missing");
    if (embedding->shape.rank() != 2 || embedding->shape[1] != hidden_) {
      return Refuse("token_embd.weight: want [tokens, {}], got {}", hidden_,
                    embedding->shape.ToString());
    }
    vocabulary_ = embedding->shape[0];
    return {};
  }

  // "blk.12.attn_q.weight" → "model.layers.12.self_attn.q_proj.weight"; empty where unknown.
  std::string HuggingFaceName(std::string_view name, int64_t* interleaved_heads) const {
    if (name == "token_embd.weight") return "model.embed_tokens.weight";
    if (name == "output_norm.weight") return "model.norm.weight";
    if (name == "output.weight") return "lm_head.weight";
    if (!name.starts_with("blk.")) return {};
    name.remove_prefix(4);
    int64_t layer = -1;
    const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), layer);
    const auto digits = static_cast<size_t>(end - name.data());
    if (error != std::errc() || layer < 0 || layer >= layers_ || digits >= name.size() ||
        fmt::format("{}", layer) != name.substr(0, digits) || name[digits] != '.') {
      return {};
    }
    name.remove_prefix(digits + 1);
    const size_t dot = name.find('.');
    if (dot == std::string_view::npos) return {};
    const std::string_view module = name.substr(0, dot), kind = name.substr(dot + 1);
    const bool norm = module.ends_with("norm");
    if (kind != "weight" && (kind != "bias" || norm)) return {};
    const auto it = std::find_if(kBlockModules.begin(), kBlockModules.end(),
                                 [&](const NamePair& pair) { return pair.gguf == module; });
    if (it == kBlockModules.end()) return {};
    if (arch_ == "llama" && module == "attn_q") *interleaved_heads = heads_;
    if (arch_ == "llama" && module == "attn_k") *interleaved_heads = kv_heads_;
    return fmt::format("model.layers.{}.{}.{}", layer, it->hugging_face, kind);
  }

  Status MapTensors() {
    for (size_t i = 0; i < file_.tensors().size(); ++i) {
      const GgufTensor& tensor = file_.tensors()[i];
      if (tensor.name == "rope_freqs.weight") continue;  // goes into the configuration
      GgufMappedTensor mapped{.index = i};
      mapped.name = HuggingFaceName(tensor.name, &mapped.interleaved_heads);
      if (mapped.name.empty()) {
        return Refuse("tensor {} is not understood in a {} model of {} layers", Quoted(tensor.name),
                      arch_, layers_);
      }
      const size_t rank = tensor.shape.rank();
      if (rank > 2 || (rank == 1 && tensor.type->quantized())) {
        return Refuse("{}: {} of shape {} is not supported", tensor.name, tensor.type->name,
                      tensor.shape.ToString());
      }
      if (mapped.interleaved_heads > 0 && tensor.shape[0] != mapped.interleaved_heads * head_dim_) {
        return Refuse("{}: want {} heads of {} rows, got {}", tensor.name, mapped.interleaved_heads,
                      head_dim_, tensor.shape.ToString());
      }
      has_attention_bias_ |= mapped.name.ends_with("_proj.bias") &&
                             mapped.name.find(".self_attn.") != std::string::npos;
      has_mlp_bias_ |=
          mapped.name.ends_with("_proj.bias") && mapped.name.find(".mlp.") != std::string::npos;
      model_.tensors.push_back(std::move(mapped));
    }
    return {};
  }

  // The 16-bit type, or f32, that most elements are delivered in.
  std::string_view DominantType() const {
    double f32 = 0, bf16 = 0, f16 = 0;
    for (const GgufTensor& tensor : file_.tensors()) {
      const auto elements = static_cast<double>(*tensor.shape.Elements());
      (tensor.type->type == GgmlType::kF32    ? f32
       : tensor.type->type == GgmlType::kBF16 ? bf16
                                              : f16) += elements;
    }
    return f32 > std::max(f16, bf16) ? "float32" : bf16 > f16 ? "bfloat16" : "float16";
  }

  Status MakeConfig() {
    Json& config = model_.config;
    NIBBLE_ASSIGN_OR_RETURN(const int64_t context, Size("context_length", kMaxExtent));
    NIBBLE_ASSIGN_OR_RETURN(const int64_t intermediate, Size("feed_forward_length", kMaxExtent));
    NIBBLE_ASSIGN_OR_RETURN(const auto epsilon,
                            file_.Number(Key("attention.layer_norm_rms_epsilon")));
    if (!epsilon) return Refuse("metadata {} is missing", Key("attention.layer_norm_rms_epsilon"));
    NIBBLE_ASSIGN_OR_RETURN(const auto window,
                            file_.Integer(Key("attention.sliding_window"), 0, kMaxExtent));
    const bool qwen = arch_ == "qwen2";
    const bool mistral = window.value_or(0) > 0;
    if (mistral && (qwen || has_attention_bias_ || has_mlp_bias_)) {
      return Refuse("metadata {}: a sliding window is not supported in this architecture",
                    Key("attention.sliding_window"));
    }
    config["architectures"] = Json::array({qwen      ? "Qwen2ForCausalLM"
                                           : mistral ? "MistralForCausalLM"
                                                     : "LlamaForCausalLM"});
    config["model_type"] = qwen ? "qwen2" : mistral ? "mistral" : "llama";
    config["hidden_size"] = hidden_;
    config["intermediate_size"] = intermediate;
    config["num_hidden_layers"] = layers_;
    config["num_attention_heads"] = heads_;
    config["num_key_value_heads"] = kv_heads_;
    config["head_dim"] = head_dim_;
    config["hidden_act"] = "silu";
    config["max_position_embeddings"] = context;
    config["rms_norm_eps"] = *epsilon;
    config["vocab_size"] = vocabulary_;
    config["tie_word_embeddings"] = file_.FindTensor("output.weight") == nullptr;
    config["torch_dtype"] = DominantType();
    if (mistral) config["sliding_window"] = *window;
    if (qwen) config["use_sliding_window"] = false;
    if (!qwen && !mistral) {
      config["attention_bias"] = has_attention_bias_;
      config["mlp_bias"] = has_mlp_bias_;
    }
    return {};
  }

  Status AddRope() {
    NIBBLE_ASSIGN_OR_RETURN(const auto theta_given, file_.Number(Key("rope.freq_base")));
    const double theta = theta_given.value_or(10000.0);
    if (theta <= 0) return Refuse("metadata {}: want a positive number", Key("rope.freq_base"));
    model_.config["rope_theta"] = theta;
    NIBBLE_ASSIGN_OR_RETURN(const auto type, file_.String(Key("rope.scaling.type")));
    NIBBLE_ASSIGN_OR_RETURN(auto factor, file_.Number(Key("rope.scaling.factor")));
    NIBBLE_ASSIGN_OR_RETURN(const auto old_factor, file_.Number(Key("rope.scale_linear")));
    std::string kind = type.value_or("none");
    if (!type && old_factor) {
      kind = "linear";
      factor = old_factor;
    }
    Json scaling;
    if (kind == "linear") {
      if (!factor || *factor <= 0) {
        return Refuse("metadata {}: want a positive number", Key("rope.scaling.factor"));
      }
      if (*factor != 1) scaling = {{"rope_type", "linear"}, {"factor", *factor}};
    } else if (kind != "none") {
      return Refuse("RoPE scaling of type {} is not supported", Quoted(kind));
    }
    if (const GgufTensor* factors = file_.FindTensor("rope_freqs.weight")) {
      if (!scaling.is_null()) return Refuse("rope_freqs.weight together with linear scaling");
      NIBBLE_ASSIGN_OR_RETURN(scaling, RecognizeRope(*factors, theta));
    }
    model_.config["rope_scaling"] = scaling;
    return {};
  }

  // JSON null where every factor is 1.
  Result<Json> RecognizeRope(const GgufTensor& tensor, double theta) const {
    const Shape want{head_dim_ / 2};
    if (tensor.type->type != GgmlType::kF32 || tensor.shape != want) {
      return Refuse("rope_freqs.weight: want F32 {}, got {} {}", want.ToString(), tensor.type->name,
                    tensor.shape.ToString());
    }
    std::vector<float> factors(static_cast<size_t>(head_dim_ / 2));
    std::memcpy(factors.data(), file_.Bytes(tensor).data(), factors.size() * sizeof(float));
    const auto agrees = [&](const auto& expected_at) {
      for (size_t i = 0; i < factors.size(); ++i) {
        const double expected = expected_at(static_cast<int64_t>(i));
        if (!(std::abs(factors[i] - expected) <= kFactorTolerance * expected)) return false;
      }
      return true;
    };
    if (agrees([](int64_t) { return 1.0; })) return Json();
    for (const Llama3Rope& rope : kLlama3Ropes) {
      if (!agrees([&](int64_t i) { return rope.FactorAt(i, head_dim_, theta); })) continue;
      return Json{
          {"rope_type", "llama3"},
          {"factor", rope.factor},
          {"low_freq_factor", rope.low_freq_factor},
          {"high_freq_factor", rope.high_freq_factor},
          {"original_max_position_embeddings", static_cast<int64_t>(rope.original_context)}};
    }
    return Refuse(
        "rope_freqs.weight: these frequency factors are not those of Llama 3.1 or 3.2 (factor 8 or "
        "32, original context 8192)");
  }

  Status AddTokenIds() {
    std::set<int64_t> ends;
    std::vector<int64_t> end_list;
    NIBBLE_ASSIGN_OR_RETURN(const auto bos,
                            file_.Integer("tokenizer.ggml.bos_token_id", -1, kMaxTokenId));
    for (const char* key : {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                            "tokenizer.ggml.eom_token_id"}) {
      NIBBLE_ASSIGN_OR_RETURN(const auto id, file_.Integer(key, -1, kMaxTokenId));
      if (id && *id >= 0 && ends.insert(*id).second) end_list.push_back(*id);
    }
    model_.generation_config = Json::object();
    if (bos && *bos >= 0) {
      model_.config["bos_token_id"] = *bos;
      model_.generation_config["bos_token_id"] = *bos;
    }
    if (!end_list.empty()) {
      model_.config["eos_token_id"] = end_list[0];
      model_.generation_config["eos_token_id"] =
          end_list.size() == 1 ? Json(end_list[0]) : Json(end_list);
    }
    NIBBLE_ASSIGN_OR_RETURN(const auto pad,
                            file_.Integer("tokenizer.ggml.padding_token_id", -1, kMaxTokenId));
    if (pad && *pad >= 0) model_.config["pad_token_id"] = *pad;
    return {};
  }

  const GgufFile& file_;
  GgufModel model_;
  std::string arch_;
  int64_t layers_ = 0, hidden_ = 0, heads_ = 0, kv_heads_ = 0, head_dim_ = 0, vocabulary_ = 0;
  bool has_attention_bias_ = false, has_mlp_bias_ = false;
};

}  // namespace

Result<GgufModel> InterpretGguf(const GgufFile& file) { return Interpreter(file).Run(); }

Result<GgufVocabulary> ReadGgufVocabulary(const GgufFile& file) {
  GgufVocabulary vocabulary;
  const auto text = [&](const char* key, std::string& out) -> Status {
    NIBBLE_ASSIGN_OR_RETURN(auto value, file.String(key));
    out = std::move(value).value_or(std::string());
    return {};
  };
  const auto id = [&](const char* key, std::optional<int64_t>& out) -> Status {
    NIBBLE_ASSIGN_OR_RETURN(out, file.Integer(key, -1, kMaxTokenId));
    if (out == -1) out.reset();
    return {};
  };
  const auto flag = [&](const char* key, std::optional<bool>& out) -> Status {
    NIBBLE_ASSIGN_OR_RETURN(out, file.Boolean(key));
    return {};
  };
  NIBBLE_RETURN_IF_ERROR(text("tokenizer.ggml.model", vocabulary.model));
  NIBBLE_RETURN_IF_ERROR(text("tokenizer.ggml.pre", vocabulary.pre));
  NIBBLE_RETURN_IF_ERROR(text("tokenizer.chat_template", vocabulary.chat_template));
  NIBBLE_ASSIGN_OR_RETURN(vocabulary.tokens, file.Strings("tokenizer.ggml.tokens"));
  NIBBLE_ASSIGN_OR_RETURN(vocabulary.merges, file.Strings("tokenizer.ggml.merges"));
  NIBBLE_ASSIGN_OR_RETURN(vocabulary.scores, file.Floats("tokenizer.ggml.scores"));
  NIBBLE_ASSIGN_OR_RETURN(vocabulary.types, file.Int32s("tokenizer.ggml.token_type"));
  NIBBLE_RETURN_IF_ERROR(id("tokenizer.ggml.bos_token_id", vocabulary.bos_token_id));
  NIBBLE_RETURN_IF_ERROR(id("tokenizer.ggml.eos_token_id", vocabulary.eos_token_id));
  NIBBLE_RETURN_IF_ERROR(id("tokenizer.ggml.unknown_token_id", vocabulary.unknown_token_id));
  NIBBLE_RETURN_IF_ERROR(id("tokenizer.ggml.padding_token_id", vocabulary.padding_token_id));
  NIBBLE_RETURN_IF_ERROR(flag("tokenizer.ggml.add_bos_token", vocabulary.add_bos_token));
  NIBBLE_RETURN_IF_ERROR(flag("tokenizer.ggml.add_eos_token", vocabulary.add_eos_token));
  NIBBLE_RETURN_IF_ERROR(flag("tokenizer.ggml.add_space_prefix", vocabulary.add_space_prefix));
  return vocabulary;
}

}  // namespace nibble

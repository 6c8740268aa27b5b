// The published configurations of the presets' models; the type of the weights is float16 for all.
#include <array>
#include <optional>

#include "src/checkpoint/random_checkpoint.h"

namespace nibble {
namespace {

enum class Family { kLlama, kMistral, kQwen2 };
enum class Embeddings { kUntied, kTied };

struct Preset {
  std::string_view name;
  Family family = Family::kLlama;
  int64_t hidden = 0, intermediate = 0, layers = 0, heads = 0, kv_heads = 0;
  int64_t vocabulary = 32000;
  int64_t context = 4096;
  double theta = 10000;
  double epsilon = 1e-5;
  Embeddings embeddings = Embeddings::kUntied;
  int64_t bos = 1, eos = 2;
  double llama3_factor = 0;  // of the rotary embedding; 0 for none
};

constexpr std::array kPresets = {
    Preset{.name = "tiny",  // for tests
           .hidden = 64,
           .intermediate = 96,
           .layers = 2,
           .heads = 4,
           .kv_heads = 2,
           .vocabulary = 64,
           .context = 512},
    Preset{.name = "small",  // for tests of quantizing
           .hidden = 128,
           .intermediate = 256,
           .layers = 5,
           .heads = 2,
           .kv_heads = 2,
           .vocabulary = 256,
           .context = 512},
    Preset{.name = "llama-2-7b",
           .hidden = 4096,
           .intermediate = 11008,
           .layers = 32,
           .heads = 32,
           .kv_heads = 32},
    Preset{.name = "llama-2-13b",
           .hidden = 5120,
           .intermediate = 13824,
           .layers = 40,
           .heads = 40,
           .kv_heads = 40},
    Preset{.name = "llama-3-8b",
           .hidden = 4096,
           .intermediate = 14336,
           .layers = 32,
           .heads = 32,
           .kv_heads = 8,
           .vocabulary = 128256,
           .context = 8192,
           .theta = 500000,
           .bos = 128000,
           .eos = 128001},
    Preset{.name = "llama-3.2-1b",
           .hidden = 2048,
           .intermediate = 8192,
           .layers = 16,
           .heads = 32,
           .kv_heads = 8,
           .vocabulary = 128256,
           .context = 131072,
           .theta = 500000,
           .embeddings = Embeddings::kTied,
           .bos = 128000,
           .eos = 128001,
           .llama3_factor = 32},
    Preset{.name = "mistral-7b",
           .family = Family::kMistral,
           .hidden = 4096,
           .intermediate = 14336,
           .layers = 32,
           .heads = 32,
           .kv_heads = 8,
           .context = 32768},
    Preset{.name = "qwen2.5-0.5b",
           .family = Family::kQwen2,
           .hidden = 896,
           .intermediate = 4864,
           .layers = 24,
           .heads = 14,
           .kv_heads = 2,
           .vocabulary = 151936,
           .context = 32768,
           .theta = 1e6,
           .epsilon = 1e-6,
           .embeddings = Embeddings::kTied,
           .bos = 151643,
           .eos = 151643},
    Preset{.name = "qwen2.5-7b",
           .family = Family::kQwen2,
           .hidden = 3584,
           .intermediate = 18944,
           .layers = 28,
           .heads = 28,
           .kv_heads = 4,
           .vocabulary = 152064,
           .context = 131072,
           .theta = 1e6,
           .epsilon = 1e-6,
           .bos = 151643,
           .eos = 151643},
    Preset{.name = "tinyllama-1.1b",
           .hidden = 2048,
           .intermediate = 5632,
           .layers = 22,
           .heads = 32,
           .kv_heads = 4,
           .context = 2048},
    Preset{.name = "smollm2-135m",
           .hidden = 576,
           .intermediate = 1536,
           .layers = 30,
           .heads = 9,
           .kv_heads = 3,
           .vocabulary = 49152,
           .context = 8192,
           .theta = 100000,
           .embeddings = Embeddings::kTied,
           .bos = 1,
           .eos = 2},
    Preset{.name = "smollm2-360m",
           .hidden = 960,
           .intermediate = 2560,
           .layers = 32,
           .heads = 15,
           .kv_heads = 5,
           .vocabulary = 49152,
           .context = 8192,
           .theta = 100000,
           .embeddings = Embeddings::kTied,
           .bos = 1,
           .eos = 2},
    Preset{.name = "smollm2-1.7b",
           .hidden = 2048,
           .intermediate = 8192,
           .layers = 24,
           .heads = 32,
           .kv_heads = 32,
           .vocabulary = 49152,
           .context = 8192,
           .theta = 130000,
           .embeddings = Embeddings::kTied,
           .bos = 1,
           .eos = 2},
};

Json ConfigOf(const Preset& preset) {
  Json config;
  switch (preset.family) {
    case Family::kLlama:
      config["architectures"] = Json::array({"LlamaForCausalLM"});
      config["model_type"] = "llama";
      config["attention_bias"] = false;
      config["mlp_bias"] = false;
      break;
    case Family::kMistral:
      config["architectures"] = Json::array({"MistralForCausalLM"});
      config["model_type"] = "mistral";
      config["sliding_window"] = 4096;
      break;
    case Family::kQwen2:
      config["architectures"] = Json::array({"Qwen2ForCausalLM"});
      config["model_type"] = "qwen2";
      config["use_sliding_window"] = false;
      config["sliding_window"] = preset.context;
      config["max_window_layers"] = preset.layers;
      break;
  }
  config["hidden_size"] = preset.hidden;
  config["intermediate_size"] = preset.intermediate;
  config["num_hidden_layers"] = preset.layers;
  config["num_attention_heads"] = preset.heads;
  config["num_key_value_heads"] = preset.kv_heads;
  config["hidden_act"] = "silu";
  config["max_position_embeddings"] = preset.context;
  config["rms_norm_eps"] = preset.epsilon;
  config["rope_theta"] = preset.theta;
  if (preset.llama3_factor > 0) {
    config["rope_scaling"] = {{"rope_type", "llama3"},
                              {"factor", preset.llama3_factor},
                              {"low_freq_factor", 1.0},
                              {"high_freq_factor", 4.0},
                              {"original_max_position_embeddings", 8192}};
  }
  config["vocab_size"] = preset.vocabulary;
  config["tie_word_embeddings"] = preset.embeddings == Embeddings::kTied;
  config["bos_token_id"] = preset.bos;
  config["eos_token_id"] = preset.eos;
  config["torch_dtype"] = "float16";
  config["nibble_synthetic"] = true;
  return config;
}

}  // namespace

std::vector<std::string_view> RandomPresets() {
  std::vector<std::string_view> names;
  for (const Preset& preset : kPresets) names.push_back(preset.name);
  return names;
}

Json RandomPresetConfig(std::string_view name) {
  for (const Preset& preset : kPresets) {
    if (preset.name == name) return ConfigOf(preset);
  }
  return Json();
}

}  // namespace nibble

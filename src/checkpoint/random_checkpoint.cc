#include "src/checkpoint/random_checkpoint.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstring>

#include "src/base/checked.h"
#include "src/base/fingerprint.h"
#include "src/base/random.h"
#include "src/base/thread_pool.h"
#include "src/checkpoint/tensor_table.h"
#include "src/format/awq_layout.h"
#include "src/format/gptq_layout.h"

namespace nibble {
namespace {

constexpr double kSpread = 0.02;  // standard deviation of a usual initialization
// One channel in so many is an outlier of the activations behind a norm, as in trained models.
constexpr uint64_t kChannelsOfOutlier = 128;
constexpr double kOutlierGain = 8;
// Uniform codes 0 … 15 spread by sqrt((16² − 1) / 12) steps.
constexpr double kCodeSpread = 4.6097722286464435;

// How a tensor's content is made.
enum class Content {
  kGains,        // float16, of a norm
  kWeights,      // float16
  kCodes,        // u32: any word is eight codes
  kMiddleZeros,  // u32: a zero of 8 everywhere, as the layout stores it
  kNearZeros,    // u32: zeros of 7 and 8
  kScales,       // float16
  kGroupIndex,   // i32
};

struct Recipe {
  Content content = Content::kWeights;
  double spread = kSpread;
  uint32_t word = 0;  // kMiddleZeros
  int64_t group = 0;  // kGroupIndex
};

constexpr size_t kTableSize = 4096;  // fits the first-level cache as float16

// Quantiles of Student's t distribution with four degrees of freedom, of standard deviation 1: the
// tails of trained weights, the largest of these 8.8 deviations out, are heavier than a normal
// distribution's.
const std::array<float, kTableSize>& WeightTable() {
  static const auto table = [] {
    std::array<double, kTableSize> quantiles;
    double squares = 0;
    for (size_t i = 0; i < kTableSize; ++i) {
      const double p = (static_cast<double>(i) + 0.5) / kTableSize;
      const double alpha = 4 * p * (1 - p);
      const double q = std::cos(std::acos(std::sqrt(alpha)) / 3) / std::sqrt(alpha);
      quantiles[i] = std::copysign(2 * std::sqrt(std::max(0.0, q - 1)), p - 0.5);
      squares += quantiles[i] * quantiles[i];
    }
    std::array<float, kTableSize> values;
    for (size_t i = 0; i < kTableSize; ++i) {
      values[i] = static_cast<float>(quantiles[i] / std::sqrt(squares / kTableSize));
    }
    return values;
  }();
  return table;
}

constexpr int kWeightsOfNumber = 5;  // of 12 bits each

// The values that the stream's numbers from `random` on stand for.
void FillWeights(Random random, double spread, std::span<uint16_t> out) {
  std::array<uint16_t, kTableSize> table;
  for (size_t i = 0; i < kTableSize; ++i) {
    table[i] = F16FromFloat(static_cast<float>(spread) * WeightTable()[i]);
  }
  size_t i = 0;
  while (i < out.size()) {
    uint64_t bits = random.Next();
    for (int j = 0; j < kWeightsOfNumber && i < out.size(); ++j, bits >>= 12) {
      out[i++] = table[bits % kTableSize];
    }
  }
}

void Fill(const Recipe& recipe, Random random, std::span<std::byte> bytes) {
  const std::span<uint16_t> halves(reinterpret_cast<uint16_t*>(bytes.data()), bytes.size() / 2);
  const std::span<uint32_t> words(reinterpret_cast<uint32_t*>(bytes.data()), bytes.size() / 4);
  switch (recipe.content) {
    case Content::kGains:
      for (uint16_t& half : halves) {
        const double usual = 0.75 + 0.5 * random.Uniform();
        half = F16FromFloat(static_cast<float>(
            random.Below(kChannelsOfOutlier) == 0 ? kOutlierGain * usual : usual));
      }
      break;
    case Content::kWeights:
      FillWeights(random, recipe.spread, halves);
      break;
    case Content::kCodes:
      for (uint32_t& word : words) word = static_cast<uint32_t>(random.Next());
      break;
    case Content::kMiddleZeros:
      std::fill(words.begin(), words.end(), recipe.word);
      break;
    case Content::kNearZeros:
      for (uint32_t& word : words) {
        word = 0x77777777u + (static_cast<uint32_t>(random.Next()) & 0x11111111u);
      }
      break;
    case Content::kScales: {
      const double scale = recipe.spread / kCodeSpread;
      for (uint16_t& half : halves) {
        half = F16FromFloat(static_cast<float>(scale * (0.8 + 0.4 * random.Uniform())));
      }
      break;
    }
    case Content::kGroupIndex:
      for (size_t k = 0; k < words.size(); ++k) {
        words[k] = static_cast<uint32_t>(static_cast<int64_t>(k) / recipe.group);
      }
      break;
  }
}

// How a content takes random numbers, for those that do.
struct Consumption {
  size_t element_bytes, elements;  // elements of one number
};
std::optional<Consumption> ConsumptionOf(Content content) {
  switch (content) {
    case Content::kWeights:
      return Consumption{2, kWeightsOfNumber};
    case Content::kScales:
      return Consumption{2, 1};
    case Content::kCodes:
    case Content::kNearZeros:
      return Consumption{4, 1};
    default:
      return std::nullopt;
  }
}

// Fill by several threads where that pays. Each part enters the stream of random numbers where it
// begins, so that the bytes are the same.
void FillTogether(const Recipe& recipe, uint64_t seed, std::span<std::byte> bytes) {
  constexpr size_t kPartBytes = size_t{5} << 20;  // whole random numbers of every content
  const std::optional<Consumption> takes = ConsumptionOf(recipe.content);
  if (!takes || bytes.size() <= kPartBytes) return Fill(recipe, Random(seed), bytes);
  const auto parts = static_cast<int64_t>(CeilDiv(bytes.size(), kPartBytes));
  RunTogether(parts, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t part = begin; part < end; ++part) {
      const size_t at = static_cast<size_t>(part) * kPartBytes;
      const size_t numbers = at / takes->element_bytes / takes->elements;
      Fill(recipe, Random(seed, numbers),
           bytes.subspan(at, std::min(kPartBytes, bytes.size() - at)));
    }
  });
}

// "gptq-g64-sym"; group 128 and the method's usual grid where not said.
Result<QuantizationConfig> ParseMethod(std::string_view method) {
  QuantizationConfig config;
  const auto wrong = [&] {
    return WrongUsage(
        "\"{}\" is not a method: want rtn, gptq, awq or awq+gptq, then -gN, then -asym, -sym or "
        "-sym-full, for example gptq-g128-sym",
        method);
  };
  std::string_view rest = method;
  const std::string_view name = rest.substr(0, rest.find('-'));
  if (name != "rtn" && name != "gptq" && name != "awq" && name != "awq+gptq") return wrong();
  config.spec.grid = name == "gptq" ? Grid::kSymmetric : Grid::kAsymmetric;
  rest.remove_prefix(name.size());
  if (rest.starts_with("-g")) {
    rest.remove_prefix(2);
    const auto [end, error] =
        std::from_chars(rest.data(), rest.data() + rest.size(), config.spec.group_size);
    if (error != std::errc() || config.spec.group_size <= 0) return wrong();
    rest.remove_prefix(static_cast<size_t>(end - rest.data()));
  }
  if (!rest.empty()) {
    const std::optional<Grid> grid =
        rest.front() == '-' ? GridFromName(rest.substr(1)) : std::nullopt;
    if (!grid) return wrong();
    config.spec.grid = *grid;
  }
  config.layout =
      config.spec.grid == Grid::kAsymmetric ? QuantLayout::kAwqGemm : QuantLayout::kGptqV1;
  return config;
}

class RandomCheckpoint final : public Checkpoint {
 public:
  explicit RandomCheckpoint(std::string path) : path_(std::move(path)) {}

  Status Make(std::string_view preset, std::string_view method) {
    config_ = RandomPresetConfig(preset);
    if (config_.is_null()) {
      return WrongUsage("{}: there is no preset \"{}\"; presets: {}", path_, preset,
                        fmt::join(RandomPresets(), ", "));
    }
    if (!method.empty() && method != "fp16") {
      NIBBLE_ASSIGN_OR_RETURN(quantization_, ParseMethod(method));
      config_["quantization_config"] = quantization_->ToJson();
    }
    label_ = quantization_ ? std::string(method) : "fp16";
    return AddTensors();
  }

  const Json& config() const override { return config_; }
  const Json& generation_config() const override { return generation_config_; }
  const std::vector<TensorInfo>& tensors() const override { return table_.tensors(); }
  const TensorInfo* Find(std::string_view name) const override { return table_.Find(name); }

  Result<TensorView> Read(std::string_view name) const override {
    const std::optional<size_t> i = table_.Index(name);
    if (!i) return BadInput("{}: there is no tensor {}", path_, name);
    const TensorInfo& info = table_.tensors()[*i];
    NIBBLE_ASSIGN_OR_RETURN(const auto owned, AllocateBytes(info.stored_bytes));
    FillTogether(recipes_[*i], Fingerprint().Add(info.name).value(),
                 {owned.get(), info.stored_bytes});
    return TensorView{.dtype = *info.dtype,
                      .shape = info.shape,
                      .bytes = {owned.get(), info.stored_bytes},
                      .owner = owned};
  }
  void Release(std::string_view) const override {}

  std::string label() const override { return label_; }
  const std::string& path() const override { return path_; }
  bool synthetic() const override { return true; }

  Result<std::unique_ptr<Tokenizer>> LoadTokenizer() const override {
    return BadInput("{}: a synthetic model has no tokenizer; it takes token ids only", path_);
  }
  Result<std::vector<NamedChatTemplate>> ChatTemplates() const override {
    return std::vector<NamedChatTemplate>();
  }
  Result<std::vector<File>> TokenizerFiles() const override { return std::vector<File>(); }

 private:
  void Add(std::string name, DType dtype, Shape shape, const Recipe& recipe) {
    const auto bytes = static_cast<uint64_t>(*shape.Elements()) * BytesOf(dtype);
    table_.Add({.name = std::move(name),
                .dtype = dtype,
                .shape = std::move(shape),
                .stored_type = dtype == DType::kF16 ? "F16" : "I32",
                .stored_bytes = bytes});
    recipes_.push_back(recipe);
  }
  void AddNorm(const std::string& name, int64_t size) {
    Add(name, DType::kF16, Shape{size}, {.content = Content::kGains});
  }

  Status AddLinear(const std::string& name, int64_t out, int64_t in, double spread) {
    if (!quantization_) {
      Add(name + ".weight", DType::kF16, Shape{out, in}, {.spread = spread});
      return {};
    }
    const QuantSpec& spec = quantization_->spec;
    const bool awq = quantization_->layout == QuantLayout::kAwqGemm;
    if (!(awq ? FitsAwq(spec, out, in) : FitsGptq(spec, out, in))) {
      return WrongUsage(
          "{}: {} of {} cannot be quantized in groups of {}; want a group size that "
          "divides {}",
          path_, name, Shape({out, in}).ToString(), spec.group_size, in);
    }
    const int64_t groups = in / spec.GroupLength(in);
    Add(name + ".qweight", DType::kI32, awq ? Shape{in, out / 8} : Shape{in / 8, out},
        {.content = Content::kCodes});
    Add(name + ".qzeros", DType::kI32, Shape{groups, out / 8},
        {.content = awq ? Content::kNearZeros : Content::kMiddleZeros, .word = 0x77777777u});
    Add(name + ".scales", DType::kF16, Shape{groups, out},
        {.content = Content::kScales, .spread = spread});
    if (!awq) {
      Add(name + ".g_idx", DType::kI32, Shape{in},
          {.content = Content::kGroupIndex, .group = spec.GroupLength(in)});
    }
    return {};
  }

  Status AddTensors() {
    const auto size = [&](const char* key) { return config_[key].get<int64_t>(); };
    const int64_t hidden = size("hidden_size"), intermediate = size("intermediate_size");
    const int64_t layers = size("num_hidden_layers");
    const int64_t kv = hidden / size("num_attention_heads") * size("num_key_value_heads");
    const bool biases = config_["model_type"] == "qwen2";
    // What adds to the residual stream is smaller, so that its sum over the layers keeps its size.
    const double residual_spread = kSpread / std::sqrt(2.0 * static_cast<double>(layers));
    Add("model.embed_tokens.weight", DType::kF16, Shape{size("vocab_size"), hidden}, {});
    for (int64_t i = 0; i < layers; ++i) {
      const std::string layer = fmt::format("model.layers.{}.", i);
      AddNorm(layer + "input_layernorm.weight", hidden);
      struct Linear {
        const char* name;
        int64_t out, in;
        double spread;
        bool bias;
      };
      for (const Linear& linear : {
               Linear{"self_attn.q_proj", hidden, hidden, kSpread, biases},
               Linear{"self_attn.k_proj", kv, hidden, kSpread, biases},
               Linear{"self_attn.v_proj", kv, hidden, kSpread, biases},
               Linear{"self_attn.o_proj", hidden, hidden, residual_spread, false},
               Linear{"mlp.gate_proj", intermediate, hidden, kSpread, false},
               Linear{"mlp.up_proj", intermediate, hidden, kSpread, false},
               Linear{"mlp.down_proj", hidden, intermediate, residual_spread, false},
           }) {
        NIBBLE_RETURN_IF_ERROR(
            AddLinear(layer + linear.name, linear.out, linear.in, linear.spread));
        if (linear.bias) Add(layer + linear.name + ".bias", DType::kF16, Shape{linear.out}, {});
      }
      AddNorm(layer + "post_attention_layernorm.weight", hidden);
    }
    AddNorm("model.norm.weight", hidden);
    if (!config_["tie_word_embeddings"].get<bool>()) {
      Add("lm_head.weight", DType::kF16, Shape{size("vocab_size"), hidden}, {});
    }
    return {};
  }

  std::string path_;
  Json config_, generation_config_ = Json::object();
  std::optional<QuantizationConfig> quantization_;
  TensorTable table_;
  std::vector<Recipe> recipes_;  // of table_.tensors()[i]
  std::string label_;
};

}  // namespace

Result<std::unique_ptr<Checkpoint>> OpenRandomCheckpoint(const std::string& model) {
  constexpr std::string_view kPrefix = "random:";
  const std::string_view rest = std::string_view(model).substr(kPrefix.size());
  const size_t colon = rest.find(':');
  auto checkpoint = std::make_unique<RandomCheckpoint>(model);
  NIBBLE_RETURN_IF_ERROR(checkpoint->Make(rest.substr(0, colon), colon == std::string_view::npos
                                                                     ? std::string_view()
                                                                     : rest.substr(colon + 1)));
  return checkpoint;
}

}  // namespace nibble

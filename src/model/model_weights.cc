#include "src/model/model_weights.h"

#include <algorithm>
#include <array>
#include <set>

#include "src/base/checked.h"
#include "src/base/units.h"
#include "src/checkpoint/quantized_linear.h"

namespace nibble {
namespace {

constexpr std::string_view kEmbedding = "model.embed_tokens";
constexpr std::string_view kFinalNorm = "model.norm.weight";
constexpr std::string_view kLmHead = "lm_head";

std::string LayerPrefix(int64_t layer) { return fmt::format("model.layers.{}.", layer); }
// How the weight of this name is quantized, if it is. An embedding never is: only linear layers
// are.
std::optional<QuantizationConfig> QuantizationOf(const ModelDescription& model,
                                                 std::string_view name) {
  const bool quantized =
      model.quantization && name != kEmbedding && model.quantization->Covers(name);
  return quantized ? model.quantization : std::nullopt;
}

// Checks the checkpoint's tensors against the model, one at a time.
class TensorAudit {
 public:
  TensorAudit(const Checkpoint& checkpoint, const ModelDescription& model)
      : checkpoint_(checkpoint), model_(model) {}

  Status Vector(const std::string& name, int64_t length) {
    return Tensor(name, Shape{length}, /*floating=*/true);
  }

  Status Linear(const LinearName& linear) {
    if (QuantizationOf(model_, linear.name)) {
      // ReadWeight checks shapes and contents against the quantization when it reads them.
      for (const std::string_view part : QuantizedSuffixes()) {
        used_.insert(linear.name + std::string(part));
      }
    } else {
      NIBBLE_RETURN_IF_ERROR(Tensor(linear.name + ".weight",
                                    Shape{linear.out_features, linear.in_features},
                                    /*floating=*/true));
    }
    const std::string bias = linear.name + ".bias";
    if (linear.bias) return Vector(bias, linear.out_features);
    return checkpoint_.Find(bias) == nullptr ? Status() : ZeroBias(bias, linear.out_features);
  }

  Status NothingLeft() const {
    for (const TensorInfo& tensor : checkpoint_.tensors()) {
      const std::string_view name = tensor.name;
      // Tables of the rotary embedding follow from the configuration; a tied output layer is a copy
      // that transformers ignores too.
      const bool redundant = name.ends_with("rotary_emb.inv_freq") ||
                             (name == "lm_head.weight" && model_.config.tied_embeddings);
      if (!used_.contains(tensor.name) && !redundant) {
        return BadInput("{}: tensor {} {} has no place in {} as its config describes it",
                        checkpoint_.path(), tensor.name, tensor.shape.ToString(),
                        model_.config.architecture);
      }
    }
    return {};
  }

 private:
  Status Tensor(const std::string& name, const Shape& shape, bool floating) {
    const TensorInfo* info = checkpoint_.Find(name);
    if (info == nullptr) return BadInput("{}: tensor {} is missing", checkpoint_.path(), name);
    if (info->shape != shape) {
      return BadInput("{}: {}: want {}, got {}", checkpoint_.path(), name, shape.ToString(),
                      info->shape.ToString());
    }
    if (floating && (!info->dtype || !IsFloat(*info->dtype))) {
      return BadInput("{}: {}: want F32, F16 or BF16, got {}", checkpoint_.path(), name,
                      info->stored_type);
    }
    used_.insert(name);
    return {};
  }

  // GPTQ tools write biases of zeros for layers that have none.
  Status ZeroBias(const std::string& name, int64_t length) {
    NIBBLE_RETURN_IF_ERROR(Vector(name, length));
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<float> values, ReadVector(checkpoint_, name, length));
    if (std::any_of(values.begin(), values.end(), [](float v) { return v != 0; })) {
      return BadInput("{}: {} is not zero, but the config gives {} no bias there",
                      checkpoint_.path(), name, model_.config.architecture);
    }
    return {};
  }

  const Checkpoint& checkpoint_;
  const ModelDescription& model_;
  std::set<std::string> used_;
};

LinearName EmbeddingLinear(const ModelConfig& config) {
  return {std::string(kEmbedding), config.vocabulary, config.hidden, false};
}
LinearName LmHeadLinear(const ModelConfig& config) {
  return {std::string(kLmHead), config.vocabulary, config.hidden, false};
}

Result<Matrix> LoadNorm(const Checkpoint& checkpoint, const std::string& name, int64_t length,
                        Backend& backend) {
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<float> gain, ReadVector(checkpoint, name, length));
  return backend.Upload(gain);
}

// Linears that are packed together share their input, and so the order in which it is read.
Status WantSameOrder(const Checkpoint& checkpoint, const LinearName& first_name,
                     const Weight& first, const LinearName& name, const Weight& weight) {
  const auto* a = std::get_if<QuantizedWeight>(&first);
  const auto* b = std::get_if<QuantizedWeight>(&weight);
  if (a == nullptr || b == nullptr || a->column_of_input == b->column_of_input) return {};
  const auto differ = std::mismatch(a->column_of_input.begin(), a->column_of_input.end(),
                                    b->column_of_input.begin(), b->column_of_input.end());
  return BadInput(
      "{}: the group indices (g_idx) of {} and {} differ, first at input {}; nibble multiplies "
      "these layers together and wants one order for both",
      checkpoint.path(), first_name.name, name.name, differ.first - a->column_of_input.begin());
}

// Reads the linears that form one prepared linear, packs them, and lets their pages go.
Result<std::unique_ptr<PreparedLinear>> LoadLinear(const Checkpoint& checkpoint,
                                                   const ModelDescription& model,
                                                   std::initializer_list<const LinearName*> parts,
                                                   Interleave interleave, Backend& backend) {
  std::vector<Weight> weights;
  std::vector<std::vector<float>> biases;
  for (const LinearName* part : parts) {
    NIBBLE_ASSIGN_OR_RETURN(
        Weight weight, ReadWeight(checkpoint, part->name, part->out_features, part->in_features,
                                  QuantizationOf(model, part->name)));
    biases.emplace_back();
    if (part->bias) {
      NIBBLE_ASSIGN_OR_RETURN(biases.back(),
                              ReadVector(checkpoint, part->name + ".bias", part->out_features));
    }
    if (!weights.empty()) {
      const auto* first = std::get_if<DenseWeight>(&weights.front());
      const auto* dense = std::get_if<DenseWeight>(&weight);
      if ((first == nullptr) != (dense == nullptr) || (dense && dense->dtype != first->dtype)) {
        return BadInput("{}: {} and {} are stored in different types, which nibble does not mix",
                        checkpoint.path(), (*parts.begin())->name, part->name);
      }
      NIBBLE_RETURN_IF_ERROR(
          WantSameOrder(checkpoint, **parts.begin(), weights.front(), *part, weight));
    }
    weights.push_back(std::move(weight));
  }
  std::vector<LinearSource> sources;
  for (size_t i = 0; i < weights.size(); ++i) sources.push_back({&weights[i], biases[i]});
  auto prepared = backend.Prepare(sources, interleave);
  for (const LinearName* part : parts) {
    checkpoint.Release(part->name + ".weight");
  }
  return prepared;
}

uint64_t PreparedBytesOf(const Checkpoint& checkpoint, const ModelDescription& model,
                         std::initializer_list<const LinearName*> parts, const Backend& backend) {
  int64_t out = 0;
  bool bias = false;
  for (const LinearName* part : parts) {
    out += part->out_features;
    bias |= part->bias;
  }
  const LinearName& first = **parts.begin();
  const auto quantization = QuantizationOf(model, first.name);
  const TensorInfo* info = checkpoint.Find(first.name + ".weight");
  return backend.PreparedBytes(out, first.in_features,
                               info ? info->dtype.value_or(DType::kF16) : DType::kF16,
                               quantization ? &quantization->spec : nullptr, bias);
}

// What is in memory of the linears that form a prepared one while it is packed: their pages of the
// file, and what had to be made of them where the file holds them otherwise.
uint64_t SourceBytesOf(const Checkpoint& checkpoint, const ModelDescription& model,
                       std::initializer_list<const LinearName*> parts) {
  uint64_t bytes = 0;
  for (const LinearName* part : parts) {
    const auto elements = static_cast<uint64_t>(part->out_features * part->in_features);
    if (QuantizationOf(model, part->name)) {
      bytes += 2 * elements / 2;  // 4-bit codes as they lie in the file, and unpacked
    } else if (const TensorInfo* info = checkpoint.Find(part->name + ".weight")) {
      const uint64_t read = elements * BytesOf(info->dtype.value_or(DType::kF16));
      bytes += info->stored_bytes + (read == info->stored_bytes ? 0 : read);
    }
  }
  return bytes;
}

}  // namespace

LayerLinears LinearsOfLayer(const ModelConfig& c, int64_t layer) {
  const std::string attention = LayerPrefix(layer) + "self_attn.";
  const std::string mlp = LayerPrefix(layer) + "mlp.";
  return {
      .q = {attention + "q_proj", c.q_features(), c.hidden, c.qkv_bias},
      .k = {attention + "k_proj", c.kv_features(), c.hidden, c.qkv_bias},
      .v = {attention + "v_proj", c.kv_features(), c.hidden, c.qkv_bias},
      .output = {attention + "o_proj", c.hidden, c.q_features(), c.output_bias},
      .gate = {mlp + "gate_proj", c.intermediate, c.hidden, c.mlp_bias},
      .up = {mlp + "up_proj", c.intermediate, c.hidden, c.mlp_bias},
      .down = {mlp + "down_proj", c.hidden, c.intermediate, c.mlp_bias},
  };
}

Result<ModelDescription> DescribeModel(const Checkpoint& checkpoint) {
  ModelDescription model;
  NIBBLE_ASSIGN_OR_RETURN(
      model.config,
      ParseModelConfig(checkpoint.config(), checkpoint.generation_config(), checkpoint.path()));
  NIBBLE_ASSIGN_OR_RETURN(model.quantization,
                          ParseQuantizationConfig(checkpoint.config(), checkpoint.path()));
  const ModelConfig& config = model.config;
  TensorAudit audit(checkpoint, model);
  NIBBLE_RETURN_IF_ERROR(audit.Linear(EmbeddingLinear(config)));
  for (int64_t i = 0; i < config.layers; ++i) {
    NIBBLE_RETURN_IF_ERROR(audit.Vector(InputNormName(i), config.hidden));
    NIBBLE_RETURN_IF_ERROR(audit.Vector(PostAttentionNormName(i), config.hidden));
    const LayerLinears linears = LinearsOfLayer(config, i);
    for (const LinearName* linear : linears.All()) NIBBLE_RETURN_IF_ERROR(audit.Linear(*linear));
  }
  NIBBLE_RETURN_IF_ERROR(audit.Vector(std::string(kFinalNorm), config.hidden));
  if (!config.tied_embeddings) NIBBLE_RETURN_IF_ERROR(audit.Linear(LmHeadLinear(config)));
  NIBBLE_RETURN_IF_ERROR(audit.NothingLeft());
  return model;
}

std::string InputNormName(int64_t layer) { return LayerPrefix(layer) + "input_layernorm.weight"; }
std::string PostAttentionNormName(int64_t layer) {
  return LayerPrefix(layer) + "post_attention_layernorm.weight";
}

Result<std::unique_ptr<PreparedLinear>> LoadEmbedding(const Checkpoint& checkpoint,
                                                      const ModelDescription& model,
                                                      Backend& backend) {
  const LinearName embedding = EmbeddingLinear(model.config);
  return LoadLinear(checkpoint, model, {&embedding}, Interleave::kNone, backend);
}

Result<LayerWeights> LoadLayer(const Checkpoint& checkpoint, const ModelDescription& model,
                               int64_t layer, Backend& backend) {
  const int64_t hidden = model.config.hidden;
  const LayerLinears names = LinearsOfLayer(model.config, layer);
  const auto load = [&](std::initializer_list<const LinearName*> parts, Interleave interleave) {
    return LoadLinear(checkpoint, model, parts, interleave, backend);
  };
  LayerWeights weights;
  NIBBLE_ASSIGN_OR_RETURN(weights.input_norm,
                          LoadNorm(checkpoint, InputNormName(layer), hidden, backend));
  NIBBLE_ASSIGN_OR_RETURN(weights.qkv, load({&names.q, &names.k, &names.v}, Interleave::kNone));
  NIBBLE_ASSIGN_OR_RETURN(weights.output, load({&names.output}, Interleave::kNone));
  NIBBLE_ASSIGN_OR_RETURN(weights.post_attention_norm,
                          LoadNorm(checkpoint, PostAttentionNormName(layer), hidden, backend));
  NIBBLE_ASSIGN_OR_RETURN(weights.gate_up, load({&names.gate, &names.up}, Interleave::kGateUp));
  NIBBLE_ASSIGN_OR_RETURN(weights.down, load({&names.down}, Interleave::kNone));
  return weights;
}

Result<ModelWeights> LoadModel(const Checkpoint& checkpoint, const ModelDescription& model,
                               Backend& backend, const LoadProgress& progress,
                               const CancelToken& cancel) {
  ModelWeights weights;
  weights.config = model.config;
  // The two largest first, while there is little else in memory.
  NIBBLE_ASSIGN_OR_RETURN(weights.embedding, LoadEmbedding(checkpoint, model, backend));
  if (!model.config.tied_embeddings) {
    const LinearName lm_head = LmHeadLinear(model.config);
    NIBBLE_ASSIGN_OR_RETURN(weights.lm_head,
                            LoadLinear(checkpoint, model, {&lm_head}, Interleave::kNone, backend));
  }
  for (int64_t i = 0; i < model.config.layers; ++i) {
    NIBBLE_RETURN_IF_ERROR(cancel.Check());
    NIBBLE_ASSIGN_OR_RETURN(LayerWeights layer, LoadLayer(checkpoint, model, i, backend));
    weights.layers.push_back(std::move(layer));
    progress(i + 1, model.config.layers);
  }
  NIBBLE_ASSIGN_OR_RETURN(weights.final_norm, LoadNorm(checkpoint, std::string(kFinalNorm),
                                                       model.config.hidden, backend));
  return weights;
}

WeightBytes PredictWeightBytes(const Checkpoint& checkpoint, const ModelDescription& model,
                               const Backend& backend) {
  const ModelConfig& config = model.config;
  const uint64_t norm = RoundUp<uint64_t>(static_cast<uint64_t>(config.hidden) * 4, 64);
  WeightBytes total;
  // Adds a prepared linear to its part, in LoadModel's order.
  const auto add = [&](std::initializer_list<const LinearName*> parts, uint64_t& part) {
    part += PreparedBytesOf(checkpoint, model, parts, backend);
    total.loading_peak =
        std::max(total.loading_peak, total.total() + SourceBytesOf(checkpoint, model, parts));
  };
  const LinearName embedding = EmbeddingLinear(config), lm_head = LmHeadLinear(config);
  add({&embedding}, total.embedding);
  if (!config.tied_embeddings) add({&lm_head}, total.lm_head);
  for (int64_t i = 0; i < config.layers; ++i) {
    const LayerLinears names = LinearsOfLayer(config, i);
    total.norms += 2 * norm;
    add({&names.q, &names.k, &names.v}, total.attention);
    add({&names.output}, total.attention);
    add({&names.gate, &names.up}, total.mlp);
    add({&names.down}, total.mlp);
  }
  total.norms += norm;
  return total;
}

std::string DescribeSmallerWeights(const Checkpoint& checkpoint, const ModelDescription& model,
                                   const Backend& backend) {
  const WeightBytes now = PredictWeightBytes(checkpoint, model, backend);
  if (model.quantization) {
    return fmt::format("the weights alone take {}", FormatBytes(now.total()));
  }
  // Those of the layers; what is embedded and the output layer stay as they are.
  uint64_t bytes = now.embedding + now.lm_head + now.norms;
  const auto add = [&](std::initializer_list<const LinearName*> parts) {
    const LinearName& first = **parts.begin();
    QuantSpec spec;
    while (spec.group_size > 16 && first.in_features % spec.group_size != 0) spec.group_size /= 2;
    if (first.in_features % spec.group_size != 0) spec.group_size = kPerChannel;
    int64_t out = 0;
    for (const LinearName* part : parts) out += part->out_features;
    bytes += backend.PreparedBytes(out, first.in_features, DType::kF16, &spec, first.bias);
  };
  for (int64_t i = 0; i < model.config.layers; ++i) {
    const LayerLinears names = LinearsOfLayer(model.config, i);
    add({&names.q, &names.k, &names.v});
    add({&names.output});
    add({&names.gate, &names.up});
    add({&names.down});
  }
  return fmt::format("at 4 bits the weights would take {} instead of {}", FormatBytes(bytes),
                     FormatBytes(now.total()));
}

}  // namespace nibble

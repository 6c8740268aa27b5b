#include "src/quantize/layer_tensors.h"

#include <algorithm>
#include <cmath>

#include "src/tensor/host_floats.h"

namespace nibble {
namespace {

Result<LinearTensor> ReadLinear(const Checkpoint& checkpoint, const LinearName& name,
                                const QuantizationPlan& plan, QuantizeOps& ops) {
  LinearTensor linear{.name = name};
  linear.quantized = plan.Quantizes(name.name);
  linear.scales.assign(static_cast<size_t>(name.in_features), 1.0f);
  NIBBLE_ASSIGN_OR_RETURN(const Weight weight, ReadWeight(checkpoint, name.name, name.out_features,
                                                          name.in_features, std::nullopt));
  Result<Matrix> loaded = ops.Load(std::get<DenseWeight>(weight));
  if (!loaded) {
    return tl::unexpected<Error>(
        loaded.error().In(fmt::format("{}: {}.weight", checkpoint.path(), name.name)));
  }
  linear.weight = *std::move(loaded);
  checkpoint.Release(name.name + ".weight");
  if (name.bias) {
    NIBBLE_ASSIGN_OR_RETURN(linear.bias,
                            ReadVector(checkpoint, name.name + ".bias", name.out_features));
  }
  return linear;
}

Result<NormTensor> ReadNorm(const Checkpoint& checkpoint, const std::string& name, int64_t length) {
  NormTensor norm{.name = name};
  NIBBLE_ASSIGN_OR_RETURN(norm.gain, ReadVector(checkpoint, name, length));
  norm.stored = checkpoint.Find(name)->dtype.value_or(DType::kF16);
  if (!std::all_of(norm.gain.begin(), norm.gain.end(), [](float v) { return std::isfinite(v); })) {
    return BadInput("{}: {} is not finite", checkpoint.path(), name);
  }
  return norm;
}

}  // namespace

Result<LayerTensors> ReadLayerTensors(const Checkpoint& checkpoint, const ModelDescription& model,
                                      const QuantizationPlan& plan, int64_t layer,
                                      QuantizeOps& ops) {
  const LayerLinears names = LinearsOfLayer(model.config, layer);
  LayerTensors tensors;
  NIBBLE_ASSIGN_OR_RETURN(tensors.input_norm,
                          ReadNorm(checkpoint, InputNormName(layer), model.config.hidden));
  NIBBLE_ASSIGN_OR_RETURN(tensors.post_attention_norm,
                          ReadNorm(checkpoint, PostAttentionNormName(layer), model.config.hidden));
  NIBBLE_ASSIGN_OR_RETURN(tensors.q, ReadLinear(checkpoint, names.q, plan, ops));
  NIBBLE_ASSIGN_OR_RETURN(tensors.k, ReadLinear(checkpoint, names.k, plan, ops));
  NIBBLE_ASSIGN_OR_RETURN(tensors.v, ReadLinear(checkpoint, names.v, plan, ops));
  NIBBLE_ASSIGN_OR_RETURN(tensors.output, ReadLinear(checkpoint, names.output, plan, ops));
  NIBBLE_ASSIGN_OR_RETURN(tensors.gate, ReadLinear(checkpoint, names.gate, plan, ops));
  NIBBLE_ASSIGN_OR_RETURN(tensors.up, ReadLinear(checkpoint, names.up, plan, ops));
  NIBBLE_ASSIGN_OR_RETURN(tensors.down, ReadLinear(checkpoint, names.down, plan, ops));
  return tensors;
}

void ScaleColumns(QuantizeOps& ops, LinearTensor& linear, std::span<const float> scales) {
  for (size_t k = 0; k < scales.size(); ++k) linear.scales[k] *= scales[k];
  ops.Scale(linear.view(), {}, scales, linear.view());
}

void DivideRows(QuantizeOps& ops, LinearTensor& linear, std::span<const float> scales) {
  ops.Scale(linear.view(), Reciprocals(scales), {}, linear.view());
  for (size_t n = 0; n < linear.bias.size(); ++n) linear.bias[n] /= scales[n];
  linear.bias_changed = !linear.bias.empty();
}

std::vector<float> Reciprocals(std::span<const float> scales) {
  std::vector<float> reciprocals;
  for (const float scale : scales) reciprocals.push_back(1 / scale);
  return reciprocals;
}

void FoldIntoNorm(NormTensor& norm, std::vector<float>& scales) {
  for (size_t k = 0; k < scales.size(); ++k) {
    const float folded = RoundTo(norm.stored, norm.gain[k] / scales[k]);
    const float amount = norm.gain[k] / folded;
    if (!std::isfinite(amount) || amount == 0) {
      scales[k] = 1;
    } else {
      norm.gain[k] = folded;
      scales[k] = amount;
    }
  }
  norm.changed = true;
}

Result<LayerWeights> PrepareLayer(Backend& backend, const LayerTensors& t) {
  const auto prepare = [&](std::initializer_list<const LinearTensor*> linears,
                           Interleave interleave) {
    std::vector<Weight> weights;
    for (const LinearTensor* linear : linears) weights.emplace_back(DenseWeightOf(linear->view()));
    return Prepare(backend, interleave, {linears.begin(), linears.size()}, weights);
  };
  LayerWeights weights;
  NIBBLE_ASSIGN_OR_RETURN(weights.input_norm, backend.Upload(t.input_norm.gain));
  NIBBLE_ASSIGN_OR_RETURN(weights.post_attention_norm, backend.Upload(t.post_attention_norm.gain));
  NIBBLE_ASSIGN_OR_RETURN(weights.qkv, prepare({&t.q, &t.k, &t.v}, Interleave::kNone));
  NIBBLE_ASSIGN_OR_RETURN(weights.output, prepare({&t.output}, Interleave::kNone));
  NIBBLE_ASSIGN_OR_RETURN(weights.gate_up, prepare({&t.gate, &t.up}, Interleave::kGateUp));
  NIBBLE_ASSIGN_OR_RETURN(weights.down, prepare({&t.down}, Interleave::kNone));
  return weights;
}

Result<std::unique_ptr<PreparedLinear>> Prepare(Backend& backend, Interleave interleave,
                                                std::span<const LinearTensor* const> linears,
                                                std::span<const Weight> weights) {
  std::vector<LinearSource> sources;
  for (size_t i = 0; i < linears.size(); ++i) sources.push_back({&weights[i], linears[i]->bias});
  return backend.Prepare(sources, interleave);
}

DenseWeight DenseWeightOf(MatrixView matrix) {
  CHECK(matrix.dtype == DType::kF32 && matrix.stride == matrix.columns);
  return {.dtype = DType::kF32,
          .rows = matrix.rows,
          .columns = matrix.columns,
          .data = static_cast<const std::byte*>(matrix.data)};
}

}  // namespace nibble

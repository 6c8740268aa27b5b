#include "src/model/forward.h"

#include <algorithm>
#include <cmath>

#include "src/base/checked.h"

namespace nibble {
namespace {

// Found once, since a step must not wait for the device.
Result<float> LargestMagnitude(Backend& backend, MatrixView gain) {
  NIBBLE_ASSIGN_OR_RETURN(const MatrixView host, backend.ToHost(gain));
  float largest = 0;
  for (int64_t i = 0; i < host.columns; ++i) {
    largest = std::max(largest, std::abs(host.row<float>(0)[i]));
  }
  return largest;
}

}  // namespace

void QkvInput(const LayerContext& l, MatrixView residual, MatrixView out) {
  l.backend.RmsNorm(residual, l.weights.input_norm.view(), l.config.rms_epsilon, out);
}

void OutputInput(const LayerContext& l, MatrixView residual, MatrixView normed, MatrixView qkv,
                 MatrixView out) {
  QkvInput(l, residual, normed);
  l.backend.Linear(l.plan, *l.weights.qkv, normed, Epilogue::kNone, qkv);
  l.backend.RopeAndAttend(l.plan, l.rope, l.config.attention(l.layer), l.cache_layer, qkv, l.cache,
                          out);
}

void AddOutput(const LayerContext& l, MatrixView output_input, MatrixView residual) {
  l.backend.Linear(l.plan, *l.weights.output, output_input, Epilogue::kAdd, residual);
}

void MlpInput(const LayerContext& l, MatrixView residual, MatrixView out) {
  l.backend.RmsNorm(residual, l.weights.post_attention_norm.view(), l.config.rms_epsilon, out);
}

void DownInput(const LayerContext& l, MatrixView residual, MatrixView normed, MatrixView out) {
  MlpInput(l, residual, normed);
  l.backend.Linear(l.plan, *l.weights.gate_up, normed, Epilogue::kSiluMul, out);
}

void AddDown(const LayerContext& l, MatrixView down_input, MatrixView residual) {
  l.backend.Linear(l.plan, *l.weights.down, down_input, Epilogue::kAdd, residual);
}

MatrixView Forward::Run(const Batch& batch, KvCache& cache) {
  CHECK(batch.rows() <= limits_.rows && batch.sequences() <= limits_.sequences);
  const auto logit_rows = static_cast<int64_t>(batch.logit_rows.size());
  CHECK(logit_rows <= limits_.logit_rows);
  backend_.SetBatch(*plan_, batch);
  backend_.Issue(*plan_, [&] { Step(batch.rows(), logit_rows, cache); });
  return logits_.Rows(logit_rows);
}

void Forward::Step(int64_t rows, int64_t logit_rows, KvCache& cache) {
  const LayerActivations activations{.residual = residual_.Rows(rows),
                                     .normed = normed_.Rows(rows),
                                     .qkv = qkv_.Rows(rows),
                                     .attention = attention_.Rows(rows),
                                     .gated = gated_.Rows(rows)};
  const auto& [residual, normed, qkv, attention, gated] = activations;

  backend_.Embed(*plan_, *weights_.embedding, residual);
  if (!backend_.RunLayers(*plan_, layers_, RopeSpec{rope_frequencies_}, weights_.config.rms_epsilon,
                          cache, activations)) {
    for (int64_t i = 0; i < weights_.config.layers; ++i) {
      const LayerContext layer{backend_,
                               weights_.config,
                               weights_.layers[static_cast<size_t>(i)],
                               RopeSpec{rope_frequencies_},
                               i,
                               *plan_,
                               cache,
                               i};
      OutputInput(layer, residual, normed, qkv, attention);
      AddOutput(layer, attention, residual);
      DownInput(layer, residual, normed, gated);
      AddDown(layer, gated, residual);
    }
  }
  if (logit_rows == 0) return;
  const MatrixView last = last_.Rows(logit_rows), logits = logits_.Rows(logit_rows);
  backend_.NormLogitRows(*plan_, residual, weights_.final_norm.view(), weights_.config.rms_epsilon,
                         last);
  backend_.Linear(*plan_, weights_.logits_weight(), last, Epilogue::kNone, logits);
}

Result<std::unique_ptr<Forward>> Forward::Create(const ModelWeights& weights, Backend& backend,
                                                 const StepLimits& limits) {
  const ModelConfig& c = weights.config;
  std::unique_ptr<Forward> forward(new Forward(weights, backend, limits));
  forward->rope_frequencies_ = RopeFrequencies(c.rope, c.head_dim);
  for (const LayerWeights& layer : weights.layers) {
    const auto index = static_cast<int64_t>(forward->layers_.size());
    NIBBLE_ASSIGN_OR_RETURN(const float largest_input_gain,
                            LargestMagnitude(backend, layer.input_norm.view()));
    NIBBLE_ASSIGN_OR_RETURN(const float largest_post_attention_gain,
                            LargestMagnitude(backend, layer.post_attention_norm.view()));
    forward->layers_.push_back({.input_norm = layer.input_norm.view(),
                                .post_attention_norm = layer.post_attention_norm.view(),
                                .largest_input_gain = largest_input_gain,
                                .largest_post_attention_gain = largest_post_attention_gain,
                                .qkv = layer.qkv.get(),
                                .output = layer.output.get(),
                                .gate_up = layer.gate_up.get(),
                                .down = layer.down.get(),
                                .attention = c.attention(index)});
  }
  NIBBLE_ASSIGN_OR_RETURN(forward->plan_, backend.CreatePlan(limits, c.extents()));
  const auto allocate = [&](DType type, int64_t rows, int64_t columns) {
    return backend.Allocate(MemoryClass::kWorkspace, type, rows, columns);
  };
  const DType type = backend.activation_type();
  NIBBLE_ASSIGN_OR_RETURN(forward->residual_, allocate(type, limits.rows, c.hidden));
  NIBBLE_ASSIGN_OR_RETURN(forward->normed_, allocate(type, limits.rows, c.hidden));
  NIBBLE_ASSIGN_OR_RETURN(forward->qkv_, allocate(type, limits.rows, c.qkv_features()));
  NIBBLE_ASSIGN_OR_RETURN(forward->attention_, allocate(type, limits.rows, c.q_features()));
  NIBBLE_ASSIGN_OR_RETURN(forward->gated_, allocate(type, limits.rows, c.intermediate));
  NIBBLE_ASSIGN_OR_RETURN(forward->last_, allocate(type, limits.logit_rows, c.hidden));
  NIBBLE_ASSIGN_OR_RETURN(forward->logits_, allocate(DType::kF32, limits.logit_rows, c.vocabulary));
  return forward;
}

uint64_t Forward::WorkspaceBytes(const ModelConfig& c, const Backend& backend,
                                 const StepLimits& limits) {
  const auto bytes = [](int64_t rows, int64_t columns, DType type) {
    return RoundUp<uint64_t>(static_cast<uint64_t>(rows * columns) * BytesOf(type), 64);
  };
  const DType type = backend.activation_type();
  return backend.PlanBytes(limits, c.extents()) + 2 * bytes(limits.rows, c.hidden, type) +
         bytes(limits.rows, c.qkv_features(), type) + bytes(limits.rows, c.q_features(), type) +
         bytes(limits.rows, c.intermediate, type) + bytes(limits.logit_rows, c.hidden, type) +
         bytes(limits.logit_rows, c.vocabulary, DType::kF32);
}

}  // namespace nibble

#include "src/quantize/calibration_runner.h"

#include <algorithm>
#include <cstring>

#include "src/base/checked.h"

namespace nibble {
namespace {

// At least; enough rows to keep matrix products efficient, few enough that a step's scratch memory
// is small.
constexpr int64_t kRowsPerStep = 2048;

}  // namespace

Result<std::unique_ptr<CalibrationRunner>> CalibrationRunner::Create(
    const ModelConfig& config, CalibrationSet set, Backend& backend,
    const ActivationStorage& storage, int64_t boundary) {
  const int64_t length = set.sequence_length, samples = set.samples;
  std::unique_ptr<CalibrationRunner> runner(
      new CalibrationRunner(config, std::move(set), backend, boundary));
  runner->rope_frequencies_ = RopeFrequencies(config.rope, config.head_dim);
  runner->sequences_per_step_ = std::clamp<int64_t>(
      std::max(kRowsPerStep, backend.step_rows()) / length, 1, std::max<int64_t>(1, samples));
  const int64_t rows = runner->sequences_per_step_ * length;
  NIBBLE_ASSIGN_OR_RETURN(
      runner->plan_,
      backend.CreatePlan(
          {.rows = rows, .sequences = runner->sequences_per_step_, .context = length},
          config.extents()));
  const KvLayout layout{.layers = 1,
                        .kv_heads = config.kv_heads,
                        .head_dim = config.head_dim,
                        .block_tokens = backend.kv_block_tokens(),
                        .dtype = backend.activation_type()};
  NIBBLE_ASSIGN_OR_RETURN(runner->cache_,
                          backend.CreateKvCache(layout, runner->sequences_per_step_ *
                                                            CeilDiv(length, layout.block_tokens)));

  NIBBLE_RETURN_IF_ERROR(runner->Allocate(storage));
  return runner;
}

Status CalibrationRunner::Allocate(const ActivationStorage& storage) {
  const DType type = backend_.activation_type();
  const auto fits = [&](int64_t columns) {
    const uint64_t bytes = static_cast<uint64_t>(set_.token_count() * columns) * BytesOf(type);
    return backend_.memory().current().total() + bytes <= storage.max_bytes;
  };
  const auto allocate = [&](int64_t rows, int64_t columns) {
    return backend_.Allocate(MemoryClass::kWorkspace, type, rows, columns);
  };
  const auto beside = [&](int64_t columns) {
    return backend_.AllocateBeside(storage.directory, type, set_.token_count(), columns);
  };
  const int64_t rows = sequences_per_step_ * set_.sequence_length;
  const int64_t widest = std::max(config_.q_features(), config_.intermediate);
  NIBBLE_ASSIGN_OR_RETURN(block_input_, allocate(rows, config_.hidden));
  NIBBLE_ASSIGN_OR_RETURN(qkv_, allocate(rows, config_.qkv_features()));
  NIBBLE_ASSIGN_OR_RETURN(wide_, allocate(rows, widest));
  NIBBLE_ASSIGN_OR_RETURN(residual_, fits(config_.hidden)
                                         ? allocate(set_.token_count(), config_.hidden)
                                         : beside(config_.hidden));
  if (fits(widest)) {
    NIBBLE_ASSIGN_OR_RETURN(waiting_, allocate(set_.token_count(), widest));
  } else if (storage.beyond == ActivationStorage::Beyond::kBeside) {
    NIBBLE_ASSIGN_OR_RETURN(waiting_, beside(widest));
  } else if (fits(config_.q_features())) {
    NIBBLE_ASSIGN_OR_RETURN(waiting_, allocate(set_.token_count(), config_.q_features()));
  }
  return {};
}

LayerContext CalibrationRunner::Context(int64_t layer, const LayerWeights& weights) const {
  return {.backend = backend_,
          .config = config_,
          .weights = weights,
          .rope = RopeSpec{rope_frequencies_},
          .layer = layer,
          .plan = *plan_,
          .cache = *cache_,
          .cache_layer = 0};
}

std::vector<CalibrationRunner::Step> CalibrationRunner::Steps(int64_t sequences) const {
  std::vector<Step> steps;
  int64_t first = 0;
  while (first < sequences) {
    const int64_t end = first < boundary_ ? std::min(boundary_, sequences) : sequences;
    steps.push_back({first, std::min(sequences_per_step_, end - first)});
    first += steps.back().sequences;
  }
  return steps;
}

MatrixView CalibrationRunner::SetStep(const Step& step) {
  const int64_t length = set_.sequence_length;
  const int64_t blocks = CeilDiv(length, cache_->layout().block_tokens);
  std::vector<int32_t> positions, row_begin = {0}, contexts, tables;
  for (int64_t s = 0; s < step.sequences; ++s) {
    for (int64_t i = 0; i < length; ++i) positions.push_back(static_cast<int32_t>(i));
    row_begin.push_back(static_cast<int32_t>((s + 1) * length));
    contexts.push_back(static_cast<int32_t>(length));
    for (int64_t b = 0; b < blocks; ++b) tables.push_back(static_cast<int32_t>(s * blocks + b));
  }
  backend_.SetBatch(*plan_, {.tokens = std::span(set_.tokens)
                                           .subspan(static_cast<size_t>(step.first * length),
                                                    static_cast<size_t>(RowsOf(step))),
                             .positions = positions,
                             .row_begin = row_begin,
                             .context_lengths = contexts,
                             .block_tables = tables,
                             .max_blocks = blocks,
                             .logit_rows = {}});
  return residual_.view().Rows(step.first * length, RowsOf(step));
}

MatrixView CalibrationRunner::Waiting(const Step& step, int64_t columns) const {
  if (!Waits(columns)) return Scratch(step, columns);
  const MatrixView all{waiting_.view().data, backend_.activation_type(), set_.token_count(),
                       columns, columns};
  return all.Rows(step.first * set_.sequence_length, RowsOf(step));
}

MatrixView CalibrationRunner::ComputeAttention(const LayerContext& context, const Step& step,
                                               MatrixView residual, MatrixView out) {
  nibble::OutputInput(context, residual, block_input_.Rows(RowsOf(step)), qkv_.Rows(RowsOf(step)),
                      out);
  return out;
}

MatrixView CalibrationRunner::ComputeGated(const LayerContext& context, const Step& step,
                                           MatrixView residual, MatrixView out) {
  nibble::DownInput(context, residual, block_input_.Rows(RowsOf(step)), out);
  return out;
}

void CalibrationRunner::Embed(const PreparedLinear& table) {
  for (const Step& step : Steps()) backend_.Embed(*plan_, table, SetStep(step));
}

MatrixView CalibrationRunner::QkvInput(const Step& step, int64_t layer,
                                       const LayerWeights& weights) {
  const MatrixView out = block_input_.Rows(RowsOf(step));
  nibble::QkvInput(Context(layer, weights), SetStep(step), out);
  return out;
}

MatrixView CalibrationRunner::OutputInput(const Step& step, int64_t layer,
                                          const LayerWeights& weights) {
  const MatrixView residual = SetStep(step);
  return ComputeAttention(Context(layer, weights), step, residual,
                          Waiting(step, config_.q_features()));
}

MatrixView CalibrationRunner::MlpInput(const Step& step, int64_t layer,
                                       const LayerWeights& weights) {
  const MatrixView residual = SetStep(step), attention = Waiting(step, config_.q_features());
  const LayerContext context = Context(layer, weights);
  if (!Waits(config_.q_features())) ComputeAttention(context, step, residual, attention);
  nibble::AddOutput(context, attention, residual);
  const MatrixView out = block_input_.Rows(RowsOf(step));
  nibble::MlpInput(context, residual, out);
  return out;
}

MatrixView CalibrationRunner::DownInput(const Step& step, int64_t layer,
                                        const LayerWeights& weights) {
  const MatrixView residual = SetStep(step);
  return ComputeGated(Context(layer, weights), step, residual, Waiting(step, config_.intermediate));
}

Status CalibrationRunner::LayerOutput(int64_t layer, const LayerWeights& weights,
                                      const CancelToken& cancel) {
  const LayerContext context = Context(layer, weights);
  for (const Step& step : Steps()) {
    NIBBLE_RETURN_IF_ERROR(cancel.Check());
    const MatrixView residual = SetStep(step), gated = Waiting(step, config_.intermediate);
    if (!Waits(config_.intermediate)) ComputeGated(context, step, residual, gated);
    nibble::AddDown(context, gated, residual);
  }
  return {};
}

Status CalibrationRunner::Layer(int64_t layer, const LayerWeights& weights,
                                const CancelToken& cancel) {
  for (const Step& step : Steps()) {
    NIBBLE_RETURN_IF_ERROR(cancel.Check());
    OutputInput(step, layer, weights);
    MlpInput(step, layer, weights);
    const MatrixView gated = DownInput(step, layer, weights);
    nibble::AddDown(Context(layer, weights), gated, SetStep(step));
  }
  return {};
}

void CalibrationRunner::AttentionOutput(int64_t layer, const LayerWeights& weights,
                                        int64_t sequences, MatrixView out) {
  const LayerContext context = Context(layer, weights);
  for (const Step& step : Steps(sequences)) {
    const MatrixView residual = SetStep(step);
    const MatrixView attention =
        ComputeAttention(context, step, residual, Scratch(step, config_.q_features()));
    backend_.Linear(*plan_, *weights.output, attention, Epilogue::kNone,
                    out.Rows(step.first * set_.sequence_length, RowsOf(step)));
  }
}

void CalibrationRunner::MlpOutput(int64_t layer, const LayerWeights& weights, int64_t sequences,
                                  MatrixView out) {
  const LayerContext context = Context(layer, weights);
  for (const Step& step : Steps(sequences)) {
    const MatrixView residual = SetStep(step);
    const MatrixView gated =
        ComputeGated(context, step, residual, Scratch(step, config_.intermediate));
    backend_.Linear(*plan_, *weights.down, gated, Epilogue::kNone,
                    out.Rows(step.first * set_.sequence_length, RowsOf(step)));
  }
}

}  // namespace nibble

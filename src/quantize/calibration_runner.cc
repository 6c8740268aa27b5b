#include "src/quantize/calibration_runner.h"

#include <algorithm>
#include <cstring>

#include "src/base/checked.h"

namespace nibble {
namespace {

// Enough rows to keep matrix products efficient, few enough that a step's scratch memory is small.
constexpr int64_t kRowsPerStep = 2048;

}  // namespace

Result<std::unique_ptr<CalibrationRunner>> CalibrationRunner::Create(
    const ModelConfig& config, const CalibrationSet& set, Backend& backend,
    const ActivationStorage& storage) {
  std::unique_ptr<CalibrationRunner> runner(new CalibrationRunner(config, set, backend));
  runner->rope_frequencies_ = RopeFrequencies(config.rope, config.head_dim);
  const int64_t length = set.sequence_length;
  runner->sequences_per_step_ =
      std::clamp<int64_t>(kRowsPerStep / length, 1, std::max<int64_t>(1, set.samples));
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

  const DType type = backend.activation_type();
  const auto store = [&](int64_t columns) -> Result<Matrix> {
    const uint64_t bytes = static_cast<uint64_t>(set.token_count() * columns) * BytesOf(type);
    if (backend.memory().current().total() + bytes <= storage.max_bytes) {
      return backend.Allocate(MemoryClass::kWorkspace, type, set.token_count(), columns);
    }
    NIBBLE_ASSIGN_OR_RETURN(Buffer file, AllocateInFile(storage.spill_directory, bytes));
    return Matrix(std::move(file), type, set.token_count(), columns);
  };
  const auto scratch = [&](int64_t columns) {
    return backend.Allocate(MemoryClass::kWorkspace, type, rows, columns);
  };
  NIBBLE_ASSIGN_OR_RETURN(runner->qkv_, scratch(config.qkv_features()));
  NIBBLE_ASSIGN_OR_RETURN(runner->attention_scratch_, scratch(config.q_features()));
  NIBBLE_ASSIGN_OR_RETURN(runner->gated_scratch_, scratch(config.intermediate));
  NIBBLE_ASSIGN_OR_RETURN(runner->residual_, store(config.hidden));
  NIBBLE_ASSIGN_OR_RETURN(runner->block_input_, store(config.hidden));
  NIBBLE_ASSIGN_OR_RETURN(runner->attention_, store(config.q_features()));
  NIBBLE_ASSIGN_OR_RETURN(runner->gated_, store(config.intermediate));
  return runner;
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

void CalibrationRunner::SetBatch(const Step& step) {
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
                                                    static_cast<size_t>(step.sequences * length)),
                             .positions = positions,
                             .row_begin = row_begin,
                             .context_lengths = contexts,
                             .block_tables = tables,
                             .max_blocks = blocks,
                             .logit_rows = {}});
}

MatrixView CalibrationRunner::RowsOf(const Matrix& matrix, const Step& step) const {
  return matrix.view().Rows(step.first * set_.sequence_length,
                            step.sequences * set_.sequence_length);
}

template <typename Work>
Status CalibrationRunner::ForEachStep(int64_t sequences, const CancelToken& cancel,
                                      const Work& work) {
  for (int64_t first = 0; first < sequences; first += sequences_per_step_) {
    NIBBLE_RETURN_IF_ERROR(cancel.Check());
    const Step step{first, std::min(sequences_per_step_, sequences - first)};
    SetBatch(step);
    work(step, step.sequences * set_.sequence_length);
  }
  return {};
}

void CalibrationRunner::Embed(const PreparedLinear& table) {
  CHECK(ForEachStep(set_.samples, CancelToken(), [&](const Step& step, int64_t) {
          backend_.Embed(*plan_, table, RowsOf(residual_, step));
        }).has_value());
}

Status CalibrationRunner::QkvInput(int64_t layer, const LayerWeights& weights, const Sink& sink,
                                   const CancelToken& cancel) {
  return ForEachStep(set_.samples, cancel, [&](const Step& step, int64_t) {
    const MatrixView out = RowsOf(block_input_, step);
    nibble::QkvInput(Context(layer, weights), RowsOf(residual_, step), out);
    sink(out);
  });
}

Status CalibrationRunner::OutputInput(int64_t layer, const LayerWeights& weights, const Sink& sink,
                                      const CancelToken& cancel) {
  return ForEachStep(set_.samples, cancel, [&](const Step& step, int64_t rows) {
    const MatrixView out = RowsOf(attention_, step);
    nibble::OutputInput(Context(layer, weights), RowsOf(residual_, step), RowsOf(block_input_, step),
                        qkv_.Rows(rows), out);
    sink(out);
  });
}

Status CalibrationRunner::MlpInput(int64_t layer, const LayerWeights& weights, const Sink& sink,
                                   const CancelToken& cancel) {
  return ForEachStep(set_.samples, cancel, [&](const Step& step, int64_t) {
    const MatrixView residual = RowsOf(residual_, step), out = RowsOf(block_input_, step);
    const LayerContext context = Context(layer, weights);
    nibble::AddOutput(context, RowsOf(attention_, step), residual);
    nibble::MlpInput(context, residual, out);
    sink(out);
  });
}

Status CalibrationRunner::DownInput(int64_t layer, const LayerWeights& weights, const Sink& sink,
                                    const CancelToken& cancel) {
  return ForEachStep(set_.samples, cancel, [&](const Step& step, int64_t) {
    const MatrixView out = RowsOf(gated_, step);
    nibble::DownInput(Context(layer, weights), RowsOf(residual_, step), RowsOf(block_input_, step),
                      out);
    sink(out);
  });
}

Status CalibrationRunner::LayerOutput(int64_t layer, const LayerWeights& weights,
                                      const CancelToken& cancel) {
  return ForEachStep(set_.samples, cancel, [&](const Step& step, int64_t) {
    nibble::AddDown(Context(layer, weights), RowsOf(gated_, step), RowsOf(residual_, step));
  });
}

Status CalibrationRunner::Layer(int64_t layer, const LayerWeights& weights,
                                const CancelToken& cancel) {
  NIBBLE_RETURN_IF_ERROR(OutputInput(layer, weights, Ignore, cancel));
  NIBBLE_RETURN_IF_ERROR(MlpInput(layer, weights, Ignore, cancel));
  NIBBLE_RETURN_IF_ERROR(DownInput(layer, weights, Ignore, cancel));
  return LayerOutput(layer, weights, cancel);
}

void CalibrationRunner::AttentionOutput(int64_t layer, const LayerWeights& weights,
                                        int64_t sequences, MatrixView out) {
  CHECK(ForEachStep(sequences, CancelToken(), [&](const Step& step, int64_t rows) {
          const LayerContext context = Context(layer, weights);
          const MatrixView attention = attention_scratch_.Rows(rows);
          nibble::OutputInput(context, RowsOf(residual_, step), RowsOf(block_input_, step),
                              qkv_.Rows(rows), attention);
          backend_.Linear(*plan_, *weights.output, attention, Epilogue::kNone,
                          out.Rows(step.first * set_.sequence_length, rows));
        }).has_value());
}

void CalibrationRunner::MlpOutput(int64_t layer, const LayerWeights& weights, int64_t sequences,
                                  MatrixView out) {
  CHECK(ForEachStep(sequences, CancelToken(), [&](const Step& step, int64_t rows) {
          const LayerContext context = Context(layer, weights);
          const MatrixView gated = gated_scratch_.Rows(rows);
          nibble::DownInput(context, RowsOf(residual_, step), RowsOf(block_input_, step), gated);
          backend_.Linear(*plan_, *weights.down, gated, Epilogue::kNone,
                          out.Rows(step.first * set_.sequence_length, rows));
        }).has_value());
}

}  // namespace nibble

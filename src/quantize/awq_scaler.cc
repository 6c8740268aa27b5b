#include "src/quantize/awq_scaler.h"

#include <algorithm>
#include <utility>

namespace nibble {
namespace {

Json Record(const AwqSearch& search) {
  return {{"awq",
           {{"form", Name(search.best.form)},
            {"ratio", search.best.ratio},
            {"loss", search.best.loss},
            {"rtn_loss", search.rtn_loss()}}}};
}

}  // namespace

Status AwqScaler::Scale(int64_t layer, LayerTensors& t, const Rounded& rounded,
                        const CancelToken& cancel) {
  NIBBLE_ASSIGN_OR_RETURN(LayerWeights weights, PrepareLayer(context_.backend, t));
  const Block attention{.first = {&t.q, &t.k, &t.v},
                        .interleave = Interleave::kNone,
                        .prepared = weights.qkv,
                        .first_input = &CalibrationRunner::QkvInput,
                        .norm = t.input_norm,
                        .prepared_norm = weights.input_norm,
                        .output = &CalibrationRunner::AttentionOutput,
                        .last = t.output,
                        .last_input = &CalibrationRunner::OutputInput,
                        .before = t.v};
  const Block mlp{.first = {&t.gate, &t.up},
                  .interleave = Interleave::kGateUp,
                  .prepared = weights.gate_up,
                  .first_input = &CalibrationRunner::MlpInput,
                  .norm = t.post_attention_norm,
                  .prepared_norm = weights.post_attention_norm,
                  .output = &CalibrationRunner::MlpOutput,
                  .last = t.down,
                  .last_input = &CalibrationRunner::DownInput,
                  .before = t.up};
  NIBBLE_RETURN_IF_ERROR(ScaleBlock(layer, weights, attention, rounded, cancel));
  NIBBLE_RETURN_IF_ERROR(ScaleBlock(layer, weights, mlp, rounded, cancel));
  return context_.IsLast(layer) ? Status() : runner_->LayerOutput(layer, weights, cancel);
}

Status AwqScaler::ScaleBlock(int64_t layer, const LayerWeights& weights, const Block& block,
                             const Rounded& rounded, const CancelToken& cancel) {
  const LinearTensor& representative = *block.first.front();
  NIBBLE_ASSIGN_OR_RETURN(const auto first_input,
                          context_.Gather(*runner_, block.first_input, layer, weights,
                                          representative, QuantizeContext::Ignore, cancel));
  Json first_record = Json::object(), last_record = Json::object();
  if (representative.quantized) {
    NIBBLE_ASSIGN_OR_RETURN(AwqSearch search, SearchFirst(layer, weights, block, *first_input));
    FoldIntoNorm(block.norm, search.scales);
    for (LinearTensor* linear : block.first) ScaleColumns(context_.ops, *linear, search.scales);
    first_record = Record(search);
  }
  NIBBLE_ASSIGN_OR_RETURN(const auto last_input,
                          context_.Gather(*runner_, block.last_input, layer, weights, block.last,
                                          QuantizeContext::Ignore, cancel));
  // Under grouped-query attention a value's row feeds several of o's columns.
  if (block.last.quantized && block.before.quantized &&
      block.last.name.in_features == block.before.name.out_features) {
    NIBBLE_ASSIGN_OR_RETURN(const AwqSearch search, SearchLast(block.last, *last_input));
    DivideRows(context_.ops, block.before, search.scales);
    ScaleColumns(context_.ops, block.last, search.scales);
    last_record = Record(search);
  }
  if (!rounded) return {};
  if (representative.quantized) {
    NIBBLE_RETURN_IF_ERROR(rounded(block.first, *first_input, first_record));
  }
  return block.last.quantized ? rounded({&block.last}, *last_input, last_record) : Status();
}

Result<AwqSearch> AwqScaler::SearchFirst(int64_t layer, const LayerWeights& weights,
                                         const Block& block, const InputStatistics& statistics) {
  const int64_t sequences = std::clamp<int64_t>(
      context_.options.awq.search_tokens / runner_->sequence_length(), 1, runner_->samples());
  const auto allocate = [&] {
    return context_.backend.Allocate(MemoryClass::kWorkspace, context_.backend.activation_type(),
                                     sequences * runner_->sequence_length(),
                                     context_.model.config.hidden);
  };
  NIBBLE_ASSIGN_OR_RETURN(const Matrix want, allocate());
  NIBBLE_ASSIGN_OR_RETURN(const Matrix got, allocate());
  const auto run = [&](const Matrix& out) {
    (runner_.get()->*block.output)(layer, weights, sequences, out.view());
  };
  run(want);
  std::vector<MatrixView> views;
  std::vector<Matrix> memory;
  for (const LinearTensor* linear : block.first) {
    views.push_back(linear->view());
    NIBBLE_ASSIGN_OR_RETURN(memory.emplace_back(), context_.MatrixLike(linear->view()));
  }
  // The block as it would become: rounded weights, and the norm divided by their scales.
  const auto loss = [&](std::span<const float> scales) -> Result<double> {
    std::vector<Weight> trial;
    for (size_t i = 0; i < views.size(); ++i) {
      NIBBLE_ASSIGN_OR_RETURN(trial.emplace_back(), context_.ops.Trial(views[i], context_.grid(),
                                                                       scales, memory[i].view()));
    }
    std::vector<float> gain = block.norm.gain;
    for (size_t k = 0; k < scales.size(); ++k) gain[k] /= scales[k];
    NIBBLE_ASSIGN_OR_RETURN(Matrix norm, context_.backend.Upload(gain));
    NIBBLE_ASSIGN_OR_RETURN(std::unique_ptr<PreparedLinear> tried,
                            Prepare(context_.backend, block.interleave, block.first, trial));
    const auto exchange = [&] {
      std::swap(block.prepared, tried);
      std::swap(block.prepared_norm, norm);
    };
    exchange();
    run(got);
    exchange();
    return context_.ops.SquaredDifference(want.view(), got.view()) /
           static_cast<double>(want.rows() * want.columns());
  };
  Result<AwqSearch> search = Search(views, statistics, loss);
  if (!search) return tl::unexpected<Error>(search.error().In(block.first.front()->name.name));
  return search;
}

Result<AwqSearch> AwqScaler::SearchLast(const LinearTensor& linear,
                                        const InputStatistics& statistics) {
  const MatrixView views[] = {linear.view()};
  NIBBLE_ASSIGN_OR_RETURN(const Matrix trial, context_.MatrixLike(views[0]));
  Result<AwqSearch> search = Search(views, statistics, [&](std::span<const float> scales) {
    context_.ops.PseudoQuantize(views[0], context_.grid(), scales, trial.view());
    return context_.ops.OutputError(views[0], trial.view(), statistics);
  });
  if (!search) return tl::unexpected<Error>(search.error().In(linear.name.name));
  return search;
}

Result<AwqSearch> AwqScaler::Search(std::span<const MatrixView> weights,
                                    const InputStatistics& statistics, const AwqLoss& loss) {
  const std::span<const AwqForm> forms = context_.options.awq.forms;
  std::vector<float> mean_weights;
  if (std::ranges::find(forms, AwqForm::kActivationsAndWeights) != forms.end()) {
    std::vector<std::vector<float>> values;
    std::vector<MatrixView> on_host;
    for (const MatrixView& weight : weights) {
      NIBBLE_ASSIGN_OR_RETURN(MatrixView view, context_.backend.ToHost(weight));
      values.emplace_back(view.row<float>(0), view.row<float>(view.rows));
      view.data = values.back().data();
      on_host.push_back(view);
    }
    mean_weights = MeanNormalizedWeights(on_host, context_.plan.spec);
  }
  return SearchAwqScales(context_.ops.MeanMagnitudes(statistics), mean_weights, forms, loss);
}

}  // namespace nibble

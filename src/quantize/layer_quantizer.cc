#include "src/quantize/layer_quantizer.h"

#include <algorithm>
#include <chrono>
#include <optional>
#include <utility>

#include "src/quantize/awq_scaler.h"
#include "src/quantize/quantize_context.h"

namespace nibble {
namespace {

using Clock = std::chrono::steady_clock;

// Round to nearest: no calibration.
class RtnQuantizer final : public LayerQuantizer {
 public:
  explicit RtnQuantizer(const QuantizeContext& context) : context_(context) {}

  Result<QuantizedLayer> Quantize(int64_t layer, const LinearDone& done,
                                  const CancelToken& cancel) override {
    NIBBLE_ASSIGN_OR_RETURN(LayerTensors t, context_.ReadTensors(layer));
    QuantizedLayer result;
    for (LinearTensor* linear : t.All()) {
      if (!linear->quantized) continue;
      NIBBLE_RETURN_IF_ERROR(cancel.Check());
      const auto start = Clock::now();
      Result<QuantizedWeight> quantized =
          context_.ops.Round(linear->view(), context_.grid(), nullptr);
      if (!quantized) return tl::unexpected<Error>(quantized.error().In(linear->name.name));
      NIBBLE_RETURN_IF_ERROR(context_.Finish(*linear, linear->view(), *std::move(quantized),
                                             nullptr, Json::object(), start, result, done));
    }
    return result;
  }

  Status Replay(int64_t, const QuantizedLayer&, const CancelToken&) override { return {}; }

 private:
  QuantizeContext context_;
};

void AddChangedVectors(const LayerTensors& t, QuantizedLayer& layer) {
  for (const NormTensor* norm : {&t.input_norm, &t.post_attention_norm}) {
    if (norm->changed) layer.vectors.push_back({norm->name, norm->gain});
  }
  for (const LinearTensor* linear : {&t.v, &t.up}) {
    if (linear->bias_changed) {
      layer.vectors.push_back({linear->name.name + ".bias", linear->bias});
    }
  }
}

// AWQ's scales and clipping, then rounding to nearest.
class AwqQuantizer final : public LayerQuantizer {
 public:
  AwqQuantizer(const QuantizeContext& context, std::unique_ptr<CalibrationRunner> runner)
      : context_(context), scaler_(context, std::move(runner)) {}

  Result<QuantizedLayer> Quantize(int64_t layer, const LinearDone& done,
                                  const CancelToken& cancel) override {
    NIBBLE_ASSIGN_OR_RETURN(LayerTensors t, context_.ReadTensors(layer));
    QuantizedLayer result;
    auto start = Clock::now();
    NIBBLE_RETURN_IF_ERROR(scaler_.Scale(
        layer, t,
        [&](const Linears& linears, const InputStatistics& statistics,
            const Json& record) -> Status {
          for (LinearTensor* linear : linears) {
            NIBBLE_ASSIGN_OR_RETURN(const Matrix clipped, context_.MatrixLike(linear->view()));
            const MatrixView view = clipped.view();
            context_.ops.Scale(linear->view(), {}, {}, view);
            // Queries and keys meet in a product whose error their own outputs do not show.
            if (linear != &t.q && linear != &t.k) {
              context_.ops.Clip(view, context_.grid(), linear->scales, statistics);
            }
            Result<QuantizedWeight> quantized = context_.ops.Round(view, context_.grid(), nullptr);
            if (!quantized) return tl::unexpected<Error>(quantized.error().In(linear->name.name));
            NIBBLE_RETURN_IF_ERROR(context_.Finish(*linear, linear->view(), *std::move(quantized),
                                                   &statistics, record, start, result, done));
            start = Clock::now();
          }
          return {};
        },
        cancel));
    AddChangedVectors(t, result);
    return result;
  }

  Status Replay(int64_t layer, const QuantizedLayer&, const CancelToken& cancel) override {
    if (context_.IsLast(layer)) return {};
    NIBBLE_ASSIGN_OR_RETURN(const LayerTensors t, context_.ReadTensors(layer));
    NIBBLE_ASSIGN_OR_RETURN(const LayerWeights weights, PrepareLayer(context_.backend, t));
    return scaler_.Replay(layer, weights, cancel);
  }

 private:
  QuantizeContext context_;
  AwqScaler scaler_;
};

// GPTQ, on inputs that went through the layers and linears quantized before; with a scaler, on the
// layer as AWQ scaled it; with a runner that holds the unquantized model's activations on the first
// samples, towards that model's outputs.
class GptqQuantizer final : public LayerQuantizer {
 public:
  GptqQuantizer(const QuantizeContext& context, std::unique_ptr<CalibrationRunner> runner,
                std::unique_ptr<CalibrationRunner> unquantized, std::optional<AwqScaler> scaler)
      : context_(context),
        runner_(std::move(runner)),
        unquantized_(std::move(unquantized)),
        scaler_(std::move(scaler)) {}

  Result<QuantizedLayer> Quantize(int64_t layer, const LinearDone& done,
                                  const CancelToken& cancel) override {
    NIBBLE_ASSIGN_OR_RETURN(LayerTensors t, context_.ReadTensors(layer));
    LayerWeights unquantized;
    if (unquantized_) {
      NIBBLE_ASSIGN_OR_RETURN(unquantized, PrepareLayer(context_.backend, t));
    }
    if (scaler_) NIBBLE_RETURN_IF_ERROR(scaler_->Scale(layer, t, nullptr, cancel));
    QuantizedLayer result;
    NIBBLE_ASSIGN_OR_RETURN(LayerWeights weights, Norms(t));
    for (const Group& group : GroupsOf(t, weights)) {
      NIBBLE_RETURN_IF_ERROR(
          QuantizeGroup(group, layer, weights, unquantized, result, done, cancel));
      NIBBLE_RETURN_IF_ERROR(PrepareGroup(group, result));
    }
    AddChangedVectors(t, result);
    if (context_.IsLast(layer)) return result;
    NIBBLE_RETURN_IF_ERROR(runner_->LayerOutput(layer, weights, cancel));
    if (unquantized_) {
      NIBBLE_RETURN_IF_ERROR(unquantized_->LayerOutput(layer, unquantized, cancel));
    }
    return result;
  }

  Status Replay(int64_t layer, const QuantizedLayer& known, const CancelToken& cancel) override {
    if (context_.IsLast(layer)) return {};
    NIBBLE_ASSIGN_OR_RETURN(LayerTensors t, context_.ReadTensors(layer));
    if (scaler_ || unquantized_) {
      NIBBLE_ASSIGN_OR_RETURN(const LayerWeights unquantized, PrepareLayer(context_.backend, t));
      if (scaler_) NIBBLE_RETURN_IF_ERROR(scaler_->Replay(layer, unquantized, cancel));
      if (unquantized_) NIBBLE_RETURN_IF_ERROR(unquantized_->Layer(layer, unquantized, cancel));
    }
    for (const QuantizedLayer::Vector& vector : known.vectors) {
      for (NormTensor* norm : {&t.input_norm, &t.post_attention_norm}) {
        if (norm->name == vector.name) norm->gain = vector.values;
      }
      for (LinearTensor* linear : {&t.v, &t.up}) {
        if (linear->name.name + ".bias" == vector.name) linear->bias = vector.values;
      }
    }
    NIBBLE_ASSIGN_OR_RETURN(LayerWeights weights, Norms(t));
    for (const Group& group : GroupsOf(t, weights)) {
      NIBBLE_RETURN_IF_ERROR(PrepareGroup(group, known));
    }
    return runner_->Layer(layer, weights, cancel);
  }

 private:
  // Linears that share an input, in the order of the stages.
  struct Group {
    QuantizeContext::Stage input;
    Linears linears;
    Interleave interleave;
    std::unique_ptr<PreparedLinear>& prepared;
  };
  static std::vector<Group> GroupsOf(LayerTensors& t, LayerWeights& weights) {
    using Runner = CalibrationRunner;
    return {{&Runner::QkvInput, {&t.q, &t.k, &t.v}, Interleave::kNone, weights.qkv},
            {&Runner::OutputInput, {&t.output}, Interleave::kNone, weights.output},
            {&Runner::MlpInput, {&t.gate, &t.up}, Interleave::kGateUp, weights.gate_up},
            {&Runner::DownInput, {&t.down}, Interleave::kNone, weights.down}};
  }

  Result<LayerWeights> Norms(const LayerTensors& t) {
    LayerWeights weights;
    NIBBLE_ASSIGN_OR_RETURN(weights.input_norm, context_.backend.Upload(t.input_norm.gain));
    NIBBLE_ASSIGN_OR_RETURN(weights.post_attention_norm,
                            context_.backend.Upload(t.post_attention_norm.gain));
    return weights;
  }

  // Takes the tokens to the group's input and quantizes what the plan says of it. `unquantized`:
  // the layer for the unquantized stream.
  Status QuantizeGroup(const Group& group, int64_t layer, const LayerWeights& weights,
                       const LayerWeights& unquantized, QuantizedLayer& result,
                       const LinearDone& done, const CancelToken& cancel) {
    auto start = Clock::now();
    const LinearTensor& representative = *group.linears.front();
    const auto make_solver = [&](const InputStatistics& statistics) {
      return GptqSolver::Create(context_.ops, statistics, context_.plan.spec,
                                context_.options.gptq);
    };
    std::unique_ptr<InputDrift> drift;
    std::optional<Result<GptqSolver>> corrector;  // of the drift's samples, where they are not all
    QuantizeContext::Sink add_drift = QuantizeContext::Ignore;
    if (unquantized_) {
      std::vector<MatrixView> views;
      for (const LinearTensor* linear : group.linears) views.push_back(linear->view());
      NIBBLE_ASSIGN_OR_RETURN(drift, context_.ops.CreateDrift(views));
      add_drift = [&](const CalibrationRunner::Step& step, MatrixView x,
                      const InputStatistics& statistics) {
        const int64_t end = step.first + step.sequences, samples = unquantized_->samples();
        if (end > samples) return;
        context_.ops.AccumulateDrift((unquantized_.get()->*group.input)(step, layer, unquantized),
                                     representative.scales, x, *drift);
        if (representative.quantized && end == samples && samples < runner_->samples()) {
          corrector.emplace(make_solver(statistics));
        }
      };
    }
    NIBBLE_ASSIGN_OR_RETURN(
        const auto statistics,
        context_.Gather(*runner_, group.input, layer, weights, representative, add_drift, cancel));
    // The scales are part of the weights and of what feeds them now.
    for (LinearTensor* linear : group.linears) {
      std::fill(linear->scales.begin(), linear->scales.end(), 1.0f);
    }
    if (!representative.quantized) return {};
    const Result<GptqSolver> solver = make_solver(*statistics);
    for (const Result<GptqSolver>* made : {&solver, corrector ? &*corrector : &solver}) {
      if (!*made) return tl::unexpected<Error>(made->error().In(representative.name.name));
    }
    const GptqSolver& retarget = corrector ? **corrector : *solver;
    for (const LinearTensor* linear : group.linears) {
      MatrixView aim = linear->view();
      Matrix target;
      if (drift) {
        NIBBLE_ASSIGN_OR_RETURN(target, retarget.Retarget(aim, *drift));
        aim = target.view();
      }
      Result<QuantizedWeight> solved = solver->Solve(aim);
      if (!solved) return tl::unexpected<Error>(solved.error().In(linear->name.name));
      NIBBLE_RETURN_IF_ERROR(context_.Finish(*linear, aim, *std::move(solved), statistics.get(),
                                             {{"damping", solver->damping()}}, start, result,
                                             done));
      start = Clock::now();
    }
    return {};
  }

  // As quantized, or as it is where the plan leaves it.
  Status PrepareGroup(const Group& group, const QuantizedLayer& layer) {
    std::vector<Weight> weights;
    for (const LinearTensor* linear : group.linears) {
      const auto found = std::find_if(
          layer.linears.begin(), layer.linears.end(),
          [&](const QuantizedLayer::Linear& l) { return l.name == linear->name.name; });
      if (found == layer.linears.end()) {
        weights.emplace_back(DenseWeightOf(linear->view()));
      } else {
        weights.emplace_back(found->weight);
      }
    }
    NIBBLE_ASSIGN_OR_RETURN(group.prepared,
                            Prepare(context_.backend, group.interleave, group.linears, weights));
    return {};
  }

  QuantizeContext context_;
  std::unique_ptr<CalibrationRunner> runner_;
  std::unique_ptr<CalibrationRunner> unquantized_;  // null without a correction of drift
  std::optional<AwqScaler> scaler_;
};

}  // namespace

Result<std::unique_ptr<LayerQuantizer>> LayerQuantizer::Create(
    const Checkpoint& checkpoint, const ModelDescription& model, const QuantizationPlan& plan,
    QuantMethod method, const SolverOptions& options, const CalibrationSet* calibration,
    Backend& backend, QuantizeOps& ops, const ActivationStorage& storage) {
  const QuantizeContext context{checkpoint, model, plan, options, backend, ops};
  if (method == QuantMethod::kRtn) return std::make_unique<RtnQuantizer>(context);
  CHECK(calibration != nullptr);
  for (const int32_t token : calibration->tokens) {
    if (token < 0 || token >= model.config.vocabulary) {
      return BadInput("{}: calibration token {} is outside the vocabulary of {}", checkpoint.path(),
                      token, model.config.vocabulary);
    }
  }
  NIBBLE_ASSIGN_OR_RETURN(const std::unique_ptr<PreparedLinear> embedding,
                          LoadEmbedding(checkpoint, model, backend));
  const auto make_runner = [&](const CalibrationSet& set,
                               int64_t boundary = 0) -> Result<std::unique_ptr<CalibrationRunner>> {
    NIBBLE_ASSIGN_OR_RETURN(
        std::unique_ptr<CalibrationRunner> runner,
        CalibrationRunner::Create(model.config, set, backend, storage, boundary));
    runner->Embed(*embedding);
    return runner;
  };
  const int64_t drift_samples =
      method == QuantMethod::kAwq ? 0 : options.gptq.DriftSamples(calibration->samples);
  NIBBLE_ASSIGN_OR_RETURN(std::unique_ptr<CalibrationRunner> runner,
                          make_runner(*calibration, drift_samples));
  if (method == QuantMethod::kAwq)
    return std::make_unique<AwqQuantizer>(context, std::move(runner));
  std::unique_ptr<CalibrationRunner> unquantized;
  if (drift_samples > 0) {
    NIBBLE_ASSIGN_OR_RETURN(unquantized, make_runner(calibration->First(drift_samples)));
  }
  std::optional<AwqScaler> scaler;
  if (method == QuantMethod::kAwqGptq) {
    NIBBLE_ASSIGN_OR_RETURN(std::unique_ptr<CalibrationRunner> searched, make_runner(*calibration));
    scaler.emplace(context, std::move(searched));
  }
  return std::make_unique<GptqQuantizer>(context, std::move(runner), std::move(unquantized),
                                         std::move(scaler));
}

}  // namespace nibble

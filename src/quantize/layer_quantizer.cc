#include "src/quantize/layer_quantizer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <optional>
#include <utility>

#include "src/quantize/layer_tensors.h"

namespace nibble {
namespace {

using Clock = std::chrono::steady_clock;
using Linears = std::vector<LinearTensor*>;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// ‖W − Q‖² / ‖W‖²; 0 for an all-zero W.
double RelativeSquaredError(const LinearTensor& linear, const QuantizedWeight& quantized,
                            ThreadPool& pool) {
  // One sum for each row, added in order: the same figure whatever the number of threads.
  const auto rows = static_cast<size_t>(linear.name.out_features);
  std::vector<double> errors(rows), squares(rows);
  pool.ParallelFor(linear.name.out_features, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t n = begin; n < end; ++n) {
      const float* const row = linear.view().row<float>(n);
      double error = 0, square = 0;
      for (int64_t k = 0; k < linear.name.in_features; ++k) {
        const double d = row[k] - quantized.At(n, k);
        error += d * d;
        square += static_cast<double>(row[k]) * row[k];
      }
      errors[static_cast<size_t>(n)] = error;
      squares[static_cast<size_t>(n)] = square;
    }
  });
  double error = 0, square = 0;
  for (size_t n = 0; n < rows; ++n) {
    error += errors[n];
    square += squares[n];
  }
  return square == 0 ? 0 : error / square;
}

// values / scales, column by column.
std::vector<float> Unscaled(MatrixView values, std::span<const float> scales) {
  std::vector<float> out(static_cast<size_t>(values.rows * values.columns));
  for (int64_t n = 0; n < values.rows; ++n) {
    for (int64_t k = 0; k < values.columns; ++k) {
      out[static_cast<size_t>(n * values.columns + k)] =
          values.row<float>(n)[k] / scales[static_cast<size_t>(k)];
    }
  }
  return out;
}

std::vector<float> Dequantized(const QuantizedWeight& weight, ThreadPool& pool) {
  std::vector<float> out(static_cast<size_t>(weight.rows * weight.columns));
  pool.ParallelFor(weight.rows, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t n = begin; n < end; ++n) {
      for (int64_t k = 0; k < weight.columns; ++k) {
        out[static_cast<size_t>(n * weight.columns + k)] = weight.At(n, k);
      }
    }
  });
  return out;
}

MatrixView ViewLike(MatrixView shape, std::vector<float>& values) {
  return {values.data(), DType::kF32, shape.rows, shape.columns, shape.columns};
}

struct Tools {
  const Checkpoint& checkpoint;
  const ModelDescription& model;
  const QuantizationPlan& plan;
  const SolverOptions& options;
  Backend& backend;
  QuantizeOps& ops;
  ThreadPool& pool;

  GridOptions grid() const { return {.spec = plan.spec}; }

  // Adds to `layer` what became of a linear. With the statistics of its input the record tells the
  // error at its output, and that of rounding to nearest.
  Status Finish(const LinearTensor& linear, QuantizedWeight quantized,
                const InputStatistics* statistics, Json record, Clock::time_point start,
                QuantizedLayer& layer, const LinearDone& done) const {
    const double weight_error = RelativeSquaredError(linear, quantized, pool);
    Json entry = {{"name", linear.name.name}, {"error", weight_error}};
    if (statistics != nullptr) {
      // Against the input as the statistics saw it, before it was divided by the scales.
      std::vector<float> want = Unscaled(linear.view(), linear.scales);
      std::vector<float> values = Dequantized(quantized, pool);
      std::vector<float> got = Unscaled(ViewLike(linear.view(), values), linear.scales);
      const MatrixView reference = ViewLike(linear.view(), want);
      entry["error"] = ops.OutputError(reference, ViewLike(linear.view(), got), *statistics);
      const std::vector<float> ones(linear.scales.size(), 1.0f);
      ops.PseudoQuantize(reference, grid(), ones, ViewLike(linear.view(), got));
      entry["error_rtn"] = ops.OutputError(reference, ViewLike(linear.view(), got), *statistics);
    }
    entry["weight_error"] = weight_error;
    entry.update(record);
    entry["seconds"] = SecondsSince(start);
    done(linear.name.name, entry);
    layer.modules.push_back(std::move(entry));
    layer.linears.push_back({linear.name.name, std::move(quantized)});
    return {};
  }

  Result<std::unique_ptr<InputStatistics>> Statistics(const LinearTensor& linear) const {
    return ops.CreateStatistics(linear.name.in_features);
  }

  // kBadInput where an input of `linear` was not finite.
  Status CheckStatistics(const LinearTensor& linear, const InputStatistics& statistics) const {
    const std::vector<float> squares = ops.MeanSquares(statistics);
    for (size_t k = 0; k < squares.size(); ++k) {
      if (!std::isfinite(squares[k])) {
        return BadInput("{}: input {} of {} is not finite on the calibration tokens",
                        checkpoint.path(), k, linear.name.name);
      }
    }
    return {};
  }
};

// Round to nearest: no calibration.
class RtnQuantizer final : public LayerQuantizer {
 public:
  explicit RtnQuantizer(const Tools& tools) : tools_(tools) {}

  Result<QuantizedLayer> Quantize(int64_t layer, const LinearDone& done,
                                  const CancelToken& cancel) override {
    NIBBLE_ASSIGN_OR_RETURN(LayerTensors t, ReadLayerTensors(tools_.checkpoint, tools_.model,
                                                             tools_.plan, layer, tools_.pool));
    QuantizedLayer result;
    for (LinearTensor* linear : Linears{&t.q, &t.k, &t.v, &t.output, &t.gate, &t.up, &t.down}) {
      if (!linear->quantized) continue;
      NIBBLE_RETURN_IF_ERROR(cancel.Check());
      const auto start = Clock::now();
      Result<QuantizedWeight> quantized = tools_.ops.Round(linear->view(), tools_.grid(), nullptr);
      if (!quantized) return tl::unexpected<Error>(quantized.error().In(linear->name.name));
      NIBBLE_RETURN_IF_ERROR(tools_.Finish(*linear, *std::move(quantized), nullptr, Json::object(),
                                           start, result, done));
    }
    return result;
  }

  Status Replay(int64_t, const QuantizedLayer&, const CancelToken&) override { return {}; }

 private:
  Tools tools_;
};

// AWQ: finds the scales on the unquantized model and folds them in; the rounding is the caller's.
class AwqScaler {
 public:
  AwqScaler(const Tools& tools, std::unique_ptr<CalibrationRunner> runner)
      : tools_(tools), runner_(std::move(runner)) {}

  // Scales the layer and takes the calibration tokens through the unquantized one. `rounded`, where
  // given, is called for linears whose tensors are final, with the statistics of their input.
  using Rounded = std::function<Status(const Linears&, const InputStatistics&, const Json& record)>;
  Status Scale(int64_t layer, LayerTensors& t, const Rounded& rounded, const CancelToken& cancel) {
    NIBBLE_ASSIGN_OR_RETURN(LayerWeights weights,
                            LoadLayer(tools_.checkpoint, tools_.model, layer, tools_.backend));
    const auto gather = [&](const LinearTensor& linear,
                            auto stage) -> Result<std::unique_ptr<InputStatistics>> {
      NIBBLE_ASSIGN_OR_RETURN(std::unique_ptr<InputStatistics> statistics,
                              tools_.Statistics(linear));
      NIBBLE_RETURN_IF_ERROR((runner_.get()->*stage)(
          layer, weights, [&](MatrixView x) { tools_.ops.Accumulate(x, *statistics); }, cancel));
      NIBBLE_RETURN_IF_ERROR(tools_.CheckStatistics(linear, *statistics));
      return statistics;
    };

    // Attention: q, k, v by the block's output, o by its own.
    NIBBLE_ASSIGN_OR_RETURN(auto qkv_input, gather(t.q, &CalibrationRunner::QkvInput));
    Json qkv_record = Json::object(), output_record = Json::object();
    if (t.q.quantized) {
      const Linears linears = {&t.q, &t.k, &t.v};
      NIBBLE_ASSIGN_OR_RETURN(AwqSearch search,
                              SearchBlock(layer, weights, linears, *qkv_input, weights.qkv,
                                          Interleave::kNone, &CalibrationRunner::AttentionOutput));
      FoldIntoNorm(t.input_norm, search.scales);
      for (LinearTensor* linear : linears) ScaleColumns(*linear, search.scales);
      qkv_record = Record(search);
    }
    NIBBLE_ASSIGN_OR_RETURN(auto output_input, gather(t.output, &CalibrationRunner::OutputInput));
    if (t.output.quantized && t.v.quantized && t.output.name.in_features == t.v.name.out_features) {
      NIBBLE_ASSIGN_OR_RETURN(const AwqSearch search, SearchLinear(t.output, *output_input));
      DivideRows(t.v, search.scales);
      ScaleColumns(t.output, search.scales);
      output_record = Record(search);
    }
    if (rounded) {
      if (t.q.quantized) {
        NIBBLE_RETURN_IF_ERROR(rounded({&t.q, &t.k, &t.v}, *qkv_input, qkv_record));
      }
      qkv_input.reset();
      if (t.output.quantized) {
        NIBBLE_RETURN_IF_ERROR(rounded({&t.output}, *output_input, output_record));
      }
      output_input.reset();
    }

    // The MLP: gate and up by the block's output, down by its own.
    NIBBLE_ASSIGN_OR_RETURN(auto mlp_input, gather(t.gate, &CalibrationRunner::MlpInput));
    Json mlp_record = Json::object(), down_record = Json::object();
    if (t.gate.quantized) {
      const Linears linears = {&t.gate, &t.up};
      NIBBLE_ASSIGN_OR_RETURN(AwqSearch search,
                              SearchBlock(layer, weights, linears, *mlp_input, weights.gate_up,
                                          Interleave::kGateUp, &CalibrationRunner::MlpOutput));
      FoldIntoNorm(t.post_attention_norm, search.scales);
      for (LinearTensor* linear : linears) ScaleColumns(*linear, search.scales);
      mlp_record = Record(search);
    }
    NIBBLE_ASSIGN_OR_RETURN(auto down_input, gather(t.down, &CalibrationRunner::DownInput));
    if (t.down.quantized && t.up.quantized) {
      NIBBLE_ASSIGN_OR_RETURN(const AwqSearch search, SearchLinear(t.down, *down_input));
      DivideRows(t.up, search.scales);
      ScaleColumns(t.down, search.scales);
      down_record = Record(search);
    }
    if (rounded) {
      if (t.gate.quantized) {
        NIBBLE_RETURN_IF_ERROR(rounded({&t.gate, &t.up}, *mlp_input, mlp_record));
      }
      if (t.down.quantized) NIBBLE_RETURN_IF_ERROR(rounded({&t.down}, *down_input, down_record));
    }
    return runner_->LayerOutput(layer, weights, cancel);
  }

  Status Replay(int64_t layer, const CancelToken& cancel) {
    NIBBLE_ASSIGN_OR_RETURN(const LayerWeights weights,
                            LoadLayer(tools_.checkpoint, tools_.model, layer, tools_.backend));
    return runner_->Layer(layer, weights, cancel);
  }

 private:
  static Json Record(const AwqSearch& search) {
    return {{"awq",
             {{"form", Name(search.best.form)},
              {"ratio", search.best.ratio},
              {"loss", search.best.loss},
              {"rtn_loss", search.rtn_loss()}}}};
  }

  static std::vector<MatrixView> Views(const Linears& linears) {
    std::vector<MatrixView> views;
    for (const LinearTensor* linear : linears) views.push_back(linear->view());
    return views;
  }

  // By the output of the block that `linears` are part of, on the first calibration sequences.
  // `prepared` is where `weights` holds these linears.
  Result<AwqSearch> SearchBlock(int64_t layer, const LayerWeights& weights, const Linears& linears,
                                const InputStatistics& statistics,
                                std::unique_ptr<PreparedLinear>& prepared, Interleave interleave,
                                void (CalibrationRunner::*block)(int64_t, const LayerWeights&,
                                                                 int64_t, MatrixView)) {
    const int64_t sequences = std::clamp<int64_t>(
        tools_.options.awq.search_tokens / runner_->sequence_length(), 1, runner_->samples());
    const int64_t rows = sequences * runner_->sequence_length();
    const int64_t hidden = tools_.model.config.hidden;
    const auto allocate = [&] {
      return tools_.backend.Allocate(MemoryClass::kWorkspace, tools_.backend.activation_type(),
                                     rows, hidden);
    };
    NIBBLE_ASSIGN_OR_RETURN(const Matrix want, allocate());
    NIBBLE_ASSIGN_OR_RETURN(const Matrix got, allocate());
    (runner_.get()->*block)(layer, weights, sequences, want.view());
    const auto loss = [&](std::span<const MatrixView> trial) -> Result<double> {
      std::vector<Weight> trial_weights;
      for (const MatrixView& view : trial) {
        trial_weights.emplace_back(DenseWeight{.dtype = DType::kF32,
                                               .rows = view.rows,
                                               .columns = view.columns,
                                               .data = static_cast<const std::byte*>(view.data)});
      }
      std::vector<LinearSource> sources;
      for (size_t i = 0; i < linears.size(); ++i) {
        sources.push_back({&trial_weights[i], linears[i]->bias});
      }
      NIBBLE_ASSIGN_OR_RETURN(std::unique_ptr<PreparedLinear> tried,
                              tools_.backend.Prepare(sources, interleave));
      std::swap(prepared, tried);
      (runner_.get()->*block)(layer, weights, sequences, got.view());
      std::swap(prepared, tried);
      NIBBLE_ASSIGN_OR_RETURN(const MatrixView a, tools_.backend.ToHost(want.view()));
      NIBBLE_ASSIGN_OR_RETURN(const MatrixView b, tools_.backend.ToHost(got.view()));
      double sum = 0;
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t k = 0; k < hidden; ++k) {
          const double d = a.row<float>(r)[k] - b.row<float>(r)[k];
          sum += d * d;
        }
      }
      return sum / static_cast<double>(rows * hidden);
    };
    Result<AwqSearch> search =
        SearchAwqScales(tools_.ops, Views(linears), tools_.ops.MeanMagnitudes(statistics),
                        tools_.grid(), tools_.options.awq.forms, loss);
    if (!search) return tl::unexpected<Error>(search.error().In(linears[0]->name.name));
    return search;
  }

  Result<AwqSearch> SearchLinear(const LinearTensor& linear, const InputStatistics& statistics) {
    const MatrixView views[] = {linear.view()};
    Result<AwqSearch> search = SearchAwqScales(
        tools_.ops, views, tools_.ops.MeanMagnitudes(statistics), tools_.grid(),
        tools_.options.awq.forms, [&](std::span<const MatrixView> trial) -> Result<double> {
          return tools_.ops.OutputError(views[0], trial[0], statistics);
        });
    if (!search) return tl::unexpected<Error>(search.error().In(linear.name.name));
    return search;
  }

  Tools tools_;
  std::unique_ptr<CalibrationRunner> runner_;
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
  AwqQuantizer(const Tools& tools, std::unique_ptr<CalibrationRunner> runner)
      : tools_(tools), scaler_(tools, std::move(runner)) {}

  Result<QuantizedLayer> Quantize(int64_t layer, const LinearDone& done,
                                  const CancelToken& cancel) override {
    NIBBLE_ASSIGN_OR_RETURN(LayerTensors t, ReadLayerTensors(tools_.checkpoint, tools_.model,
                                                             tools_.plan, layer, tools_.pool));
    QuantizedLayer result;
    auto start = Clock::now();
    NIBBLE_RETURN_IF_ERROR(scaler_.Scale(
        layer, t,
        [&](const Linears& linears, const InputStatistics& statistics,
            const Json& record) -> Status {
          for (LinearTensor* linear : linears) {
            std::vector<float> clipped = linear->weight;
            const MatrixView view = ViewLike(linear->view(), clipped);
            // Queries and keys meet in a product whose error their own outputs do not show.
            if (linear != &t.q && linear != &t.k) {
              tools_.ops.Clip(view, tools_.grid(), linear->scales, statistics);
            }
            Result<QuantizedWeight> quantized = tools_.ops.Round(view, tools_.grid(), nullptr);
            if (!quantized) return tl::unexpected<Error>(quantized.error().In(linear->name.name));
            NIBBLE_RETURN_IF_ERROR(tools_.Finish(*linear, *std::move(quantized), &statistics,
                                                 record, start, result, done));
            start = Clock::now();
          }
          return {};
        },
        cancel));
    AddChangedVectors(t, result);
    return result;
  }

  Status Replay(int64_t layer, const QuantizedLayer&, const CancelToken& cancel) override {
    return scaler_.Replay(layer, cancel);
  }

 private:
  Tools tools_;
  AwqScaler scaler_;
};

// GPTQ, on inputs that went through the layers and linears quantized before; with a scaler, on the
// layer as AWQ scaled it.
class GptqQuantizer final : public LayerQuantizer {
 public:
  GptqQuantizer(const Tools& tools, std::unique_ptr<CalibrationRunner> runner,
                std::optional<AwqScaler> scaler)
      : tools_(tools), runner_(std::move(runner)), scaler_(std::move(scaler)) {}

  Result<QuantizedLayer> Quantize(int64_t layer, const LinearDone& done,
                                  const CancelToken& cancel) override {
    NIBBLE_ASSIGN_OR_RETURN(LayerTensors t, ReadLayerTensors(tools_.checkpoint, tools_.model,
                                                             tools_.plan, layer, tools_.pool));
    if (scaler_) NIBBLE_RETURN_IF_ERROR(scaler_->Scale(layer, t, nullptr, cancel));
    // The scales are part of the weights and of what feeds them now.
    for (LinearTensor* linear : Linears{&t.q, &t.k, &t.v, &t.output, &t.gate, &t.up, &t.down}) {
      std::fill(linear->scales.begin(), linear->scales.end(), 1.0f);
    }
    QuantizedLayer result;
    LayerWeights weights;
    NIBBLE_ASSIGN_OR_RETURN(weights.input_norm, tools_.backend.Upload(t.input_norm.gain));
    NIBBLE_ASSIGN_OR_RETURN(weights.post_attention_norm,
                            tools_.backend.Upload(t.post_attention_norm.gain));
    const auto solve = [&](auto stage, const Linears& linears, Interleave interleave,
                           std::unique_ptr<PreparedLinear>& prepared) -> Status {
      auto start = Clock::now();
      NIBBLE_ASSIGN_OR_RETURN(const auto statistics, tools_.Statistics(*linears[0]));
      NIBBLE_RETURN_IF_ERROR((runner_.get()->*stage)(
          layer, weights, [&](MatrixView x) { tools_.ops.Accumulate(x, *statistics); }, cancel));
      NIBBLE_RETURN_IF_ERROR(tools_.CheckStatistics(*linears[0], *statistics));
      std::vector<const QuantizedWeight*> quantized;
      if (linears[0]->quantized) {
        const size_t first = result.linears.size();
        Result<GptqSolver> solver =
            GptqSolver::Create(tools_.ops, *statistics, tools_.plan.spec, tools_.options.gptq);
        if (!solver) return tl::unexpected<Error>(solver.error().In(linears[0]->name.name));
        for (const LinearTensor* linear : linears) {
          Result<QuantizedWeight> solved = solver->Solve(linear->view());
          if (!solved) return tl::unexpected<Error>(solved.error().In(linear->name.name));
          NIBBLE_RETURN_IF_ERROR(tools_.Finish(*linear, *std::move(solved), statistics.get(),
                                               {{"damping", solver->damping()}}, start, result,
                                               done));
          start = Clock::now();
        }
        for (size_t i = first; i < result.linears.size(); ++i) {
          quantized.push_back(&result.linears[i].weight);
        }
      }
      NIBBLE_ASSIGN_OR_RETURN(
          prepared,
          Prepare(tools_.backend, interleave,
                  std::vector<const LinearTensor*>(linears.begin(), linears.end()), quantized));
      return {};
    };
    NIBBLE_RETURN_IF_ERROR(
        solve(&CalibrationRunner::QkvInput, {&t.q, &t.k, &t.v}, Interleave::kNone, weights.qkv));
    NIBBLE_RETURN_IF_ERROR(
        solve(&CalibrationRunner::OutputInput, {&t.output}, Interleave::kNone, weights.output));
    NIBBLE_RETURN_IF_ERROR(solve(&CalibrationRunner::MlpInput, {&t.gate, &t.up},
                                 Interleave::kGateUp, weights.gate_up));
    NIBBLE_RETURN_IF_ERROR(
        solve(&CalibrationRunner::DownInput, {&t.down}, Interleave::kNone, weights.down));
    NIBBLE_RETURN_IF_ERROR(runner_->LayerOutput(layer, weights, cancel));
    AddChangedVectors(t, result);
    return result;
  }

  Status Replay(int64_t layer, const QuantizedLayer& known, const CancelToken& cancel) override {
    NIBBLE_ASSIGN_OR_RETURN(LayerTensors t, ReadLayerTensors(tools_.checkpoint, tools_.model,
                                                             tools_.plan, layer, tools_.pool));
    for (const QuantizedLayer::Vector& vector : known.vectors) {
      for (NormTensor* norm : {&t.input_norm, &t.post_attention_norm}) {
        if (norm->name == vector.name) norm->gain = vector.values;
      }
      for (LinearTensor* linear : {&t.v, &t.up}) {
        if (linear->name.name + ".bias" == vector.name) linear->bias = vector.values;
      }
    }
    const auto prepare = [&](const Linears& linears, Interleave interleave,
                             std::unique_ptr<PreparedLinear>& prepared) -> Status {
      std::vector<const QuantizedWeight*> quantized;
      for (const LinearTensor* linear : linears) {
        for (const QuantizedLayer::Linear& l : known.linears) {
          if (l.name == linear->name.name) quantized.push_back(&l.weight);
        }
      }
      NIBBLE_ASSIGN_OR_RETURN(
          prepared,
          Prepare(tools_.backend, interleave,
                  std::vector<const LinearTensor*>(linears.begin(), linears.end()), quantized));
      return {};
    };
    LayerWeights weights;
    NIBBLE_ASSIGN_OR_RETURN(weights.input_norm, tools_.backend.Upload(t.input_norm.gain));
    NIBBLE_ASSIGN_OR_RETURN(weights.post_attention_norm,
                            tools_.backend.Upload(t.post_attention_norm.gain));
    NIBBLE_RETURN_IF_ERROR(prepare({&t.q, &t.k, &t.v}, Interleave::kNone, weights.qkv));
    NIBBLE_RETURN_IF_ERROR(prepare({&t.output}, Interleave::kNone, weights.output));
    NIBBLE_RETURN_IF_ERROR(prepare({&t.gate, &t.up}, Interleave::kGateUp, weights.gate_up));
    NIBBLE_RETURN_IF_ERROR(prepare({&t.down}, Interleave::kNone, weights.down));
    if (scaler_) NIBBLE_RETURN_IF_ERROR(scaler_->Replay(layer, cancel));
    return runner_->Layer(layer, weights, cancel);
  }

 private:
  Tools tools_;
  std::unique_ptr<CalibrationRunner> runner_;
  std::optional<AwqScaler> scaler_;
};

}  // namespace

Result<std::unique_ptr<LayerQuantizer>> LayerQuantizer::Create(
    const Checkpoint& checkpoint, const ModelDescription& model, const QuantizationPlan& plan,
    QuantMethod method, const SolverOptions& options, const CalibrationSet* calibration,
    Backend& backend, QuantizeOps& ops, ThreadPool& pool, const ActivationStorage& storage) {
  const Tools tools{checkpoint, model, plan, options, backend, ops, pool};
  if (method == QuantMethod::kRtn) return std::make_unique<RtnQuantizer>(tools);
  CHECK(calibration != nullptr);
  for (const int32_t token : calibration->tokens) {
    if (token < 0 || token >= model.config.vocabulary) {
      return BadInput("{}: calibration token {} is outside the vocabulary of {}", checkpoint.path(),
                      token, model.config.vocabulary);
    }
  }
  NIBBLE_ASSIGN_OR_RETURN(const std::unique_ptr<PreparedLinear> embedding,
                          LoadEmbedding(checkpoint, model, backend));
  const auto make_runner = [&]() -> Result<std::unique_ptr<CalibrationRunner>> {
    NIBBLE_ASSIGN_OR_RETURN(
        std::unique_ptr<CalibrationRunner> runner,
        CalibrationRunner::Create(model.config, *calibration, backend, storage));
    runner->Embed(*embedding);
    return runner;
  };
  NIBBLE_ASSIGN_OR_RETURN(std::unique_ptr<CalibrationRunner> runner, make_runner());
  if (method == QuantMethod::kAwq) return std::make_unique<AwqQuantizer>(tools, std::move(runner));
  std::optional<AwqScaler> scaler;
  if (method == QuantMethod::kAwqGptq) {
    NIBBLE_ASSIGN_OR_RETURN(std::unique_ptr<CalibrationRunner> unquantized, make_runner());
    scaler.emplace(tools, std::move(unquantized));
  }
  return std::make_unique<GptqQuantizer>(tools, std::move(runner), std::move(scaler));
}

}  // namespace nibble

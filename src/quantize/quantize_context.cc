#include "src/quantize/quantize_context.h"

#include <algorithm>
#include <cmath>

namespace nibble {

Result<std::unique_ptr<InputStatistics>> QuantizeContext::Gather(
    CalibrationRunner& runner, Stage stage, int64_t layer, const LayerWeights& weights,
    const LinearTensor& linear, const Sink& sink, const CancelToken& cancel) const {
  NIBBLE_ASSIGN_OR_RETURN(std::unique_ptr<InputStatistics> statistics,
                          ops.CreateStatistics(linear.name.in_features));
  for (const CalibrationRunner::Step& step : runner.Steps()) {
    NIBBLE_RETURN_IF_ERROR(cancel.Check());
    const MatrixView x = (runner.*stage)(step, layer, weights);
    ops.Accumulate(x, *statistics);
    sink(step, x, *statistics);
  }
  const std::vector<float> squares = ops.MeanSquares(*statistics);
  for (size_t k = 0; k < squares.size(); ++k) {
    if (!std::isfinite(squares[k])) {
      return BadInput("{}: input {} of {} is not finite on the calibration tokens",
                      checkpoint.path(), k, linear.name.name);
    }
  }
  return statistics;
}

Status QuantizeContext::Finish(const LinearTensor& linear, MatrixView aim,
                               QuantizedWeight quantized, const InputStatistics* statistics,
                               const Json& more, std::chrono::steady_clock::time_point start,
                               QuantizedLayer& layer, const LinearDone& done) const {
  const MatrixView weight = linear.view();
  NIBBLE_ASSIGN_OR_RETURN(const Matrix values, MatrixLike(weight));
  const MatrixView other = values.view();
  ops.Dequantize(quantized, other);
  const double squares = ops.SumOfSquares(weight);
  const double weight_error = squares == 0 ? 0 : ops.SquaredDifference(weight, other) / squares;
  Json entry = {{"name", linear.name.name}, {"error", weight_error}};
  if (statistics != nullptr) {
    MatrixView reference = aim;
    Matrix unscaled;
    if (std::ranges::any_of(linear.scales, [](float scale) { return scale != 1; })) {
      // Against the input as the statistics saw it, before it was divided by the scales.
      const std::vector<float> divisors = Reciprocals(linear.scales);
      NIBBLE_ASSIGN_OR_RETURN(unscaled, MatrixLike(aim));
      reference = unscaled.view();
      ops.Scale(aim, {}, divisors, reference);
      ops.Scale(other, {}, divisors, other);
    }
    entry["error"] = ops.OutputError(reference, other, *statistics);
    const std::vector<float> ones(linear.scales.size(), 1.0f);
    ops.PseudoQuantize(reference, grid(), ones, other);
    entry["error_rtn"] = ops.OutputError(reference, other, *statistics);
  }
  entry["weight_error"] = weight_error;
  entry.update(more);
  entry["seconds"] =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  done(linear.name.name, entry);
  layer.modules.push_back(std::move(entry));
  layer.linears.push_back({linear.name.name, std::move(quantized)});
  return {};
}

}  // namespace nibble

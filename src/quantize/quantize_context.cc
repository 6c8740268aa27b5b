#include "src/quantize/quantize_context.h"

#include <cmath>
#include <numeric>

namespace nibble {
namespace {

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

// ‖W − Q‖² / ‖W‖²; 0 for an all-zero W.
double RelativeSquaredError(MatrixView weight, MatrixView quantized, ThreadPool& pool) {
  // One sum for each row, added in order: the same figure whatever the number of threads.
  std::vector<double> errors(static_cast<size_t>(weight.rows)), squares(errors.size());
  pool.ParallelFor(weight.rows, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t n = begin; n < end; ++n) {
      double error = 0, square = 0;
      for (int64_t k = 0; k < weight.columns; ++k) {
        const double w = weight.row<float>(n)[k], d = w - quantized.row<float>(n)[k];
        error += d * d;
        square += w * w;
      }
      errors[static_cast<size_t>(n)] = error;
      squares[static_cast<size_t>(n)] = square;
    }
  });
  const double error = std::accumulate(errors.begin(), errors.end(), 0.0);
  const double square = std::accumulate(squares.begin(), squares.end(), 0.0);
  return square == 0 ? 0 : error / square;
}

}  // namespace

Result<std::unique_ptr<InputStatistics>> QuantizeContext::Gather(
    CalibrationRunner& runner, Stage stage, int64_t layer, const LayerWeights& weights,
    const LinearTensor& linear, const CalibrationRunner::Sink& sink,
    const CancelToken& cancel) const {
  NIBBLE_ASSIGN_OR_RETURN(std::unique_ptr<InputStatistics> statistics,
                          ops.CreateStatistics(linear.name.in_features));
  NIBBLE_RETURN_IF_ERROR((runner.*stage)(
      layer, weights,
      [&](MatrixView x) {
        ops.Accumulate(x, *statistics);
        sink(x);
      },
      cancel));
  const std::vector<float> squares = ops.MeanSquares(*statistics);
  for (size_t k = 0; k < squares.size(); ++k) {
    if (!std::isfinite(squares[k])) {
      return BadInput("{}: input {} of {} is not finite on the calibration tokens",
                      checkpoint.path(), k, linear.name.name);
    }
  }
  return statistics;
}

void QuantizeContext::Finish(const LinearTensor& linear, MatrixView aim, QuantizedWeight quantized,
                             const InputStatistics* statistics, const Json& more,
                             std::chrono::steady_clock::time_point start, QuantizedLayer& layer,
                             const LinearDone& done) const {
  const MatrixView weight = linear.view();
  std::vector<float> values = Dequantized(quantized, pool);
  const double weight_error = RelativeSquaredError(weight, ViewLike(weight, values), pool);
  Json entry = {{"name", linear.name.name}, {"error", weight_error}};
  if (statistics != nullptr) {
    // Against the input as the statistics saw it, before it was divided by the scales.
    std::vector<float> want = Unscaled(aim, linear.scales);
    std::vector<float> got = Unscaled(ViewLike(weight, values), linear.scales);
    const MatrixView reference = ViewLike(weight, want), other = ViewLike(weight, got);
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
}

}  // namespace nibble

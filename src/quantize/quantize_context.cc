#include "src/quantize/quantize_context.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "src/format/grid.h"

namespace nibble {
namespace {

// values / scales, column by column.
void Unscale(std::vector<float>& values, std::span<const float> scales, ThreadPool& pool) {
  const auto columns = static_cast<int64_t>(scales.size());
  pool.ParallelFor(static_cast<int64_t>(values.size()) / columns, 16,
                   [&](int64_t begin, int64_t end, int) {
                     for (int64_t n = begin; n < end; ++n) {
                       float* const row = &values[static_cast<size_t>(n * columns)];
                       for (size_t k = 0; k < scales.size(); ++k) row[k] /= scales[k];
                     }
                   });
}

std::vector<float> Dequantized(const QuantizedWeight& weight, ThreadPool& pool) {
  std::vector<float> out(static_cast<size_t>(weight.rows * weight.columns));
  const int64_t length = weight.group_length();
  pool.ParallelFor(weight.rows, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t n = begin; n < end; ++n) {
      float* const row = &out[static_cast<size_t>(n * weight.columns)];
      for (int64_t g = 0; g < weight.groups(); ++g) {
        const auto at = static_cast<size_t>(n * weight.groups() + g);
        const GroupGrid grid{FloatFromF16(weight.scales[at]), weight.zeros[at]};
        for (int64_t k = g * length; k < (g + 1) * length; ++k) {
          row[k] = grid.Value(weight.Code(n, k));
        }
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
    MatrixView reference = aim;
    const MatrixView other = ViewLike(weight, values);
    std::vector<float> want;
    if (std::ranges::any_of(linear.scales, [](float scale) { return scale != 1; })) {
      // Against the input as the statistics saw it, before it was divided by the scales.
      CHECK(aim.stride == aim.columns);
      want.assign(aim.row<float>(0), aim.row<float>(aim.rows));
      reference = ViewLike(aim, want);
      Unscale(want, linear.scales, pool);
      Unscale(values, linear.scales, pool);
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
}

}  // namespace nibble

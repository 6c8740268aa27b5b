#include "src/quantize/rtn.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <mutex>
#include <optional>
#include <vector>

namespace nibble {
namespace {

constexpr int64_t kRowsPerTask = 16;

void LoadRow(const DenseWeight& weight, int64_t row, std::vector<float>& out) {
  out.resize(static_cast<size_t>(weight.columns));
  for (int64_t k = 0; k < weight.columns; ++k) out[static_cast<size_t>(k)] = weight.At(row, k);
}

}  // namespace

Result<QuantizedWeight> RoundToNearest(const DenseWeight& weight, const QuantSpec& spec,
                                       std::string_view name, ThreadPool& pool) {
  QuantizedWeight quantized = QuantizedWeight::Empty(spec, weight.rows, weight.columns);
  const int64_t length = quantized.group_length();
  const int64_t groups = quantized.groups();
  std::mutex mutex;
  std::optional<Error> failure;
  pool.ParallelFor(weight.rows, kRowsPerTask, [&](int64_t begin, int64_t end, int) {
    std::vector<float> row;
    const auto fail = [&](Error error) {
      const std::lock_guard lock(mutex);
      if (!failure) failure = std::move(error);
    };
    for (int64_t n = begin; n < end; ++n) {
      LoadRow(weight, n, row);
      if (!std::all_of(row.begin(), row.end(), [](float v) { return std::isfinite(v); })) {
        return fail(Error(ErrorCode::kBadInput, fmt::format("row {} is not finite", n)));
      }
      for (int64_t g = 0; g < groups; ++g) {
        const std::span<const float> values(row.data() + g * length, static_cast<size_t>(length));
        const Result<GroupGrid> grid = FindGrid(values, spec.grid);
        if (!grid) return fail(grid.error().In(fmt::format("row {}, group {}", n, g)));
        const auto at = static_cast<size_t>(n * groups + g);
        quantized.scales[at] = F16FromFloat(grid->scale);
        quantized.zeros[at] = static_cast<uint8_t>(grid->zero);
        for (int64_t i = 0; i < length; ++i) {
          quantized.SetCode(n, g * length + i, grid->Code(values[static_cast<size_t>(i)]));
        }
      }
    }
  });
  if (failure) return tl::unexpected<Error>(failure->In(name));
  return quantized;
}

double RelativeSquaredError(const DenseWeight& weight, const QuantizedWeight& quantized,
                            ThreadPool& pool) {
  // One sum for each row, added in order: the same figure whatever the number of threads.
  std::vector<double> errors(static_cast<size_t>(weight.rows));
  std::vector<double> squares(static_cast<size_t>(weight.rows));
  pool.ParallelFor(weight.rows, kRowsPerTask, [&](int64_t begin, int64_t end, int) {
    std::vector<float> row;
    for (int64_t n = begin; n < end; ++n) {
      LoadRow(weight, n, row);
      double error = 0, square = 0;
      for (int64_t k = 0; k < weight.columns; ++k) {
        const double w = row[static_cast<size_t>(k)];
        const double d = w - quantized.At(n, k);
        error += d * d;
        square += w * w;
      }
      errors[static_cast<size_t>(n)] = error;
      squares[static_cast<size_t>(n)] = square;
    }
  });
  double error = 0, square = 0;
  for (size_t n = 0; n < errors.size(); ++n) {
    error += errors[n];
    square += squares[n];
  }
  return square == 0 ? 0 : error / square;
}

}  // namespace nibble

#include "src/ops/ref/ref_quantize.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "src/ops/host_quantize.h"
#include "src/tensor/host_floats.h"

namespace nibble {
namespace {

class RefStatistics final : public InputStatistics {
 public:
  explicit RefStatistics(int64_t columns)
      : InputStatistics(columns),
        gram(static_cast<size_t>(columns * columns)),
        magnitudes(static_cast<size_t>(columns)) {}

  void AddTokens(int64_t tokens) { tokens_ += tokens; }
  // The mean over tokens of x_i · x_j.
  double Mean(int64_t i, int64_t j) const {
    return gram[static_cast<size_t>(i * columns_ + j)] /
           static_cast<double>(std::max<int64_t>(1, tokens_));
  }

  std::vector<double> gram;  // [columns, columns]
  std::vector<double> magnitudes;
};

class RefDrift final : public InputDrift {
 public:
  explicit RefDrift(int64_t columns)
      : InputDrift(columns), sums(static_cast<size_t>(columns * columns)) {}

  void AddTokens(int64_t tokens) { tokens_ += tokens; }
  // The mean over tokens of (x̃ - x)_i · x_j.
  double Mean(int64_t i, int64_t j) const {
    return sums[static_cast<size_t>(i * columns_ + j)] /
           static_cast<double>(std::max<int64_t>(1, tokens_));
  }

  std::vector<double> sums;  // [columns, columns]
};

const RefStatistics& Ref(const InputStatistics& statistics) {
  return static_cast<const RefStatistics&>(statistics);
}

using Values = std::vector<double>;

GroupGrid GridOfShare(const Values& values, double share, const GridOptions& options) {
  double low = 0, high = 0;
  for (const double v : values) {
    low = std::min(low, v);
    high = std::max(high, v);
  }
  return GridOfRange(static_cast<float>(share) * static_cast<float>(low),
                     static_cast<float>(share) * static_cast<float>(high), options.spec.grid,
                     options.rounding);
}

// `importance`: of each value, for kHessian.
GroupGrid FindGroupGrid(const Values& values, const GridOptions& options,
                        const Values& importance) {
  GroupGrid best = GridOfShare(values, 1, options);
  if (options.search == ScaleSearch::kNone) return best;
  double least = std::numeric_limits<double>::infinity();
  for (int i = 0; i < 80; ++i) {
    const GroupGrid grid = GridOfShare(values, 1 - static_cast<float>(i) / 100, options);
    double loss = 0;
    for (size_t k = 0; k < values.size(); ++k) {
      const double error =
          std::abs(values[k] - grid.Value(grid.Code(static_cast<float>(values[k]))));
      loss += options.search == ScaleSearch::kMse ? std::pow(error, 2.4)
                                                  : importance[k] * error * error;
    }
    if (loss < least) {
      least = loss;
      best = grid;
    }
  }
  return best;
}

class RefQuantizeOps final : public HostQuantizeOps {
 public:
  using HostQuantizeOps::HostQuantizeOps;

  Result<std::unique_ptr<InputStatistics>> CreateStatistics(int64_t columns) override {
    return std::make_unique<RefStatistics>(columns);
  }

  void Accumulate(MatrixView x, InputStatistics& statistics) override {
    auto& s = static_cast<RefStatistics&>(statistics);
    for (int64_t r = 0; r < x.rows; ++r) {
      const std::vector<float> values = FloatsOf(x.Rows(r, 1));
      const float* const row = values.data();
      for (int64_t i = 0; i < s.columns(); ++i) {
        s.magnitudes[static_cast<size_t>(i)] += std::abs(row[i]);
        for (int64_t j = 0; j < s.columns(); ++j) {
          s.gram[static_cast<size_t>(i * s.columns() + j)] += static_cast<double>(row[i]) * row[j];
        }
      }
    }
    s.AddTokens(x.rows);
  }

  std::vector<float> MeanSquares(const InputStatistics& statistics) override {
    std::vector<float> means;
    for (int64_t k = 0; k < statistics.columns(); ++k) {
      means.push_back(static_cast<float>(Ref(statistics).Mean(k, k)));
    }
    return means;
  }

  std::vector<float> MeanMagnitudes(const InputStatistics& statistics) override {
    std::vector<float> means;
    for (const double sum : Ref(statistics).magnitudes) {
      means.push_back(
          static_cast<float>(sum / static_cast<double>(std::max<int64_t>(1, statistics.tokens()))));
    }
    return means;
  }

  Result<std::unique_ptr<InputDrift>> CreateDrift(std::span<const MatrixView> weights) override {
    return std::make_unique<RefDrift>(weights.front().columns);
  }

  void AccumulateDrift(MatrixView unquantized, std::span<const float> scales, MatrixView x,
                       InputDrift& drift) override {
    auto& d = static_cast<RefDrift&>(drift);
    const int64_t n = d.columns();
    for (int64_t r = 0; r < x.rows; ++r) {
      const std::vector<float> values = FloatsOf(x.Rows(r, 1));
      const float* const row = values.data();
      for (int64_t i = 0; i < n; ++i) {
        const double difference =
            static_cast<double>(FloatAt(unquantized, r, i)) / scales[static_cast<size_t>(i)] -
            row[i];
        for (int64_t j = 0; j < n; ++j) {
          d.sums[static_cast<size_t>(i * n + j)] += difference * row[j];
        }
      }
    }
    d.AddTokens(x.rows);
  }

  Result<Matrix> Factorize(const InputStatistics& statistics, std::span<const int32_t> order,
                           double damping) override {
    const RefStatistics& s = Ref(statistics);
    const int64_t n = s.columns();
    const auto at = [n](Values& m, int64_t i, int64_t j) -> double& {
      return m[static_cast<size_t>(i * n + j)];
    };
    Values h(static_cast<size_t>(n * n));
    double trace = 0;
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < n; ++j) {
        at(h, i, j) = 2 * s.Mean(order[static_cast<size_t>(i)], order[static_cast<size_t>(j)]);
      }
      if (at(h, i, i) == 0) at(h, i, i) = 1;
      trace += at(h, i, i);
    }
    for (int64_t i = 0; i < n; ++i) at(h, i, i) += damping * trace / static_cast<double>(n);
    Values inverse, upper;
    if (!Invert(h, n, inverse) || !UpperCholesky(inverse, n, upper)) {
      return BadInput("the Hessian is not positive definite");
    }
    return MatrixOf(upper, n, n);
  }

  Result<Matrix> Retarget(MatrixView weight, const InputDrift& drift, const Matrix& factor,
                          std::span<const int32_t> order, double share) override {
    const auto& d = static_cast<const RefDrift&>(drift);
    const int64_t n = weight.columns;
    Values target(static_cast<size_t>(weight.rows * n));
    for (int64_t r = 0; r < weight.rows; ++r) {
      // weight · D in sweep order, then · Uᵀ, then · U.
      Values product(static_cast<size_t>(n)), turned(product);
      for (int64_t j = 0; j < n; ++j) {
        for (int64_t k = 0; k < n; ++k) {
          product[static_cast<size_t>(j)] +=
              2 * share * weight.row<float>(r)[k] * d.Mean(k, order[static_cast<size_t>(j)]);
        }
      }
      for (int64_t i = 0; i < n; ++i) {
        for (int64_t j = i; j < n; ++j) {
          turned[static_cast<size_t>(i)] +=
              product[static_cast<size_t>(j)] * factor.view().row<float>(i)[j];
        }
      }
      for (int64_t j = 0; j < n; ++j) {
        const int64_t k = order[static_cast<size_t>(j)];
        double& value = target[static_cast<size_t>(r * n + k)];
        value = weight.row<float>(r)[k];
        for (int64_t i = 0; i <= j; ++i) {
          value += turned[static_cast<size_t>(i)] * factor.view().row<float>(i)[j];
        }
      }
    }
    return MatrixOf(target, weight.rows, n);
  }

  Result<QuantizedWeight> Sweep(MatrixView weight, const InputStatistics& statistics,
                                const Matrix& factor, const SweepOptions& options) override {
    const RefStatistics& s = Ref(statistics);
    const QuantSpec& spec = options.grid.spec;
    QuantizedWeight quantized = QuantizedWeight::Empty(spec, weight.rows, weight.columns);
    const int64_t n = weight.columns, length = quantized.group_length();
    const bool fixed = options.grid_time == GridTime::kStatic || length > 128;
    for (int64_t r = 0; r < weight.rows; ++r) {
      Values row;  // in the order of the columns, updated as the sweep goes
      for (int64_t k = 0; k < n; ++k) row.push_back(weight.row<float>(r)[k]);
      std::vector<GroupGrid> grids(static_cast<size_t>(quantized.groups()));
      const auto find = [&](int64_t group) {
        Values values, importance;
        for (int64_t k = group * length; k < (group + 1) * length; ++k) {
          const bool dead = !fixed && s.Mean(k, k) == 0;
          values.push_back(dead ? 0 : row[static_cast<size_t>(k)]);
          importance.push_back(s.Mean(k, k));
        }
        grids[static_cast<size_t>(group)] = FindGroupGrid(values, options.grid, importance);
      };
      for (int64_t g = 0; fixed && g < quantized.groups(); ++g) find(g);
      for (int64_t i = 0; i < n; ++i) {
        const int64_t k = options.order[static_cast<size_t>(i)];
        if (!fixed && i % length == 0) find(k / length);
        const GroupGrid& grid = grids[static_cast<size_t>(k / length)];
        const double w = s.Mean(k, k) == 0 ? 0 : row[static_cast<size_t>(k)];
        const int code = grid.Code(static_cast<float>(w));
        quantized.SetCode(r, k, code);
        const float* const u = factor.view().row<float>(i);
        const double error = (w - grid.Value(code)) / u[i];
        for (int64_t j = i + 1; j < n; ++j) {
          row[static_cast<size_t>(options.order[static_cast<size_t>(j)])] -= error * u[j];
        }
      }
      NIBBLE_RETURN_IF_ERROR(StoreGrids(grids, r, quantized));
    }
    return quantized;
  }

  Result<QuantizedWeight> Round(MatrixView weight, const GridOptions& options,
                                const InputStatistics* statistics) override {
    QuantizedWeight quantized = QuantizedWeight::Empty(options.spec, weight.rows, weight.columns);
    const int64_t length = quantized.group_length();
    for (int64_t r = 0; r < weight.rows; ++r) {
      std::vector<GroupGrid> grids;
      for (int64_t g = 0; g < quantized.groups(); ++g) {
        Values values, importance;
        for (int64_t k = g * length; k < (g + 1) * length; ++k) {
          values.push_back(weight.row<float>(r)[k]);
          importance.push_back(statistics == nullptr ? 1 : Ref(*statistics).Mean(k, k));
        }
        grids.push_back(FindGroupGrid(values, options, importance));
        for (int64_t i = 0; i < length; ++i) {
          quantized.SetCode(r, g * length + i,
                            grids.back().Code(static_cast<float>(values[static_cast<size_t>(i)])));
        }
      }
      NIBBLE_RETURN_IF_ERROR(StoreGrids(grids, r, quantized));
    }
    return quantized;
  }

  void PseudoQuantize(MatrixView weight, const GridOptions& options, std::span<const float> scales,
                      MatrixView out) override {
    const int64_t length = options.spec.GroupLength(weight.columns);
    for (int64_t r = 0; r < weight.rows; ++r) {
      for (int64_t first = 0; first < weight.columns; first += length) {
        Values values;
        for (int64_t k = first; k < first + length; ++k) {
          values.push_back(weight.row<float>(r)[k] * scales[static_cast<size_t>(k)]);
        }
        const GroupGrid grid = FindGroupGrid(values, options, Values(values.size(), 1.0));
        for (int64_t i = 0; i < length; ++i) {
          const float value =
              grid.Value(grid.Code(static_cast<float>(values[static_cast<size_t>(i)])));
          out.row<float>(r)[first + i] = value / scales[static_cast<size_t>(first + i)];
        }
      }
    }
  }

  void Clip(MatrixView weight, const GridOptions& options, std::span<const float> scales,
            const InputStatistics& statistics) override {
    const RefStatistics& s = Ref(statistics);
    const int64_t length = options.spec.GroupLength(weight.columns);
    for (int64_t r = 0; r < weight.rows; ++r) {
      float* const row = weight.row<float>(r);
      for (int64_t first = 0; first < weight.columns; first += length) {
        float most = 0;
        for (int64_t k = first; k < first + length; ++k) most = std::max(most, std::abs(row[k]));
        float best_limit = most;
        double least = std::numeric_limits<double>::infinity();
        for (int step = 0; step < 10; ++step) {
          const float limit = most * (1 - static_cast<float>(step) / 20);
          Values clipped;
          for (int64_t k = first; k < first + length; ++k) {
            clipped.push_back(std::clamp(row[k], -limit, limit));
          }
          const GroupGrid grid = FindGroupGrid(clipped, options, Values(clipped.size(), 1.0));
          Values delta;
          for (int64_t i = 0; i < length; ++i) {
            const int code = grid.Code(static_cast<float>(clipped[static_cast<size_t>(i)]));
            delta.push_back((row[first + i] - grid.Value(code)) /
                            scales[static_cast<size_t>(first + i)]);
          }
          double loss = 0;
          for (int64_t i = 0; i < length; ++i) {
            for (int64_t j = 0; j < length; ++j) {
              if (i / 128 != j / 128) continue;
              loss += delta[static_cast<size_t>(i)] * s.Mean(first + i, first + j) *
                      delta[static_cast<size_t>(j)];
            }
          }
          if (loss < least) {
            least = loss;
            best_limit = limit;
          }
        }
        for (int64_t k = first; k < first + length; ++k) {
          row[k] = std::clamp(row[k], -best_limit, best_limit);
        }
      }
    }
  }

  double OutputError(MatrixView weight, MatrixView other,
                     const InputStatistics& statistics) override {
    const RefStatistics& s = Ref(statistics);
    double error = 0;
    for (int64_t r = 0; r < weight.rows; ++r) {
      Values delta;
      for (int64_t k = 0; k < s.columns(); ++k) {
        delta.push_back(static_cast<double>(weight.row<float>(r)[k]) - other.row<float>(r)[k]);
      }
      for (int64_t i = 0; i < s.columns(); ++i) {
        const double* const row = &s.gram[static_cast<size_t>(i * s.columns())];
        double product = 0;
        for (int64_t j = 0; j < s.columns(); ++j) product += row[j] * delta[static_cast<size_t>(j)];
        error += delta[static_cast<size_t>(i)] * product;
      }
    }
    return error / static_cast<double>(std::max<int64_t>(1, s.tokens()));
  }

 private:
  Result<Matrix> MatrixOf(const Values& values, int64_t rows, int64_t columns) {
    NIBBLE_ASSIGN_OR_RETURN(Matrix matrix, AllocateMatrix(rows, columns));
    std::copy(values.begin(), values.end(), matrix.view().row<float>(0));
    return matrix;
  }

  static Status StoreGrids(const std::vector<GroupGrid>& grids, int64_t row,
                           QuantizedWeight& weight) {
    for (size_t g = 0; g < grids.size(); ++g) {
      const size_t at = static_cast<size_t>(row) * grids.size() + g;
      weight.scales[at] = F16FromFloat(grids[g].scale);
      weight.zeros[at] = static_cast<uint8_t>(grids[g].zero);
      if (!std::isfinite(FloatFromF16(weight.scales[at]))) {
        return BadInput("row {}, group {}: needs a scale of {}, beyond float16", row, g,
                        grids[g].scale);
      }
    }
    return {};
  }

  // Upper U with UᵀU = m; false where m is not positive definite.
  static bool UpperCholesky(const Values& m, int64_t n, Values& u) {
    u.assign(m.size(), 0);
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = i; j < n; ++j) {
        double sum = m[static_cast<size_t>(i * n + j)];
        for (int64_t k = 0; k < i; ++k) {
          sum -= u[static_cast<size_t>(k * n + i)] * u[static_cast<size_t>(k * n + j)];
        }
        if (i == j && !(sum > 0)) return false;
        u[static_cast<size_t>(i * n + j)] =
            i == j ? std::sqrt(sum) : sum / u[static_cast<size_t>(i * n + i)];
      }
    }
    return true;
  }

  // m⁻¹ of a positive definite m = UᵀU, column by column.
  static bool Invert(const Values& m, int64_t n, Values& inverse) {
    Values u;
    if (!UpperCholesky(m, n, u)) return false;
    inverse.assign(m.size(), 0);
    for (int64_t column = 0; column < n; ++column) {
      Values y(static_cast<size_t>(n));
      for (int64_t i = 0; i < n; ++i) {
        double sum = i == column;
        for (int64_t k = 0; k < i; ++k) {
          sum -= u[static_cast<size_t>(k * n + i)] * y[static_cast<size_t>(k)];
        }
        y[static_cast<size_t>(i)] = sum / u[static_cast<size_t>(i * n + i)];
      }
      for (int64_t i = n - 1; i >= 0; --i) {
        double sum = y[static_cast<size_t>(i)];
        for (int64_t k = i + 1; k < n; ++k) {
          sum -= u[static_cast<size_t>(i * n + k)] * inverse[static_cast<size_t>(k * n + column)];
        }
        inverse[static_cast<size_t>(i * n + column)] = sum / u[static_cast<size_t>(i * n + i)];
      }
    }
    return true;
  }
};

}  // namespace

std::unique_ptr<QuantizeOps> MakeRefQuantizeOps(ThreadPool& pool, MemoryTracker& memory) {
  return std::make_unique<RefQuantizeOps>(pool, memory);
}

}  // namespace nibble

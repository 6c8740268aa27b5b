#include "src/quantize/gptq.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace nibble {
namespace {

constexpr double kDampingStep = 0.01;
constexpr double kMaxDamping = 1;

constexpr ColumnOrder kOrders[] = {ColumnOrder::kNatural, ColumnOrder::kActivation,
                                   ColumnOrder::kGroup};
constexpr ScaleSearch kSearches[] = {ScaleSearch::kNone, ScaleSearch::kMse, ScaleSearch::kHessian};

}  // namespace

std::string_view Name(ColumnOrder order) {
  switch (order) {
    case ColumnOrder::kNatural:
      return "natural";
    case ColumnOrder::kActivation:
      return "act";
    case ColumnOrder::kGroup:
      return "group";
  }
  return "";
}

std::optional<ColumnOrder> ColumnOrderFromName(std::string_view name) {
  for (const ColumnOrder order : kOrders) {
    if (Name(order) == name) return order;
  }
  return std::nullopt;
}

std::string_view Name(ScaleSearch search) {
  switch (search) {
    case ScaleSearch::kNone:
      return "none";
    case ScaleSearch::kMse:
      return "mse";
    case ScaleSearch::kHessian:
      return "hessian";
  }
  return "";
}

std::optional<ScaleSearch> ScaleSearchFromName(std::string_view name) {
  for (const ScaleSearch search : kSearches) {
    if (Name(search) == name) return search;
  }
  return std::nullopt;
}

int64_t GptqOptions::DriftSamples(int64_t samples) const {
  if (drift_share == 0) return 0;
  const double part = std::ceil(drift_samples * static_cast<double>(samples));
  return std::min(samples, std::max<int64_t>(1, static_cast<int64_t>(part)));
}

std::vector<int32_t> SweepOrder(ColumnOrder order, std::span<const float> importance,
                                int64_t group_length) {
  std::vector<int32_t> columns(importance.size());
  std::iota(columns.begin(), columns.end(), 0);
  const auto more_important = [&](int32_t a, int32_t b) {
    return importance[static_cast<size_t>(a)] > importance[static_cast<size_t>(b)];
  };
  switch (order) {
    case ColumnOrder::kNatural:
      break;
    case ColumnOrder::kActivation:
      std::stable_sort(columns.begin(), columns.end(), more_important);
      break;
    case ColumnOrder::kGroup: {
      std::vector<std::vector<int32_t>> groups;
      for (size_t first = 0; first < columns.size(); first += static_cast<size_t>(group_length)) {
        const auto begin = columns.begin() + static_cast<std::ptrdiff_t>(first);
        groups.emplace_back(begin, begin + group_length);
        std::stable_sort(groups.back().begin(), groups.back().end(), more_important);
      }
      std::stable_sort(groups.begin(), groups.end(), [&](const auto& a, const auto& b) {
        return more_important(a.front(), b.front());
      });
      columns.clear();
      for (const auto& group : groups) columns.insert(columns.end(), group.begin(), group.end());
      break;
    }
  }
  return columns;
}

Result<GptqSolver> GptqSolver::Create(QuantizeOps& ops, const InputStatistics& statistics,
                                      const QuantSpec& spec, const GptqOptions& options) {
  GptqSolver solver(ops, statistics);
  solver.drift_share_ = options.drift_share;
  solver.order_ = SweepOrder(options.order, ops.MeanSquares(statistics),
                             spec.GroupLength(statistics.columns()));
  const GridTime grid_time =
      options.order == ColumnOrder::kActivation ? GridTime::kStatic : options.grid_time;
  solver.sweep_ = {
      .grid = {spec, options.search, options.rounding}, .grid_time = grid_time, .order = {}};
  for (int attempt = 0;; ++attempt) {
    solver.damping_ = options.damping + kDampingStep * attempt;
    Result<Matrix> factor = ops.Factorize(statistics, solver.order_, solver.damping_);
    if (factor) {
      solver.factor_ = *std::move(factor);
      return solver;
    }
    if (factor.error().code() != ErrorCode::kBadInput) return tl::unexpected(factor.error());
    if (solver.damping_ + kDampingStep > kMaxDamping) {
      return BadInput(
          "the Hessian of {} inputs over {} tokens stays singular with dampings from {} "
          "to {} of its mean diagonal",
          statistics.columns(), statistics.tokens(), options.damping, solver.damping_);
    }
  }
}

Result<Matrix> GptqSolver::Retarget(MatrixView weight, const InputDrift& drift) const {
  return ops_.Retarget(weight, drift, factor_, order_, drift_share_);
}

Result<QuantizedWeight> GptqSolver::Solve(MatrixView weight) const {
  SweepOptions sweep = sweep_;
  sweep.order = order_;
  return ops_.Sweep(weight, statistics_, factor_, sweep);
}

}  // namespace nibble

#include "src/quantize/plan.h"

#include <algorithm>

namespace nibble {
namespace {

// The linears of a layer in the groups that a backend packs together.
std::vector<std::vector<LinearName>> PackedGroups(const ModelConfig& config, int64_t layer) {
  const LayerLinears l = LinearsOfLayer(config, layer);
  return {{l.q, l.k, l.v}, {l.output}, {l.gate, l.up}, {l.down}};
}

// Why no layout or group holds the linear; empty where one does.
std::string ReasonToSkip(const LinearName& linear) {
  if (linear.out_features % 8 != 0 || linear.in_features % 8 != 0) {
    return fmt::format("[{}, {}] is not a multiple of 8 in both dimensions", linear.out_features,
                       linear.in_features);
  }
  if (linear.in_features % 32 != 0) {
    return fmt::format("its {} inputs are not a multiple of the smallest group, 32",
                       linear.in_features);
  }
  return {};
}

}  // namespace

bool QuantizationPlan::Quantizes(std::string_view linear_name) const {
  return std::any_of(quantized.begin(), quantized.end(),
                     [&](const LinearName& linear) { return linear.name == linear_name; });
}

Result<QuantizationPlan> PlanQuantization(const ModelDescription& model, const QuantSpec& wanted) {
  if (model.quantization) {
    return BadInput("the model is quantized already ({}); quantize its 16-bit original instead",
                    model.quantization->Label());
  }
  QuantizationPlan plan;
  plan.spec = wanted;
  for (int64_t layer = 0; layer < model.config.layers; ++layer) {
    for (const std::vector<LinearName>& group : PackedGroups(model.config, layer)) {
      std::string reason;
      for (const LinearName& linear : group) {
        if (const std::string why = ReasonToSkip(linear); reason.empty() && !why.empty()) {
          reason = group.size() == 1 ? why : fmt::format("{}: {}", linear.name, why);
        }
      }
      for (const LinearName& linear : group) {
        if (reason.empty()) {
          plan.quantized.push_back(linear);
        } else {
          plan.skipped.push_back({linear.name, reason});
        }
      }
    }
  }
  if (plan.quantized.empty()) {
    return BadInput("no linear layer of this model can be quantized: {}",
                    plan.skipped.front().reason);
  }
  if (wanted.group_size == kPerChannel) return plan;
  const auto divides = [&](int64_t group) {
    return std::all_of(plan.quantized.begin(), plan.quantized.end(),
                       [&](const LinearName& l) { return l.in_features % group == 0; });
  };
  while (!divides(plan.spec.group_size)) plan.spec.group_size /= 2;
  if (plan.spec.group_size != wanted.group_size) {
    const auto odd =
        std::find_if(plan.quantized.begin(), plan.quantized.end(),
                     [&](const LinearName& l) { return l.in_features % wanted.group_size != 0; });
    plan.notes.push_back(
        fmt::format("groups of {} instead of {}, which do not divide the {} inputs of {}",
                    plan.spec.group_size, wanted.group_size, odd->in_features, odd->name));
  }
  return plan;
}

}  // namespace nibble

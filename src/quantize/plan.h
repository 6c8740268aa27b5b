// What of a model is quantized.
#ifndef NIBBLE_QUANTIZE_PLAN_H_
#define NIBBLE_QUANTIZE_PLAN_H_

#include <string>
#include <string_view>
#include <vector>

#include "src/base/error.h"
#include "src/format/weight.h"
#include "src/model/model_weights.h"

namespace nibble {

// Which linears are quantized, and in which groups. The public layouts know one group size for each
// checkpoint: the largest of 128, 64 and 32 not above the one asked for that divides the inputs of
// every quantized linear. A linear that no group or layout fits stays as it is, and so do those
// that are packed together with it (q, k, v; gate, up).
struct QuantizationPlan {
  struct Skipped {
    std::string name;
    std::string reason;
  };
  QuantSpec spec;
  std::vector<LinearName> quantized;
  std::vector<Skipped> skipped;
  std::vector<std::string> notes;  // for people: where the plan differs from what was asked for

  bool Quantizes(std::string_view linear_name) const;
};
// kBadInput where nothing can be quantized or the model is quantized already.
Result<QuantizationPlan> PlanQuantization(const ModelDescription& model, const QuantSpec& wanted);

}  // namespace nibble

#endif  // NIBBLE_QUANTIZE_PLAN_H_

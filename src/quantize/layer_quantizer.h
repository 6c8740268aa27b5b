// Quantizes a model layer by layer: rounding to nearest, AWQ, GPTQ, or AWQ's scales with GPTQ's
// rounding, over a backend's operations.
#ifndef NIBBLE_QUANTIZE_LAYER_QUANTIZER_H_
#define NIBBLE_QUANTIZE_LAYER_QUANTIZER_H_

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "src/base/json.h"
#include "src/quantize/awq.h"
#include "src/quantize/calibration_runner.h"
#include "src/quantize/gptq.h"
#include "src/quantize/method.h"
#include "src/quantize/plan.h"

namespace nibble {

struct AwqOptions {
  std::vector<AwqForm> forms = {AwqForm::kActivations};
  int64_t search_tokens = 2048;  // that a block's loss is measured on
};

struct SolverOptions {
  GptqOptions gptq;
  AwqOptions awq;
};

// What a layer became.
struct QuantizedLayer {
  struct Linear {
    std::string name;
    QuantizedWeight weight;
  };
  // A norm's gain or a bias that scales were folded into, by its tensor's name.
  struct Vector {
    std::string name;
    std::vector<float> values;
  };
  std::vector<Linear> linears;
  std::vector<Vector> vectors;
  Json modules = Json::array();  // a record for each linear, as in quantize.json
};

// Called with the name and the record of each linear as it is done.
using LinearDone = std::function<void(std::string_view name, const Json& record)>;

class LayerQuantizer {
 public:
  // Borrows all but `storage`. `calibration` may be null for rounding to nearest.
  static Result<std::unique_ptr<LayerQuantizer>> Create(
      const Checkpoint& checkpoint, const ModelDescription& model, const QuantizationPlan& plan,
      QuantMethod method, const SolverOptions& options, const CalibrationSet* calibration,
      Backend& backend, QuantizeOps& ops, const ActivationStorage& storage);
  virtual ~LayerQuantizer() = default;

  // The layers are taken in order, each by Quantize or, where its result is known from an
  // interrupted run, by Replay, which only takes the calibration tokens through it.
  virtual Result<QuantizedLayer> Quantize(int64_t layer, const LinearDone& done,
                                          const CancelToken& cancel) = 0;
  virtual Status Replay(int64_t layer, const QuantizedLayer& known, const CancelToken& cancel) = 0;
};

}  // namespace nibble

#endif  // NIBBLE_QUANTIZE_LAYER_QUANTIZER_H_

// What the quantizers of a layer share: the model, the device's operations, and the record.
#ifndef NIBBLE_QUANTIZE_QUANTIZE_CONTEXT_H_
#define NIBBLE_QUANTIZE_QUANTIZE_CONTEXT_H_

#include <chrono>
#include <functional>
#include <memory>

#include "src/quantize/layer_quantizer.h"
#include "src/quantize/layer_tensors.h"

namespace nibble {

// Borrows all of it.
struct QuantizeContext {
  const Checkpoint& checkpoint;
  const ModelDescription& model;
  const QuantizationPlan& plan;
  const SolverOptions& options;
  Backend& backend;
  QuantizeOps& ops;

  // Nothing comes behind it that wants the calibration tokens.
  bool IsLast(int64_t layer) const { return layer + 1 == model.config.layers; }
  GridOptions grid() const { return {.spec = plan.spec}; }
  Result<LayerTensors> ReadTensors(int64_t layer) const {
    return ReadLayerTensors(checkpoint, model, plan, layer, ops);
  }

  // A float32 matrix of this shape, uninitialized.
  Result<Matrix> MatrixLike(MatrixView shape) const {
    return backend.Allocate(MemoryClass::kWorkspace, DType::kF32, shape.rows, shape.columns);
  }

  // Runs a stage that ends at the input of `linear`, and returns that input's statistics; `sink`
  // sees it too, step by step, with the statistics so far. kBadInput where it is not finite.
  using Stage = MatrixView (CalibrationRunner::*)(const CalibrationRunner::Step&, int64_t,
                                                  const LayerWeights&);
  using Sink =
      std::function<void(const CalibrationRunner::Step&, MatrixView, const InputStatistics&)>;
  static void Ignore(const CalibrationRunner::Step&, MatrixView, const InputStatistics&) {}
  Result<std::unique_ptr<InputStatistics>> Gather(CalibrationRunner& runner, Stage stage,
                                                  int64_t layer, const LayerWeights& weights,
                                                  const LinearTensor& linear, const Sink& sink,
                                                  const CancelToken& cancel) const;

  // Adds to `layer` what became of a linear. With the statistics of its input the record tells the
  // error at its output against `aim`'s, and that of rounding `aim` to nearest; `aim` is the
  // linear's weight or what was quantized in its place. `more` joins the record.
  Status Finish(const LinearTensor& linear, MatrixView aim, QuantizedWeight quantized,
                const InputStatistics* statistics, const Json& more,
                std::chrono::steady_clock::time_point start, QuantizedLayer& layer,
                const LinearDone& done) const;
};

}  // namespace nibble

#endif  // NIBBLE_QUANTIZE_QUANTIZE_CONTEXT_H_

// AWQ on a layer: finds the scales on the unquantized model and folds them in. The rounding is the
// caller's.
#ifndef NIBBLE_QUANTIZE_AWQ_SCALER_H_
#define NIBBLE_QUANTIZE_AWQ_SCALER_H_

#include <functional>
#include <memory>

#include "src/quantize/quantize_context.h"

namespace nibble {

class AwqScaler {
 public:
  // `runner` holds the unquantized model's activations.
  AwqScaler(const QuantizeContext& context, std::unique_ptr<CalibrationRunner> runner)
      : context_(context), runner_(std::move(runner)) {}

  // Scales the layer and takes the calibration tokens through the unquantized one. `rounded`, where
  // given, is called for linears whose tensors are final, with the statistics of their input.
  using Rounded = std::function<Status(const Linears&, const InputStatistics&, const Json& record)>;
  Status Scale(int64_t layer, LayerTensors& tensors, const Rounded& rounded,
               const CancelToken& cancel);
  // Takes the calibration tokens through the unquantized layer.
  Status Replay(int64_t layer, const LayerWeights& unquantized, const CancelToken& cancel) {
    return runner_->Layer(layer, unquantized, cancel);
  }

 private:
  // One half of a layer, attention or MLP: linears that share the block's input and whose scales go
  // into its norm, and the one at its end, whose scales go into the rows of `before`.
  struct Block {
    Linears first;
    Interleave interleave;
    std::unique_ptr<PreparedLinear>& prepared;  // where the layer's weights hold `first`
    QuantizeContext::Stage first_input;
    NormTensor& norm;
    Matrix& prepared_norm;
    void (CalibrationRunner::*output)(int64_t, const LayerWeights&, int64_t, MatrixView);
    LinearTensor& last;
    QuantizeContext::Stage last_input;
    LinearTensor& before;
  };

  Status ScaleBlock(int64_t layer, const LayerWeights& weights, const Block& block,
                    const Rounded& rounded, const CancelToken& cancel);
  // By the block's output, on the first calibration sequences.
  Result<AwqSearch> SearchFirst(int64_t layer, const LayerWeights& weights, const Block& block,
                                const InputStatistics& statistics);
  // By the linear's own output.
  Result<AwqSearch> SearchLast(const LinearTensor& linear, const InputStatistics& statistics);
  Result<AwqSearch> Search(std::span<const MatrixView> weights, const InputStatistics& statistics,
                           const AwqLoss& loss);

  QuantizeContext context_;
  std::unique_ptr<CalibrationRunner> runner_;
};

}  // namespace nibble

#endif  // NIBBLE_QUANTIZE_AWQ_SCALER_H_

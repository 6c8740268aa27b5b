// Takes the calibration tokens through a model's layers, one stage of one layer at a time and a few
// sequences in a step, so that a quantizer can change a layer's linears between the stages
// (true-sequential). One layer's weights at a time.
#ifndef NIBBLE_QUANTIZE_CALIBRATION_RUNNER_H_
#define NIBBLE_QUANTIZE_CALIBRATION_RUNNER_H_

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "src/base/cancel.h"
#include "src/model/forward.h"
#include "src/quantize/calibration.h"

namespace nibble {

// Where the activations of all tokens are kept: in the device's memory up to `max_bytes` of it, and
// beyond. The residual stream then lies beside the device's memory (Backend::AllocateBeside), with
// files without a name in `directory`. So do the inputs that wait for a linear under kBeside; under
// kComputeAgain they are computed a second time, which a GPU does sooner than it moves them.
struct ActivationStorage {
  enum class Beyond { kBeside, kComputeAgain };
  uint64_t max_bytes = UINT64_MAX;
  std::string directory = ".";
  Beyond beyond = Beyond::kBeside;
};

class CalibrationRunner {
 public:
  // Borrows `config` and `backend`. A step begins at sample `boundary`: what was gathered before it
  // is of the samples before it alone.
  static Result<std::unique_ptr<CalibrationRunner>> Create(const ModelConfig& config,
                                                           CalibrationSet set, Backend& backend,
                                                           const ActivationStorage& storage,
                                                           int64_t boundary = 0);

  // The residual stream before the first layer.
  void Embed(const PreparedLinear& table);

  // Some sequences of the set.
  struct Step {
    int64_t first = 0, sequences = 0;
  };
  // Steps that cover the first `sequences` sequences, in order.
  std::vector<Step> Steps(int64_t sequences) const;
  std::vector<Step> Steps() const { return Steps(set_.samples); }

  // A layer's stages, in this order, each for all steps before the next, with `weights` complete up
  // to the stage's end: they return the input of the next linears, [rows, features], which is valid
  // until the next call. QkvInput only looks.
  MatrixView QkvInput(const Step& step, int64_t layer, const LayerWeights& weights);
  MatrixView OutputInput(const Step& step, int64_t layer, const LayerWeights& weights);
  MatrixView MlpInput(const Step& step, int64_t layer, const LayerWeights& weights);
  MatrixView DownInput(const Step& step, int64_t layer, const LayerWeights& weights);
  Status LayerOutput(int64_t layer, const LayerWeights& weights, const CancelToken& cancel);
  // All that change something.
  Status Layer(int64_t layer, const LayerWeights& weights, const CancelToken& cancel);

  // What a block adds to the residual stream for the first `sequences` sequences, [rows, hidden]
  // into `out`: attention, right after QkvInput; the MLP, right after MlpInput. `weights` may
  // differ from the stages'.
  void AttentionOutput(int64_t layer, const LayerWeights& weights, int64_t sequences,
                       MatrixView out);
  void MlpOutput(int64_t layer, const LayerWeights& weights, int64_t sequences, MatrixView out);

  int64_t sequence_length() const { return set_.sequence_length; }
  int64_t samples() const { return set_.samples; }
  const ModelConfig& config() const { return config_; }

 private:
  CalibrationRunner(const ModelConfig& config, CalibrationSet set, Backend& backend,
                    int64_t boundary)
      : config_(config), set_(std::move(set)), backend_(backend), boundary_(boundary) {}
  Status Allocate(const ActivationStorage& storage);
  LayerContext Context(int64_t layer, const LayerWeights& weights) const;
  // Makes the step the backend's batch; returns its part of the residual stream.
  MatrixView SetStep(const Step& step);
  int64_t RowsOf(const Step& step) const { return step.sequences * set_.sequence_length; }
  // A step's part of an input of all tokens that waits for its linear, `columns` wide; scratch
  // memory where it does not wait.
  MatrixView Waiting(const Step& step, int64_t columns) const;
  MatrixView Scratch(const Step& step, int64_t columns) const {
    return {wide_.view().data, backend_.activation_type(), RowsOf(step), columns, columns};
  }
  bool Waits(int64_t columns) const { return columns <= waiting_.columns(); }
  MatrixView ComputeAttention(const LayerContext& context, const Step& step, MatrixView residual,
                              MatrixView out);
  MatrixView ComputeGated(const LayerContext& context, const Step& step, MatrixView residual,
                          MatrixView out);

  const ModelConfig& config_;
  CalibrationSet set_;
  Backend& backend_;
  int64_t boundary_;
  std::vector<float> rope_frequencies_;
  int64_t sequences_per_step_ = 1;
  std::unique_ptr<BatchPlan> plan_;
  std::unique_ptr<KvCache> cache_;  // one layer, one step
  // Of all tokens.
  Matrix residual_;  // [tokens, hidden]
  Matrix waiting_;   // the input of o, then of down; as wide as the wider that is kept, or empty
  // Of one step.
  Matrix block_input_;  // [rows, hidden], behind a norm
  Matrix qkv_;
  Matrix wide_;  // [rows, the wider of heads · head_dim and intermediate]
};

}  // namespace nibble

#endif  // NIBBLE_QUANTIZE_CALIBRATION_RUNNER_H_

// Takes all calibration tokens through a model's layers, one stage of one layer at a time: each
// stage runs over every sequence before the next begins, so that a quantizer can change a layer's
// linears between them (true-sequential). One layer's weights at a time.
#ifndef NIBBLE_QUANTIZE_CALIBRATION_RUNNER_H_
#define NIBBLE_QUANTIZE_CALIBRATION_RUNNER_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "src/base/cancel.h"
#include "src/model/forward.h"
#include "src/quantize/calibration.h"

namespace nibble {

// Where the activations of all tokens are kept: in memory, or, beyond `max_bytes` of it, in files
// without a name in `spill_directory`.
struct ActivationStorage {
  uint64_t max_bytes = UINT64_MAX;
  std::string spill_directory = ".";
};

class CalibrationRunner {
 public:
  // Borrows the arguments but `storage`.
  static Result<std::unique_ptr<CalibrationRunner>> Create(const ModelConfig& config,
                                                           const CalibrationSet& set,
                                                           Backend& backend,
                                                           const ActivationStorage& storage);

  // The residual stream before the first layer.
  void Embed(const PreparedLinear& table);

  // A layer's stages, in this order, with `weights` complete up to the stage's end; QkvInput only
  // looks. `sink` sees a few sequences' input of the next linears at a time, [rows, features]; the
  // sequences in order.
  using Sink = std::function<void(MatrixView x)>;
  static void Ignore(MatrixView) {}
  Status QkvInput(int64_t layer, const LayerWeights& weights, const Sink& sink,
                  const CancelToken& cancel);
  Status OutputInput(int64_t layer, const LayerWeights& weights, const Sink& sink,
                     const CancelToken& cancel);
  Status MlpInput(int64_t layer, const LayerWeights& weights, const Sink& sink,
                  const CancelToken& cancel);
  Status DownInput(int64_t layer, const LayerWeights& weights, const Sink& sink,
                   const CancelToken& cancel);
  Status LayerOutput(int64_t layer, const LayerWeights& weights, const CancelToken& cancel);
  // All that change something.
  Status Layer(int64_t layer, const LayerWeights& weights, const CancelToken& cancel);

  // Of all tokens, as the latest stage gave them to its sink, [tokens, features]: the input of q, k
  // and v or of gate and up; of o; of down.
  MatrixView block_input() const { return block_input_.view(); }
  MatrixView attention() const { return attention_.view(); }
  MatrixView gated() const { return gated_.view(); }

  // What a block adds to the residual stream for the first `sequences` sequences, [rows, hidden]
  // into `out`: attention, right after QkvInput; the MLP, right after MlpInput. `weights` may
  // differ from the stages'; with another norm, block_input() is not the stage's any more.
  void AttentionOutput(int64_t layer, const LayerWeights& weights, int64_t sequences,
                       MatrixView out);
  void MlpOutput(int64_t layer, const LayerWeights& weights, int64_t sequences, MatrixView out);

  int64_t sequence_length() const { return set_.sequence_length; }
  int64_t samples() const { return set_.samples; }
  const ModelConfig& config() const { return config_; }

 private:
  struct Step {
    int64_t first = 0, sequences = 0;  // of the set
  };

  CalibrationRunner(const ModelConfig& config, const CalibrationSet& set, Backend& backend)
      : config_(config), set_(set), backend_(backend) {}
  LayerContext Context(int64_t layer, const LayerWeights& weights) const;
  void SetBatch(const Step& step);
  MatrixView RowsOf(const Matrix& matrix, const Step& step) const;
  // Runs `work` for steps that cover the first `sequences` sequences.
  template <typename Work>
  Status ForEachStep(int64_t sequences, const CancelToken& cancel, const Work& work);

  const ModelConfig& config_;
  const CalibrationSet& set_;
  Backend& backend_;
  std::vector<float> rope_frequencies_;
  int64_t sequences_per_step_ = 1;
  std::unique_ptr<BatchPlan> plan_;
  std::unique_ptr<KvCache> cache_;  // one layer, one step
  // Of all tokens.
  Matrix residual_;     // [tokens, hidden]
  Matrix block_input_;  // [tokens, hidden], behind the norm of attention, then of the MLP; the
                        // stages behind a norm write it again, and the same
  Matrix attention_;    // [tokens, heads · head_dim]
  Matrix gated_;        // [tokens, intermediate]
  // Of one step.
  Matrix qkv_, attention_scratch_, gated_scratch_;
};

}  // namespace nibble

#endif  // NIBBLE_QUANTIZE_CALIBRATION_RUNNER_H_

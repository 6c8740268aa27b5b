// The Llama family's forward pass, said once, for every backend and weight format.
//
// A layer is four stages, two that lead to the input of a linear layer and two that add its output to
// the residual stream. Forward chains them. A quantizer runs them one by one over its calibration
// data, and looks at the inputs of the other linear layers too (QkvInput, MlpInput).
#ifndef NIBBLE_MODEL_FORWARD_H_
#define NIBBLE_MODEL_FORWARD_H_

#include <memory>
#include <vector>

#include "src/model/model_weights.h"
#include "src/ops/backend.h"

namespace nibble {

// Everything that a layer's stages need besides activations. Borrows all of it.
struct LayerContext {
  Backend& backend;
  const ModelConfig& config;
  const LayerWeights& weights;
  RopeSpec rope;
  int64_t layer;
  BatchPlan& plan;
  KvCache& cache;
  int64_t cache_layer;  // `layer`, or 0 in a cache for one layer at a time
};

// `residual` is the residual stream, [rows, hidden]; `normed` and `qkv` are scratch, [rows, hidden]
// and [rows, qkv_features].

// out [rows, heads · head_dim] = the input of o. Writes the cache.
void OutputInput(const LayerContext& layer, MatrixView residual, MatrixView normed, MatrixView qkv,
                 MatrixView out);
// residual += o(output_input).
void AddOutput(const LayerContext& layer, MatrixView output_input, MatrixView residual);
// out [rows, intermediate] = the input of down.
void DownInput(const LayerContext& layer, MatrixView residual, MatrixView normed, MatrixView out);
// residual += down(down_input).
void AddDown(const LayerContext& layer, MatrixView down_input, MatrixView residual);

// What the first and the third stage feed to their linear layers, and leave in `normed`; out:
// [rows, hidden]. The input of q, k and v.
void QkvInput(const LayerContext& layer, MatrixView residual, MatrixView out);
// The input of gate and up, of the residual stream behind AddOutput.
void MlpInput(const LayerContext& layer, MatrixView residual, MatrixView out);

// A model with the activations' memory, ready to run steps within its limits.
class Forward {
 public:
  // Borrows `weights` and `backend`.
  static Result<std::unique_ptr<Forward>> Create(const ModelWeights& weights, Backend& backend,
                                                 const StepLimits& limits);
  // Bytes of class kWorkspace that Create takes.
  static uint64_t WorkspaceBytes(const ModelConfig& config, const Backend& backend,
                                 const StepLimits& limits);

  // Runs the batch (see Batch; within the limits), extends the cache, and returns the logits of its
  // logit rows: float32 [logit_rows, vocabulary] on the device, valid until the next Run.
  MatrixView Run(const Batch& batch, KvCache& cache);
  // Backend::ChooseTokens for what Run returned, and Backend::ReceiveTokens.
  void ChooseTokens(MatrixView logits) { backend_.ChooseTokens(*plan_, logits); }
  Result<std::span<const int32_t>> ReceiveTokens() { return backend_.ReceiveTokens(*plan_); }

  const StepLimits& limits() const { return limits_; }

 private:
  Forward(const ModelWeights& weights, Backend& backend, const StepLimits& limits)
      : weights_(weights), backend_(backend), limits_(limits) {}
  // Issues all operations of a step whose batch is set.
  void Step(int64_t rows, int64_t logit_rows, KvCache& cache);

  const ModelWeights& weights_;
  Backend& backend_;
  StepLimits limits_;
  std::vector<float> rope_frequencies_;
  std::vector<DecoderLayer> layers_;  // of weights_
  std::unique_ptr<BatchPlan> plan_;
  Matrix residual_;   // [rows, hidden]
  Matrix normed_;     // [rows, hidden]
  Matrix qkv_;        // [rows, qkv_features]
  Matrix attention_;  // [rows, heads · head_dim]
  Matrix gated_;      // [rows, intermediate]
  Matrix last_;       // [logit_rows, hidden]
  Matrix logits_;     // [logit_rows, vocabulary]
};

}  // namespace nibble

#endif  // NIBBLE_MODEL_FORWARD_H_

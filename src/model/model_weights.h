// A model's weights as a backend keeps them.
#ifndef NIBBLE_MODEL_MODEL_WEIGHTS_H_
#define NIBBLE_MODEL_MODEL_WEIGHTS_H_

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "src/base/cancel.h"
#include "src/base/error.h"
#include "src/checkpoint/checkpoint.h"
#include "src/model/model_config.h"
#include "src/ops/backend.h"

namespace nibble {

struct LayerWeights {
  Matrix input_norm;                        // [1, hidden]
  std::unique_ptr<PreparedLinear> qkv;      // [(heads + 2 · kv_heads) · head_dim, hidden]
  std::unique_ptr<PreparedLinear> output;   // [hidden, heads · head_dim]
  Matrix post_attention_norm;               // [1, hidden]
  std::unique_ptr<PreparedLinear> gate_up;  // [2 · intermediate, hidden], Interleave::kGateUp
  std::unique_ptr<PreparedLinear> down;     // [hidden, intermediate]
};

struct ModelWeights {
  ModelConfig config;
  std::unique_ptr<PreparedLinear> embedding;  // [vocabulary, hidden]
  std::vector<LayerWeights> layers;
  Matrix final_norm;                        // [1, hidden]
  std::unique_ptr<PreparedLinear> lm_head;  // [vocabulary, hidden]; null where tied to `embedding`

  const PreparedLinear& logits_weight() const { return lm_head ? *lm_head : *embedding; }
};

// What a checkpoint says about its model, checked against its tensors: every tensor the model needs
// is there in the right shape, and none is left over that would change the result.
struct ModelDescription {
  ModelConfig config;
  std::optional<QuantizationConfig> quantization;
};
Result<ModelDescription> DescribeModel(const Checkpoint& checkpoint);

// One linear layer of a model: where it lies in the checkpoint and how large it is.
struct LinearName {
  std::string name;  // "model.layers.0.self_attn.q_proj"
  int64_t out_features = 0;
  int64_t in_features = 0;
  bool bias = false;
};
struct LayerLinears {
  LinearName q, k, v, output, gate, up, down;
  // Pointers into this object, so not of a temporary.
  std::vector<const LinearName*> All() const& { return {&q, &k, &v, &output, &gate, &up, &down}; }
  std::vector<const LinearName*> All() && = delete;
};
LayerLinears LinearsOfLayer(const ModelConfig& config, int64_t layer);

// The names of a layer's norms.
std::string InputNormName(int64_t layer);
std::string PostAttentionNormName(int64_t layer);

Result<std::unique_ptr<PreparedLinear>> LoadEmbedding(const Checkpoint& checkpoint,
                                                      const ModelDescription& model,
                                                      Backend& backend);
// Reads and packs one layer; at any time at most one prepared linear's sources are in memory.
Result<LayerWeights> LoadLayer(const Checkpoint& checkpoint, const ModelDescription& model,
                               int64_t layer, Backend& backend);

// Called with the number of layers done and their total.
using LoadProgress = std::function<void(int64_t done, int64_t total)>;
Result<ModelWeights> LoadModel(const Checkpoint& checkpoint, const ModelDescription& model,
                               Backend& backend, const LoadProgress& progress,
                               const CancelToken& cancel);

// Bytes of class kWeights that LoadModel will take, by part of the model.
struct WeightBytes {
  uint64_t embedding = 0;  // the output layer's too where they are tied
  uint64_t lm_head = 0;
  uint64_t attention = 0;  // qkv and output of all layers
  uint64_t mlp = 0;
  uint64_t norms = 0;
  // The most that LoadModel has in memory at any time: what is packed so far, and what the linear
  // that is being packed is made from.
  uint64_t loading_peak = 0;
  uint64_t total() const { return embedding + lm_head + attention + mlp + norms; }
};
WeightBytes PredictWeightBytes(const Checkpoint& checkpoint, const ModelDescription& model,
                               const Backend& backend);

// What a refusal of these weights can offer: "at 4 bits the weights would take 3.65 GiB instead of
// 12.6 GiB", or, where they have 4 bits, what they take.
std::string DescribeSmallerWeights(const Checkpoint& checkpoint, const ModelDescription& model,
                                   const Backend& backend);

}  // namespace nibble

#endif  // NIBBLE_MODEL_MODEL_WEIGHTS_H_

// The contract of inference: about a dozen coarse operations, from which src/model composes the
// forward pass. Implemented by ref (scalar, double accumulation: the oracle), cpu (SIMD) and cuda.
//
// Activations are matrices, one row per token, of the backend's activation type; logits are float32.
// Operations are issued in order; on an asynchronous device they may be pending when a call returns,
// and ToHost waits for them. Shapes are the caller's duty: a mismatch is a programmer's error.
//
// Batches: a row's result agrees within rounding whatever else is in the batch, and bit for bit where
// the backend was made batch-invariant.
#ifndef NIBBLE_OPS_BACKEND_H_
#define NIBBLE_OPS_BACKEND_H_

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "src/base/error.h"
#include "src/format/weight.h"
#include "src/ops/kv.h"
#include "src/ops/quantize_ops.h"
#include "src/tensor/tensor.h"

namespace nibble {

// A linear layer as a backend keeps it: opaque, owned, in the backend's packing.
class PreparedLinear {
 public:
  virtual ~PreparedLinear() = default;
  int64_t out_features() const { return out_features_; }
  int64_t in_features() const { return in_features_; }
  uint64_t bytes() const { return bytes_; }  // allocated, of class kWeights

 protected:
  PreparedLinear(int64_t out_features, int64_t in_features, uint64_t bytes)
      : out_features_(out_features), in_features_(in_features), bytes_(bytes) {}

 private:
  int64_t out_features_, in_features_;
  uint64_t bytes_;
};

// kGateUp: the two weights are a gate and an up projection that SiLU·mul will combine; a backend may
// interleave their rows.
enum class Interleave { kNone, kGateUp };

struct LinearSource {
  const Weight* weight = nullptr;  // [out, in]
  std::span<const float> bias;     // [out], or empty
};

enum class Epilogue {
  kNone,     // out = x · Wᵀ + bias
  kAdd,      // out += x · Wᵀ + bias (the residual stream)
  kSiluMul,  // out = silu(x · W_gateᵀ + b_gate) * (x · W_upᵀ + b_up); for Interleave::kGateUp
};

// Rotary position embedding (arXiv:2104.09864) in the half-split form of Hugging Face: dimension i of
// a head pairs with i + head_dim / 2 and turns by position · frequencies[i].
struct RopeSpec {
  std::span<const float> frequencies;  // [head_dim / 2], radians per position
};

struct AttentionSpec {
  int64_t heads = 0;  // query heads, a multiple of kv_heads
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  float scale = 0;                // of the scores, 1 / sqrt(head_dim)
  std::optional<int64_t> window;  // a query at p sees keys in (p - window, p]; all of [0, p] if none
};

// The largest step that will be asked for; sizes a backend's scratch memory.
struct StepLimits {
  int64_t rows = 0;
  int64_t sequences = 0;
  int64_t context = 0;  // tokens of one sequence
  int64_t logit_rows = 0;
};

// What a model's layers ask of the scratch memory.
struct ModelExtents {
  int64_t hidden = 0;
  int64_t intermediate = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t vocabulary = 0;
  std::optional<int64_t> window;  // of the layers that have one
};

// A decoder layer, for a device that runs all of them at once.
struct DecoderLayer {
  MatrixView input_norm, post_attention_norm;  // gains, float32 [1, hidden]
  float largest_input_gain = 0, largest_post_attention_gain = 0;  // magnitudes of these
  const PreparedLinear *qkv = nullptr, *output = nullptr, *gate_up = nullptr, *down = nullptr;
  AttentionSpec attention;
};

// What layers work on, [rows, ...] each; all but the residual stream is scratch.
struct LayerActivations {
  MatrixView residual, normed;  // hidden
  MatrixView qkv;               // (heads + 2 · kv_heads) · head_dim
  MatrixView attention;         // heads · head_dim
  MatrixView gated;             // intermediate
};

// A step's description where the device reads it; refilled by SetBatch for every step.
class BatchPlan {
 public:
  virtual ~BatchPlan() = default;
};

class Backend {
 public:
  virtual ~Backend() = default;

  // "ref", "cpu" or "cuda", and how its kernels were chosen, for example "cpu (AVX2, 2 threads)".
  virtual std::string name() const = 0;
  virtual std::string description() const = 0;
  virtual DType activation_type() const = 0;
  virtual int64_t kv_block_tokens() const = 0;
  // The rows of a step that keep the device busy; longer steps are no faster by the row.
  virtual int64_t step_rows() const = 0;
  virtual MemoryTracker& memory() = 0;
  // Of this device, in all.
  virtual uint64_t MemoryBytes() const = 0;
  // Bytes that allocations on this device may still take, of what is free and what memory() allows.
  virtual uint64_t AvailableBytes() const = 0;
  // What the system says is held of this device's memory, what nibble does not count included: on a CPU
  // by this process, at its highest; on a GPU by everyone, now.
  virtual uint64_t SystemBytes() const = 0;

  // Memory and weights -------------------------------------------------------------------------

  // Uninitialized memory of this device.
  virtual Result<Matrix> Allocate(MemoryClass memory_class, DType dtype, int64_t rows,
                                  int64_t columns) = 0;
  // A vector that operations read, such as a norm's gain, as a [1, n] matrix of class kWeights.
  virtual Result<Matrix> Upload(std::span<const float> values) = 0;
  // Memory beside this device's that its operations can use, more slowly, and that is not counted:
  // on a CPU a file without a name in `directory`, on a GPU page-locked memory of the host.
  virtual Result<Matrix> AllocateBeside(const std::string& directory, DType dtype, int64_t rows,
                                        int64_t columns) = 0;
  // Concatenates the sources by rows and packs them. All have the same columns; dense sources share
  // one type and quantized ones one spec and one order of columns. A dense source's values may lie in
  // this device's memory.
  virtual Result<std::unique_ptr<PreparedLinear>> Prepare(std::span<const LinearSource> sources,
                                                          Interleave interleave) = 0;
  // bytes() of the linear that Prepare would make of one weight of this form, so that memory can be
  // predicted before anything is loaded. `quant` is null for a dense weight of type `dtype`.
  virtual uint64_t PreparedBytes(int64_t out_features, int64_t in_features, DType dtype,
                                 const QuantSpec* quant, bool bias) const = 0;
  virtual Result<std::unique_ptr<KvCache>> CreateKvCache(const KvLayout& layout,
                                                         int64_t blocks) = 0;
  // Copies one block's keys and values, all layers.
  virtual void CopyKvBlock(KvCache& cache, int64_t from, int64_t to) = 0;
  // Scratch memory for steps within the limits, and its size.
  virtual Result<std::unique_ptr<BatchPlan>> CreatePlan(const StepLimits& limits,
                                                        const ModelExtents& model) = 0;
  virtual uint64_t PlanBytes(const StepLimits& limits, const ModelExtents& model) const = 0;
  virtual void SetBatch(BatchPlan& plan, const Batch& batch) = 0;
  // Runs `operations`, which issues all of a step: the batch is set, and whenever a batch has the same
  // number of rows, sequences and logit rows it issues the same operations on the same memory. A
  // device that can record them may replay them instead.
  virtual void Issue(BatchPlan& plan, const std::function<void()>& operations) = 0;

  // The operations of a step; `rows` below are the batch's ----------------------------------------

  // out[r] = table[tokens[r]]. table: [vocabulary, hidden]; out: [rows, hidden].
  virtual void Embed(const BatchPlan& plan, const PreparedLinear& table, MatrixView out) = 0;
  // out[r] = x[r] * gain / sqrt(mean(x[r]²) + epsilon). out may alias x.
  virtual void RmsNorm(MatrixView x, MatrixView gain, float epsilon, MatrixView out) = 0;
  // x: [rows, in]; out: [rows, out_features], or half of that under kSiluMul; must not alias x.
  virtual void Linear(BatchPlan& plan, const PreparedLinear& weight, MatrixView x,
                      Epilogue epilogue, MatrixView out) = 0;
  // qkv: [rows, (heads + 2 · kv_heads) · head_dim], queries then keys then values. Turns the queries
  // in place; writes the turned keys and the values into the cache at each row's position.
  virtual void RopeAndStoreKv(const BatchPlan& plan, const RopeSpec& rope,
                              const AttentionSpec& attention, int64_t layer, MatrixView qkv,
                              KvCache& cache) = 0;
  // q, out: [rows, heads · head_dim]. Causal attention of each row over its sequence's cache.
  virtual void Attend(BatchPlan& plan, const AttentionSpec& attention, int64_t layer, MatrixView q,
                      const KvCache& cache, MatrixView out) = 0;
  // Both of these, Attend of the turned queries, for backends that do them at once. What qkv holds
  // afterwards is undefined.
  virtual void RopeAndAttend(BatchPlan& plan, const RopeSpec& rope, const AttentionSpec& attention,
                             int64_t layer, MatrixView qkv, KvCache& cache, MatrixView out) {
    RopeAndStoreKv(plan, rope, attention, layer, qkv, cache);
    const MatrixView queries = qkv.Columns(0, attention.heads * attention.head_dim);
    Attend(plan, attention, layer, queries, cache, out);
  }
  // All layers on the residual stream, as src/model/forward.h composes a layer, in fewer
  // operations; layer i is the cache's. False, and nothing is done, where this device has no such
  // way for these layers and this batch.
  virtual bool RunLayers(BatchPlan&, std::span<const DecoderLayer>, const RopeSpec&,
                         float /*epsilon*/, KvCache&, const LayerActivations&) {
    return false;
  }
  // RmsNorm of the rows whose logits are wanted: out[i] of x[logit_rows[i]].
  virtual void NormLogitRows(const BatchPlan& plan, MatrixView x, MatrixView gain, float epsilon,
                             MatrixView out) = 0;

  // Chooses the token that follows each logit row, as the batch's `choices` say (ops/sampling.h), from
  // the step's logits: float32 [logit rows, vocabulary]. The next batch may have them in its rows.
  virtual void ChooseTokens(BatchPlan& plan, MatrixView logits) = 0;
  // The tokens that ChooseTokens chose, one call's at a time in their order; waits for that step and
  // for nothing that was issued after it. Valid until the next call.
  virtual Result<std::span<const int32_t>> ReceiveTokens(BatchPlan& plan) = 0;
  // Whether a step that was issued is still to be computed, so that it pays to issue the next one
  // before the tokens of the last are received.
  virtual bool queues_steps() const = 0;

  // What quantizers ask of this device; borrows the backend.
  virtual Result<std::unique_ptr<QuantizeOps>> CreateQuantizeOps() = 0;

  // The matrix where the host can read it, once everything issued so far is done; valid until the
  // next operation.
  virtual Result<MatrixView> ToHost(MatrixView matrix) = 0;
};

}  // namespace nibble

#endif  // NIBBLE_OPS_BACKEND_H_

// Runs a model over many sequences at once, on a paged KV cache.
//
// A sequence grows by Extend; Fork makes a sequence that begins like another and shares its cache:
// whole blocks by reference, a partly filled last block by copy. Whole blocks whose tokens were
// told (Publish) are found by later sequences (Open), until their memory is needed, also when
// nobody holds them any more. All memory is taken by Create.
#ifndef NIBBLE_ENGINE_ENGINE_H_
#define NIBBLE_ENGINE_ENGINE_H_

#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "src/base/cancel.h"
#include "src/engine/kv_pool.h"
#include "src/model/forward.h"
#include "src/model/model_weights.h"

namespace nibble {

struct EngineOptions {
  DType kv_dtype = DType::kF16;
  int64_t kv_tokens = 0;  // room in the cache, in tokens; rounded up to blocks
  StepLimits limits;      // of one step; larger work is split
};

// What a model's work on a backend takes, predicted before anything is allocated.
struct MemoryPrediction {
  MemoryUse use;
  // Status kResources, naming both figures, where it exceeds what the machine has free beyond
  // `already_used` (weights that are loaded count as used).
  Status CheckAgainst(uint64_t available_bytes) const;
};
MemoryPrediction PredictMemory(const Checkpoint& checkpoint, const ModelDescription& model,
                               const Backend& backend, const EngineOptions& options);

// `wanted` with its KV cache cut down to what `available_bytes` hold beside the workspace, where
// the weights are loaded. kResources where they do not hold `least_kv_tokens` (naming the tokens
// that fit).
Result<EngineOptions> FitKvCache(const EngineOptions& wanted, int64_t least_kv_tokens,
                                 const ModelConfig& config, const Backend& backend,
                                 uint64_t available_bytes);

KvLayout KvLayoutFor(const ModelConfig& config, const Backend& backend, DType kv_dtype);

// The blocks that `sequences` sequences of `tokens` tokens take, as tokens.
int64_t KvTokensFor(const Backend& backend, int64_t sequences, int64_t tokens);

using SequenceId = int64_t;

// After which of an extension's tokens the logits (of the next token) are wanted.
enum class WantLogits { kNone, kLast, kAll };

struct Extension {
  SequenceId sequence = 0;
  // At least one; or none, for the one that was chosen for the sequence last, where it is on the
  // device.
  std::span<const int32_t> tokens;
  WantLogits logits = WantLogits::kLast;
  SamplingOptions sampling;  // of the token that Issue chooses

  int64_t count() const { return tokens.empty() ? 1 : static_cast<int64_t>(tokens.size()); }
};

// Logits that became ready: row i of `logits` (float32 on the host, [n, vocabulary]) follows the
// token `first_token + i` of extension number `extension`. The view is valid during the call. The
// tokens of one extension come in order.
using LogitsSink =
    std::function<void(size_t extension, int64_t first_token, const MatrixView& logits)>;

// The token that was chosen to follow an extension's last one.
using TokenSink = std::function<void(size_t extension, int32_t token)>;

class Engine {
 public:
  // Borrows `weights` and `backend`.
  static Result<std::unique_ptr<Engine>> Create(const ModelWeights& weights, Backend& backend,
                                                const EngineOptions& options);

  SequenceId Open();
  // A sequence that begins with as many of the tokens as published blocks hold, which is its
  // length.
  SequenceId Open(std::span<const int32_t> tokens);
  SequenceId Fork(SequenceId parent);
  // Of the parent's first `tokens` tokens, which are whole blocks.
  SequenceId Fork(SequenceId parent, int64_t tokens);
  // The sequence's tokens are these, as far as it goes. Its whole blocks may be found by them from
  // now on; where another sequence published the same, it takes over that one's blocks for its own.
  void Publish(SequenceId sequence, std::span<const int32_t> tokens);
  void Close(SequenceId sequence);
  int64_t length(SequenceId sequence) const;  // tokens in the cache

  // Appends the tokens to their sequences, each at most once per call, in as many steps as the
  // limits ask for. kBadInput where a token id is outside the vocabulary or a sequence would
  // outgrow the model's context, kResources where the cache is full; nothing is appended then.
  // kInterrupted between steps; the sequences then hold part of the tokens.
  Status Extend(std::span<const Extension> extensions, const LogitsSink& sink,
                const CancelToken& cancel);
  // As Extend, with the next token of each extension in place of logits (every one wants
  // WantLogits::kLast or kNone): it is chosen on the device, and returns to the host with Receive.
  // Issue need not wait for that: the next one may extend a sequence by the token that this one
  // chose, given as no tokens at all, in its first step and for sequences of this one's last step.
  Status Issue(std::span<const Extension> extensions, const CancelToken& cancel);
  // The tokens of the oldest Issue that was not received; waits for them, not for what came after.
  // Their sequences may have been closed since.
  Status Receive(const TokenSink& sink);

  const ModelConfig& config() const { return weights_.config; }
  const ModelWeights& weights() const { return weights_; }
  Backend& backend() { return backend_; }
  const StepLimits& limits() const { return forward_->limits(); }
  int64_t kv_block_tokens() const { return cache_->layout().block_tokens; }
  // That sequences may take; blocks that only wait to be found are free.
  int64_t free_kv_tokens() const;

 private:
  struct Sequence {
    std::vector<int32_t> blocks;
    int64_t length = 0;
    size_t published = 0;  // of its first blocks
    // The token chosen last: the step that chose it, of `choosing_steps_`, and its logit row there.
    int64_t chosen_in = 0;
    int32_t chosen_row = 0;
  };
  // A run of one extension's tokens within one step.
  struct Piece {
    size_t extension;
    int64_t first;  // token of the extension
    int64_t count;
  };

  Engine(const ModelWeights& weights, Backend& backend) : weights_(weights), backend_(backend) {}
  Sequence& Get(SequenceId sequence);
  // Blocks that appending `tokens` to the sequence takes, a copy of a shared last block included.
  int64_t BlocksNeeded(const Sequence& sequence, int64_t tokens) const;
  Status CheckRequest(std::span<const Extension> extensions) const;
  void ReserveBlocks(Sequence& sequence, int64_t tokens);
  // How many of the piece's last rows want logits.
  static int64_t LogitRows(std::span<const Extension> extensions, const Piece& piece);
  // Hands over what a step's logits say, while they are on the device.
  using Deliver = std::function<Status(std::span<const Piece> pieces, MatrixView logits)>;
  Status RunSteps(std::span<const Extension> extensions, const Deliver& deliver,
                  const CancelToken& cancel);
  Status RunStep(std::span<const Extension> extensions, std::span<const Piece> pieces,
                 const Deliver& deliver);

  const ModelWeights& weights_;
  Backend& backend_;
  std::unique_ptr<KvCache> cache_;
  std::unique_ptr<KvPool> pool_;
  std::unique_ptr<Forward> forward_;
  std::unordered_map<SequenceId, Sequence> sequences_;
  int64_t choosing_steps_ = 0;  // issued so far
  // For each Issue that was not received, and each of its steps that chose: the rows' extensions.
  std::deque<std::vector<std::vector<size_t>>> issued_;
  SequenceId next_id_ = 1;
};

}  // namespace nibble

#endif  // NIBBLE_ENGINE_ENGINE_H_

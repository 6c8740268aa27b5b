// Continuous batching (as in Orca, OSDI 2022): every step carries the next token of each running
// sequence and as much of waiting prompts as there is room for; a finished sequence leaves at once
// and the next in line takes its place.
//
// Where the device queues steps, the next step is issued before the tokens of the last are seen: a
// sequence that a stop token ends has then computed one token more, which is discarded.
#ifndef NIBBLE_ENGINE_SCHEDULER_H_
#define NIBBLE_ENGINE_SCHEDULER_H_

#include <deque>
#include <functional>
#include <vector>

#include "src/engine/engine.h"

namespace nibble {

enum class FinishReason { kStop, kLength };

struct GenerationRequest {
  std::vector<int32_t> prompt;  // at least one token
  int64_t max_tokens = 0;       // at least 1
  SamplingOptions sampling;
  std::vector<int32_t> stop_tokens;  // ends the text; not delivered
};

class Scheduler {
 public:
  using RequestId = int64_t;
  // Called for every token, in the order of a request's text.
  using OnToken = std::function<void(RequestId request, int32_t token)>;
  using OnFinish = std::function<void(RequestId request, FinishReason reason)>;

  // Borrows the engine, of which it must be the only user.
  Scheduler(Engine& engine, OnToken on_token, OnFinish on_finish);
  ~Scheduler();

  // Fails with kBadInput where prompt and max_tokens exceed the context or a token id the
  // vocabulary, with kResources where the cache could never hold it.
  Result<RequestId> Add(GenerationRequest request);

  // Issues a step of the engine and delivers tokens. False once nothing is left to do.
  Result<bool> Step(const CancelToken& cancel);

 private:
  struct Running {
    RequestId id;
    GenerationRequest request;
    SequenceId sequence;
    int64_t prompt_done = 0;  // tokens of the prompt that were issued
    int64_t chosen = 0;       // new tokens whose choice was issued
    int64_t generated = 0;    // delivered
    int32_t last_token = 0;   // the last that was delivered
    bool finished = false;
  };

  int64_t TokensReserved(const GenerationRequest& request) const;
  void Admit();
  // Issues a step for the running requests; false where there is nothing to compute.
  Result<bool> IssueStep(const CancelToken& cancel);
  Status ReceiveStep();
  void Accept(Running& running, int32_t token);

  Engine& engine_;
  OnToken on_token_;
  OnFinish on_finish_;
  std::deque<std::pair<RequestId, GenerationRequest>> waiting_;
  std::vector<Running> running_;
  // The requests of each step that was issued and not received, in the order of its extensions.
  std::deque<std::vector<RequestId>> in_flight_;
  int64_t reserved_tokens_ = 0;  // that the running requests may come to hold, in whole blocks
  int64_t capacity_tokens_;
  RequestId next_id_ = 1;
};

}  // namespace nibble

#endif  // NIBBLE_ENGINE_SCHEDULER_H_

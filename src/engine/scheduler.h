// Continuous batching (as in Orca, OSDI 2022): every step carries the next token of each running
// sequence and as much of waiting prompts as there is room for; a finished sequence leaves at once
// and the next in line takes its place.
#ifndef NIBBLE_ENGINE_SCHEDULER_H_
#define NIBBLE_ENGINE_SCHEDULER_H_

#include <deque>
#include <functional>
#include <vector>

#include "src/engine/engine.h"
#include "src/engine/sampler.h"

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

  // One step of the engine. False once nothing is left to do.
  Result<bool> Step(const CancelToken& cancel);

 private:
  struct Running {
    RequestId id;
    GenerationRequest request;
    Sampler sampler;
    SequenceId sequence;
    int64_t prompt_done = 0;    // tokens of the prompt in the cache
    int64_t generated = 0;
    int32_t next_token = 0;     // sampled, not yet in the cache
    bool finished = false;
  };

  int64_t TokensReserved(const GenerationRequest& request) const;
  void Admit();
  void Accept(Running& running, int32_t token);

  Engine& engine_;
  OnToken on_token_;
  OnFinish on_finish_;
  std::deque<std::pair<RequestId, GenerationRequest>> waiting_;
  std::vector<Running> running_;
  int64_t reserved_tokens_ = 0;  // that the running requests may come to hold, in whole blocks
  int64_t capacity_tokens_;
  RequestId next_id_ = 1;
};

}  // namespace nibble

#endif  // NIBBLE_ENGINE_SCHEDULER_H_

// Continuous batching (as in Orca, OSDI 2022): every step carries the next token of each running
// sequence and as much of waiting prompts as there is room for; a finished sequence leaves at once
// and the next in line takes its place.
//
// The KV cache is taken as texts grow. Where it is full, the request that came last gives its
// blocks back and waits, first in line; later it computes its text again, prompt and new tokens,
// and goes on where it was. Who came first is never stopped for who came later, so every request
// finishes.
//
// Texts with the same beginning share its whole blocks and compute them once. Choices of one prompt
// share it while one of them runs; with PrefixCache::kOn all texts do, and what was computed is
// found again until its memory is needed, so a preempted text may have little to compute again. A
// text waits for another that is computing its beginning. What a request needs the logits of is
// computed: its last token, and all whose scores it wants. A token's keys and values depend on the
// tokens before it alone, so where a backend's results do not depend on the batch (on a CPU always,
// on a GPU with
// --batch-invariant), sharing changes no bit of a text.
//
// Where the device queues steps, the next step is issued before the tokens of the last are seen: a
// sequence that a stop token ends has then computed one token more, which is discarded. A request
// that needs its logits on the host (rules, or scores) goes through the engine apart from the
// others.
#ifndef NIBBLE_ENGINE_SCHEDULER_H_
#define NIBBLE_ENGINE_SCHEDULER_H_

#include <deque>
#include <functional>
#include <optional>
#include <vector>

#include "src/engine/engine.h"
#include "src/engine/logit_rules.h"

namespace nibble {

enum class FinishReason { kStop, kLength };

// Of which tokens a request's OnScore is told the logits that they were chosen from.
enum class WantScores { kNone, kGenerated, kPromptAndGenerated };

struct GenerationRequest {
  std::vector<int32_t> prompt;  // at least one token
  int64_t max_tokens = 0;       // at least 1, or 0 where only the prompt's scores are wanted
  SamplingOptions sampling;
  std::vector<int32_t> stop_tokens;  // ends the text; not delivered
  LogitRules rules;
  WantScores scores = WantScores::kNone;
  int64_t group = 0;  // not 0: requests of the same group share what they have in common
};

enum class PrefixCache { kOff, kOn };

// What PrefixCache::kOn was asked for and had, in tokens, when texts began for the first time.
struct PrefixCacheCounts {
  int64_t queries = 0;
  int64_t hits = 0;
};

class Scheduler {
 public:
  using RequestId = int64_t;
  // Called for every token, in the order of a request's text.
  using OnToken = std::function<void(RequestId request, int32_t token)>;
  using OnFinish = std::function<void(RequestId request, FinishReason reason)>;
  // The logits (float32, [vocabulary]; valid during the call) of the place of `token`: each token
  // of the prompt but the first, then each generated one, before OnToken.
  using OnScore =
      std::function<void(RequestId request, int32_t token, std::span<const float> logits)>;
  // A request runs for the first time; so many tokens of its prompt are computed already.
  using OnBegin = std::function<void(RequestId request, int64_t shared_tokens)>;

  // Borrows the engine, of which it must be the only user.
  Scheduler(Engine& engine, OnToken on_token, OnFinish on_finish, OnScore on_score = nullptr,
            PrefixCache prefix_cache = PrefixCache::kOff, OnBegin on_begin = nullptr);
  ~Scheduler();

  // Fails with kBadInput where prompt and max_tokens exceed the context or a token id the
  // vocabulary, with kResources where the cache could never hold it.
  Result<RequestId> Add(GenerationRequest request);
  // Whether Add would take it; from any thread.
  Status Check(const GenerationRequest& request) const;
  // Whether the token is one of the vocabulary; from any thread.
  Status CheckToken(int32_t token) const;
  // Tokens that a prompt and its new tokens may have together.
  int64_t context() const;

  // Ends a request without a word; false where there is none of that number (any more). Not from
  // within the calls of Step.
  bool Cancel(RequestId request);

  // Issues a step of the engine and delivers tokens. False once nothing is left to do.
  Result<bool> Step(const CancelToken& cancel);

  int64_t running() const { return static_cast<int64_t>(running_.size()); }
  int64_t waiting() const { return static_cast<int64_t>(waiting_.size()); }
  int64_t preemptions() const { return preemptions_; }
  // Tokens that were computed, those of texts that were computed again included.
  int64_t computed_tokens() const { return computed_tokens_; }
  const PrefixCacheCounts& prefix_cache_counts() const { return prefix_cache_counts_; }
  int64_t kv_tokens() const { return capacity_tokens_; }
  int64_t kv_tokens_used() const { return capacity_tokens_ - engine_.free_kv_tokens(); }

 private:
  // A request and its text. While it waits it has no sequence.
  struct Entry {
    RequestId id = 0;
    GenerationRequest request;
    std::vector<int32_t> text;  // the prompt and what was delivered
    int64_t prompt_length = 0;
    int64_t scored = 1;       // tokens of the prompt whose scores were delivered
    int64_t generated = 0;    // new tokens that were delivered
    TokenCounts counts;       // of those, where the rules ask for them
    SequenceId sequence = 0;  // while it runs:
    int64_t refill = 0;       // tokens of the text to compute before the next is chosen
    int64_t issued = 0;       // of those, issued
    int64_t chosen = 0;       // new tokens whose choice was issued
    bool began = false;       // ever
    bool finished = false;

    // Its tokens are chosen from logits on the host.
    bool on_host() const { return request.rules.any() || request.scores != WantScores::kNone; }
  };
  // A run of an entry's text that the next step computes.
  struct Work {
    Entry* entry;
    int64_t count;
    bool chooses;  // the token that follows
  };

  void Admit();
  // How many of the text's first tokens nobody needs the logits of.
  static int64_t Skippable(const Entry& entry);
  // A sequence with what is computed of the entry's text already; none where it is worth waiting
  // for another text that computes more of it.
  std::optional<SequenceId> OpenShared(const Entry& entry);
  // Ends the entry's sequence; what is known of its text may be found.
  void CloseSequence(const Entry& entry);
  std::vector<Work> PlanStep();
  int64_t KvTokensNeeded(const std::vector<Work>& work) const;
  void PreemptLast();
  // Issues a step for the running requests; false where there is nothing to compute.
  Result<bool> IssueStep(const CancelToken& cancel);
  Status RunOnHost(const std::vector<Work>& work, const CancelToken& cancel);
  void ScoreRow(Entry& entry, int64_t position, std::span<const float> logits);
  Status ReceiveStep();
  void Accept(Entry& entry, int32_t token);
  void RemoveFinished();

  Engine& engine_;
  OnToken on_token_;
  OnFinish on_finish_;
  OnScore on_score_;
  const PrefixCache prefix_cache_;
  OnBegin on_begin_;
  // Both in the order of arrival, and all that runs came before all that waits.
  std::deque<Entry> waiting_;
  std::vector<Entry> running_;
  // The requests of each step that was issued and not received, in the order of its extensions.
  std::deque<std::vector<RequestId>> in_flight_;
  int64_t capacity_tokens_;
  int64_t preemptions_ = 0;
  int64_t computed_tokens_ = 0;
  PrefixCacheCounts prefix_cache_counts_;
  RequestId next_id_ = 1;
};

}  // namespace nibble

#endif  // NIBBLE_ENGINE_SCHEDULER_H_

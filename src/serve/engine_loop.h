// The thread that owns an engine and its scheduler, and what other threads may ask of it: to
// answer, to give up answering, and how it stands.
//
// An answer is one or several choices, each a text of its own; n choices of one prompt are n
// sequences that share it.
#ifndef NIBBLE_SERVE_ENGINE_LOOP_H_
#define NIBBLE_SERVE_ENGINE_LOOP_H_

#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "src/engine/scheduler.h"
#include "src/serve/api_response.h"
#include "src/serve/choice_text.h"
#include "src/serve/metrics.h"
#include "src/tokenizer/tokenizer.h"

namespace nibble {

// One choice of an answer.
struct ChoiceRequest {
  GenerationRequest generation;  // its `scores` follow from the members below
  std::vector<std::string> stops;
  EchoPrompt echo = EchoPrompt::kNo;
  std::optional<int64_t> top_logprobs;  // absent: no scores
  bool repeats_prompt = false;          // an earlier choice of the answer has the same
};

struct EngineLoopOptions {
  int64_t max_choices = 0;  // open at a time, running or waiting
  PrefixCache prefix_cache = PrefixCache::kOff;
};

class EngineLoop {
 public:
  using AnswerId = int64_t;
  // Called on the loop's thread, so it must be quick; parts of one choice come in order, the last
  // with its end.
  using OnPart = std::function<void(ChoicePart part)>;
  // Called there in place of all further parts, where the engine failed.
  using OnFailure = std::function<void(ApiError error)>;

  // Borrows the engine, of which it is the only user from now on, and the tokenizer.
  EngineLoop(Engine& engine, const Tokenizer& tokenizer, const EngineLoopOptions& options);
  // Gives up what is open.
  ~EngineLoop();

  // From any thread. 400 for what the model or its cache could never hold, 429 where too many wait,
  // 503 where the engine has failed.
  ApiResult<AnswerId> Submit(std::vector<ChoiceRequest> choices, OnPart on_part,
                             OnFailure on_failure);
  // From any thread. Parts may still come for a moment.
  void Cancel(AnswerId answer);
  ServeMetrics metrics() const;
  int64_t context() const { return scheduler_.context(); }
  Status CheckToken(int32_t token) const { return scheduler_.CheckToken(token); }

 private:
  using Clock = std::chrono::steady_clock;
  struct Answer {
    OnPart on_part;
    OnFailure on_failure;
    std::vector<Scheduler::RequestId> open;
  };
  struct Choice {
    AnswerId answer;
    int64_t index;
    ChoiceText text;
    int64_t top_logprobs;
    Clock::time_point accepted, last_token;
    int64_t unscored_prompt = 0;  // tokens of the prompt that come with their scores
    int64_t tokens = 0;
    bool repeats_prompt = false;
    int64_t cached = 0;  // tokens of the prompt that need not be computed; not yet told
    bool touched = false;
    bool stopped = false;  // by a stop string; to be cancelled
    ChoiceEnd end = ChoiceEnd::kNone;
  };
  struct Submission {
    AnswerId id;
    std::vector<ChoiceRequest> choices;
    Answer answer;
    Clock::time_point accepted;
  };

  void Run();
  void Accept(Submission submission);
  void GiveUp(AnswerId answer);
  void Begin(Scheduler::RequestId request, int64_t shared_tokens);
  void Token(Scheduler::RequestId request, int32_t token);
  void Finish(Scheduler::RequestId request, FinishReason reason);
  void Score(Scheduler::RequestId request, int32_t token, std::span<const float> logits);
  void Touch(Scheduler::RequestId request, Choice& choice);
  // What the last step gave, and to whom.
  std::vector<std::pair<OnPart, ChoicePart>> TakeParts();
  void FailAll(const Error& error);
  void Publish();

  const Tokenizer& tokenizer_;
  const int64_t max_choices_;
  MemoryTracker& memory_;
  Scheduler scheduler_;

  // Of the loop's thread:
  std::unordered_map<AnswerId, Answer> answers_;
  std::unordered_map<Scheduler::RequestId, Choice> choices_;
  std::vector<Scheduler::RequestId> touched_;
  ServeMetrics counted_;
  int64_t ended_choices_ = 0;  // since the last Publish

  mutable std::mutex mutex_;  // guards what follows
  std::condition_variable wake_;
  std::vector<Submission> submissions_;
  std::vector<AnswerId> cancelled_;
  ServeMetrics published_;
  AnswerId next_id_ = 1;
  int64_t open_choices_ = 0;
  bool stop_ = false;
  bool failed_ = false;

  std::thread thread_;
};

}  // namespace nibble

#endif  // NIBBLE_SERVE_ENGINE_LOOP_H_

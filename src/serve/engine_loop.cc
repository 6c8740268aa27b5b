#include "src/serve/engine_loop.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <utility>

#include "src/eval/divergence.h"

namespace nibble {
namespace {

double Seconds(std::chrono::steady_clock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

ApiError Unavailable() {
  return {.status = 503,
          .message = "the engine has failed; the server must be restarted",
          .type = "unavailable_error"};
}

}  // namespace

EngineLoop::EngineLoop(Engine& engine, const Tokenizer& tokenizer, const EngineLoopOptions& options)
    : tokenizer_(tokenizer),
      max_choices_(options.max_choices),
      memory_(engine.backend().memory()),
      scheduler_(
          engine, [this](Scheduler::RequestId id, int32_t token) { Token(id, token); },
          [this](Scheduler::RequestId id, FinishReason reason) { Finish(id, reason); },
          [this](Scheduler::RequestId id, int32_t token, std::span<const float> logits) {
            Score(id, token, logits);
          },
          options.prefix_cache,
          [this](Scheduler::RequestId id, int64_t shared_tokens) { Begin(id, shared_tokens); }) {
  Publish();
  thread_ = std::thread([this] { Run(); });
}

EngineLoop::~EngineLoop() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

ApiResult<EngineLoop::AnswerId> EngineLoop::Submit(std::vector<ChoiceRequest> choices,
                                                   OnPart on_part, OnFailure on_failure) {
  for (ChoiceRequest& choice : choices) {
    // A text without new tokens is its prompt's scores, wanted or not.
    const bool scores = choice.top_logprobs || choice.generation.max_tokens == 0;
    choice.generation.scores = !scores                           ? WantScores::kNone
                               : choice.echo == EchoPrompt::kYes ? WantScores::kPromptAndGenerated
                                                                 : WantScores::kGenerated;
    if (const Status status = scheduler_.Check(choice.generation); !status) {
      return tl::unexpected<ApiError>({.status = 400,
                                       .message = status.error().message(),
                                       .param = "max_tokens",
                                       .code = "context_length_exceeded"});
    }
  }
  const auto count = static_cast<int64_t>(choices.size());
  AnswerId id = 0;
  Submission submission{.id = 0,
                        .choices = std::move(choices),
                        .answer = {std::move(on_part), std::move(on_failure), {}},
                        .accepted = Clock::now()};
  {
    const std::lock_guard lock(mutex_);
    if (failed_) return tl::unexpected<ApiError>(Unavailable());
    if (open_choices_ + count > max_choices_) {
      return tl::unexpected<ApiError>(
          {.status = 429,
           .message = fmt::format("{} choices are open or wait, of at most {}; try again later",
                                  open_choices_, max_choices_),
           .type = "rate_limit_error"});
    }
    open_choices_ += count;
    id = submission.id = next_id_++;
    submissions_.push_back(std::move(submission));
  }
  wake_.notify_one();
  return id;
}

void EngineLoop::Cancel(AnswerId answer) {
  {
    const std::lock_guard lock(mutex_);
    cancelled_.push_back(answer);
  }
  wake_.notify_one();
}

ServeMetrics EngineLoop::metrics() const {
  const std::lock_guard lock(mutex_);
  ServeMetrics metrics = published_;
  // What was accepted and has not reached the scheduler waits too.
  metrics.waiting = std::max<int64_t>(0, open_choices_ - metrics.running);
  return metrics;
}

void EngineLoop::Run() {
  const CancelToken never;
  bool busy = false;
  while (true) {
    std::vector<Submission> submissions;
    std::vector<AnswerId> cancelled;
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock,
                 [&] { return busy || stop_ || !submissions_.empty() || !cancelled_.empty(); });
      if (stop_) return;
      submissions = std::exchange(submissions_, {});
      cancelled = std::exchange(cancelled_, {});
    }
    for (Submission& submission : submissions) Accept(std::move(submission));
    for (const AnswerId answer : cancelled) GiveUp(answer);
    const Result<bool> more = scheduler_.Step(never);
    if (!more) {
      FailAll(more.error());
      return;
    }
    busy = *more;
    auto parts = TakeParts();
    // Before anybody hears of an end, the figures know of it.
    Publish();
    for (auto& [on_part, part] : parts) on_part(std::move(part));
  }
}

void EngineLoop::Accept(Submission submission) {
  Answer& answer = answers_.emplace(submission.id, std::move(submission.answer)).first->second;
  for (size_t i = 0; i < submission.choices.size(); ++i) {
    ChoiceRequest& request = submission.choices[i];
    ChoiceText text(tokenizer_, std::move(request.stops), request.echo);
    const std::vector<int32_t>& prompt = request.generation.prompt;
    const bool scores_prompt = request.generation.scores == WantScores::kPromptAndGenerated;
    // Where the prompt is scored, all its tokens but the first come with their scores.
    const auto unscored = scores_prompt ? static_cast<int64_t>(prompt.size()) - 1 : 0;
    if (scores_prompt) text.Score({.bytes = DisplayBytes(tokenizer_, prompt.front())});
    std::for_each(prompt.begin(), prompt.end() - unscored,
                  [&](TokenId token) { text.PushPrompt(token); });
    counted_.prompt_tokens += static_cast<int64_t>(prompt.size());
    request.generation.group = submission.id;
    // Submit has checked it.
    const Scheduler::RequestId id = scheduler_.Add(std::move(request.generation)).value();
    choices_.emplace(id, Choice{.answer = submission.id,
                                .index = static_cast<int64_t>(i),
                                .text = std::move(text),
                                .top_logprobs = request.top_logprobs.value_or(0),
                                .accepted = submission.accepted,
                                .last_token = submission.accepted,
                                .unscored_prompt = unscored,
                                .repeats_prompt = request.repeats_prompt});
    answer.open.push_back(id);
  }
}

void EngineLoop::GiveUp(AnswerId answer) {
  const auto it = answers_.find(answer);
  if (it == answers_.end()) return;  // it was done already
  for (const Scheduler::RequestId id : it->second.open) {
    scheduler_.Cancel(id);
    choices_.erase(id);
  }
  const auto count = static_cast<int64_t>(it->second.open.size());
  counted_.aborted += count;
  ended_choices_ += count;
  answers_.erase(it);
}

void EngineLoop::Touch(Scheduler::RequestId request, Choice& choice) {
  if (!std::exchange(choice.touched, true)) touched_.push_back(request);
}

void EngineLoop::Begin(Scheduler::RequestId request, int64_t shared_tokens) {
  Choice& choice = choices_.at(request);
  // An answer's usage counts each prompt once.
  if (!choice.repeats_prompt) choice.cached = shared_tokens;
}

void EngineLoop::Token(Scheduler::RequestId request, int32_t token) {
  Choice& choice = choices_.at(request);
  if (choice.stopped) return;
  const Clock::time_point now = Clock::now();
  if (choice.tokens++ == 0) {
    counted_.first_token_seconds.Observe(Seconds(now - choice.accepted));
  } else {
    counted_.per_token_seconds.Observe(Seconds(now - choice.last_token));
  }
  choice.last_token = now;
  ++counted_.generation_tokens;
  if (choice.text.Push(token) == ChoiceText::Progress::kStopped) {
    choice.stopped = true;
    choice.end = ChoiceEnd::kStop;
  }
  Touch(request, choice);
}

void EngineLoop::Finish(Scheduler::RequestId request, FinishReason reason) {
  Choice& choice = choices_.at(request);
  Touch(request, choice);
  if (choice.stopped) return;
  choice.end = reason == FinishReason::kStop ? ChoiceEnd::kStop : ChoiceEnd::kLength;
  if (choice.text.Finish() == ChoiceText::Progress::kStopped) choice.end = ChoiceEnd::kStop;
}

void EngineLoop::Score(Scheduler::RequestId request, int32_t token, std::span<const float> logits) {
  Choice& choice = choices_.at(request);
  if (choice.stopped) return;
  const RowLogProbabilities row(logits);
  ScoredToken score{.bytes = DisplayBytes(tokenizer_, token), .logprob = row.At(token)};
  for (const int32_t id : MostProbableTokens(logits, choice.top_logprobs)) {
    score.top.emplace_back(DisplayBytes(tokenizer_, id), row.At(id));
  }
  choice.text.Score(std::move(score));
  if (choice.unscored_prompt > 0) {
    --choice.unscored_prompt;
    choice.text.PushPrompt(token);
  }
}

std::vector<std::pair<EngineLoop::OnPart, ChoicePart>> EngineLoop::TakeParts() {
  std::vector<std::pair<OnPart, ChoicePart>> parts;
  for (const Scheduler::RequestId id : std::exchange(touched_, {})) {
    const auto it = choices_.find(id);
    Choice& choice = it->second;
    choice.touched = false;
    ChoicePart part = choice.text.Take();
    part.index = choice.index;
    part.end = choice.end;
    part.cached = std::exchange(choice.cached, 0);
    const auto answer = answers_.find(choice.answer);
    parts.emplace_back(answer->second.on_part, std::move(part));
    if (choice.end == ChoiceEnd::kNone) continue;
    ++ended_choices_;
    ++(choice.end == ChoiceEnd::kStop ? counted_.stopped : counted_.length);
    counted_.whole_seconds.Observe(Seconds(Clock::now() - choice.accepted));
    scheduler_.Cancel(id);  // does nothing but for those that a stop string ended
    std::erase(answer->second.open, id);
    if (answer->second.open.empty()) answers_.erase(answer);
    choices_.erase(it);
  }
  return parts;
}

void EngineLoop::FailAll(const Error& error) {
  spdlog::error("the engine failed: {}", error.message());
  std::vector<Submission> submissions;
  {
    const std::lock_guard lock(mutex_);
    failed_ = true;
    submissions = std::exchange(submissions_, {});
  }
  for (Submission& submission : submissions) submission.answer.on_failure(Unavailable());
  for (auto& [id, answer] : answers_) answer.on_failure(Unavailable());
}

void EngineLoop::Publish() {
  counted_.running = scheduler_.running();
  counted_.preemptions = scheduler_.preemptions();
  counted_.prefix_cache = scheduler_.prefix_cache_counts();
  counted_.kv_tokens = scheduler_.kv_tokens();
  counted_.kv_tokens_used = scheduler_.kv_tokens_used();
  counted_.memory = memory_.current();
  const std::lock_guard lock(mutex_);
  published_ = counted_;
  open_choices_ -= std::exchange(ended_choices_, 0);
}

}  // namespace nibble

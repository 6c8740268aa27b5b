#include "src/engine/scheduler.h"

#include <algorithm>

namespace nibble {

Scheduler::Scheduler(Engine& engine, OnToken on_token, OnFinish on_finish)
    : engine_(engine),
      on_token_(std::move(on_token)),
      on_finish_(std::move(on_finish)),
      capacity_tokens_(engine.free_kv_tokens()) {}

Scheduler::~Scheduler() {
  for (const Running& running : running_) engine_.Close(running.sequence);
}

int64_t Scheduler::TokensReserved(const GenerationRequest& request) const {
  // The last token is delivered but never enters the cache.
  const int64_t tokens = static_cast<int64_t>(request.prompt.size()) + request.max_tokens - 1;
  return KvTokensFor(engine_.backend(), 1, tokens);
}

Result<Scheduler::RequestId> Scheduler::Add(GenerationRequest request) {
  CHECK(!request.prompt.empty() && request.max_tokens > 0);
  const int64_t context = std::min(engine_.config().max_context, engine_.limits().context);
  const int64_t total = static_cast<int64_t>(request.prompt.size()) + request.max_tokens;
  if (total > context) {
    return BadInput("{} prompt tokens and {} new ones exceed the context of {} tokens",
                    request.prompt.size(), request.max_tokens, context);
  }
  for (const int32_t token : request.prompt) {
    if (token < 0 || token >= engine_.config().vocabulary) {
      return BadInput("token id {} is outside the model's vocabulary of {}", token,
                      engine_.config().vocabulary);
    }
  }
  if (TokensReserved(request) > capacity_tokens_) {
    return NotEnough("a request of {} tokens exceeds the KV cache of {}", total, capacity_tokens_);
  }
  waiting_.emplace_back(next_id_, std::move(request));
  return next_id_++;
}

void Scheduler::Admit() {
  const auto room = static_cast<size_t>(engine_.limits().sequences);
  while (!waiting_.empty() && running_.size() < room) {
    auto& [id, request] = waiting_.front();
    const int64_t tokens = TokensReserved(request);
    if (reserved_tokens_ + tokens > capacity_tokens_) return;
    reserved_tokens_ += tokens;
    Sampler sampler(request.sampling);
    running_.push_back({.id = id,
                        .request = std::move(request),
                        .sampler = std::move(sampler),
                        .sequence = engine_.Open()});
    waiting_.pop_front();
  }
}

void Scheduler::Accept(Running& running, int32_t token) {
  const std::vector<int32_t>& stops = running.request.stop_tokens;
  if (std::find(stops.begin(), stops.end(), token) != stops.end()) {
    running.finished = true;
    on_finish_(running.id, FinishReason::kStop);
    return;
  }
  running.next_token = token;
  ++running.generated;
  on_token_(running.id, token);
  if (running.generated == running.request.max_tokens) {
    running.finished = true;
    on_finish_(running.id, FinishReason::kLength);
  }
}

Result<bool> Scheduler::Step(const CancelToken& cancel) {
  Admit();
  if (running_.empty()) return false;

  // Decoding sequences first, one row each; what is left of the step goes to prompts, in order of
  // arrival.
  std::vector<Extension> extensions;
  std::vector<size_t> owners;  // of each extension, into running_
  int64_t rows = 0;
  const auto prompt_length = [](const Running& r) {
    return static_cast<int64_t>(r.request.prompt.size());
  };
  for (size_t i = 0; i < running_.size(); ++i) {
    Running& running = running_[i];
    if (running.prompt_done < prompt_length(running)) continue;
    extensions.push_back({running.sequence, {&running.next_token, 1}, WantLogits::kLast});
    owners.push_back(i);
    ++rows;
  }
  for (size_t i = 0; i < running_.size(); ++i) {
    Running& running = running_[i];
    const int64_t count = std::min(prompt_length(running) - running.prompt_done,
                                   engine_.limits().rows - rows);
    if (count <= 0) continue;
    const bool ends = running.prompt_done + count == prompt_length(running);
    extensions.push_back({running.sequence,
                          std::span<const int32_t>(running.request.prompt)
                              .subspan(static_cast<size_t>(running.prompt_done),
                                       static_cast<size_t>(count)),
                          ends ? WantLogits::kLast : WantLogits::kNone});
    owners.push_back(i);
    running.prompt_done += count;
    rows += count;
  }
  const bool greedy = std::all_of(owners.begin(), owners.end(), [&](size_t owner) {
    return running_[owner].request.sampling.temperature <= 0;
  });
  if (greedy) {
    NIBBLE_RETURN_IF_ERROR(engine_.ExtendGreedily(
        extensions,
        [&](size_t extension, int32_t token) { Accept(running_[owners[extension]], token); },
        cancel));
  } else {
    NIBBLE_RETURN_IF_ERROR(engine_.Extend(
        extensions,
        [&](size_t extension, int64_t, const MatrixView& logits) {
          Running& running = running_[owners[extension]];
          Accept(running, running.sampler.Sample({logits.row<float>(0),
                                                  static_cast<size_t>(logits.columns)}));
        },
        cancel));
  }
  std::erase_if(running_, [&](const Running& running) {
    if (!running.finished) return false;
    engine_.Close(running.sequence);
    reserved_tokens_ -= TokensReserved(running.request);
    return true;
  });
  return !running_.empty() || !waiting_.empty();
}

}  // namespace nibble

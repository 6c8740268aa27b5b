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
  // A token of each in one step.
  const StepLimits& limits = engine_.limits();
  const auto room =
      static_cast<size_t>(std::min({limits.sequences, limits.rows, limits.logit_rows}));
  while (!waiting_.empty() && running_.size() < room) {
    auto& [id, request] = waiting_.front();
    const int64_t tokens = TokensReserved(request);
    if (reserved_tokens_ + tokens > capacity_tokens_) return;
    reserved_tokens_ += tokens;
    running_.push_back({.id = id, .request = std::move(request), .sequence = engine_.Open()});
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
  running.last_token = token;
  ++running.generated;
  on_token_(running.id, token);
  if (running.generated == running.request.max_tokens) {
    running.finished = true;
    on_finish_(running.id, FinishReason::kLength);
  }
}

Result<bool> Scheduler::IssueStep(const CancelToken& cancel) {
  // Decoding sequences first, one row each; what is left of the step goes to prompts, in order of
  // arrival.
  std::vector<Extension> extensions;
  std::vector<RequestId> owners;
  int64_t rows = 0;
  const auto prompt_length = [](const Running& r) {
    return static_cast<int64_t>(r.request.prompt.size());
  };
  const auto add = [&](Running& running, std::span<const int32_t> tokens, WantLogits logits) {
    extensions.push_back({running.sequence, tokens, logits, running.request.sampling});
    owners.push_back(running.id);
    rows += extensions.back().count();
    if (logits == WantLogits::kLast) ++running.chosen;
  };
  for (Running& running : running_) {
    if (running.prompt_done < prompt_length(running)) continue;
    if (running.chosen == running.request.max_tokens) continue;
    // The last token is on the device where the host has not seen it.
    std::span<const int32_t> token(&running.last_token, 1);
    if (running.generated < running.chosen) token = {};
    add(running, token, WantLogits::kLast);
  }
  for (Running& running : running_) {
    const int64_t count = std::min(prompt_length(running) - running.prompt_done,
                                   engine_.limits().rows - rows);
    if (count <= 0) continue;
    const bool ends = running.prompt_done + count == prompt_length(running);
    const auto tokens = std::span<const int32_t>(running.request.prompt)
                            .subspan(static_cast<size_t>(running.prompt_done),
                                     static_cast<size_t>(count));
    running.prompt_done += count;
    add(running, tokens, ends ? WantLogits::kLast : WantLogits::kNone);
  }
  if (extensions.empty()) return false;
  NIBBLE_RETURN_IF_ERROR(engine_.Issue(extensions, cancel));
  in_flight_.push_back(std::move(owners));
  return true;
}

Status Scheduler::ReceiveStep() {
  const std::vector<RequestId> owners = std::move(in_flight_.front());
  in_flight_.pop_front();
  NIBBLE_RETURN_IF_ERROR(engine_.Receive([&](size_t extension, int32_t token) {
    const auto owner = std::find_if(running_.begin(), running_.end(), [&](const Running& r) {
      return r.id == owners[extension];
    });
    if (owner != running_.end()) Accept(*owner, token);
  }));
  std::erase_if(running_, [&](const Running& running) {
    if (!running.finished) return false;
    // A step in flight may still write to its blocks; whoever takes them writes after that.
    engine_.Close(running.sequence);
    reserved_tokens_ -= TokensReserved(running.request);
    return true;
  });
  return {};
}

Result<bool> Scheduler::Step(const CancelToken& cancel) {
  Admit();
  NIBBLE_ASSIGN_OR_RETURN(const bool issued, IssueStep(cancel));
  const size_t ahead = issued && engine_.backend().queues_steps() ? 1 : 0;
  while (in_flight_.size() > ahead) NIBBLE_RETURN_IF_ERROR(ReceiveStep());
  return !running_.empty() || !waiting_.empty() || !in_flight_.empty();
}

}  // namespace nibble

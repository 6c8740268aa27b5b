#include "src/engine/scheduler.h"

#include <algorithm>
#include <utility>

namespace nibble {

Scheduler::Scheduler(Engine& engine, OnToken on_token, OnFinish on_finish, OnScore on_score,
                     PrefixCache prefix_cache, OnBegin on_begin)
    : engine_(engine),
      on_token_(std::move(on_token)),
      on_finish_(std::move(on_finish)),
      on_score_(std::move(on_score)),
      prefix_cache_(prefix_cache),
      on_begin_(std::move(on_begin)),
      capacity_tokens_(engine.free_kv_tokens()) {}

Scheduler::~Scheduler() {
  for (const Entry& entry : running_) engine_.Close(entry.sequence);
}

int64_t Scheduler::context() const {
  return std::min(engine_.config().max_context, engine_.limits().context);
}

Status Scheduler::CheckToken(int32_t token) const {
  if (token >= 0 && token < engine_.config().vocabulary) return {};
  return BadInput("token id {} is outside the model's vocabulary of {}", token,
                  engine_.config().vocabulary);
}

Status Scheduler::Check(const GenerationRequest& request) const {
  const bool scores_prompt = request.scores == WantScores::kPromptAndGenerated;
  CHECK(!request.prompt.empty() && request.max_tokens >= (scores_prompt ? 0 : 1));
  CHECK(request.scores == WantScores::kNone || on_score_, "nobody is there to take the scores");
  const auto prompt_length = static_cast<int64_t>(request.prompt.size());
  const int64_t total = prompt_length + request.max_tokens;
  if (total > context()) {
    return BadInput("{} prompt tokens and {} new ones exceed the context of {} tokens",
                    prompt_length, request.max_tokens, context());
  }
  for (const int32_t token : request.prompt) NIBBLE_RETURN_IF_ERROR(CheckToken(token));
  for (const auto& bias : request.rules.bias) NIBBLE_RETURN_IF_ERROR(CheckToken(bias.first));
  // The last token is delivered but never enters the cache.
  if (KvTokensFor(engine_.backend(), 1, std::max(prompt_length, total - 1)) > capacity_tokens_) {
    return NotEnough("a request of {} tokens exceeds the KV cache of {}", total, capacity_tokens_);
  }
  return {};
}

Result<Scheduler::RequestId> Scheduler::Add(GenerationRequest request) {
  NIBBLE_RETURN_IF_ERROR(Check(request));
  Entry& entry = waiting_.emplace_back();
  entry.id = next_id_;
  entry.text = std::move(request.prompt);
  entry.prompt_length = static_cast<int64_t>(entry.text.size());
  entry.request = std::move(request);
  return next_id_++;
}

bool Scheduler::Cancel(RequestId request) {
  const auto is_it = [&](const Entry& entry) { return entry.id == request; };
  if (const auto it = std::find_if(running_.begin(), running_.end(), is_it); it != running_.end()) {
    // As for those that finish: what a step in flight still writes is overwritten by the next
    // holder.
    CloseSequence(*it);
    running_.erase(it);
    return true;
  }
  const auto it = std::find_if(waiting_.begin(), waiting_.end(), is_it);
  if (it == waiting_.end()) return false;
  waiting_.erase(it);
  return true;
}

void Scheduler::Admit() {
  // A token of each in one step.
  const StepLimits& limits = engine_.limits();
  const auto room =
      static_cast<size_t>(std::min({limits.sequences, limits.rows, limits.logit_rows}));
  // What the running texts have yet to compute has its blocks before others come.
  int64_t reserved = 0;
  for (const Entry& entry : running_) {
    reserved += KvTokensFor(engine_.backend(), 1, entry.refill) -
                KvTokensFor(engine_.backend(), 1, entry.issued);
  }
  while (!waiting_.empty() && running_.size() < room) {
    const auto length = static_cast<int64_t>(waiting_.front().text.size());
    const std::optional<SequenceId> sequence = OpenShared(waiting_.front());
    if (!sequence) return;
    const int64_t shared = engine_.length(*sequence);
    reserved += KvTokensFor(engine_.backend(), 1, length) - shared;
    // With a block more for each that runs, so that who is admitted does not have to go at once.
    const int64_t wanted =
        reserved + KvTokensFor(engine_.backend(), static_cast<int64_t>(running_.size()), 1);
    if (engine_.free_kv_tokens() < wanted) {
      engine_.Close(*sequence);
      return;
    }
    Entry& entry = running_.emplace_back(std::move(waiting_.front()));
    waiting_.pop_front();
    entry.sequence = *sequence;
    entry.refill = length;
    entry.issued = shared;
    entry.chosen = entry.generated;
    if (std::exchange(entry.began, true)) continue;
    if (prefix_cache_ == PrefixCache::kOn && Skippable(entry) > 0) {
      prefix_cache_counts_.queries += length;
      prefix_cache_counts_.hits += shared;
    }
    if (on_begin_) on_begin_(entry.id, shared);
  }
}

int64_t Scheduler::Skippable(const Entry& entry) {
  const bool scores_prompt =
      entry.request.scores == WantScores::kPromptAndGenerated && entry.scored < entry.prompt_length;
  return (scores_prompt ? entry.scored : static_cast<int64_t>(entry.text.size())) - 1;
}

std::optional<SequenceId> Scheduler::OpenShared(const Entry& entry) {
  const std::span<const int32_t> text(entry.text);
  const std::span<const int32_t> skippable = text.first(static_cast<size_t>(Skippable(entry)));
  // Of those that run, the one that has the most in common.
  const Entry* sharer = nullptr;
  int64_t common = 0;
  for (const Entry& other : running_) {
    const bool same_group = entry.request.group != 0 && other.request.group == entry.request.group;
    if (prefix_cache_ == PrefixCache::kOff && !same_group) continue;
    const auto end = std::ranges::mismatch(skippable, other.text).in1;
    const int64_t blocks = (end - skippable.begin()) / engine_.kv_block_tokens();
    if (blocks * engine_.kv_block_tokens() <= common) continue;
    common = blocks * engine_.kv_block_tokens();
    sharer = &other;
  }
  const bool computed = sharer && engine_.length(sharer->sequence) >= common;
  if (prefix_cache_ == PrefixCache::kOff) {
    if (!sharer) return engine_.Open();
    if (!computed) return std::nullopt;
    return engine_.Fork(sharer->sequence, common);
  }
  const SequenceId sequence = engine_.Open(skippable);
  if (!sharer || computed || engine_.length(sequence) >= common) return sequence;
  engine_.Close(sequence);
  return std::nullopt;
}

void Scheduler::CloseSequence(const Entry& entry) {
  if (prefix_cache_ == PrefixCache::kOn) engine_.Publish(entry.sequence, entry.text);
  engine_.Close(entry.sequence);
}

std::vector<Scheduler::Work> Scheduler::PlanStep() {
  // Decoding sequences first, one row each; what is left of the step goes to prompts, in order of
  // arrival.
  std::vector<Work> work;
  for (Entry& entry : running_) {
    if (entry.issued < entry.refill || entry.chosen == entry.request.max_tokens) continue;
    work.push_back({&entry, 1, true});
  }
  auto rows = engine_.limits().rows - static_cast<int64_t>(work.size());
  for (Entry& entry : running_) {
    const int64_t count = std::min(entry.refill - entry.issued, rows);
    if (count <= 0) continue;
    const bool ends = entry.issued + count == entry.refill;
    work.push_back({&entry, count, ends && entry.chosen < entry.request.max_tokens});
    rows -= count;
  }
  return work;
}

int64_t Scheduler::KvTokensNeeded(const std::vector<Work>& work) const {
  int64_t needed = 0;
  for (const Work& piece : work) {
    const int64_t length = engine_.length(piece.entry->sequence);
    needed += KvTokensFor(engine_.backend(), 1, length + piece.count) -
              KvTokensFor(engine_.backend(), 1, length);
  }
  return needed;
}

void Scheduler::PreemptLast() {
  CHECK(running_.size() > 1, "a request alone exceeds the KV cache");
  CloseSequence(running_.back());
  waiting_.push_front(std::move(running_.back()));
  running_.pop_back();
  ++preemptions_;
}

void Scheduler::Accept(Entry& entry, int32_t token) {
  const std::vector<int32_t>& stops = entry.request.stop_tokens;
  if (std::find(stops.begin(), stops.end(), token) != stops.end()) {
    entry.finished = true;
    on_finish_(entry.id, FinishReason::kStop);
    return;
  }
  entry.text.push_back(token);
  ++entry.generated;
  if (entry.request.rules.any()) ++entry.counts[token];
  on_token_(entry.id, token);
  if (entry.generated == entry.request.max_tokens) {
    entry.finished = true;
    on_finish_(entry.id, FinishReason::kLength);
  }
}

Result<bool> Scheduler::IssueStep(const CancelToken& cancel) {
  std::vector<Work> work = PlanStep();
  while (KvTokensNeeded(work) > engine_.free_kv_tokens()) {
    // Tokens on their way belong to the texts that are computed again, and may end some.
    if (!in_flight_.empty()) {
      NIBBLE_RETURN_IF_ERROR(ReceiveStep());
    } else {
      PreemptLast();
    }
    work = PlanStep();
  }
  if (work.empty()) return false;

  std::vector<Work> on_host;
  std::vector<Extension> extensions;
  std::vector<RequestId> owners;
  for (const Work& piece : work) {
    Entry& entry = *piece.entry;
    if (entry.on_host()) {
      on_host.push_back(piece);
      continue;
    }
    // The token on the device is the next where the host has not seen it.
    std::span<const int32_t> tokens;
    if (entry.issued < entry.refill) {
      tokens = std::span(entry.text)
                   .subspan(static_cast<size_t>(entry.issued), static_cast<size_t>(piece.count));
      entry.issued += piece.count;
    } else if (entry.generated == entry.chosen) {
      tokens = std::span(entry.text).last(1);
    }
    if (piece.chooses) ++entry.chosen;
    extensions.push_back({entry.sequence, tokens,
                          piece.chooses ? WantLogits::kLast : WantLogits::kNone,
                          entry.request.sampling});
    owners.push_back(entry.id);
  }
  if (!extensions.empty()) {
    NIBBLE_RETURN_IF_ERROR(engine_.Issue(extensions, cancel));
    in_flight_.push_back(std::move(owners));
  }
  if (!on_host.empty()) NIBBLE_RETURN_IF_ERROR(RunOnHost(on_host, cancel));
  for (const Work& piece : work) {
    computed_tokens_ += piece.count;
    if (prefix_cache_ == PrefixCache::kOn) {
      engine_.Publish(piece.entry->sequence, piece.entry->text);
    }
  }
  return true;
}

void Scheduler::ScoreRow(Entry& entry, int64_t position, std::span<const float> logits) {
  // The token at `position` is of the prompt; computed again, its score is known.
  if (position < entry.scored) return;
  entry.scored = position + 1;
  on_score_(entry.id, entry.text[static_cast<size_t>(position)], logits);
}

Status Scheduler::RunOnHost(const std::vector<Work>& work, const CancelToken& cancel) {
  std::vector<Extension> extensions;
  std::vector<int64_t> first_positions;
  for (const Work& piece : work) {
    Entry& entry = *piece.entry;
    const bool refills = entry.issued < entry.refill;
    const auto first = refills ? entry.issued : static_cast<int64_t>(entry.text.size()) - 1;
    const bool scores_prompt = entry.request.scores == WantScores::kPromptAndGenerated &&
                               entry.scored < entry.prompt_length && refills;
    extensions.push_back(
        {entry.sequence,
         std::span(entry.text)
             .subspan(static_cast<size_t>(first), static_cast<size_t>(piece.count)),
         scores_prompt   ? WantLogits::kAll
         : piece.chooses ? WantLogits::kLast
                         : WantLogits::kNone,
         {}});
    first_positions.push_back(first);
    if (refills) entry.issued += piece.count;
    if (piece.chooses) ++entry.chosen;
  }
  // The texts grow only afterwards: the extensions refer to them.
  std::vector<std::pair<Entry*, int32_t>> chosen;
  NIBBLE_RETURN_IF_ERROR(engine_.Extend(
      extensions,
      [&](size_t e, int64_t first_token, const MatrixView& logits) {
        Entry& entry = *work[e].entry;
        for (int64_t r = 0; r < logits.rows; ++r) {
          const std::span<const float> row(logits.row<float>(r),
                                           static_cast<size_t>(logits.columns));
          const int64_t position = first_positions[e] + first_token + r + 1;
          const bool last = first_token + r + 1 == work[e].count;
          if (position < entry.prompt_length) {
            ScoreRow(entry, position, row);
          } else if (last && work[e].chooses) {
            const int32_t token = ChooseByRules(row, entry.request.rules, entry.counts,
                                                entry.request.sampling, position);
            const std::vector<int32_t>& stops = entry.request.stop_tokens;
            const bool stops_here = std::find(stops.begin(), stops.end(), token) != stops.end();
            if (entry.request.scores != WantScores::kNone && !stops_here) {
              on_score_(entry.id, token, row);
            }
            chosen.emplace_back(&entry, token);
          }
        }
      },
      cancel));
  for (const auto& [entry, token] : chosen) Accept(*entry, token);
  for (const Work& piece : work) {
    Entry& entry = *piece.entry;
    if (entry.request.max_tokens > 0 || entry.issued < entry.refill) continue;
    entry.finished = true;
    on_finish_(entry.id, FinishReason::kLength);
  }
  return {};
}

Status Scheduler::ReceiveStep() {
  const std::vector<RequestId> owners = std::move(in_flight_.front());
  in_flight_.pop_front();
  NIBBLE_RETURN_IF_ERROR(engine_.Receive([&](size_t extension, int32_t token) {
    const auto owner = std::find_if(running_.begin(), running_.end(), [&](const Entry& entry) {
      return entry.id == owners[extension];
    });
    if (owner != running_.end()) Accept(*owner, token);
  }));
  RemoveFinished();
  return {};
}

void Scheduler::RemoveFinished() {
  std::erase_if(running_, [&](const Entry& entry) {
    if (!entry.finished) return false;
    // A step in flight may still write to its blocks, beyond its text; whoever takes them writes
    // after that.
    CloseSequence(entry);
    return true;
  });
}

Result<bool> Scheduler::Step(const CancelToken& cancel) {
  Admit();
  NIBBLE_ASSIGN_OR_RETURN(const bool issued, IssueStep(cancel));
  RemoveFinished();
  const size_t ahead = issued && engine_.backend().queues_steps() ? 1 : 0;
  while (in_flight_.size() > ahead) NIBBLE_RETURN_IF_ERROR(ReceiveStep());
  return !running_.empty() || !waiting_.empty() || !in_flight_.empty();
}

}  // namespace nibble

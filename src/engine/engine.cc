#include "src/engine/engine.h"

#include <algorithm>
#include <utility>

#include "src/base/checked.h"
#include "src/base/units.h"

namespace nibble {
namespace {

// The values where they say anything.
template <typename T>
std::span<const T> OrNone(const std::vector<T>& values, bool wanted) {
  return wanted ? std::span<const T>(values) : std::span<const T>();
}

}  // namespace

KvLayout KvLayoutFor(const ModelConfig& config, const Backend& backend, DType kv_dtype) {
  return {.layers = config.layers,
          .kv_heads = config.kv_heads,
          .head_dim = config.head_dim,
          .block_tokens = backend.kv_block_tokens(),
          .dtype = kv_dtype};
}

int64_t KvTokensFor(const Backend& backend, int64_t sequences, int64_t tokens) {
  return sequences * RoundUp(tokens, backend.kv_block_tokens());
}

Status MemoryPrediction::CheckAgainst(uint64_t available_bytes) const {
  if (use.total() <= available_bytes) return {};
  return NotEnough(
      "this needs {} of memory (weights {}, KV cache {}, workspace {}), but only {} is available",
      FormatBytes(use.total()), FormatBytes(use[MemoryClass::kWeights]),
      FormatBytes(use[MemoryClass::kKvCache]), FormatBytes(use[MemoryClass::kWorkspace]),
      FormatBytes(available_bytes));
}

MemoryPrediction PredictMemory(const Checkpoint& checkpoint, const ModelDescription& model,
                               const Backend& backend, const EngineOptions& options) {
  const KvLayout layout = KvLayoutFor(model.config, backend, options.kv_dtype);
  const auto blocks = static_cast<uint64_t>(CeilDiv(options.kv_tokens, layout.block_tokens));
  MemoryPrediction prediction;
  prediction.use[MemoryClass::kWeights] = PredictWeightBytes(checkpoint, model, backend).total();
  prediction.use[MemoryClass::kKvCache] = blocks * layout.BlockBytes();
  prediction.use[MemoryClass::kWorkspace] =
      Forward::WorkspaceBytes(model.config, backend, options.limits);
  return prediction;
}

Result<EngineOptions> FitKvCache(const EngineOptions& wanted, int64_t least_kv_tokens,
                                 const ModelConfig& config, const Backend& backend,
                                 uint64_t available_bytes) {
  const KvLayout layout = KvLayoutFor(config, backend, wanted.kv_dtype);
  const uint64_t workspace = Forward::WorkspaceBytes(config, backend, wanted.limits);
  const uint64_t left = available_bytes - std::min(available_bytes, workspace);
  const auto fit = static_cast<int64_t>(left / layout.BlockBytes()) * layout.block_tokens;
  EngineOptions options = wanted;
  options.kv_tokens = std::min(wanted.kv_tokens, fit);
  if (options.kv_tokens >= std::min(least_kv_tokens, wanted.kv_tokens)) return options;
  const auto blocks = static_cast<uint64_t>(CeilDiv(least_kv_tokens, layout.block_tokens));
  return NotEnough(
      "beside the weights this needs {} of memory (a KV cache of {} tokens {}, workspace {}) and {} "
      "is available, which would hold {} tokens",
      FormatBytes(blocks * layout.BlockBytes() + workspace), least_kv_tokens,
      FormatBytes(blocks * layout.BlockBytes()), FormatBytes(workspace),
      FormatBytes(available_bytes), fit);
}

Result<std::unique_ptr<Engine>> Engine::Create(const ModelWeights& weights, Backend& backend,
                                               const EngineOptions& options) {
  CHECK(options.limits.rows > 0 && options.limits.sequences > 0 && options.kv_tokens > 0);
  std::unique_ptr<Engine> engine(new Engine(weights, backend));
  const KvLayout layout = KvLayoutFor(weights.config, backend, options.kv_dtype);
  const int64_t blocks = CeilDiv(options.kv_tokens, layout.block_tokens);
  NIBBLE_ASSIGN_OR_RETURN(engine->cache_, backend.CreateKvCache(layout, blocks));
  NIBBLE_ASSIGN_OR_RETURN(engine->forward_, Forward::Create(weights, backend, options.limits));
  engine->pool_ = std::make_unique<KvPool>(blocks, layout.block_tokens);
  return engine;
}

Engine::Sequence& Engine::Get(SequenceId sequence) {
  const auto it = sequences_.find(sequence);
  CHECK(it != sequences_.end(), "sequence {} is not open", sequence);
  return it->second;
}

SequenceId Engine::Open() {
  sequences_.emplace(next_id_, Sequence{});
  return next_id_++;
}

SequenceId Engine::Fork(SequenceId parent) {
  const Sequence copy = Get(parent);
  for (const int32_t block : copy.blocks) pool_->Share(block);
  sequences_.emplace(next_id_, copy);
  return next_id_++;
}

SequenceId Engine::Fork(SequenceId parent, int64_t tokens) {
  const Sequence& whole = Get(parent);
  CHECK(tokens % kv_block_tokens() == 0 && tokens <= whole.length);
  Sequence part{.length = tokens};
  part.blocks.assign(whole.blocks.begin(), whole.blocks.begin() + tokens / kv_block_tokens());
  part.published = std::min(whole.published, part.blocks.size());
  for (const int32_t block : part.blocks) pool_->Share(block);
  sequences_.emplace(next_id_, std::move(part));
  return next_id_++;
}

SequenceId Engine::Open(std::span<const int32_t> tokens) {
  const auto block_tokens = static_cast<size_t>(kv_block_tokens());
  Sequence sequence;
  int32_t parent = KvPool::kNoBlock;
  for (size_t end = block_tokens; end <= tokens.size(); end += block_tokens) {
    const std::optional<int32_t> block =
        pool_->Find(parent, tokens.subspan(end - block_tokens, block_tokens));
    if (!block) break;
    pool_->Share(*block);
    sequence.blocks.push_back(*block);
    parent = *block;
  }
  sequence.published = sequence.blocks.size();
  sequence.length = static_cast<int64_t>(sequence.blocks.size() * block_tokens);
  sequences_.emplace(next_id_, std::move(sequence));
  return next_id_++;
}

void Engine::Publish(SequenceId id, std::span<const int32_t> tokens) {
  Sequence& sequence = Get(id);
  const auto block_tokens = static_cast<size_t>(kv_block_tokens());
  const size_t known = std::min(tokens.size(), static_cast<size_t>(sequence.length));
  for (size_t& i = sequence.published; (i + 1) * block_tokens <= known; ++i) {
    const std::span<const int32_t> own = tokens.subspan(i * block_tokens, block_tokens);
    const int32_t parent = i == 0 ? KvPool::kNoBlock : sequence.blocks[i - 1];
    if (const std::optional<int32_t> same = pool_->Find(parent, own)) {
      pool_->Share(*same);
      pool_->Release(std::exchange(sequence.blocks[i], *same));
    } else {
      pool_->Publish(sequence.blocks[i], parent, own);
    }
  }
}

void Engine::Close(SequenceId sequence) {
  // From the end: the beginning of a text is the likeliest to be wanted again.
  const std::vector<int32_t>& blocks = Get(sequence).blocks;
  std::for_each(blocks.rbegin(), blocks.rend(), [&](int32_t block) { pool_->Release(block); });
  sequences_.erase(sequence);
}

int64_t Engine::length(SequenceId sequence) const { return sequences_.at(sequence).length; }

int64_t Engine::free_kv_tokens() const { return pool_->free_blocks() * kv_block_tokens(); }

int64_t Engine::BlocksNeeded(const Sequence& sequence, int64_t tokens) const {
  const int64_t block_tokens = kv_block_tokens();
  const int64_t more = CeilDiv(sequence.length + tokens, block_tokens) -
                       static_cast<int64_t>(sequence.blocks.size());
  const bool copies_last =
      sequence.length % block_tokens != 0 && pool_->holders(sequence.blocks.back()) > 1;
  return more + (copies_last ? 1 : 0);
}

Status Engine::CheckRequest(std::span<const Extension> extensions) const {
  int64_t blocks = 0;
  for (const Extension& extension : extensions) {
    const Sequence& sequence = sequences_.at(extension.sequence);
    const int64_t count = extension.count();
    for (const int32_t token : extension.tokens) {
      if (token < 0 || token >= config().vocabulary) {
        return BadInput("token id {} is outside the model's vocabulary of {}", token,
                        config().vocabulary);
      }
    }
    const int64_t context = std::min(config().max_context, limits().context);
    if (sequence.length + count > context) {
      return BadInput("a sequence of {} tokens is longer than the context of {}",
                      sequence.length + count, context);
    }
    blocks += BlocksNeeded(sequence, count);
  }
  if (blocks > pool_->free_blocks()) {
    return NotEnough("the KV cache is full: {} blocks of {} tokens are wanted, {} are free", blocks,
                     kv_block_tokens(), pool_->free_blocks());
  }
  return {};
}

void Engine::ReserveBlocks(Sequence& sequence, int64_t tokens) {
  const int64_t block_tokens = kv_block_tokens();
  if (sequence.length % block_tokens != 0 && pool_->holders(sequence.blocks.back()) > 1) {
    // Writing into a block that others hold too would change their past: copy it first.
    const int32_t copy = pool_->Take().value();
    backend_.CopyKvBlock(*cache_, sequence.blocks.back(), copy);
    pool_->Release(sequence.blocks.back());
    sequence.blocks.back() = copy;
  }
  const auto blocks = static_cast<size_t>(CeilDiv(sequence.length + tokens, block_tokens));
  while (sequence.blocks.size() < blocks) sequence.blocks.push_back(pool_->Take().value());
}

Status Engine::Extend(std::span<const Extension> extensions, const LogitsSink& sink,
                      const CancelToken& cancel) {
  const auto deliver = [&](std::span<const Piece> pieces, MatrixView logits) -> Status {
    NIBBLE_ASSIGN_OR_RETURN(const MatrixView host, backend_.ToHost(logits));
    std::vector<LogitRun> runs;
    int64_t row = 0;
    for (const Piece& piece : pieces) {
      const int64_t wanted = LogitRows(extensions, piece);
      if (wanted == 0) continue;
      runs.push_back({.extension = piece.extension,
                      .first_token = piece.first + piece.count - wanted,
                      .logits = host.Rows(row, wanted)});
      row += wanted;
    }
    sink(runs);
    return {};
  };
  return RunSteps(extensions, deliver, cancel);
}

Status Engine::Issue(std::span<const Extension> extensions, const CancelToken& cancel) {
  issued_.emplace_back();
  const auto deliver = [&](std::span<const Piece> pieces, MatrixView logits) -> Status {
    forward_->ChooseTokens(logits);
    ++choosing_steps_;
    std::vector<size_t>& rows = issued_.back().emplace_back();
    for (const Piece& piece : pieces) {
      if (LogitRows(extensions, piece) == 0) continue;
      Sequence& sequence = Get(extensions[piece.extension].sequence);
      sequence.chosen_in = choosing_steps_;
      sequence.chosen_row = static_cast<int32_t>(rows.size());
      rows.push_back(piece.extension);
    }
    return {};
  };
  Status status = RunSteps(extensions, deliver, cancel);
  if (!status && issued_.back().empty()) issued_.pop_back();
  return status;
}

Status Engine::Receive(const TokenSink& sink) {
  CHECK(!issued_.empty(), "nothing was issued that was not received");
  const std::vector<std::vector<size_t>> steps = std::move(issued_.front());
  issued_.pop_front();
  for (const std::vector<size_t>& rows : steps) {
    NIBBLE_ASSIGN_OR_RETURN(const std::span<const int32_t> tokens, forward_->ReceiveTokens());
    for (size_t i = 0; i < rows.size(); ++i) sink(rows[i], tokens[i]);
  }
  return {};
}

Status Engine::RunSteps(std::span<const Extension> extensions, const Deliver& deliver,
                        const CancelToken& cancel) {
  NIBBLE_RETURN_IF_ERROR(CheckRequest(extensions));
  for (const Extension& extension : extensions) {
    ReserveBlocks(Get(extension.sequence), extension.count());
  }
  // Fill steps with pieces of the extensions, in order.
  std::vector<Piece> pieces;
  int64_t rows = 0, logit_rows = 0;
  const auto flush = [&]() -> Status {
    if (pieces.empty()) return {};
    NIBBLE_RETURN_IF_ERROR(cancel.Check());
    NIBBLE_RETURN_IF_ERROR(RunStep(extensions, pieces, deliver));
    pieces.clear();
    rows = logit_rows = 0;
    return {};
  };
  for (size_t e = 0; e < extensions.size(); ++e) {
    const int64_t total = extensions[e].count();
    for (int64_t done = 0; done < total;) {
      int64_t room = limits().rows - rows;
      if (extensions[e].logits == WantLogits::kAll) {
        room = std::min(room, limits().logit_rows - logit_rows);
      }
      int64_t count = std::min(room, total - done);
      const bool last_logits = extensions[e].logits == WantLogits::kLast && done + count == total;
      if (last_logits && logit_rows == limits().logit_rows) count = 0;
      if (count <= 0 || static_cast<int64_t>(pieces.size()) == limits().sequences) {
        NIBBLE_RETURN_IF_ERROR(flush());
        continue;
      }
      pieces.push_back({e, done, count});
      rows += count;
      done += count;
      logit_rows += extensions[e].logits == WantLogits::kAll ? count : last_logits ? 1 : 0;
    }
  }
  return flush();
}

int64_t Engine::LogitRows(std::span<const Extension> extensions, const Piece& piece) {
  const Extension& extension = extensions[piece.extension];
  if (extension.logits == WantLogits::kAll) return piece.count;
  const bool ends = piece.first + piece.count == extension.count();
  return extension.logits == WantLogits::kLast && ends ? 1 : 0;
}

Status Engine::RunStep(std::span<const Extension> extensions, std::span<const Piece> pieces,
                       const Deliver& deliver) {
  std::vector<int32_t> tokens, chosen_rows, positions, row_begin{0}, context_lengths, logit_rows;
  std::vector<TokenChoice> choices;
  bool any_chosen = false, any_sampled = false;
  size_t max_blocks = 1;
  for (const Piece& piece : pieces) {
    const Extension& extension = extensions[piece.extension];
    Sequence& sequence = Get(extension.sequence);
    for (int64_t i = 0; i < piece.count; ++i) {
      const bool chosen = extension.tokens.empty();
      CHECK(!chosen || sequence.chosen_in == choosing_steps_,
            "the token of sequence {} is no longer on the device", extension.sequence);
      tokens.push_back(chosen ? 0 : extension.tokens[static_cast<size_t>(piece.first + i)]);
      chosen_rows.push_back(chosen ? sequence.chosen_row : -1);
      any_chosen |= chosen;
      positions.push_back(static_cast<int32_t>(sequence.length + i));
    }
    const auto end = static_cast<int32_t>(tokens.size());
    for (auto row = end - static_cast<int32_t>(LogitRows(extensions, piece)); row < end; ++row) {
      logit_rows.push_back(row);
      choices.push_back(ChoiceAt(extension.sampling, positions[static_cast<size_t>(row)] + 1));
    }
    any_sampled |= extension.sampling.temperature > 0;
    sequence.length += piece.count;
    row_begin.push_back(static_cast<int32_t>(tokens.size()));
    context_lengths.push_back(static_cast<int32_t>(sequence.length));
    max_blocks = std::max(max_blocks, sequence.blocks.size());
  }
  std::vector<int32_t> block_tables(pieces.size() * max_blocks, 0);
  for (size_t p = 0; p < pieces.size(); ++p) {
    const Sequence& sequence = Get(extensions[pieces[p].extension].sequence);
    std::copy(sequence.blocks.begin(), sequence.blocks.end(),
              block_tables.begin() + static_cast<int64_t>(p * max_blocks));
  }
  const MatrixView logits = forward_->Run({.tokens = tokens,
                                           .positions = positions,
                                           .row_begin = row_begin,
                                           .context_lengths = context_lengths,
                                           .block_tables = block_tables,
                                           .max_blocks = static_cast<int64_t>(max_blocks),
                                           .logit_rows = logit_rows,
                                           .chosen_rows = OrNone(chosen_rows, any_chosen),
                                           .choices = OrNone(choices, any_sampled)},
                                          *cache_);
  if (logit_rows.empty()) return {};
  return deliver(pieces, logits);
}

}  // namespace nibble

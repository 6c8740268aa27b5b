#include "src/eval/perplexity.h"

#include <algorithm>
#include <vector>

#include "src/eval/divergence.h"
#include "src/eval/divergence_json.h"

namespace nibble {
namespace {

// Rows of logits that are in memory at a time, of each model.
constexpr int64_t kRowsAtATime = 128;

std::span<const float> Row(const MatrixView& logits, int64_t row) {
  return {logits.row<float>(row), static_cast<size_t>(logits.columns)};
}

// A sequence that is closed at the end of a scope.
class ScopedSequence {
 public:
  explicit ScopedSequence(Engine& engine) : engine_(engine), id_(engine.Open()) {}
  ~ScopedSequence() { engine_.Close(id_); }
  ScopedSequence(const ScopedSequence&) = delete;
  ScopedSequence& operator=(const ScopedSequence&) = delete;

  Status Extend(std::span<const int32_t> tokens, const LogitsSink& sink,
                const CancelToken& cancel) {
    return engine_.Extend({{{id_, tokens, WantLogits::kAll}}}, sink, cancel);
  }

 private:
  Engine& engine_;
  SequenceId id_;
};

}  // namespace

std::string_view Name(TextJoin join) { return join == TextJoin::kRaw ? "raw" : "paper"; }

Result<TextJoin> ParseTextJoin(std::string_view name) {
  if (name == "raw") return TextJoin::kRaw;
  if (name == "paper") return TextJoin::kPaper;
  return WrongUsage("--join \"{}\": want raw or paper", name);
}

std::string JoinText(std::string_view text, TextJoin join) {
  if (join == TextJoin::kRaw) return std::string(text);
  std::string joined;
  bool first = true;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size() - 1) + 1;
    const std::string_view row = text.substr(0, end);
    if (!first) joined += "\n\n";
    // A row of white space is an empty row of the dataset.
    if (row.find_first_not_of(" \t\r\n") != std::string_view::npos) joined += row;
    first = false;
    text.remove_prefix(end);
  }
  return joined;
}

Status CheckPerplexity(const PerplexityOptions& options, const ModelConfig& config,
                       int64_t text_tokens) {
  if (options.context < 2) return WrongUsage("--context {}: want at least 2", options.context);
  if (options.max_windows && *options.max_windows < 1) {
    return WrongUsage("--max-windows {}: want at least 1", *options.max_windows);
  }
  if (options.context > config.max_context) {
    return BadInput("windows of {} tokens are longer than the model's context of {}",
                    options.context, config.max_context);
  }
  if (text_tokens < options.context) {
    return BadInput(
        "the text has {} tokens, fewer than one window of {}; give a longer text or a smaller "
        "--context",
        text_tokens, options.context);
  }
  return {};
}

EngineOptions PerplexityEngineOptions(const PerplexityOptions& options, const Backend& backend,
                                      DType kv_dtype) {
  const int64_t rows = std::min(kRowsAtATime, options.context);
  return {.kv_dtype = kv_dtype,
          .kv_tokens = KvTokensFor(backend, 1, options.context),
          .limits = {.rows = rows, .sequences = 1, .context = options.context, .logit_rows = rows}};
}

Result<Json> RunPerplexity(Engine& candidate, Engine* reference, std::span<const int32_t> tokens,
                           const PerplexityOptions& options, ThreadPool& pool,
                           const PerplexityProgress& progress, const CancelToken& cancel) {
  const int64_t vocabulary = candidate.config().vocabulary;
  if (reference != nullptr && reference->config().vocabulary != vocabulary) {
    return BadInput("the reference has a vocabulary of {}, the model one of {}",
                    reference->config().vocabulary, vocabulary);
  }
  NIBBLE_RETURN_IF_ERROR(
      CheckPerplexity(options, candidate.config(), static_cast<int64_t>(tokens.size())));
  const int64_t available = static_cast<int64_t>(tokens.size()) / options.context;
  const int64_t windows = std::min(available, options.max_windows.value_or(available));
  const int64_t chunk = candidate.limits().logit_rows;

  Matrix reference_logits;
  if (reference != nullptr) {
    NIBBLE_ASSIGN_OR_RETURN(Buffer buffer,
                            AllocateHost(candidate.backend().memory(), MemoryClass::kWorkspace,
                                         static_cast<size_t>(chunk * vocabulary) * sizeof(float)));
    reference_logits = Matrix(std::move(buffer), DType::kF32, chunk, vocabulary);
  }
  PerplexityAccumulator plain;
  DivergenceAccumulator divergence;
  std::vector<RowStatistics> rows(static_cast<size_t>(chunk));
  for (int64_t w = 0; w < windows; ++w) {
    const auto window = tokens.subspan(static_cast<size_t>(w * options.context),
                                       static_cast<size_t>(options.context));
    ScopedSequence candidate_sequence(candidate);
    std::optional<ScopedSequence> reference_sequence;
    if (reference != nullptr) reference_sequence.emplace(*reference);
    // The last token predicts nothing that is scored.
    for (int64_t begin = 0; begin + 1 < options.context; begin += chunk) {
      const int64_t count = std::min(chunk, options.context - 1 - begin);
      const auto part = window.subspan(static_cast<size_t>(begin), static_cast<size_t>(count));
      if (reference != nullptr) {
        NIBBLE_RETURN_IF_ERROR(reference_sequence->Extend(
            part,
            [&](std::span<const LogitRun> runs) {
              const auto& [extension, first, logits] = runs.front();
              for (int64_t r = 0; r < logits.rows; ++r) {
                std::copy_n(logits.row<float>(r), vocabulary,
                            reference_logits.view().row<float>(first + r));
              }
            },
            cancel));
      }
      NIBBLE_RETURN_IF_ERROR(candidate_sequence.Extend(
          part,
          [&](std::span<const LogitRun> runs) {
            const int64_t first = runs.front().first_token;
            const MatrixView logits = runs.front().logits;
            pool.ParallelFor(logits.rows, 1, [&](int64_t row_begin, int64_t row_end, int) {
              for (int64_t r = row_begin; r < row_end; ++r) {
                const int32_t target = window[static_cast<size_t>(begin + first + r + 1)];
                RowStatistics& row = rows[static_cast<size_t>(first + r)];
                if (reference != nullptr) {
                  row = ComputeRow(Row(reference_logits.view(), first + r), Row(logits, r), target);
                } else {
                  row.candidate_logprob = RowLogProbabilities(Row(logits, r)).At(target);
                }
              }
            });
          },
          cancel));
      for (int64_t r = 0; r < count; ++r) {
        const RowStatistics& row = rows[static_cast<size_t>(r)];
        NIBBLE_RETURN_IF_ERROR(reference != nullptr ? divergence.Add(row)
                                                    : plain.Add(row.candidate_logprob));
      }
    }
    progress(w + 1, windows);
  }
  const PerplexityAccumulator& figures = reference != nullptr ? divergence.candidate() : plain;
  Json record = {{"windows", windows}, {"windows_in_text", available}};
  record.update(ToJson(figures));
  if (reference != nullptr) record.update(ToJson(divergence.Summarize()));
  return record;
}

}  // namespace nibble

#include "src/eval/mmlu_task.h"

#include <algorithm>
#include <array>
#include <map>

#include "src/base/checked.h"
#include "src/eval/divergence.h"

namespace nibble {
namespace {

using Tokens = std::vector<int32_t>;

// A text whose last `scored` tokens are to be scored (letters: none, what follows is).
struct Candidate {
  Tokens tokens;
  size_t scored = 0;
  size_t scored_from() const { return tokens.size() - scored; }
};

// One question as the model sees it.
struct Prompt {
  const MmluQuestion* question = nullptr;
  int shots = 0;
  std::vector<Candidate> candidates;  // one for letters, four for cloze
  std::array<int32_t, 4> letters{};
};

size_t CommonPrefix(const Tokens& a, const Tokens& b) {
  return static_cast<size_t>(std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first -
                             a.begin());
}

Tokens Encode(const Tokenizer& tokenizer, const std::string& text) {
  return tokenizer.Encode(text, SpecialTokens::kAdd, ParseSpecial::kNo);
}

// What " A" to " D" become after a prompt: the same tokens (mostly none), then one of their own
// each, at the same place.
struct Letters {
  Tokens before;
  std::array<int32_t, 4> ids{};
};

Result<Letters> FindLetters(const Tokenizer& tokenizer, const std::string& text,
                            const std::array<std::string, 4>& continuations) {
  const Tokens prompt = Encode(tokenizer, text);
  Letters letters;
  for (size_t i = 0; i < 4; ++i) {
    const Tokens whole = Encode(tokenizer, text + continuations[i]);
    const bool extends =
        whole.size() > prompt.size() && CommonPrefix(prompt, whole) == prompt.size();
    Tokens added(whole.begin() + static_cast<int64_t>(extends ? prompt.size() : 0), whole.end());
    letters.ids[i] = added.back();
    added.pop_back();
    if (i == 0) letters.before = added;
    if (!extends || added != letters.before) {
      return BadInput(
          "the tokenizer has no single token of its own for \"{}\" after \"Answer:\", so letters "
          "cannot be scored; use --scoring cloze",
          continuations[i]);
    }
  }
  return letters;
}

// Builds the prompts of one subject.
class Prompter {
 public:
  // Of a subject with at least one question.
  static Result<Prompter> Create(const Tokenizer& tokenizer, const MmluSubjectData& subject,
                                 const MmluFormat& format, int64_t context) {
    Prompter prompter(tokenizer, subject, format, context);
    if (format.scoring == MmluScoring::kLetters) {
      // All prompts end alike, so one question settles it.
      const MmluQuestion& question = subject.questions.front();
      NIBBLE_ASSIGN_OR_RETURN(prompter.letters_,
                              FindLetters(tokenizer, MmluQuestionPart(question, format),
                                          MmluContinuations(question, format)));
    }
    return prompter;
  }

  // From any thread.
  Prompt Make(const MmluQuestion& question) const {
    for (int shots = static_cast<int>(subject_.shots.size()); shots > 0; --shots) {
      Prompt prompt = WithShots(question, shots);
      if (std::all_of(prompt.candidates.begin(), prompt.candidates.end(),
                      [&](const Candidate& c) { return c.tokens.size() <= context_; })) {
        return prompt;
      }
    }
    Prompt prompt = WithShots(question, 0);
    for (Candidate& candidate : prompt.candidates) {
      if (candidate.tokens.size() <= context_) continue;
      candidate.tokens.erase(candidate.tokens.begin(),
                             candidate.tokens.end() - static_cast<int64_t>(context_));
      candidate.scored = std::min(candidate.scored, context_ - 1);
    }
    return prompt;
  }

 private:
  Prompter(const Tokenizer& tokenizer, const MmluSubjectData& subject, const MmluFormat& format,
           int64_t context)
      : tokenizer_(tokenizer),
        subject_(subject),
        format_(format),
        context_(static_cast<size_t>(context)) {}

  Prompt WithShots(const MmluQuestion& question, int shots) const {
    Prompt prompt{.question = &question, .shots = shots};
    const std::string text =
        MmluPrefix(subject_, shots, format_) + MmluQuestionPart(question, format_);
    const Tokens tokens = Encode(text);
    if (format_.scoring == MmluScoring::kLetters) {
      prompt.candidates.push_back({tokens, 0});
      Tokens& asked = prompt.candidates.front().tokens;
      asked.insert(asked.end(), letters_.before.begin(), letters_.before.end());
      prompt.letters = letters_.ids;
      return prompt;
    }
    for (const std::string& continuation : MmluContinuations(question, format_)) {
      Candidate candidate{Encode(text + continuation), 1};
      // What lies beyond the prompt's own tokens is scored, at least the last token: as lm-eval
      // does where prompt and continuation merge into one.
      if (candidate.tokens.size() > tokens.size()) {
        candidate.scored = candidate.tokens.size() - tokens.size();
      }
      prompt.candidates.push_back(std::move(candidate));
    }
    return prompt;
  }

  Tokens Encode(const std::string& text) const { return nibble::Encode(tokenizer_, text); }

  const Tokenizer& tokenizer_;
  const MmluSubjectData& subject_;
  MmluFormat format_;
  size_t context_;
  Letters letters_;  // where they are scored
};

// The tokens that all candidates of the prompts begin with, less what must be run to score each.
size_t SharedTokens(std::span<const Prompt> prompts) {
  const Tokens& first = prompts.front().candidates.front().tokens;
  size_t shared = first.size();
  for (const Prompt& prompt : prompts) {
    for (const Candidate& candidate : prompt.candidates) {
      shared =
          std::min({shared, CommonPrefix(first, candidate.tokens), candidate.scored_from() - 1});
    }
  }
  return shared;
}

// Runs prompts that begin alike.
class PromptRunner {
 public:
  PromptRunner(Engine& engine, const MmluFormat& format, ThreadPool& pool, MmluAnswers& answers,
               const MmluProgress& progress, const CancelToken& cancel)
      : engine_(engine),
        format_(format),
        pool_(pool),
        answers_(answers),
        progress_(progress),
        cancel_(cancel) {}

  Status Run(int subject, std::span<const Prompt> prompts) {
    const size_t shared = SharedTokens(prompts);
    const Tokens& first = prompts.front().candidates.front().tokens;
    const SequenceId prefix = engine_.Open();
    Status status;
    if (shared > 0) {
      status = engine_.Extend({{{prefix, std::span(first).first(shared), WantLogits::kNone}}}, {},
                              cancel_);
      answers_.computed_tokens += static_cast<int64_t>(shared);
    }
    while (status && !prompts.empty()) {
      const size_t count = CountThatFits(prompts, shared);
      status = RunTogether(subject, prompts.first(count), prefix, shared);
      prompts = prompts.subspan(count);
    }
    engine_.Close(prefix);
    return status;
  }

 private:
  // How many of the prompts the cache holds at once beside their prefix; at least one.
  size_t CountThatFits(std::span<const Prompt> prompts, size_t shared) const {
    int64_t left = engine_.free_kv_tokens();
    size_t count = 0;
    for (const Prompt& prompt : prompts) {
      for (const Candidate& candidate : prompt.candidates) {
        // A block more: the partly filled one that a fork copies.
        left -= KvTokensFor(engine_.backend(), 1,
                            static_cast<int64_t>(candidate.tokens.size() - shared)) +
                engine_.backend().kv_block_tokens();
      }
      if (left < 0) break;
      ++count;
    }
    return std::max<size_t>(count, 1);
  }

  Status RunTogether(int subject, std::span<const Prompt> prompts, SequenceId prefix,
                     size_t shared) {
    // First each question's own part up to where its candidates differ, then the candidates.
    std::vector<SequenceId> open;
    std::vector<Extension> stems;
    std::vector<size_t> stem_ends;
    for (const Prompt& prompt : prompts) {
      const Tokens& tokens = prompt.candidates.front().tokens;
      size_t end = tokens.size();
      for (const Candidate& candidate : prompt.candidates) {
        end = std::min({end, CommonPrefix(tokens, candidate.tokens), candidate.scored_from()});
      }
      stem_ends.push_back(end);
      open.push_back(engine_.Fork(prefix));
      stems.push_back(
          {open.back(), std::span(tokens).subspan(shared, end - shared), WantLogits::kLast});
      answers_.computed_tokens += static_cast<int64_t>(end - shared);
    }
    std::vector<std::array<double, 4>> scores(prompts.size());
    Status status = engine_.Extend(stems, OnAllThreads([&](const LogitRun& run) {
                                     const size_t p = run.extension;
                                     const RowLogProbabilities row = RowOf(run, 0);
                                     for (size_t i = 0; i < 4; ++i)
                                       scores[p][i] = StemScore(row, prompts[p], stem_ends[p], i);
                                   }),
                                   cancel_);
    if (status && format_.scoring == MmluScoring::kCloze) {
      status = RunCandidates(prompts, stem_ends, open, scores);
    }
    for (const SequenceId sequence : open) engine_.Close(sequence);
    if (!status) return status;
    for (size_t p = 0; p < prompts.size(); ++p) {
      const Prompt& prompt = prompts[p];
      answers_.questions.push_back({.subject = subject,
                                    .index = prompt.question->index,
                                    .logprobs = MmluScores(*prompt.question, format_, scores[p]),
                                    .answer = prompt.question->answer,
                                    .shots = prompt.shots});
      for (const Candidate& candidate : prompt.candidates) {
        answers_.prompt_tokens += static_cast<int64_t>(candidate.tokens.size());
      }
    }
    progress_(static_cast<int64_t>(answers_.questions.size()));
    return {};
  }

  template <typename Visit>
  LogitsSink OnAllThreads(const Visit& visit) const {
    return [this, visit](std::span<const LogitRun> runs) {
      pool_.ParallelFor(std::ssize(runs), 1, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) visit(runs[static_cast<size_t>(i)]);
      });
    };
  }
  static RowLogProbabilities RowOf(const LogitRun& run, int64_t row) {
    return RowLogProbabilities({run.logits.row<float>(row), size_t(run.logits.columns)});
  }

  // What the logits after the stem say about answer i: the letter, or the first token that follows.
  double StemScore(const RowLogProbabilities& row, const Prompt& prompt, size_t end,
                   size_t i) const {
    if (format_.scoring == MmluScoring::kLetters) return row.At(prompt.letters[i]);
    const Candidate& candidate = prompt.candidates[i];
    return end == candidate.scored_from() ? row.At(candidate.tokens[end]) : 0.0;
  }

  // Adds the log-probabilities of the candidates' tokens beyond the stem's next one. `stems` are
  // the open sequences of the prompts; the candidates' are added to them.
  Status RunCandidates(std::span<const Prompt> prompts, const std::vector<size_t>& stem_ends,
                       std::vector<SequenceId>& open, std::vector<std::array<double, 4>>& scores) {
    struct Target {
      size_t prompt, candidate;
    };
    std::vector<Extension> extensions;
    std::vector<Target> targets;
    for (size_t p = 0; p < prompts.size(); ++p) {
      for (size_t i = 0; i < 4; ++i) {
        const Tokens& tokens = prompts[p].candidates[i].tokens;
        if (stem_ends[p] + 1 >= tokens.size()) continue;  // nothing beyond the stem's next token
        open.push_back(engine_.Fork(open[p]));
        extensions.push_back(
            {open.back(), std::span(tokens).subspan(stem_ends[p], tokens.size() - 1 - stem_ends[p]),
             WantLogits::kAll});
        targets.push_back({p, i});
        answers_.computed_tokens += static_cast<int64_t>(extensions.back().tokens.size());
      }
    }
    if (extensions.empty()) return {};
    return engine_.Extend(extensions, OnAllThreads([&](const LogitRun& run) {
                            const auto [p, i] = targets[run.extension];
                            const Candidate& candidate = prompts[p].candidates[i];
                            for (int64_t r = 0; r < run.logits.rows; ++r) {
                              const size_t next =
                                  stem_ends[p] + static_cast<size_t>(run.first_token + r) + 1;
                              if (next < candidate.scored_from()) continue;
                              scores[p][i] += RowOf(run, r).At(candidate.tokens[next]);
                            }
                          }),
                          cancel_);
  }

  Engine& engine_;
  MmluFormat format_;
  ThreadPool& pool_;
  MmluAnswers& answers_;
  const MmluProgress& progress_;
  const CancelToken& cancel_;
};

}  // namespace

EngineOptions MmluEngineOptions(const ModelConfig& config, const Backend& backend, DType kv_dtype,
                                int64_t rows, int64_t sequences) {
  // Room for one prompt as long as the context allows, and beside it for the questions that fill
  // two steps.
  const int64_t context = std::min<int64_t>(config.max_context, 8192);
  sequences = std::min(rows, sequences);
  return {
      .kv_dtype = kv_dtype,
      .kv_tokens = KvTokensFor(backend, 5, context) + KvTokensFor(backend, sequences, 1) + 2 * rows,
      .limits = {.rows = rows,
                 .sequences = sequences,
                 .context = context,
                 .logit_rows = std::min<int64_t>(rows, 512)}};
}

int64_t LeastMmluKvTokens(const EngineOptions& options, const Backend& backend) {
  return KvTokensFor(backend, 1, options.limits.context) + 8 * backend.kv_block_tokens();
}

Status CheckLetters(const Tokenizer& tokenizer) {
  const auto letters = FindLetters(tokenizer, "Answer:", MmluContinuations({}, {}));
  if (!letters) return tl::unexpected<Error>(letters.error());
  return {};
}

Result<MmluAnswers> RunMmlu(Engine& engine, const Tokenizer& tokenizer, const MmluDataset& data,
                            const MmluFormat& format, ThreadPool& pool,
                            const MmluProgress& progress, const CancelToken& cancel) {
  const int64_t context = std::min(engine.config().max_context, engine.limits().context);
  MmluAnswers answers;
  for (const MmluSubjectData& subject : data.subjects()) {
    if (subject.questions.empty()) continue;
    NIBBLE_ASSIGN_OR_RETURN(const Prompter prompter,
                            Prompter::Create(tokenizer, subject, format, context));
    std::vector<Prompt> made(subject.questions.size());
    pool.ParallelFor(std::ssize(made), 1, [&](int64_t begin, int64_t end, int) {
      for (auto i = static_cast<size_t>(begin); i < static_cast<size_t>(end); ++i) {
        made[i] = prompter.Make(subject.questions[i]);
      }
    });
    // Prompts that lost shots do not begin like the others.
    std::map<int, std::vector<Prompt>> by_shots;
    for (Prompt& prompt : made) by_shots[prompt.shots].push_back(std::move(prompt));
    for (const auto& [shots, prompts] : by_shots) {
      PromptRunner runner(engine, format, pool, answers, progress, cancel);
      NIBBLE_RETURN_IF_ERROR(runner.Run(subject.subject, prompts));
    }
  }
  return answers;
}

}  // namespace nibble

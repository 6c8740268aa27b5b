// The text that a model is shown for an MMLU question, and what it may answer. Templates move
// results by several points, so each has a name, which goes into the record.
//
// Letters: "The following are multiple choice questions (with answers) about SUBJECT.\n\n", for
// each shot "QUESTION\nA. …\nB. …\nC. …\nD. …\nAnswer: X\n\n", then the question in the same form
// up to "Answer:". The answers compared are " A" to " D".
// - `original` (github.com/hendrycks/test, evaluate.py): SUBJECT begins with a space, so two stand
//   before it; the text is as in the data.
// - `lm-eval` (EleutherAI's lm-evaluation-harness, task mmlu): one space; questions are stripped of
//   white space at both ends.
//
// Cloze: the choices are not shown. "The following are questions (with answers) about SUBJECT.\n\n"
// (as in the harness's mmlu_continuation), shots "QUESTION\nAnswer: TEXT\n\n" with the right
// choice's text, the question up to "Answer:". The answers compared are " " and each choice's text,
// by log-likelihood divided by the bytes of the choice's text.
#ifndef NIBBLE_EVAL_MMLU_PROMPT_H_
#define NIBBLE_EVAL_MMLU_PROMPT_H_

#include <array>
#include <string>
#include <string_view>

#include "src/base/error.h"
#include "src/eval/mmlu_data.h"

namespace nibble {

enum class MmluTemplate { kOriginal, kLmEval };
enum class MmluScoring { kLetters, kCloze };

struct MmluFormat {
  MmluTemplate prompt_template = MmluTemplate::kOriginal;
  MmluScoring scoring = MmluScoring::kLetters;
  bool operator==(const MmluFormat&) const = default;
};

std::string_view Name(MmluTemplate prompt_template);  // "original", "lm-eval"
std::string_view Name(MmluScoring scoring);           // "letters", "cloze"
Result<MmluTemplate> ParseMmluTemplate(std::string_view name);
Result<MmluScoring> ParseMmluScoring(std::string_view name);

// The part that all questions of a subject share: the opening and the first `shots` shots, which
// is fewer than there are where a prompt would not fit. 0 <= shots <= subject.shots.size().
std::string MmluPrefix(const MmluSubjectData& subject, int shots, const MmluFormat& format);

// What follows the prefix: the question up to and with "Answer:".
std::string MmluQuestionPart(const MmluQuestion& question, const MmluFormat& format);

// The four texts that may follow the question part, for A to D; each begins with a space.
std::array<std::string, 4> MmluContinuations(const MmluQuestion& question,
                                             const MmluFormat& format);

// What is compared: the log-likelihoods of the continuations (nats) themselves, or under cloze
// divided by the bytes of the choices' text.
std::array<double, 4> MmluScores(const MmluQuestion& question, const MmluFormat& format,
                                 const std::array<double, 4>& log_likelihoods);

}  // namespace nibble

#endif  // NIBBLE_EVAL_MMLU_PROMPT_H_

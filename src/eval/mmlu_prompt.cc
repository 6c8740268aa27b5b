#include "src/eval/mmlu_prompt.h"

#include <utf8proc.h>

#include <algorithm>

#include "src/eval/mmlu_subjects.h"

namespace nibble {
namespace {

// White space as Python's str.strip() sees it, which is what the harness calls.
bool IsSpace(utf8proc_int32_t code_point) {
  if (code_point < 0x80) {
    return code_point == ' ' || (code_point >= 0x09 && code_point <= 0x0D) ||
           (code_point >= 0x1C && code_point <= 0x1F);
  }
  const utf8proc_category_t category = utf8proc_category(code_point);
  return code_point == 0x85 || category == UTF8PROC_CATEGORY_ZS ||
         category == UTF8PROC_CATEGORY_ZL || category == UTF8PROC_CATEGORY_ZP;
}

// `text` is valid UTF-8.
std::string_view Stripped(std::string_view text) {
  size_t begin = text.size();
  size_t end = text.size();
  for (size_t i = 0; i < text.size();) {
    utf8proc_int32_t code_point = 0;
    const utf8proc_ssize_t length =
        utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(text.data()) + i,
                         static_cast<utf8proc_ssize_t>(text.size() - i), &code_point);
    const size_t next = i + static_cast<size_t>(std::max<utf8proc_ssize_t>(length, 1));
    if (length <= 0 || !IsSpace(code_point)) {
      begin = std::min(begin, i);
      end = next;
    }
    i = next;
  }
  return begin == text.size() ? std::string_view() : text.substr(begin, end - begin);
}

std::string SubjectWords(int subject) {
  std::string words(kMmluSubjects[static_cast<size_t>(subject)].name);
  std::replace(words.begin(), words.end(), '_', ' ');
  return words;
}

char Letter(size_t choice) { return static_cast<char>('A' + choice); }

}  // namespace

std::string_view Name(MmluTemplate prompt_template) {
  return prompt_template == MmluTemplate::kOriginal ? "original" : "lm-eval";
}

std::string_view Name(MmluScoring scoring) {
  return scoring == MmluScoring::kLetters ? "letters" : "cloze";
}

Result<MmluTemplate> ParseMmluTemplate(std::string_view name) {
  for (const MmluTemplate value : {MmluTemplate::kOriginal, MmluTemplate::kLmEval}) {
    if (name == Name(value)) return value;
  }
  return WrongUsage("template: want original or lm-eval, got {}", name);
}

Result<MmluScoring> ParseMmluScoring(std::string_view name) {
  for (const MmluScoring value : {MmluScoring::kLetters, MmluScoring::kCloze}) {
    if (name == Name(value)) return value;
  }
  return WrongUsage("scoring: want letters or cloze, got {}", name);
}

std::string MmluPrefix(const MmluSubjectData& subject, int shots, const MmluFormat& format) {
  CHECK(shots >= 0 && static_cast<size_t>(shots) <= subject.shots.size());
  std::string prefix = fmt::format(
      "The following are {}questions (with answers) about {}{}.\n\n",
      format.scoring == MmluScoring::kLetters ? "multiple choice " : "",
      format.prompt_template == MmluTemplate::kOriginal ? " " : "", SubjectWords(subject.subject));
  for (size_t i = 0; i < static_cast<size_t>(shots); ++i) {
    const MmluQuestion& shot = subject.shots[i];
    prefix += MmluQuestionPart(shot, format);
    prefix += MmluContinuations(shot, format)[static_cast<size_t>(shot.answer)];
    prefix += "\n\n";
  }
  return prefix;
}

std::string MmluQuestionPart(const MmluQuestion& question, const MmluFormat& format) {
  std::string part(format.prompt_template == MmluTemplate::kLmEval ? Stripped(question.question)
                                                                   : question.question);
  if (format.scoring == MmluScoring::kLetters) {
    for (size_t i = 0; i < 4; ++i) part += fmt::format("\n{}. {}", Letter(i), question.choices[i]);
  }
  part += "\nAnswer:";
  return part;
}

std::array<std::string, 4> MmluContinuations(const MmluQuestion& question,
                                             const MmluFormat& format) {
  std::array<std::string, 4> continuations;
  for (size_t i = 0; i < 4; ++i) {
    continuations[i] = format.scoring == MmluScoring::kLetters ? std::string(" ") + Letter(i)
                                                               : " " + question.choices[i];
  }
  return continuations;
}

std::array<double, 4> MmluScores(const MmluQuestion& question, const MmluFormat& format,
                                 const std::array<double, 4>& log_likelihoods) {
  if (format.scoring == MmluScoring::kLetters) return log_likelihoods;
  std::array<double, 4> scores{};
  for (size_t i = 0; i < 4; ++i) {
    scores[i] =
        log_likelihoods[i] / static_cast<double>(std::max<size_t>(question.choices[i].size(), 1));
  }
  return scores;
}

}  // namespace nibble

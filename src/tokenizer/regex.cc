#include "src/tokenizer/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <string>

#include "src/tokenizer/unicode_supplement.h"
#include "src/tokenizer/utf8.h"

namespace nibble {
namespace {

constexpr uint32_t kMaxNesting = 32;
// Steps of backtracking in one match: the constant, and as many for each byte of the text, because
// a run of a million spaces is legitimate.
constexpr uint32_t kMatchSteps = 1'000'000;
constexpr uint32_t kMatchStepsPerByte = 8;
constexpr uint32_t kMatchHeapKibibytes = 64 << 10;

template <typename T, void (*kFree)(T*)>
struct Freed {
  void operator()(T* pointer) const { kFree(pointer); }
};
using CompileContext = std::unique_ptr<pcre2_compile_context,
                                       Freed<pcre2_compile_context, pcre2_compile_context_free>>;
using MatchContext =
    std::unique_ptr<pcre2_match_context, Freed<pcre2_match_context, pcre2_match_context_free>>;
using MatchData = std::unique_ptr<pcre2_match_data, Freed<pcre2_match_data, pcre2_match_data_free>>;

bool IsLetterOrDigit(char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0; }

// Rewrites Oniguruma's spelling into PCRE2's, or says what cannot be.
class Translator {
 public:
  Translator(std::string_view pattern, std::string_view source)
      : pattern_(pattern), source_(source) {}

  Result<std::string> Translate() {
    while (at_ < pattern_.size()) {
      const char c = pattern_[at_];
      switch (c) {
        case '\\':
          NIBBLE_RETURN_IF_ERROR(Escape(InClass::kNo));
          break;
        case '[':
          NIBBLE_RETURN_IF_ERROR(Class());
          break;
        case '(':
          NIBBLE_RETURN_IF_ERROR(Group());
          break;
        case '{':
          NIBBLE_RETURN_IF_ERROR(Counts());
          break;
        case '^':
        case '$':
          return Refused(std::string(1, c));
        default:
          Copy(1);
      }
    }
    return std::move(out_);
  }

 private:
  tl::unexpected<Error> Refused(std::string_view what) const {
    return BadInput("{}: pattern {}: \"{}\" at byte {} is not supported", source_, pattern_, what,
                    at_);
  }

  bool Next(std::string_view text) const { return pattern_.substr(at_).starts_with(text); }

  void Copy(size_t bytes) {
    out_.append(pattern_.substr(at_, bytes));
    at_ += bytes;
  }

  enum class InClass { kNo, kYes };

  Status Escape(InClass in_class) {
    if (at_ + 1 == pattern_.size()) return Refused("\\");
    const char c = pattern_[at_ + 1];
    if (c == 's' || c == 'S') {
      out_ += c == 's' ? "\\p{White_Space}" : "\\P{White_Space}";
      at_ += 2;
      return {};
    }
    // \P{L} and \P{N} stay as they are: it would take more to say them inside brackets.
    if (Supplement("\\p{L}", kNewLetters, in_class) ||
        Supplement("\\p{N}", kNewNumbers, in_class)) {
      return {};
    }
    if (c == 'p' || c == 'P' || c == 'x') {
      const size_t close = pattern_.find('}', at_);
      if (at_ + 2 >= pattern_.size() || pattern_[at_ + 2] != '{' ||
          close == std::string_view::npos || close - at_ > 40) {
        return Refused(pattern_.substr(at_, 2));
      }
      Copy(close + 1 - at_);
      return {};
    }
    constexpr std::string_view kSame = "dDrnt";
    if (IsLetterOrDigit(c) && kSame.find(c) == std::string_view::npos) {
      return Refused(pattern_.substr(at_, 2));
    }
    Copy(1 + Utf8Length(c));
    return {};
  }

  // Adds to a category what PCRE2's tables may lack of it.
  bool Supplement(std::string_view category, std::span<const CodePointRange> ranges,
                  InClass in_class) {
    if (!Next(category)) return false;
    if (in_class == InClass::kNo) out_ += '[';
    Copy(category.size());
    for (const CodePointRange& range : ranges) {
      out_ += fmt::format("\\x{{{:X}}}-\\x{{{:X}}}", static_cast<uint32_t>(range.first),
                          static_cast<uint32_t>(range.last));
    }
    if (in_class == InClass::kNo) out_ += ']';
    return true;
  }

  Status Class() {
    Copy(1);
    if (Next("^")) Copy(1);
    if (Next("]")) return Refused("]");
    while (at_ < pattern_.size() && pattern_[at_] != ']') {
      if (Next("[") || Next("&&")) return Refused(pattern_.substr(at_, Next("[") ? 1 : 2));
      if (Next("\\")) {
        NIBBLE_RETURN_IF_ERROR(Escape(InClass::kYes));
      } else {
        Copy(1);
      }
    }
    if (at_ == pattern_.size()) return Refused("[");
    Copy(1);
    return {};
  }

  Status Group() {
    constexpr std::array<std::string_view, 7> kSame = {"(?:",  "(?i:", "(?=", "(?!",
                                                       "(?<=", "(?<!", "(?>"};
    for (const std::string_view opening : kSame) {
      if (Next(opening)) {
        Copy(opening.size());
        return {};
      }
    }
    if (Next("(?") || Next("(*")) return Refused(pattern_.substr(at_, 3));
    Copy(1);
    return {};
  }

  // {2}, {2,} and {2,5}; Oniguruma reads {,5} and {2}+ in ways of its own.
  Status Counts() {
    const size_t close = pattern_.find('}', at_);
    if (close == std::string_view::npos) return Refused("{");
    const std::string_view inside = pattern_.substr(at_ + 1, close - at_ - 1);
    const bool digits_only = inside.find_first_not_of("0123456789,") == std::string_view::npos;
    if (!digits_only || inside.empty() || inside[0] == ',' ||
        std::count(inside.begin(), inside.end(), ',') > 1 ||
        pattern_.substr(close + 1).starts_with("+")) {
      return Refused(pattern_.substr(at_, close + 2 - at_));
    }
    Copy(close + 1 - at_);
    return {};
  }

  std::string_view pattern_;
  std::string_view source_;
  size_t at_ = 0;
  std::string out_;
};

}  // namespace

Result<Regex> Regex::Compile(std::string_view pattern, std::string_view source) {
  if (pattern.size() > kMaxPatternBytes) {
    return BadInput("{}: a pattern of {} bytes; at most {} are supported", source, pattern.size(),
                    kMaxPatternBytes);
  }
  NIBBLE_ASSIGN_OR_RETURN(const std::string translated, Translator(pattern, source).Translate());

  const CompileContext context(pcre2_compile_context_create(nullptr));
  CHECK(context != nullptr, "out of memory");
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  pcre2_set_parens_nest_limit(context.get(), kMaxNesting);
  int error = 0;
  PCRE2_SIZE offset = 0;
  pcre2_code* code =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                    PCRE2_UTF | PCRE2_UCP | PCRE2_NO_AUTO_CAPTURE | PCRE2_NEVER_BACKSLASH_C, &error,
                    &offset, context.get());
  if (code == nullptr) {
    std::array<PCRE2_UCHAR, 256> message{};
    pcre2_get_error_message(error, message.data(), message.size());
    return BadInput("{}: pattern {}: {} ", source, pattern,
                    reinterpret_cast<const char*>(message.data()));
  }
  std::shared_ptr<pcre2_code> owned(code, pcre2_code_free);
  uint32_t matches_empty = 0;
  pcre2_pattern_info(code, PCRE2_INFO_MATCHEMPTY, &matches_empty);
  if (matches_empty != 0) {
    return BadInput("{}: pattern {} can match nothing at all, which is not supported", source,
                    pattern);
  }
  // Where the system forbids code made at run time, matching is slower and otherwise the same.
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
  return Regex(std::move(owned));
}

std::vector<TextRange> Regex::FindAll(std::string_view text) const {
  const MatchData data(pcre2_match_data_create(1, nullptr));
  const MatchContext context(pcre2_match_context_create(nullptr));
  CHECK(data != nullptr && context != nullptr, "out of memory");
  const size_t steps = kMatchSteps + std::min<size_t>(text.size(), 1u << 28) * kMatchStepsPerByte;
  pcre2_set_match_limit(context.get(), static_cast<uint32_t>(steps));
  pcre2_set_heap_limit(context.get(), kMatchHeapKibibytes);

  std::vector<TextRange> matches;
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  size_t at = 0;
  while (at < text.size()) {
    int found = pcre2_match(code_.get(), subject, text.size(), at, PCRE2_NO_UTF_CHECK, data.get(),
                            context.get());
    if (found == PCRE2_ERROR_JIT_STACKLIMIT) {
      found = pcre2_match(code_.get(), subject, text.size(), at, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT,
                          data.get(), context.get());
    }
    if (found < 0) break;
    const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(data.get());
    if (ends[1] <= at) break;  // no progress
    matches.push_back({ends[0], ends[1]});
    at = ends[1];
  }
  return matches;
}

}  // namespace nibble

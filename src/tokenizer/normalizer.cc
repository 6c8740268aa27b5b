#include "src/tokenizer/normalizer.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "src/base/error.h"
#include "src/tokenizer/utf8.h"

namespace nibble {
namespace {

int CombiningClass(utf8proc_int32_t code_point) {
  return utf8proc_get_property(code_point)->combining_class;
}

// Characters below U+0300 are in form C already, and nothing before them composes with them.
bool MayChangeUnderNfc(std::string_view text) {
  return std::any_of(text.begin(), text.end(),
                     [](char c) { return static_cast<unsigned char>(c) >= 0xCC; });
}

}  // namespace

std::string ReplaceAll(std::string_view text, std::string_view from, std::string_view to) {
  std::string replaced;
  replaced.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const size_t found = std::min(text.find(from, at), text.size());
    replaced.append(text.substr(at, found - at));
    if (found == text.size()) break;
    replaced.append(to);
    at = found + from.size();
  }
  return replaced;
}

std::string ToNfc(std::string_view text) {
  if (!MayChangeUnderNfc(text)) return std::string(text);
  // utf8proc's own sort of combining marks takes quadratic time on long runs, so of its parts only
  // decomposition and composition are used.
  std::vector<utf8proc_int32_t> code_points;
  code_points.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const Utf8Step step = NextUtf8(text.substr(at));
    at += step.bytes;
    std::array<utf8proc_int32_t, 32> decomposed;
    int last_boundary_class = 0;
    const utf8proc_ssize_t count = utf8proc_decompose_char(
        static_cast<utf8proc_int32_t>(step.code_point), decomposed.data(), decomposed.size(),
        static_cast<utf8proc_option_t>(UTF8PROC_DECOMPOSE | UTF8PROC_STABLE), &last_boundary_class);
    CHECK(count >= 0 && count <= static_cast<utf8proc_ssize_t>(decomposed.size()), "utf8proc: {}",
          utf8proc_errmsg(count));
    code_points.insert(code_points.end(), decomposed.begin(), decomposed.begin() + count);
  }

  for (auto run = code_points.begin(); run != code_points.end();) {
    if (CombiningClass(*run) == 0) {
      ++run;
      continue;
    }
    const auto end = std::find_if(run, code_points.end(),
                                  [](utf8proc_int32_t c) { return CombiningClass(c) == 0; });
    std::stable_sort(run, end, [](utf8proc_int32_t a, utf8proc_int32_t b) {
      return CombiningClass(a) < CombiningClass(b);
    });
    run = end;
  }

  const utf8proc_ssize_t count = utf8proc_normalize_utf32(
      code_points.data(), static_cast<utf8proc_ssize_t>(code_points.size()),
      static_cast<utf8proc_option_t>(UTF8PROC_COMPOSE | UTF8PROC_STABLE));
  CHECK(count >= 0, "utf8proc: {}", utf8proc_errmsg(count));
  std::string composed;
  composed.reserve(text.size());
  for (utf8proc_ssize_t i = 0; i < count; ++i) {
    AppendUtf8(static_cast<char32_t>(code_points[static_cast<size_t>(i)]), composed);
  }
  return composed;
}

std::string Normalize(const std::vector<NormalizerStep>& steps, std::string_view text) {
  std::string normalized(text);
  for (const NormalizerStep& step : steps) {
    if (const auto* prepend = std::get_if<PrependStep>(&step)) {
      if (!normalized.empty()) normalized.insert(0, prepend->text);
    } else if (const auto* replace = std::get_if<ReplaceStep>(&step)) {
      normalized = ReplaceAll(normalized, replace->from, replace->to);
    } else {
      normalized = ToNfc(normalized);
    }
  }
  return normalized;
}

}  // namespace nibble

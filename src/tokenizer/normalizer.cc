#include "src/tokenizer/normalizer.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "src/base/error.h"
#include "src/tokenizer/unicode_supplement.h"
#include "src/tokenizer/utf8.h"

namespace nibble {
namespace {

// The reference, `tokenizers`, normalizes by the tables of Unicode 10. These marks came later, and
// it treats them as characters that neither move nor compose.
constexpr CodePointRange kInertMarks[] = {
    {0x7FD, 0x7FD},     {0x898, 0x89F},     {0x8CA, 0x8D3},     {0x9FE, 0x9FE},
    {0xC3C, 0xC3C},     {0xD3B, 0xD3C},     {0xEBA, 0xEBA},     {0x1715, 0x1715},
    {0x1ABF, 0x1ACE},   {0x1DF6, 0x1DFA},   {0xA82C, 0xA82C},   {0x10D24, 0x10D27},
    {0x10EAB, 0x10EAC}, {0x10EFD, 0x10EFF}, {0x10F46, 0x10F50}, {0x10F82, 0x10F85},
    {0x11070, 0x11070}, {0x1133B, 0x1133B}, {0x1145E, 0x1145E}, {0x11839, 0x1183A},
    {0x1193D, 0x1193E}, {0x11943, 0x11943}, {0x119E0, 0x119E0}, {0x11A34, 0x11A34},
    {0x11A47, 0x11A47}, {0x11A99, 0x11A99}, {0x11D42, 0x11D42}, {0x11D44, 0x11D45},
    {0x11D97, 0x11D97}, {0x11F41, 0x11F42}, {0x16FF0, 0x16FF1}, {0x1E08F, 0x1E08F},
    {0x1E130, 0x1E136}, {0x1E2AE, 0x1E2AE}, {0x1E2EC, 0x1E2EF}, {0x1E4EC, 0x1E4EF}};

bool IsInertMark(utf8proc_int32_t code_point) {
  return IsInRanges(static_cast<char32_t>(code_point), kInertMarks);
}

int CombiningClass(utf8proc_int32_t code_point) {
  const int combining_class = utf8proc_get_property(code_point)->combining_class;
  return combining_class == 0 || IsInertMark(code_point) ? 0 : combining_class;
}

// Composes [begin, end), which is decomposed and in order, and appends it.
void AppendComposed(std::vector<utf8proc_int32_t>::iterator begin,
                    std::vector<utf8proc_int32_t>::iterator end, std::string& text) {
  const utf8proc_ssize_t count = utf8proc_normalize_utf32(
      &*begin, end - begin, static_cast<utf8proc_option_t>(UTF8PROC_COMPOSE | UTF8PROC_STABLE));
  CHECK(count >= 0, "utf8proc: {}", utf8proc_errmsg(count));
  for (const auto composed_end = begin + count; begin != composed_end; ++begin) {
    AppendUtf8(static_cast<char32_t>(*begin), text);
  }
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

  std::string composed;
  composed.reserve(text.size());
  for (auto begin = code_points.begin(); begin != code_points.end();) {
    const auto end = std::find_if(begin + 1, code_points.end(), IsInertMark);
    AppendComposed(begin, end, composed);
    begin = end;
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

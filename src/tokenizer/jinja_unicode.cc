#include "src/tokenizer/jinja_unicode.h"

#include <string.h>
#include <utf8proc.h>

#include <algorithm>
#include <iterator>

#include "src/tokenizer/utf8.h"

namespace nibble::jinja {
namespace {

// Letters whose upper or title case is several code points: the unconditional entries of Unicode's
// SpecialCasing.txt, without U+1F80 to U+1FAF, which follow a rule.
struct SpecialCase {
  char32_t code_point;
  const char32_t* upper;
  const char32_t* title;
};
constexpr SpecialCase kSpecialCases[] = {
    {0xDF, U"SS", U"Ss"},
    {0x149, U"\u02BCN", U"\u02BCN"},
    {0x1F0, U"J\u030C", U"J\u030C"},
    {0x390, U"\u0399\u0308\u0301", U"\u0399\u0308\u0301"},
    {0x3B0, U"\u03A5\u0308\u0301", U"\u03A5\u0308\u0301"},
    {0x587, U"\u0535\u0552", U"\u0535\u0582"},
    {0x1E96, U"H\u0331", U"H\u0331"},
    {0x1E97, U"T\u0308", U"T\u0308"},
    {0x1E98, U"W\u030A", U"W\u030A"},
    {0x1E99, U"Y\u030A", U"Y\u030A"},
    {0x1E9A, U"A\u02BE", U"A\u02BE"},
    {0x1F50, U"\u03A5\u0313", U"\u03A5\u0313"},
    {0x1F52, U"\u03A5\u0313\u0300", U"\u03A5\u0313\u0300"},
    {0x1F54, U"\u03A5\u0313\u0301", U"\u03A5\u0313\u0301"},
    {0x1F56, U"\u03A5\u0313\u0342", U"\u03A5\u0313\u0342"},
    {0x1FB2, U"\u1FBA\u0399", U"\u1FBA\u0345"},
    {0x1FB3, U"\u0391\u0399", U"\u1FBC"},
    {0x1FB4, U"\u0386\u0399", U"\u0386\u0345"},
    {0x1FB6, U"\u0391\u0342", U"\u0391\u0342"},
    {0x1FB7, U"\u0391\u0342\u0399", U"\u0391\u0342\u0345"},
    {0x1FBC, U"\u0391\u0399", U"\u1FBC"},
    {0x1FC2, U"\u1FCA\u0399", U"\u1FCA\u0345"},
    {0x1FC3, U"\u0397\u0399", U"\u1FCC"},
    {0x1FC4, U"\u0389\u0399", U"\u0389\u0345"},
    {0x1FC6, U"\u0397\u0342", U"\u0397\u0342"},
    {0x1FC7, U"\u0397\u0342\u0399", U"\u0397\u0342\u0345"},
    {0x1FCC, U"\u0397\u0399", U"\u1FCC"},
    {0x1FD2, U"\u0399\u0308\u0300", U"\u0399\u0308\u0300"},
    {0x1FD3, U"\u0399\u0308\u0301", U"\u0399\u0308\u0301"},
    {0x1FD6, U"\u0399\u0342", U"\u0399\u0342"},
    {0x1FD7, U"\u0399\u0308\u0342", U"\u0399\u0308\u0342"},
    {0x1FE2, U"\u03A5\u0308\u0300", U"\u03A5\u0308\u0300"},
    {0x1FE3, U"\u03A5\u0308\u0301", U"\u03A5\u0308\u0301"},
    {0x1FE4, U"\u03A1\u0313", U"\u03A1\u0313"},
    {0x1FE6, U"\u03A5\u0342", U"\u03A5\u0342"},
    {0x1FE7, U"\u03A5\u0308\u0342", U"\u03A5\u0308\u0342"},
    {0x1FF2, U"\u1FFA\u0399", U"\u1FFA\u0345"},
    {0x1FF3, U"\u03A9\u0399", U"\u1FFC"},
    {0x1FF4, U"\u038F\u0399", U"\u038F\u0345"},
    {0x1FF6, U"\u03A9\u0342", U"\u03A9\u0342"},
    {0x1FF7, U"\u03A9\u0342\u0399", U"\u03A9\u0342\u0345"},
    {0x1FFC, U"\u03A9\u0399", U"\u1FFC"},
    {0xFB00, U"FF", U"Ff"},
    {0xFB01, U"FI", U"Fi"},
    {0xFB02, U"FL", U"Fl"},
    {0xFB03, U"FFI", U"Ffi"},
    {0xFB04, U"FFL", U"Ffl"},
    {0xFB05, U"ST", U"St"},
    {0xFB06, U"ST", U"St"},
    {0xFB13, U"\u0544\u0546", U"\u0544\u0576"},
    {0xFB14, U"\u0544\u0535", U"\u0544\u0565"},
    {0xFB15, U"\u0544\u053B", U"\u0544\u056B"},
    {0xFB16, U"\u054E\u0546", U"\u054E\u0576"},
    {0xFB17, U"\u0544\u053D", U"\u0544\u056D"},
};

const SpecialCase* FindSpecialCase(char32_t c) {
  const auto* it = std::lower_bound(
      std::begin(kSpecialCases), std::end(kSpecialCases), c,
      [](const SpecialCase& entry, char32_t value) { return entry.code_point < value; });
  return it != std::end(kSpecialCases) && it->code_point == c ? it : nullptr;
}

void Append(const char32_t* code_points, std::string* text) {
  for (; *code_points != 0; ++code_points) AppendUtf8(*code_points, *text);
}

bool IsGreekWithIota(char32_t c) { return c >= 0x1F80 && c <= 0x1FAF; }

void AppendUpper(char32_t c, std::string* text) {
  if (c < 0x80) {
    text->push_back(static_cast<char>(c >= 'a' && c <= 'z' ? c - 32 : c));
  } else if (const SpecialCase* special = FindSpecialCase(c)) {
    Append(special->upper, text);
  } else if (IsGreekWithIota(c)) {
    const char32_t row = c < 0x1F90 ? 0x1F08 : c < 0x1FA0 ? 0x1F28 : 0x1F68;
    AppendUtf8(row + (c & 7), *text);
    AppendUtf8(0x399, *text);
  } else {
    AppendUtf8(static_cast<char32_t>(utf8proc_toupper(static_cast<utf8proc_int32_t>(c))), *text);
  }
}

void AppendTitle(char32_t c, std::string* text) {
  if (c < 0x80) {
    AppendUpper(c, text);
  } else if (const SpecialCase* special = FindSpecialCase(c)) {
    Append(special->title, text);
  } else {
    AppendUtf8(static_cast<char32_t>(utf8proc_totitle(static_cast<utf8proc_int32_t>(c))), *text);
  }
}

utf8proc_category_t Category(char32_t c) {
  return utf8proc_category(static_cast<utf8proc_int32_t>(c));
}

// Characters that do not separate a letter from its neighbours when looking for a final sigma.
bool IsCaseIgnorable(char32_t c) {
  switch (Category(c)) {
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_SK:
      return true;
    default:
      break;
  }
  switch (c) {
    case '\'':
    case '.':
    case ':':
    case 0xB7:
    case 0x387:
    case 0x55F:
    case 0x5F4:
    case 0x2018:
    case 0x2019:
    case 0x2024:
    case 0x2027:
    case 0xFE13:
    case 0xFE52:
    case 0xFE55:
    case 0xFF07:
    case 0xFF0E:
    case 0xFF1A:
      return true;
    default:
      return false;
  }
}

bool IsFinalSigma(const std::vector<char32_t>& text, size_t position) {
  bool letter_before = false;
  for (size_t i = position; i-- > 0;) {
    if (IsCaseIgnorable(text[i])) continue;
    letter_before = IsCased(text[i]);
    break;
  }
  if (!letter_before) return false;
  for (size_t i = position + 1; i < text.size(); ++i) {
    if (!IsCaseIgnorable(text[i])) return !IsCased(text[i]);
  }
  return true;
}

void AppendLower(const std::vector<char32_t>& text, size_t position, std::string* out) {
  const char32_t c = text[position];
  if (c < 0x80) {
    out->push_back(static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c));
  } else if (c == 0x130) {
    Append(U"i\u0307", out);
  } else if (c == 0x3A3) {
    AppendUtf8(IsFinalSigma(text, position) ? 0x3C2 : 0x3C3, *out);
  } else {
    AppendUtf8(static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))), *out);
  }
}

}  // namespace

size_t CountCodePoints(std::string_view text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char byte) {
    return (static_cast<unsigned char>(byte) & 0xC0) != 0x80;
  }));
}

char32_t NextCodePoint(std::string_view text, size_t* offset) {
  const auto byte = static_cast<unsigned char>(text[*offset]);
  const size_t want = byte < 0x80 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
  const size_t length = std::min(want, text.size() - *offset);
  char32_t c = want == 1 ? byte : byte & (0x7Fu >> want);
  for (size_t i = 1; i < length; ++i) {
    c = (c << 6) | (static_cast<unsigned char>(text[*offset + i]) & 0x3F);
  }
  *offset += length;
  return c;
}

std::vector<char32_t> CodePoints(std::string_view text) {
  std::vector<char32_t> code_points;
  code_points.reserve(text.size());
  for (size_t offset = 0; offset < text.size();) {
    code_points.push_back(NextCodePoint(text, &offset));
  }
  return code_points;
}

size_t ByteOffset(std::string_view text, size_t index) {
  size_t offset = 0;
  for (; index > 0 && offset < text.size(); --index) NextCodePoint(text, &offset);
  return offset;
}

size_t FindText(std::string_view text, std::string_view wanted, size_t from) {
  if (from > text.size()) return std::string_view::npos;
  if (wanted.empty()) return from;
  const void* found = memmem(text.data() + from, text.size() - from, wanted.data(), wanted.size());
  if (found == nullptr) return std::string_view::npos;
  return static_cast<size_t>(static_cast<const char*>(found) - text.data());
}

bool IsSpace(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 ||
         c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F ||
         c == 0x205F || c == 0x3000;
}

bool IsPrintable(char32_t c) {
  if (c < 0x80) return c >= 0x20 && c < 0x7F;
  switch (Category(c)) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_ZS:
      return false;
    default:
      return true;
  }
}

bool IsCased(char32_t c) {
  switch (Category(c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
      return true;
    default:
      break;
  }
  // Other_Lowercase and Other_Uppercase of Unicode's PropList.txt.
  return c == 0xAA || c == 0xBA || (c >= 0x2B0 && c <= 0x2B8) || c == 0x2C0 || c == 0x2C1 ||
         (c >= 0x2E0 && c <= 0x2E4) || c == 0x345 || c == 0x37A || (c >= 0x1D2C && c <= 0x1D6A) ||
         c == 0x1D78 || (c >= 0x1D9B && c <= 0x1DBF) || c == 0x2071 || c == 0x207F ||
         (c >= 0x2090 && c <= 0x209C) || (c >= 0x2160 && c <= 0x217F) ||
         (c >= 0x24B6 && c <= 0x24E9) || (c >= 0x1F130 && c <= 0x1F149) ||
         (c >= 0x1F150 && c <= 0x1F169) || (c >= 0x1F170 && c <= 0x1F189);
}

bool IsLineBreak(char32_t c) {
  return (c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 ||
         c == 0x2029;
}

namespace {

template <typename Predicate>
std::string_view Strip(std::string_view text, Side side, const Predicate& strips) {
  if (side != Side::kRight) {
    size_t offset = 0;
    while (offset < text.size()) {
      size_t next = offset;
      if (!strips(NextCodePoint(text, &next))) break;
      offset = next;
    }
    text.remove_prefix(offset);
  }
  if (side != Side::kLeft) {
    while (!text.empty()) {
      size_t start = text.size() - 1;
      while (start > 0 && (static_cast<unsigned char>(text[start]) & 0xC0) == 0x80) --start;
      size_t offset = start;
      if (!strips(NextCodePoint(text, &offset))) break;
      text = text.substr(0, start);
    }
  }
  return text;
}

}  // namespace

std::string_view StripSpace(std::string_view text, Side side) { return Strip(text, side, IsSpace); }

std::string_view StripAnyOf(std::string_view text, std::string_view characters, Side side) {
  std::vector<char32_t> set = CodePoints(characters);
  std::sort(set.begin(), set.end());
  return Strip(text, side,
               [&](char32_t c) { return std::binary_search(set.begin(), set.end(), c); });
}

std::string Upper(std::string_view text) {
  std::string result;
  result.reserve(text.size());
  for (size_t offset = 0; offset < text.size();) AppendUpper(NextCodePoint(text, &offset), &result);
  return result;
}

std::string Lower(std::string_view text) {
  const std::vector<char32_t> code_points = CodePoints(text);
  std::string result;
  result.reserve(text.size());
  for (size_t i = 0; i < code_points.size(); ++i) AppendLower(code_points, i, &result);
  return result;
}

std::string Title(std::string_view text) {
  const std::vector<char32_t> code_points = CodePoints(text);
  std::string result;
  result.reserve(text.size());
  bool inside_word = false;
  for (size_t i = 0; i < code_points.size(); ++i) {
    if (inside_word) {
      AppendLower(code_points, i, &result);
    } else {
      AppendTitle(code_points[i], &result);
    }
    inside_word = IsCased(code_points[i]);
  }
  return result;
}

std::string Capitalize(std::string_view text) {
  const std::vector<char32_t> code_points = CodePoints(text);
  std::string result;
  result.reserve(text.size());
  for (size_t i = 0; i < code_points.size(); ++i) {
    if (i == 0) {
      AppendTitle(code_points[i], &result);
    } else {
      AppendLower(code_points, i, &result);
    }
  }
  return result;
}

}  // namespace nibble::jinja

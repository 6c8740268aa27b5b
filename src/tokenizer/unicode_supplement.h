// Letters and numbers newer than the Unicode tables of the libraries in use. The reference's
// regular expressions know Unicode 16, its Digits pre-tokenizer Unicode 17; PCRE2 10.42 knows
// Unicode 14 and utf8proc 2.8 Unicode 15.
#ifndef NIBBLE_TOKENIZER_UNICODE_SUPPLEMENT_H_
#define NIBBLE_TOKENIZER_UNICODE_SUPPLEMENT_H_

#include <algorithm>
#include <iterator>
#include <span>

namespace nibble {

struct CodePointRange {
  char32_t first;
  char32_t last;
};

// `ranges` are in order.
inline bool IsInRanges(char32_t code_point, std::span<const CodePointRange> ranges) {
  const auto range = std::lower_bound(ranges.begin(), ranges.end(), code_point,
                                      [](CodePointRange r, char32_t c) { return r.last < c; });
  return range != ranges.end() && range->first <= code_point;
}

// Category L.
inline constexpr CodePointRange kNewLetters[] = {
    {0x1C89, 0x1C8A},   {0xA7CB, 0xA7CD},   {0xA7DA, 0xA7DC},   {0x105C0, 0x105F3},
    {0x10D4A, 0x10D65}, {0x10D6F, 0x10D85}, {0x10EC2, 0x10EC4}, {0x1123F, 0x11240},
    {0x11380, 0x11389}, {0x1138B, 0x1138B}, {0x1138E, 0x1138E}, {0x11390, 0x113B5},
    {0x113B7, 0x113B7}, {0x113D1, 0x113D1}, {0x113D3, 0x113D3}, {0x11BC0, 0x11BE0},
    {0x11F02, 0x11F02}, {0x11F04, 0x11F10}, {0x11F12, 0x11F33}, {0x1342F, 0x1342F},
    {0x13441, 0x13446}, {0x13460, 0x143FA}, {0x16100, 0x1611D}, {0x16D40, 0x16D6C},
    {0x18CFF, 0x18CFF}, {0x1B132, 0x1B132}, {0x1B155, 0x1B155}, {0x1DF25, 0x1DF2A},
    {0x1E030, 0x1E06D}, {0x1E4D0, 0x1E4EB}, {0x1E5D0, 0x1E5ED}, {0x1E5F0, 0x1E5F0},
    {0x2B739, 0x2B739}, {0x2EBF0, 0x2EE5D}, {0x31350, 0x323AF}};

// Category N, of Unicode 15 and 16.
inline constexpr CodePointRange kNewNumbers[] = {
    {0x10D40, 0x10D49}, {0x116D0, 0x116E3}, {0x11BF0, 0x11BF9}, {0x11F50, 0x11F59},
    {0x16130, 0x16139}, {0x16D70, 0x16D79}, {0x1CCF0, 0x1CCF9}, {0x1D2C0, 0x1D2D3},
    {0x1E4F0, 0x1E4F9}, {0x1E5F1, 0x1E5FA}};

// Category N, of Unicode 17.
inline constexpr CodePointRange kNewestNumbers[] = {{0x11DE0, 0x11DE9}, {0x16FF4, 0x16FF6}};

}  // namespace nibble

#endif  // NIBBLE_TOKENIZER_UNICODE_SUPPLEMENT_H_

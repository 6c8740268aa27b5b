#include "src/tokenizer/byte_level.h"

#include <array>
#include <cstdint>

#include "src/tokenizer/utf8.h"

namespace nibble {
namespace {

constexpr char32_t kShifted = 0x100;  // where the bytes that are not printable go, in order
constexpr size_t kCharacters = 0x144;

constexpr bool IsPrintable(int byte) {
  return (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

constexpr std::array<char32_t, 256> kToCharacter = [] {
  std::array<char32_t, 256> table{};
  char32_t next = kShifted;
  for (int byte = 0; byte < 256; ++byte) {
    table[static_cast<size_t>(byte)] = IsPrintable(byte) ? static_cast<char32_t>(byte) : next++;
  }
  return table;
}();

constexpr std::array<int, kCharacters> kToByte = [] {
  std::array<int, kCharacters> table{};
  table.fill(-1);
  for (int byte = 0; byte < 256; ++byte) table[kToCharacter[static_cast<size_t>(byte)]] = byte;
  return table;
}();
static_assert(kToCharacter[' '] == 0x120 && kToByte[0x10A] == '\n' && kToByte[0x143] == 0xAD);

}  // namespace

std::string BytesToPrintable(std::string_view bytes) {
  std::string printable;
  printable.reserve(bytes.size() * 2);
  for (const char c : bytes) AppendUtf8(kToCharacter[static_cast<unsigned char>(c)], printable);
  return printable;
}

std::optional<std::string> PrintableToBytes(std::string_view printable) {
  std::string bytes;
  bytes.reserve(printable.size());
  for (size_t at = 0; at < printable.size();) {
    const Utf8Step step = NextUtf8(printable.substr(at));
    if (step.code_point >= kCharacters || kToByte[step.code_point] < 0) return std::nullopt;
    bytes.push_back(static_cast<char>(kToByte[step.code_point]));
    at += step.bytes;
  }
  return bytes;
}

}  // namespace nibble

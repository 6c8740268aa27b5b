// Sizes and durations as people write and read them.
#ifndef NIBBLE_BASE_UNITS_H_
#define NIBBLE_BASE_UNITS_H_

#include <cstdint>
#include <string>
#include <string_view>

#include "src/base/error.h"

namespace nibble {

// "16GiB", "512MiB", "4096", "1.5GB" (KB, MB, GB, TB are powers of 1000; KiB … of 1024) to bytes.
Result<uint64_t> ParseSize(std::string_view text);

// 1536 → "1.50 KiB"; three significant digits.
std::string FormatBytes(uint64_t bytes);

// 75.2 → "1 min 15 s"; 0.123 → "0.12 s".
std::string FormatSeconds(double seconds);

}  // namespace nibble

#endif  // NIBBLE_BASE_UNITS_H_

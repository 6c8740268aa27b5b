#include "src/tensor/dtype.h"

namespace nibble {
namespace {

constexpr std::string_view kNames[] = {"f32", "f16", "bf16", "i64", "i32", "i8", "u8", "f8_e4m3"};

}  // namespace

std::string_view Name(DType type) { return kNames[static_cast<size_t>(type)]; }

std::optional<DType> DTypeFromName(std::string_view name) {
  for (size_t i = 0; i < std::size(kNames); ++i) {
    if (kNames[i] == name) return static_cast<DType>(i);
  }
  return std::nullopt;
}

}  // namespace nibble

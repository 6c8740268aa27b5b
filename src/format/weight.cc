#include "src/format/weight.h"

#include <cstring>
#include <numeric>

namespace nibble {
namespace {

constexpr std::string_view kGridNames[] = {"asym", "sym", "sym-full"};

}  // namespace

std::string_view Name(Grid grid) { return kGridNames[static_cast<size_t>(grid)]; }

std::optional<Grid> GridFromName(std::string_view name) {
  for (size_t i = 0; i < std::size(kGridNames); ++i) {
    if (kGridNames[i] == name) return static_cast<Grid>(i);
  }
  return std::nullopt;
}

float DenseWeight::At(int64_t row, int64_t column) const {
  const std::byte* element = data + static_cast<size_t>(row * columns + column) * BytesOf(dtype);
  if (dtype == DType::kF32) {
    float value;
    std::memcpy(&value, element, sizeof(value));
    return value;
  }
  CHECK(dtype == DType::kF16 || dtype == DType::kBF16, "a weight of type {}", Name(dtype));
  uint16_t bits;
  std::memcpy(&bits, element, sizeof(bits));
  return dtype == DType::kF16 ? FloatFromF16(bits) : FloatFromBF16(bits);
}

void QuantizedWeight::SetCode(int64_t row, int64_t column, int code) {
  uint8_t& byte = codes[static_cast<size_t>(row * (columns / 2) + column / 2)];
  const int shift = 4 * static_cast<int>(column & 1);
  byte = static_cast<uint8_t>((byte & ~(15 << shift)) | (code << shift));
}

float QuantizedWeight::At(int64_t row, int64_t input) const {
  const int64_t column = ColumnOf(input);
  const auto at = static_cast<size_t>(row * groups() + column / group_length());
  return FloatFromF16(scales[at]) * static_cast<float>(Code(row, column) - zeros[at]);
}

QuantizedWeight QuantizedWeight::Empty(const QuantSpec& spec, int64_t rows, int64_t columns) {
  QuantizedWeight weight{.spec = spec, .rows = rows, .columns = columns};
  CHECK(columns % 2 == 0 && columns % weight.group_length() == 0, "{} columns in groups of {}",
        columns, weight.group_length());
  weight.codes.resize(static_cast<size_t>(rows * columns / 2));
  weight.scales.resize(static_cast<size_t>(rows * weight.groups()));
  weight.zeros.resize(static_cast<size_t>(rows * weight.groups()));
  if (spec.order == GroupOrder::kIndexed) {
    weight.column_of_input.resize(static_cast<size_t>(columns));
    std::iota(weight.column_of_input.begin(), weight.column_of_input.end(), 0);
  }
  return weight;
}

}  // namespace nibble

// What a weight on disk means.
//
// A linear layer's weight is a matrix [out, in]. A quantized one stands for
//   weight[n][k] = scale[n][k / group] * (code[n][k] - zero[n][k / group])
// with 4-bit codes 0 … 15, float16 scales and zeros 0 … 15 (8 everywhere for symmetric grids).
// Where the groups are not consecutive inputs (GPTQ's plain act-order), the columns are kept sorted
// by group, so that the equation still holds for columns, and the weight knows each input's column.
#ifndef NIBBLE_FORMAT_WEIGHT_H_
#define NIBBLE_FORMAT_WEIGHT_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "src/base/error.h"
#include "src/tensor/tensor.h"

namespace nibble {

// Codes that a thread takes at a time when a layout is unpacked.
inline constexpr int64_t kCodesWorthSharing = 1 << 20;

// Which values a group's 16 codes stand for (quantization literature's names):
//   kAsymmetric     scale = (max - min) / 15 with 0 in [min, max], zero = round(-min / scale)
//   kSymmetric      scale = 2 max|w| / 15, zero = 8: the positive extreme clips at 7 scales
//   kSymmetricFull  scale = ±max|w| / 8, zero = 8: the sign maps the extreme to exactly -8 scales
enum class Grid : uint8_t { kAsymmetric, kSymmetric, kSymmetricFull };
std::string_view Name(Grid grid);  // "asym", "sym", "sym-full"
std::optional<Grid> GridFromName(std::string_view name);

inline constexpr int64_t kPerChannel = -1;  // one group as long as the row

// Which inputs form a group: consecutive ones, or those that an index names (g_idx, as GPTQ's
// act-order without static groups leaves them).
enum class GroupOrder : uint8_t { kConsecutive, kIndexed };

struct QuantSpec {
  int bits = 4;
  int64_t group_size = 128;  // or kPerChannel
  Grid grid = Grid::kAsymmetric;
  GroupOrder order = GroupOrder::kConsecutive;

  int64_t GroupLength(int64_t columns) const {
    return group_size == kPerChannel ? columns : group_size;
  }
  friend bool operator==(const QuantSpec&, const QuantSpec&) = default;
};

// [out, in] in a floating-point type, row after row.
struct DenseWeight {
  DType dtype = DType::kF16;
  int64_t rows = 0;
  int64_t columns = 0;
  const std::byte* data = nullptr;    // [rows, columns]
  std::shared_ptr<const void> owner;  // keeps `data` alive; may be null where the file does

  float At(int64_t row, int64_t column) const;
};

// The form between the published layouts and the backends' packings; `columns` is even and a
// multiple of the group's length.
struct QuantizedWeight {
  QuantSpec spec;
  int64_t rows = 0;
  int64_t columns = 0;
  std::vector<uint8_t> codes;    // [rows, columns / 2]: column 2i low nibble, 2i + 1 high
  std::vector<uint16_t> scales;  // [rows, groups], float16 bits
  std::vector<uint8_t> zeros;    // [rows, groups]
  // Under kIndexed [columns]: the column that multiplies each input, a permutation. Else empty.
  std::vector<int32_t> column_of_input;

  int64_t group_length() const { return spec.GroupLength(columns); }
  int64_t groups() const { return columns / group_length(); }
  int64_t ColumnOf(int64_t input) const {
    return column_of_input.empty() ? input : column_of_input[static_cast<size_t>(input)];
  }
  int Code(int64_t row, int64_t column) const {
    return (codes[static_cast<size_t>(row * (columns / 2) + column / 2)] >> (4 * (column & 1))) &
           15;
  }
  void SetCode(int64_t row, int64_t column, int code);
  float At(int64_t row, int64_t input) const;

  // An all-zero weight of this shape, its columns in the inputs' order. The group's length must
  // divide `columns`.
  static QuantizedWeight Empty(const QuantSpec& spec, int64_t rows, int64_t columns);
};

using Weight = std::variant<DenseWeight, QuantizedWeight>;

inline int64_t RowsOf(const Weight& w) {
  return std::visit([](const auto& weight) { return weight.rows; }, w);
}
inline int64_t ColumnsOf(const Weight& w) {
  return std::visit([](const auto& weight) { return weight.columns; }, w);
}

}  // namespace nibble

#endif  // NIBBLE_FORMAT_WEIGHT_H_

#include "src/format/group_index.h"

#include <utility>

namespace nibble {
namespace {

// Codes [rows, columns / 2] whose column j is column from[j] of `codes`.
std::vector<uint8_t> Gather(std::span<const uint8_t> codes, int64_t rows,
                            std::span<const int32_t> from) {
  const size_t row_bytes = from.size() / 2;
  std::vector<uint8_t> gathered(codes.size());
  std::vector<uint8_t> row(from.size());  // one code each
  for (size_t n = 0; n < static_cast<size_t>(rows); ++n) {
    for (size_t i = 0; i < row_bytes; ++i) {
      const uint8_t pair = codes[n * row_bytes + i];
      row[2 * i] = pair & 15;
      row[2 * i + 1] = pair >> 4;
    }
    for (size_t i = 0; i < row_bytes; ++i) {
      gathered[n * row_bytes + i] = static_cast<uint8_t>(
          row[static_cast<size_t>(from[2 * i])] | row[static_cast<size_t>(from[2 * i + 1])] << 4);
    }
  }
  return gathered;
}

}  // namespace

bool IsConsecutive(std::span<const int32_t> group_of_input, int64_t group_length) {
  for (size_t k = 0; k < group_of_input.size(); ++k) {
    if (group_of_input[k] != static_cast<int64_t>(k) / group_length) return false;
  }
  return true;
}

Result<std::vector<int32_t>> ColumnsByGroup(std::span<const int32_t> group_of_input,
                                            int64_t group_length) {
  const int64_t inputs = static_cast<int64_t>(group_of_input.size());
  CHECK(group_length > 0 && inputs % group_length == 0);
  const int64_t groups = inputs / group_length;
  std::vector<int64_t> next(static_cast<size_t>(groups));  // of each group's columns
  for (int64_t g = 0; g < groups; ++g) next[static_cast<size_t>(g)] = g * group_length;
  std::vector<int32_t> columns(group_of_input.size());
  for (size_t k = 0; k < group_of_input.size(); ++k) {
    const int32_t group = group_of_input[k];
    if (group < 0 || group >= groups) {
      return BadInput("input {} is in group {}, want 0 to {}", k, group, groups - 1);
    }
    columns[k] = static_cast<int32_t>(next[static_cast<size_t>(group)]++);
  }
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t count = next[static_cast<size_t>(g)] - g * group_length;
    if (count != group_length) {
      return BadInput("group {} has {} inputs, want {}", g, count, group_length);
    }
  }
  return columns;
}

std::vector<int32_t> GroupOfInput(const QuantizedWeight& weight) {
  std::vector<int32_t> groups(static_cast<size_t>(weight.columns));
  for (int64_t k = 0; k < weight.columns; ++k) {
    groups[static_cast<size_t>(k)] =
        static_cast<int32_t>(weight.ColumnOf(k) / weight.group_length());
  }
  return groups;
}

bool HasNaturalOrder(const QuantizedWeight& weight) {
  for (int64_t k = 0; k < weight.columns; ++k) {
    if (weight.ColumnOf(k) != k) return false;
  }
  return true;
}

void SortColumns(std::vector<int32_t> column_of_input, QuantizedWeight& weight) {
  CHECK(static_cast<int64_t>(column_of_input.size()) == weight.columns);
  std::vector<int32_t> input_of_column(column_of_input.size());
  for (size_t k = 0; k < column_of_input.size(); ++k) {
    input_of_column[static_cast<size_t>(column_of_input[k])] = static_cast<int32_t>(k);
  }
  weight.codes = Gather(weight.codes, weight.rows, input_of_column);
  weight.spec.order = GroupOrder::kIndexed;
  weight.column_of_input = std::move(column_of_input);
}

std::vector<uint8_t> CodesInInputOrder(const QuantizedWeight& weight) {
  if (weight.column_of_input.empty()) return weight.codes;
  return Gather(weight.codes, weight.rows, weight.column_of_input);
}

}  // namespace nibble

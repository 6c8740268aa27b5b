// GPTQ's group index (g_idx): which group of weights that share a scale each input belongs to.
//
// Act-order without static groups assigns inputs to groups in the order of their importance, so a
// group's inputs lie anywhere. A QuantizedWeight holds such a weight with its columns sorted by
// group and, within a group, in the inputs' order.
//
// Source: AutoGPTQ and GPTQModel, QuantLinear (g_idx).
#ifndef NIBBLE_FORMAT_GROUP_INDEX_H_
#define NIBBLE_FORMAT_GROUP_INDEX_H_

#include <cstdint>
#include <span>
#include <vector>

#include "src/base/error.h"
#include "src/format/weight.h"

namespace nibble {

// Whether input k is in group k / group_length, for all k.
bool IsConsecutive(std::span<const int32_t> group_of_input, int64_t group_length);

// The column of each input (QuantizedWeight::column_of_input). Fails, naming the input or the
// group, where an index is out of range or a group has not `group_length` inputs.
Result<std::vector<int32_t>> ColumnsByGroup(std::span<const int32_t> group_of_input,
                                            int64_t group_length);

// The inverse: k / group_length where the groups are consecutive.
std::vector<int32_t> GroupOfInput(const QuantizedWeight& weight);

// Whether every input's column is its own, so that the order may be dropped.
bool HasNaturalOrder(const QuantizedWeight& weight);

// `weight` holds its codes in the inputs' order; moves them to `column_of_input`, a permutation.
void SortColumns(std::vector<int32_t> column_of_input, QuantizedWeight& weight);

// The codes in the inputs' order, [rows, columns / 2] as QuantizedWeight::codes.
std::vector<uint8_t> CodesInInputOrder(const QuantizedWeight& weight);

}  // namespace nibble

#endif  // NIBBLE_FORMAT_GROUP_INDEX_H_

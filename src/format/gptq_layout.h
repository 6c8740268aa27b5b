// GPTQ's layout of a 4-bit linear layer, `quant_method` "gptq".
//
//   qweight  u32 [in / 8, out]          nibble i of word [r][n] holds input 8r + i
//   qzeros   u32 [in / group, out / 8]  nibble i of word [g][c] holds output 8c + i
//   scales   f16 [in / group, out]
//   g_idx    i32 [in]                   the group of each input, k / group unless in act-order
//   weight[n][k] = scales[g_idx[k]][n] * (q[k][n] - z[g_idx[k]][n])
//
// Version 1 (checkpoint_format "gptq") stores zeros less one: each word of qzeros minus 0x11111111
// as one 32-bit number, so that a zero of 0 borrows from its neighbour. Version 2 ("gptq_v2")
// stores them as they are.
//
// Source: AutoGPTQ and GPTQModel, QuantLinear.pack and convert_gptq_v1_to_v2_format.
#ifndef NIBBLE_FORMAT_GPTQ_LAYOUT_H_
#define NIBBLE_FORMAT_GPTQ_LAYOUT_H_

#include <cstdint>
#include <span>
#include <vector>

#include "src/format/weight.h"

namespace nibble {

enum class GptqVersion : uint8_t { kV1, kV2 };

struct GptqTensors {
  std::vector<uint32_t> qweight;  // [in / 8, out]
  std::vector<uint32_t> qzeros;   // [groups, out / 8]
  std::vector<uint16_t> scales;   // [groups, out], float16 bits
  std::vector<int32_t> g_idx;     // [in]
};

// Whether the layout can hold [out, in] in groups as `spec` says: out and in multiples of 8, in a
// multiple of the group's length.
bool FitsGptq(const QuantSpec& spec, int64_t out_features, int64_t in_features);

// The shape must fit and the spans have the sizes above. The columns are left in the inputs' order:
// see SortColumns.
QuantizedWeight UnpackGptq(const QuantSpec& spec, GptqVersion version, int64_t out_features,
                           int64_t in_features, std::span<const uint32_t> qweight,
                           std::span<const uint32_t> qzeros, std::span<const uint16_t> scales);

GptqTensors PackGptq(const QuantizedWeight& weight, GptqVersion version);

}  // namespace nibble

#endif  // NIBBLE_FORMAT_GPTQ_LAYOUT_H_

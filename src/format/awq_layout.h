// AutoAWQ's "gemm" layout of a 4-bit linear layer, version 1 of `quant_method` "awq".
//
//   qweight  u32 [in, out / 8]        nibble i of word c holds output 8c + {0,2,4,6,1,3,5,7}[i]
//   qzeros   u32 [in / group, out / 8]  packed the same way
//   scales   f16 [in / group, out]
//   weight[n][k] = scales[k / group][n] * (q[k][n] - z[k / group][n])
//
// Source: AutoAWQ, awq/utils/packing_utils.py and awq/modules/linear/gemm.py.
#ifndef NIBBLE_FORMAT_AWQ_LAYOUT_H_
#define NIBBLE_FORMAT_AWQ_LAYOUT_H_

#include <cstdint>
#include <span>
#include <vector>

#include "src/format/weight.h"

namespace nibble {

struct AwqTensors {
  std::vector<uint32_t> qweight;  // [in, out / 8]
  std::vector<uint32_t> qzeros;   // [groups, out / 8]
  std::vector<uint16_t> scales;   // [groups, out], float16 bits
};

// Whether the layout can hold [out, in] in groups as `spec` says: out a multiple of 8, in even and
// a multiple of the group's length.
bool FitsAwq(const QuantSpec& spec, int64_t out_features, int64_t in_features);

// The shape must fit and the spans have the sizes above.
QuantizedWeight UnpackAwq(const QuantSpec& spec, int64_t out_features, int64_t in_features,
                          std::span<const uint32_t> qweight, std::span<const uint32_t> qzeros,
                          std::span<const uint16_t> scales);

// The groups must be consecutive inputs.
AwqTensors PackAwq(const QuantizedWeight& weight);

}  // namespace nibble

#endif  // NIBBLE_FORMAT_AWQ_LAYOUT_H_

// The "pack-quantized" layout of a 4-bit linear layer, `quant_method` "compressed-tensors".
//
//   weight_packed      u32 [out, in / 8]         nibble i of word [n][c] holds input 8c + i
//   weight_scale       f16 [out, in / group]
//   weight_zero_point  u32 [out / 8, in / group]  nibble i of word [c][g] holds output 8c + i;
//                                                absent from symmetric weights
//   weight_g_idx       i32 [in]                  the group of each input, under actorder "group"
//   weight_shape       i64 [2]                   out, in
//   weight[n][k] = scales[n][k / group] * (q[n][k] - z[n][k / group])
//
// The library's codes and zeros are signed, -8 … 7, and stored plus 8: what is stored are this
// program's codes and zeros, and the difference above is the same.
//
// Source: compressed-tensors, compressors/pack_quantized.
#ifndef NIBBLE_FORMAT_COMPRESSED_LAYOUT_H_
#define NIBBLE_FORMAT_COMPRESSED_LAYOUT_H_

#include <cstdint>
#include <span>
#include <vector>

#include "src/format/weight.h"

namespace nibble {

struct CompressedTensors {
  std::vector<uint32_t> weight_packed;      // [out, in / 8]
  std::vector<uint16_t> weight_scale;       // [out, groups], float16 bits
  std::vector<uint32_t> weight_zero_point;  // [out / 8, groups]; empty where implied
};

// Whether the layout can hold [out, in] in groups as `spec` says: in a multiple of 8 and of the
// group's length, and out a multiple of 8 where there are zeros.
bool FitsCompressed(const QuantSpec& spec, int64_t out_features, int64_t in_features);

// The shape must fit and the spans have the sizes above, `zero_point` empty for symmetric grids.
// The columns are left in the inputs' order: see SortColumns.
QuantizedWeight UnpackCompressed(const QuantSpec& spec, int64_t out_features, int64_t in_features,
                                 std::span<const uint32_t> packed, std::span<const uint16_t> scale,
                                 std::span<const uint32_t> zero_point);

// Under kImplied, for checkpoints that are marked symmetric, all zeros must be 8.
enum class ZeroPoints { kStored, kImplied };
CompressedTensors PackCompressed(const QuantizedWeight& weight, ZeroPoints zeros);

}  // namespace nibble

#endif  // NIBBLE_FORMAT_COMPRESSED_LAYOUT_H_

#include "src/format/compressed_layout.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "src/format/group_index.h"

namespace nibble {
namespace {

// A word of eight codes along the input is, byte for byte, four bytes of QuantizedWeight::codes.
static_assert(std::endian::native == std::endian::little);

}  // namespace

bool FitsCompressed(const QuantSpec& spec, int64_t out_features, int64_t in_features) {
  const int64_t group = spec.GroupLength(in_features);
  return out_features > 0 && in_features > 0 && group > 0 && in_features % 8 == 0 &&
         in_features % group == 0 && (spec.grid != Grid::kAsymmetric || out_features % 8 == 0);
}

QuantizedWeight UnpackCompressed(const QuantSpec& spec, int64_t out_features, int64_t in_features,
                                 std::span<const uint32_t> packed, std::span<const uint16_t> scale,
                                 std::span<const uint32_t> zero_point) {
  CHECK(FitsCompressed(spec, out_features, in_features));
  QuantizedWeight weight = QuantizedWeight::Empty(spec, out_features, in_features);
  const int64_t groups = weight.groups();
  const bool symmetric = spec.grid != Grid::kAsymmetric;
  CHECK(packed.size_bytes() == weight.codes.size() && scale.size() == weight.scales.size());
  CHECK(zero_point.size() == (symmetric ? 0 : weight.zeros.size() / 8));
  std::memcpy(weight.codes.data(), packed.data(), weight.codes.size());
  std::copy(scale.begin(), scale.end(), weight.scales.begin());
  for (int64_t n = 0; n < out_features; ++n) {
    for (int64_t g = 0; g < groups; ++g) {
      uint32_t zero = 8;
      if (!symmetric) {
        zero = (zero_point[static_cast<size_t>(n / 8 * groups + g)] >> (4 * (n % 8))) & 15;
      }
      weight.zeros[static_cast<size_t>(n * groups + g)] = static_cast<uint8_t>(zero);
    }
  }
  return weight;
}

CompressedTensors PackCompressed(const QuantizedWeight& weight, ZeroPoints zeros) {
  CHECK(FitsCompressed(weight.spec, weight.rows, weight.columns));
  const std::vector<uint8_t> codes = CodesInInputOrder(weight);
  CompressedTensors tensors;
  tensors.weight_packed.resize(codes.size() / sizeof(uint32_t));
  std::memcpy(tensors.weight_packed.data(), codes.data(), codes.size());
  tensors.weight_scale = weight.scales;
  if (zeros == ZeroPoints::kImplied) {
    CHECK(std::all_of(weight.zeros.begin(), weight.zeros.end(), [](uint8_t z) { return z == 8; }));
    return tensors;
  }
  CHECK(weight.rows % 8 == 0);
  const int64_t groups = weight.groups();
  tensors.weight_zero_point.resize(weight.zeros.size() / 8);
  for (int64_t n = 0; n < weight.rows; ++n) {
    for (int64_t g = 0; g < groups; ++g) {
      tensors.weight_zero_point[static_cast<size_t>(n / 8 * groups + g)] |=
          static_cast<uint32_t>(weight.zeros[static_cast<size_t>(n * groups + g)] & 15)
          << (4 * (n % 8));
    }
  }
  return tensors;
}

}  // namespace nibble

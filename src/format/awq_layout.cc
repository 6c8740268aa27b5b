#include "src/format/awq_layout.h"

#include <algorithm>
#include <array>

#include "src/format/group_index.h"

namespace nibble {
namespace {

// Output 8c + kOutputOfNibble[i] lies in nibble i of word c.
constexpr std::array<int, 8> kOutputOfNibble = {0, 2, 4, 6, 1, 3, 5, 7};

constexpr int UnpackNibble(uint32_t word, int i) { return (word >> (4 * i)) & 15; }
static_assert(UnpackNibble(0xF0u, 1) == 15);

// Inputs that are handled together: their words of one cache line's width stay in the first-level
// cache while each is read for sixteen different outputs.
constexpr int64_t kTileInputs = 64;

}  // namespace

bool FitsAwq(const QuantSpec& spec, int64_t out_features, int64_t in_features) {
  const int64_t group = spec.GroupLength(in_features);
  return out_features > 0 && in_features > 0 && group > 0 && out_features % 8 == 0 &&
         in_features % 2 == 0 && in_features % group == 0;
}

QuantizedWeight UnpackAwq(const QuantSpec& spec, int64_t out_features, int64_t in_features,
                          std::span<const uint32_t> qweight, std::span<const uint32_t> qzeros,
                          std::span<const uint16_t> scales) {
  CHECK(FitsAwq(spec, out_features, in_features));
  QuantizedWeight weight = QuantizedWeight::Empty(spec, out_features, in_features);
  const int64_t words = out_features / 8;
  const int64_t groups = weight.groups();
  const int64_t row_bytes = in_features / 2;
  CHECK(qweight.size() == static_cast<size_t>(in_features * words));
  CHECK(qzeros.size() == static_cast<size_t>(groups * words));
  CHECK(scales.size() == static_cast<size_t>(groups * out_features));

  for (int64_t tile = 0; tile < in_features; tile += kTileInputs) {
    const int64_t end = std::min(tile + kTileInputs, in_features);
    for (int64_t c = 0; c < words; ++c) {
      for (int64_t k = tile; k < end; k += 2) {
        const uint32_t even = qweight[static_cast<size_t>(k * words + c)];
        const uint32_t odd = qweight[static_cast<size_t>((k + 1) * words + c)];
        uint8_t* column = weight.codes.data() + 8 * c * row_bytes + k / 2;
        for (int i = 0; i < 8; ++i) {
          column[kOutputOfNibble[i] * row_bytes] =
              static_cast<uint8_t>(UnpackNibble(even, i) | (UnpackNibble(odd, i) << 4));
        }
      }
    }
  }
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t c = 0; c < words; ++c) {
      const uint32_t word = qzeros[static_cast<size_t>(g * words + c)];
      for (int i = 0; i < 8; ++i) {
        weight.zeros[static_cast<size_t>((8 * c + kOutputOfNibble[i]) * groups + g)] =
            static_cast<uint8_t>(UnpackNibble(word, i));
      }
    }
    for (int64_t n = 0; n < out_features; ++n) {
      weight.scales[static_cast<size_t>(n * groups + g)] =
          scales[static_cast<size_t>(g * out_features + n)];
    }
  }
  return weight;
}

AwqTensors PackAwq(const QuantizedWeight& weight) {
  CHECK(FitsAwq(weight.spec, weight.rows, weight.columns) && HasNaturalOrder(weight));
  const int64_t words = weight.rows / 8;
  const int64_t groups = weight.groups();
  const int64_t row_bytes = weight.columns / 2;
  AwqTensors packed;
  packed.qweight.resize(static_cast<size_t>(weight.columns * words));
  packed.qzeros.resize(static_cast<size_t>(groups * words));
  packed.scales.resize(static_cast<size_t>(groups * weight.rows));

  for (int64_t tile = 0; tile < weight.columns; tile += kTileInputs) {
    const int64_t end = std::min(tile + kTileInputs, weight.columns);
    for (int64_t c = 0; c < words; ++c) {
      for (int64_t k = tile; k < end; k += 2) {
        const uint8_t* column = weight.codes.data() + 8 * c * row_bytes + k / 2;
        uint32_t even = 0, odd = 0;
        for (int i = 0; i < 8; ++i) {
          const uint32_t pair = column[kOutputOfNibble[i] * row_bytes];
          even |= (pair & 15) << (4 * i);
          odd |= (pair >> 4) << (4 * i);
        }
        packed.qweight[static_cast<size_t>(k * words + c)] = even;
        packed.qweight[static_cast<size_t>((k + 1) * words + c)] = odd;
      }
    }
  }
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t c = 0; c < words; ++c) {
      uint32_t word = 0;
      for (int i = 0; i < 8; ++i) {
        const auto at = static_cast<size_t>((8 * c + kOutputOfNibble[i]) * groups + g);
        word |= static_cast<uint32_t>(weight.zeros[at] & 15) << (4 * i);
      }
      packed.qzeros[static_cast<size_t>(g * words + c)] = word;
    }
    for (int64_t n = 0; n < weight.rows; ++n) {
      packed.scales[static_cast<size_t>(g * weight.rows + n)] =
          weight.scales[static_cast<size_t>(n * groups + g)];
    }
  }
  return packed;
}

}  // namespace nibble

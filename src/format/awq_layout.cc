#include "src/format/awq_layout.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "src/base/checked.h"
#include "src/base/thread_pool.h"
#include "src/format/group_index.h"

namespace nibble {
namespace {

// Output 8c + kOutputOfNibble[i] lies in nibble i of word c.
constexpr std::array<int, 8> kOutputOfNibble = {0, 2, 4, 6, 1, 3, 5, 7};

constexpr int UnpackNibble(uint32_t word, int i) { return (word >> (4 * i)) & 15; }
static_assert(UnpackNibble(0xF0u, 1) == 15);

// A word of eight codes along the input is, byte for byte, four bytes of QuantizedWeight::codes.
static_assert(std::endian::native == std::endian::little);

// Eight words of eight nibbles: rows and columns of a square.
using NibbleSquare = std::array<uint32_t, 8>;

// Exchanges, across the diagonal, blocks of `kSize` nibbles each way; kLow: the lower of each two.
template <size_t kSize, uint32_t kLow>
constexpr void ExchangeBlocks(NibbleSquare& square) {
#pragma GCC unroll 4
  for (size_t pair = 0; pair < 4; ++pair) {
    const size_t k = pair / kSize * 2 * kSize + pair % kSize;
    const uint32_t moved = ((square[k] >> (4 * kSize)) ^ square[k + kSize]) & kLow;
    square[k] ^= moved << (4 * kSize);
    square[k + kSize] ^= moved;
  }
}

// Nibble i of word k becomes nibble k of word i.
constexpr NibbleSquare Transposed(NibbleSquare square) {
  ExchangeBlocks<4, 0x0000FFFFu>(square);
  ExchangeBlocks<2, 0x00FF00FFu>(square);
  ExchangeBlocks<1, 0x0F0F0F0Fu>(square);
  return square;
}
static_assert(Transposed({0x76543210u})[5] == 5u);
static_assert(Transposed({0, 0, 0, 0xFEDCBA98u})[1] == 0x9000u);

// The words of `inputs` (at most 8) become `bytes` = inputs / 2 bytes in each of eight rows of
// codes. Inlined, so that where both are constants they are known to the compiler.
[[gnu::always_inline]] inline void UnpackSquare(const uint32_t* from, int64_t words, int64_t inputs,
                                                uint8_t* to, int64_t row_bytes, size_t bytes) {
  NibbleSquare square{};
#pragma GCC unroll 8
  for (int64_t i = 0; i < inputs; ++i) square[static_cast<size_t>(i)] = from[i * words];
  square = Transposed(square);
#pragma GCC unroll 8
  for (size_t i = 0; i < 8; ++i) {
    std::memcpy(to + kOutputOfNibble[i] * row_bytes, &square[i], bytes);
  }
}

// The reverse.
[[gnu::always_inline]] inline void PackSquare(const uint8_t* from, int64_t row_bytes, size_t bytes,
                                              uint32_t* to, int64_t words, int64_t inputs) {
  NibbleSquare square{};
#pragma GCC unroll 8
  for (size_t i = 0; i < 8; ++i) {
    std::memcpy(&square[i], from + kOutputOfNibble[i] * row_bytes, bytes);
  }
  square = Transposed(square);
#pragma GCC unroll 8
  for (int64_t i = 0; i < inputs; ++i) to[i * words] = square[static_cast<size_t>(i)];
}

// Inputs that are handled together: their words of one cache line's width stay in the first-level
// cache while each is read for sixteen different outputs, and a row's codes are a cache line.
constexpr int64_t kTileInputs = 128;

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

  const auto unpack_tile = [&](int64_t tile) {
    const int64_t end = std::min(tile + kTileInputs, in_features);
    for (int64_t c = 0; c < words; ++c) {
      for (int64_t k = tile; k < end; k += 8) {
        const uint32_t* from = qweight.data() + k * words + c;
        uint8_t* to = weight.codes.data() + 8 * c * row_bytes + k / 2;
        if (end - k >= 8) {
          UnpackSquare(from, words, 8, to, row_bytes, 4);
        } else {
          UnpackSquare(from, words, end - k, to, row_bytes, static_cast<size_t>(end - k) / 2);
        }
      }
    }
  };
  const int64_t tiles = CeilDiv(in_features, kTileInputs);
  RunTogether(tiles, CeilDiv(kCodesWorthSharing, kTileInputs * out_features),
              [&](int64_t begin, int64_t last, int) {
                for (int64_t tile = begin; tile < last; ++tile) unpack_tile(tile * kTileInputs);
              });
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
      for (int64_t k = tile; k < end; k += 8) {
        const uint8_t* from = weight.codes.data() + 8 * c * row_bytes + k / 2;
        uint32_t* to = packed.qweight.data() + k * words + c;
        if (end - k >= 8) {
          PackSquare(from, row_bytes, 4, to, words, 8);
        } else {
          PackSquare(from, row_bytes, static_cast<size_t>(end - k) / 2, to, words, end - k);
        }
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

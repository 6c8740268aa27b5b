#include "src/format/gptq_layout.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "src/base/checked.h"
#include "src/base/thread_pool.h"
#include "src/format/group_index.h"

namespace nibble {
namespace {

// A word of eight codes along the input is, byte for byte, four bytes of QuantizedWeight::codes.
static_assert(std::endian::native == std::endian::little);

constexpr uint32_t kOnes = 0x11111111u;  // version 1 subtracts it from a word of zeros

constexpr uint32_t StoredZeros(uint32_t zeros, GptqVersion version) {
  return version == GptqVersion::kV1 ? zeros - kOnes : zeros;
}
constexpr uint32_t ZerosFromStored(uint32_t stored, GptqVersion version) {
  return version == GptqVersion::kV1 ? stored + kOnes : stored;
}
static_assert(StoredZeros(0x88888888u, GptqVersion::kV1) == 0x77777777u);
static_assert(StoredZeros(0x00000010u, GptqVersion::kV1) == 0xEEEEEEFFu);  // the zeros of 0 borrow
static_assert(ZerosFromStored(0xEEEEEEFFu, GptqVersion::kV1) == 0x00000010u);

constexpr int64_t kTile = 32;  // of the transposition, in words each way

}  // namespace

bool FitsGptq(const QuantSpec& spec, int64_t out_features, int64_t in_features) {
  const int64_t group = spec.GroupLength(in_features);
  return out_features > 0 && in_features > 0 && group > 0 && out_features % 8 == 0 &&
         in_features % 8 == 0 && in_features % group == 0;
}

QuantizedWeight UnpackGptq(const QuantSpec& spec, GptqVersion version, int64_t out_features,
                           int64_t in_features, std::span<const uint32_t> qweight,
                           std::span<const uint32_t> qzeros, std::span<const uint16_t> scales) {
  CHECK(FitsGptq(spec, out_features, in_features));
  QuantizedWeight weight = QuantizedWeight::Empty(spec, out_features, in_features);
  const int64_t row_words = in_features / 8;
  const int64_t groups = weight.groups();
  CHECK(qweight.size() == static_cast<size_t>(row_words * out_features));
  CHECK(qzeros.size() == static_cast<size_t>(groups * out_features / 8));
  CHECK(scales.size() == static_cast<size_t>(groups * out_features));

  const auto unpack_tile = [&](int64_t n0) {
    for (int64_t r0 = 0; r0 < row_words; r0 += kTile) {
      for (int64_t n = n0; n < std::min(n0 + kTile, out_features); ++n) {
        for (int64_t r = r0; r < std::min(r0 + kTile, row_words); ++r) {
          std::memcpy(weight.codes.data() + 4 * (n * row_words + r),
                      qweight.data() + r * out_features + n, 4);
        }
      }
    }
  };
  RunTogether(CeilDiv(out_features, kTile), CeilDiv(kCodesWorthSharing, kTile * in_features),
              [&](int64_t begin, int64_t end, int) {
                for (int64_t tile = begin; tile < end; ++tile) unpack_tile(tile * kTile);
              });
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t n = 0; n < out_features; ++n) {
      const auto at = static_cast<size_t>(g * out_features + n);
      const uint32_t word = ZerosFromStored(qzeros[at / 8], version);
      weight.zeros[static_cast<size_t>(n * groups + g)] = (word >> (4 * (n % 8))) & 15;
      weight.scales[static_cast<size_t>(n * groups + g)] = scales[at];
    }
  }
  return weight;
}

GptqTensors PackGptq(const QuantizedWeight& weight, GptqVersion version) {
  CHECK(FitsGptq(weight.spec, weight.rows, weight.columns));
  const int64_t row_words = weight.columns / 8;
  const int64_t groups = weight.groups();
  GptqTensors packed;
  packed.qweight.resize(static_cast<size_t>(row_words * weight.rows));
  packed.qzeros.resize(static_cast<size_t>(groups * weight.rows / 8));
  packed.scales.resize(static_cast<size_t>(groups * weight.rows));
  packed.g_idx = GroupOfInput(weight);
  const std::vector<uint8_t> codes = CodesInInputOrder(weight);

  for (int64_t n0 = 0; n0 < weight.rows; n0 += kTile) {
    for (int64_t r0 = 0; r0 < row_words; r0 += kTile) {
      for (int64_t r = r0; r < std::min(r0 + kTile, row_words); ++r) {
        for (int64_t n = n0; n < std::min(n0 + kTile, weight.rows); ++n) {
          std::memcpy(packed.qweight.data() + r * weight.rows + n,
                      codes.data() + 4 * (n * row_words + r), 4);
        }
      }
    }
  }
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t c = 0; c < weight.rows / 8; ++c) {
      uint32_t zeros = 0;
      for (int64_t i = 0; i < 8; ++i) {
        const auto at = static_cast<size_t>((8 * c + i) * groups + g);
        zeros |= static_cast<uint32_t>(weight.zeros[at] & 15) << (4 * i);
      }
      packed.qzeros[static_cast<size_t>(g * (weight.rows / 8) + c)] = StoredZeros(zeros, version);
    }
    for (int64_t n = 0; n < weight.rows; ++n) {
      packed.scales[static_cast<size_t>(g * weight.rows + n)] =
          weight.scales[static_cast<size_t>(n * groups + g)];
    }
  }
  return packed;
}

}  // namespace nibble

#include <gtest/gtest.h>

#include "src/base/random.h"
#include "src/format/awq_layout.h"
#include "src/format/compressed_layout.h"
#include "src/format/gptq_layout.h"
#include "src/format/group_index.h"

namespace nibble {
namespace {

QuantizedWeight RandomWeight(const QuantSpec& spec, int64_t rows, int64_t columns, uint64_t seed) {
  Random random(seed);
  QuantizedWeight weight = QuantizedWeight::Empty(spec, rows, columns);
  for (uint8_t& code : weight.codes) code = static_cast<uint8_t>(random.Next());
  for (uint16_t& scale : weight.scales) scale = static_cast<uint16_t>(random.Below(0x7c00));
  for (uint8_t& zero : weight.zeros) zero = static_cast<uint8_t>(random.Below(16));
  return weight;
}

void ExpectSame(const QuantizedWeight& a, const QuantizedWeight& b) {
  EXPECT_EQ(a.spec, b.spec);
  EXPECT_EQ(a.rows, b.rows);
  EXPECT_EQ(a.columns, b.columns);
  EXPECT_EQ(a.codes, b.codes);
  EXPECT_EQ(a.scales, b.scales);
  EXPECT_EQ(a.zeros, b.zeros);
}

// Input 0 has code n for output n, input 1 has code 15 - n.
QuantizedWeight EightOutputs(int64_t columns) {
  QuantizedWeight weight =
      QuantizedWeight::Empty({.group_size = kPerChannel, .grid = Grid::kAsymmetric}, 8, columns);
  for (int n = 0; n < 8; ++n) {
    weight.SetCode(n, 0, n);
    weight.SetCode(n, 1, 15 - n);
    weight.zeros[static_cast<size_t>(n)] = static_cast<uint8_t>(n);
    weight.scales[static_cast<size_t>(n)] = static_cast<uint16_t>(0x3c00 + n);
  }
  return weight;
}

TEST(AwqLayout, LiteralWords) {
  const AwqTensors packed = PackAwq(EightOutputs(4));
  // From the lowest nibble: outputs 0 2 4 6 1 3 5 7.
  EXPECT_EQ(packed.qweight, (std::vector<uint32_t>{0x75316420u, 0x8ACE9BDFu, 0, 0}));
  EXPECT_EQ(packed.qzeros, (std::vector<uint32_t>{0x75316420u}));
  EXPECT_EQ(packed.scales, (std::vector<uint16_t>{0x3c00, 0x3c01, 0x3c02, 0x3c03, 0x3c04, 0x3c05,
                                                  0x3c06, 0x3c07}));
  ExpectSame(
      UnpackAwq({.group_size = kPerChannel}, 8, 4, packed.qweight, packed.qzeros, packed.scales),
      EightOutputs(4));
}

TEST(AwqLayout, RoundTrip) {
  for (const auto& [rows, columns, group] :
       {std::tuple<int, int, int>{8, 2, 2}, {24, 96, 32}, {136, 384, 128}, {64, 130, 130},
        {1736, 2560, 128}}) {  // by several threads
    const QuantizedWeight weight = RandomWeight({.group_size = group}, rows, columns, 7);
    const AwqTensors packed = PackAwq(weight);
    ExpectSame(UnpackAwq(weight.spec, rows, columns, packed.qweight, packed.qzeros, packed.scales),
               weight);
  }
}

TEST(AwqLayout, ShapesItCannotHold) {
  EXPECT_TRUE(FitsAwq({.group_size = 128}, 8, 256));
  EXPECT_FALSE(FitsAwq({.group_size = 128}, 12, 256));
  EXPECT_FALSE(FitsAwq({.group_size = 128}, 8, 192));
  EXPECT_FALSE(FitsAwq({.group_size = kPerChannel}, 8, 31));
  EXPECT_FALSE(FitsAwq({.group_size = 0}, 8, 32));
}

TEST(GptqLayout, LiteralWords) {
  const QuantizedWeight weight = EightOutputs(8);
  const GptqTensors v2 = PackGptq(weight, GptqVersion::kV2);
  EXPECT_EQ(v2.qweight, (std::vector<uint32_t>{0xF0, 0xE1, 0xD2, 0xC3, 0xB4, 0xA5, 0x96, 0x87}));
  EXPECT_EQ(v2.qzeros, (std::vector<uint32_t>{0x76543210u}));
  EXPECT_EQ(v2.g_idx, std::vector<int32_t>(8, 0));
  // Version 1 is the word less 0x11111111: output 0's zero of 0 borrows from output 1's.
  const GptqTensors v1 = PackGptq(weight, GptqVersion::kV1);
  EXPECT_EQ(v1.qzeros, (std::vector<uint32_t>{0x654320FFu}));
  for (const GptqVersion version : {GptqVersion::kV1, GptqVersion::kV2}) {
    const GptqTensors& packed = version == GptqVersion::kV1 ? v1 : v2;
    ExpectSame(UnpackGptq(weight.spec, version, 8, 8, packed.qweight, packed.qzeros, packed.scales),
               weight);
  }
}

TEST(GptqLayout, SymmetricVersionOneIsSevens) {
  QuantizedWeight weight =
      QuantizedWeight::Empty({.group_size = 8, .grid = Grid::kSymmetric}, 8, 16);
  std::fill(weight.zeros.begin(), weight.zeros.end(), uint8_t{8});
  const GptqTensors packed = PackGptq(weight, GptqVersion::kV1);
  EXPECT_EQ(packed.qzeros, (std::vector<uint32_t>{0x77777777u, 0x77777777u}));
  EXPECT_EQ(packed.g_idx, (std::vector<int32_t>{0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1}));
}

TEST(GptqLayout, RoundTripWithZerosOfZero) {
  for (const GptqVersion version : {GptqVersion::kV1, GptqVersion::kV2}) {
    for (const auto& [rows, columns, group] :
         {std::tuple<int, int, int>{8, 8, 8}, {40, 96, 32}, {136, 384, 128}, {64, 136, 136},
          {1736, 2560, 128}}) {  // by several threads
      QuantizedWeight weight = RandomWeight({.group_size = group}, rows, columns, 9);
      weight.zeros[0] = 0;
      const GptqTensors packed = PackGptq(weight, version);
      ExpectSame(UnpackGptq(weight.spec, version, rows, columns, packed.qweight, packed.qzeros,
                            packed.scales),
                 weight);
    }
  }
}

TEST(CompressedLayout, LiteralWords) {
  const QuantizedWeight weight = EightOutputs(8);
  const CompressedTensors packed = PackCompressed(weight, ZeroPoints::kStored);
  EXPECT_EQ(packed.weight_packed,
            (std::vector<uint32_t>{0xF0, 0xE1, 0xD2, 0xC3, 0xB4, 0xA5, 0x96, 0x87}));
  EXPECT_EQ(packed.weight_zero_point, (std::vector<uint32_t>{0x76543210u}));
  EXPECT_EQ(packed.weight_scale, weight.scales);
  ExpectSame(UnpackCompressed(weight.spec, 8, 8, packed.weight_packed, packed.weight_scale,
                              packed.weight_zero_point),
             weight);
}

TEST(CompressedLayout, ZerosArePackedAlongTheOutputs) {
  QuantizedWeight weight = QuantizedWeight::Empty({.group_size = 8}, 16, 24);
  for (int n = 0; n < 16; ++n)
    weight.zeros[static_cast<size_t>(3 * n + 1)] = static_cast<uint8_t>(n);
  const CompressedTensors packed = PackCompressed(weight, ZeroPoints::kStored);
  EXPECT_EQ(packed.weight_zero_point,
            (std::vector<uint32_t>{0, 0x76543210u, 0, 0, 0xFEDCBA98u, 0}));  // [2, 3]
}

TEST(CompressedLayout, RoundTrip) {
  for (const auto& [rows, columns, group] :
       {std::tuple<int, int, int>{8, 8, 8}, {40, 96, 32}, {136, 384, 128}, {64, 136, 136}}) {
    QuantizedWeight weight = RandomWeight({.group_size = group}, rows, columns, 11);
    CompressedTensors packed = PackCompressed(weight, ZeroPoints::kStored);
    ExpectSame(UnpackCompressed(weight.spec, rows, columns, packed.weight_packed,
                                packed.weight_scale, packed.weight_zero_point),
               weight);
    weight.spec.grid = Grid::kSymmetric;
    std::fill(weight.zeros.begin(), weight.zeros.end(), uint8_t{8});
    packed = PackCompressed(weight, ZeroPoints::kImplied);
    EXPECT_TRUE(packed.weight_zero_point.empty());
    ExpectSame(
        UnpackCompressed(weight.spec, rows, columns, packed.weight_packed, packed.weight_scale, {}),
        weight);
  }
}

TEST(CompressedLayout, ShapesItCannotHold) {
  EXPECT_TRUE(FitsCompressed({.group_size = 64}, 8, 128));
  EXPECT_FALSE(FitsCompressed({.group_size = 64}, 12, 128));
  EXPECT_TRUE(FitsCompressed({.group_size = 64, .grid = Grid::kSymmetric}, 12, 128));
  EXPECT_FALSE(FitsCompressed({.group_size = 64}, 8, 96));
  EXPECT_FALSE(FitsCompressed({.group_size = 6}, 8, 12));
  EXPECT_FALSE(FitsCompressed({.group_size = 0}, 8, 32));
}

// Eight inputs in two groups, as act-order leaves them.
TEST(GroupIndex, SortsColumnsByGroup) {
  const std::vector<int32_t> index = {1, 0, 0, 1, 1, 0, 1, 0};
  const auto columns = ColumnsByGroup(index, 4);
  ASSERT_TRUE(columns);
  EXPECT_EQ(*columns, (std::vector<int32_t>{4, 0, 1, 5, 6, 2, 7, 3}));

  QuantizedWeight weight = QuantizedWeight::Empty({.group_size = 4}, 8, 8);
  for (int n = 0; n < 8; ++n) {
    for (int k = 0; k < 8; ++k) weight.SetCode(n, k, (n + 2 * k) % 16);
    for (size_t g = 0; g < 2; ++g) {
      weight.scales[static_cast<size_t>(2 * n) + g] = F16FromFloat(1.0f + static_cast<float>(g));
      weight.zeros[static_cast<size_t>(2 * n) + g] = static_cast<uint8_t>(3 + 6 * g);
    }
  }
  const QuantizedWeight in_input_order = weight;
  SortColumns(*columns, weight);
  EXPECT_EQ(weight.spec.order, GroupOrder::kIndexed);
  EXPECT_FALSE(HasNaturalOrder(weight));
  for (int n = 0; n < 8; ++n) {
    for (int k = 0; k < 8; ++k) {
      const int group = index[static_cast<size_t>(k)];
      const int zero = 3 + 6 * group;
      EXPECT_EQ(weight.At(n, k), static_cast<float>((1 + group) * ((n + 2 * k) % 16 - zero)));
    }
  }
  EXPECT_EQ(CodesInInputOrder(weight), in_input_order.codes);
  EXPECT_EQ(GroupOfInput(weight), index);
  const GptqTensors packed = PackGptq(weight, GptqVersion::kV2);
  EXPECT_EQ(packed.g_idx, index);
  EXPECT_EQ(packed.qweight, PackGptq(in_input_order, GptqVersion::kV2).qweight);
}

TEST(GroupIndex, RefusesWhatIsNoOrder) {
  const auto message = [](std::vector<int32_t> index) {
    const auto columns = ColumnsByGroup(index, 2);
    return columns ? std::string() : columns.error().message();
  };
  EXPECT_EQ(message({0, 1, 1, 0}), "");
  EXPECT_EQ(message({0, 1, 2, 0}), "input 2 is in group 2, want 0 to 1");
  EXPECT_EQ(message({0, -1, 1, 0}), "input 1 is in group -1, want 0 to 1");
  EXPECT_EQ(message({0, 1, 1, 1}), "group 0 has 1 inputs, want 2");
  EXPECT_TRUE(IsConsecutive(std::vector<int32_t>{0, 0, 1, 1}, 2));
  EXPECT_FALSE(IsConsecutive(std::vector<int32_t>{0, 1, 0, 1}, 2));
}

}  // namespace
}  // namespace nibble

#include "src/tensor/dtype.h"

#include <gtest/gtest.h>

#include <cmath>

namespace nibble {
namespace {

TEST(DTypeTest, EveryHalfSurvivesTheRoundTrip) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const float value = FloatFromF16(half);
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(FloatFromF16(F16FromFloat(value))));
    } else {
      EXPECT_EQ(F16FromFloat(value), half) << bits;
    }
    const float wide = FloatFromBF16(half);
    if (!std::isnan(wide)) EXPECT_EQ(BF16FromFloat(wide), half) << bits;
  }
}

// Between two neighbours the conversion goes to the nearer, and half-way to the even one.
TEST(DTypeTest, HalfRoundsToNearestEven) {
  for (uint32_t bits = 0; bits + 1 < 0x7c00; ++bits) {
    const double low = FloatFromF16(static_cast<uint16_t>(bits));
    const double high = FloatFromF16(static_cast<uint16_t>(bits + 1));
    const double middle = (low + high) / 2;
    EXPECT_EQ(F16FromFloat(static_cast<float>(middle)), bits + (bits & 1)) << bits;
    EXPECT_EQ(F16FromFloat(std::nextafter(static_cast<float>(middle), 0.0f)), bits) << bits;
    EXPECT_EQ(F16FromFloat(std::nextafter(static_cast<float>(middle), 1e9f)), bits + 1) << bits;
  }
  EXPECT_EQ(F16FromFloat(1e30f), 0x7c00);
  EXPECT_EQ(F16FromFloat(-1e30f), 0xfc00);
}

TEST(DTypeTest, NamesRoundTrip) {
  for (const DType type : {DType::kF32, DType::kF16, DType::kBF16, DType::kI64, DType::kI32,
                           DType::kI8, DType::kU8, DType::kF8E4M3}) {
    EXPECT_EQ(DTypeFromName(Name(type)), type);
  }
  EXPECT_EQ(DTypeFromName("f8"), std::nullopt);
}

}  // namespace
}  // namespace nibble

#include "src/checkpoint/gguf_types.h"

#include <gtest/gtest.h>

#include <bit>
#include <filesystem>

#include "src/base/file.h"
#include "src/checkpoint/gguf.h"
#include "src/checkpoint/test_files.h"
#include "src/tensor/dtype.h"

namespace nibble {
namespace {

std::string Half(float value) { return Raw(F16FromFloat(value)); }

std::vector<float> Expand(GgmlType type, const std::string& block) {
  const GgmlTypeInfo* info = FindGgmlType(static_cast<uint32_t>(type));
  EXPECT_EQ(block.size(), static_cast<size_t>(info->block_bytes));
  std::vector<float> values(static_cast<size_t>(info->block_elements));
  Dequantize(type, BytesOfString(block).data(), 1, values.data());
  return values;
}

// Blocks written by hand from the format's description.
TEST(GgmlTypes, LiteralBlocks) {
  std::string nibbles(16, '\0');
  nibbles[0] = '\x21';   // element 0: 1, element 16: 2
  nibbles[15] = '\xf0';  // element 15: 0, element 31: 15

  std::vector<float> v = Expand(GgmlType::kQ4_0, Half(0.5f) + nibbles);
  EXPECT_EQ(v[0], -3.5f);
  EXPECT_EQ(v[16], -3.0f);
  EXPECT_EQ(v[15], -4.0f);
  EXPECT_EQ(v[31], 3.5f);

  v = Expand(GgmlType::kQ4_1, Half(0.5f) + Half(10) + nibbles);
  EXPECT_EQ(v[0], 10.5f);
  EXPECT_EQ(v[16], 11.0f);
  EXPECT_EQ(v[31], 17.5f);

  // High bits of elements 0 and 31.
  v = Expand(GgmlType::kQ5_0, Half(0.5f) + Raw(0x80000001u) + nibbles);
  EXPECT_EQ(v[0], 0.5f);
  EXPECT_EQ(v[16], -7.0f);
  EXPECT_EQ(v[31], 7.5f);

  v = Expand(GgmlType::kQ5_1, Half(0.5f) + Half(-1) + Raw(0x80000001u) + nibbles);
  EXPECT_EQ(v[0], 7.5f);
  EXPECT_EQ(v[16], 0.0f);
  EXPECT_EQ(v[31], 14.5f);

  std::string bytes(32, '\0');
  bytes[1] = '\x80';
  bytes[31] = '\x7f';
  v = Expand(GgmlType::kQ8_0, Half(2) + bytes);
  EXPECT_EQ(v[0], 0.0f);
  EXPECT_EQ(v[1], -256.0f);
  EXPECT_EQ(v[31], 254.0f);

  // Sub-block 0: scale 1, minimum 2. Sub-block 5 (j ≥ 4): scale 3 | 2 << 4, minimum 4 | 1 << 4.
  std::string scales(12, '\0');
  scales[0] = 1;
  scales[4] = 2;
  scales[9] = '\x43';
  scales[1] = static_cast<char>(2 << 6);
  scales[5] = static_cast<char>(1 << 6);
  std::string codes(128, '\0');
  codes[3] = 7;            // element 3, of sub-block 0
  codes[64 + 9] = '\xb0';  // element 160 + 9, of sub-block 5
  v = Expand(GgmlType::kQ4_K, Half(0.5f) + Half(0.25f) + scales + codes);
  EXPECT_EQ(v[3], 0.5f * 1 * 7 - 0.25f * 2);
  EXPECT_EQ(v[160 + 9], 0.5f * 35 * 11 - 0.25f * 20);
  EXPECT_EQ(v[160 + 8], -0.25f * 20);

  std::string fifth(32, '\0');
  fifth[9] = static_cast<char>(1 << 5);  // element 160 + 9
  v = Expand(GgmlType::kQ5_K, Half(0.5f) + Half(0.25f) + scales + fifth + codes);
  EXPECT_EQ(v[3], 0.5f * 1 * 7 - 0.25f * 2);
  EXPECT_EQ(v[160 + 9], 0.5f * 35 * (11 + 16) - 0.25f * 20);

  // Element 128 + 96 + 20: the second half's high nibble 32 + 20, bit pair 3 of byte 20, scale 7.
  std::string low(128, '\0'), high(64, '\0'), q6_scales(16, '\0');
  low[64 + 32 + 20] = '\x50';
  high[32 + 20] = '\x80';
  q6_scales[8 + 7] = '\xfe';  // -2
  v = Expand(GgmlType::kQ6_K, low + high + q6_scales + Half(0.5f));
  EXPECT_EQ(v[128 + 96 + 20], 0.5f * -2 * (5 + 32 - 32));
  EXPECT_EQ(v[128 + 96 + 21], 0.5f * -2 * -32);
  EXPECT_EQ(v[0], 0.0f);
}

// tests/oracles/make_gguf_vectors.py writes NAME.gguf and NAME.f32, what gguf-py makes of it.
TEST(GgmlTypes, AgreeWithGgufPyBitForBit) {
  const std::string directory = JoinPath(NIBBLE_BUILD_DIR, "gguf_vectors");
  if (!IsDirectory(directory)) {
    GTEST_SKIP() << "make the vectors with: python3 tests/oracles/make_gguf_vectors.py "
                 << directory;
  }
  int types = 0;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    if (entry.path().extension() != ".gguf") continue;
    SCOPED_TRACE(entry.path().string());
    const auto mapped = MappedFile::Open(entry.path().string());
    ASSERT_OK(mapped);
    const auto file = GgufFile::Parse(mapped->bytes(), entry.path().string());
    ASSERT_OK(file);
    const GgufTensor* tensor = file->FindTensor("tensor");
    ASSERT_NE(tensor, nullptr);
    const int64_t blocks = *tensor->shape.Elements() / tensor->type->block_elements;
    std::vector<float> values(static_cast<size_t>(*tensor->shape.Elements()));
    Dequantize(tensor->type->type, file->Bytes(*tensor).data(), blocks, values.data());
    const auto expected = ReadFile(std::filesystem::path(entry).replace_extension(".f32").string());
    ASSERT_OK(expected);
    ASSERT_EQ(expected->size(), values.size() * sizeof(float));
    for (size_t i = 0; i < values.size(); ++i) {
      float want;
      std::memcpy(&want, expected->data() + 4 * i, 4);
      ASSERT_EQ(std::bit_cast<uint32_t>(values[i]), std::bit_cast<uint32_t>(want))
          << "element " << i << ": " << values[i] << ", want " << want;
    }
    ++types;
  }
  EXPECT_EQ(types, 8);
}

}  // namespace
}  // namespace nibble

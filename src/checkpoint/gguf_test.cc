#include "src/checkpoint/gguf.h"

#include <gtest/gtest.h>

#include "src/checkpoint/test_files.h"

namespace nibble {
namespace {

Result<GgufFile> Parse(const std::string& file) {
  return GgufFile::Parse(BytesOfString(file), "m.gguf");
}
std::string Floats(int n) { return RawAll(std::vector<float>(static_cast<size_t>(n), 1.5f)); }
GgufBuilder OneTensor() { return GgufBuilder().Tensor("a", {8}, 0, Floats(8)); }

TEST(Gguf, ReadsMetadataAndTensors) {
  const std::string bytes =
      GgufBuilder()
          .U32("u32", 7)
          .Value("u8", 0, Raw<uint8_t>(200))
          .Value("i8", 1, Raw<int8_t>(-5))
          .Value("i64", 11, Raw<int64_t>(-1))
          .Value("u64", 10, Raw<uint64_t>(UINT64_MAX))
          .Value("f64", 12, Raw(0.25))
          .F32("f32", 1e-5f)
          .Bool("yes", true)
          .Value("maybe", 7, Raw<uint8_t>(2))
          .String("text", "abc")
          .String("empty", "")
          .Array("strings", 8, 3,
                 GgufBuilder::Text("x") + GgufBuilder::Text("") + GgufBuilder::Text("yz"))
          .Array("floats", 6, 2, RawAll<float>({1.5f, -2.0f}))
          .Array("ints", 5, 2, RawAll<int32_t>({1, -2}))
          .Tensor("a", {3, 2}, 0, Floats(6))
          .Tensor("b", {32}, 8, std::string(34, 'b'))
          .Build();
  const auto file = Parse(bytes);
  ASSERT_OK(file);
  EXPECT_EQ(**file->Integer("u32", 0, 100), 7);
  EXPECT_EQ(**file->Integer("u8", 0, 255), 200);
  EXPECT_EQ(**file->Integer("i8", -10, 0), -5);
  EXPECT_EQ(**file->Integer("i64", -1, 0), -1);
  EXPECT_EQ(**file->Number("f64"), 0.25);
  EXPECT_EQ(**file->Number("f32"), 1e-5);  // and not 9.99999974737875e-06
  EXPECT_EQ(**file->Boolean("yes"), true);
  EXPECT_EQ(**file->String("text"), "abc");
  EXPECT_EQ(**file->String("empty"), "");
  EXPECT_EQ(*file->Strings("strings"), (std::vector<std::string>{"x", "", "yz"}));
  EXPECT_EQ(*file->Floats("floats"), (std::vector<float>{1.5f, -2.0f}));
  EXPECT_EQ(*file->Int32s("ints"), (std::vector<int32_t>{1, -2}));
  EXPECT_EQ(file->ArrayLength("strings"), 3u);
  EXPECT_EQ(file->Integer("absent", 0, 1)->has_value(), false);
  EXPECT_TRUE(file->Strings("absent")->empty());
  EXPECT_ERROR(file->Integer("u64", 0, INT64_MAX), ErrorCode::kBadInput, "u64: want an integer");
  EXPECT_ERROR(file->Integer("u32", 0, 6), ErrorCode::kBadInput, "got 7");
  EXPECT_ERROR(file->Integer("ints", 0, 6), ErrorCode::kBadInput, "want an integer");
  EXPECT_ERROR(file->Number("u32"), ErrorCode::kBadInput, "want a floating-point number");
  EXPECT_ERROR(file->Boolean("maybe"), ErrorCode::kBadInput, "want true or false");
  EXPECT_ERROR(file->String("u32"), ErrorCode::kBadInput, "want a string");
  EXPECT_ERROR(file->Strings("floats"), ErrorCode::kBadInput, "want an array of strings");
  EXPECT_ERROR(file->Floats("ints"), ErrorCode::kBadInput, "want an array of float32");
  EXPECT_ERROR(file->Int32s("floats"), ErrorCode::kBadInput, "want an array of int32");

  const GgufTensor* a = file->FindTensor("a");
  ASSERT_NE(a, nullptr);
  EXPECT_EQ(a->shape, (Shape{2, 3}));  // the file's order is fastest first
  EXPECT_EQ(a->end - a->begin, 24u);
  EXPECT_EQ(a->begin % 32, 0u);
  const GgufTensor* b = file->FindTensor("b");
  ASSERT_NE(b, nullptr);
  EXPECT_EQ(b->type->name, "Q8_0");
  EXPECT_EQ(std::to_integer<char>(file->Bytes(*b)[33]), 'b');
  EXPECT_EQ(file->FindTensor("c"), nullptr);
}

TEST(Gguf, AlignmentOfItsOwnAndAnUnpaddedEnd) {
  GgufBuilder builder;
  builder.alignment = 64;
  std::string bytes = builder.U32("general.alignment", 64)
                          .Tensor("a", {3}, 0, Floats(3))
                          .Tensor("b", {3}, 0, Floats(3))
                          .Build();
  const auto file = Parse(bytes);
  ASSERT_OK(file);
  EXPECT_EQ(file->FindTensor("b")->begin - file->FindTensor("a")->begin, 64u);
  bytes.resize(bytes.size() - 52);  // the padding after b's 12 bytes
  EXPECT_OK(Parse(bytes));
  bytes.resize(bytes.size() - 1);
  EXPECT_ERROR(Parse(bytes), ErrorCode::kBadInput, "b: ends at byte");
}

TEST(Gguf, RefusesOtherFilesAndVersions) {
  EXPECT_ERROR(Parse(""), ErrorCode::kBadInput, "not a GGUF file");
  EXPECT_ERROR(Parse("GGU"), ErrorCode::kBadInput, "not a GGUF file");
  EXPECT_ERROR(Parse("GGML" + std::string(100, '\0')), ErrorCode::kBadInput, "not a GGUF file");
  EXPECT_ERROR(Parse("GGUF"), ErrorCode::kBadInput, "truncated");
  for (const auto& [version, message] : {std::pair<uint32_t, const char*>{1, "GGUF version 1"},
                                         {2, "GGUF version 2"},
                                         {4, "GGUF version 4"},
                                         {0x03000000, "big-endian"}}) {
    GgufBuilder builder = OneTensor();
    builder.version = version;
    EXPECT_ERROR(Parse(builder.Build()), ErrorCode::kBadInput, message);
  }
  EXPECT_ERROR(Parse(GgufBuilder().U32("a", 1).Build()), ErrorCode::kBadInput, "no tensors");
}

TEST(Gguf, RefusesCountsAndLengthsThatTheFileCannotHold) {
  for (const int64_t extra : {int64_t{1} << 20, int64_t{1} << 60, int64_t{-2}}) {
    GgufBuilder tensors = OneTensor();
    tensors.extra_tensors = extra;
    EXPECT_ERROR(Parse(tensors.Build()), ErrorCode::kBadInput, "more than the file can hold");
    GgufBuilder values = OneTensor();
    values.extra_values = extra;
    EXPECT_ERROR(Parse(values.Build()), ErrorCode::kBadInput, "more than the file can hold");
  }
  const auto with = [](uint32_t type, const std::string& bytes) {
    return Parse(OneTensor().Value("key", type, bytes).Build());
  };
  constexpr uint64_t kHuge[] = {1000, uint64_t{1} << 40, UINT64_MAX / 4 + 1, UINT64_MAX};
  for (const uint64_t length : kHuge) {
    EXPECT_ERROR(with(8, Raw(length) + "abc"), ErrorCode::kBadInput, "a string of");
    for (const uint32_t element : {0u, 4u, 8u, 10u}) {
      EXPECT_ERROR(with(9, Raw(element) + Raw(length) + "abc"), ErrorCode::kBadInput,
                   "an array of");
    }
  }
  // The count fits, the strings do not.
  EXPECT_ERROR(with(9, Raw(8u) + Raw<uint64_t>(2) + GgufBuilder::Text("x") + Raw<uint64_t>(1000)),
               ErrorCode::kBadInput, "a string of 1000 bytes");
  EXPECT_ERROR(with(9, Raw(9u) + Raw<uint64_t>(1) + Raw(0u) + Raw<uint64_t>(0)),
               ErrorCode::kBadInput, "arrays of arrays");
  EXPECT_ERROR(with(13, "a"), ErrorCode::kBadInput, "unknown type 13");
  EXPECT_ERROR(Parse(OneTensor().U32("k", 1).U32("k", 2).Build()), ErrorCode::kBadInput,
               "k occurs twice");
  EXPECT_ERROR(Parse(OneTensor().U32("", 1).Build()), ErrorCode::kBadInput, "metadata key of 0");
  EXPECT_ERROR(Parse(OneTensor().U32(std::string(65536, 'k'), 1).Build()), ErrorCode::kBadInput,
               "metadata key of 65536 bytes");
  for (const uint32_t alignment : {0u, 4u, 48u, 1u << 30}) {
    EXPECT_ERROR(Parse(OneTensor().U32("general.alignment", alignment).Build()),
                 ErrorCode::kBadInput, "general.alignment");
  }
}

TEST(Gguf, RefusesTensorsThatLie) {
  const auto tensor = [](std::string_view name, const std::vector<uint64_t>& extents, uint32_t type,
                         size_t bytes) {
    return Parse(GgufBuilder().Tensor(name, extents, type, std::string(bytes, 'x')).Build());
  };
  EXPECT_ERROR(tensor("", {8}, 0, 32), ErrorCode::kBadInput, "tensor name of 0 bytes");
  EXPECT_ERROR(tensor(std::string(65, 'n'), {8}, 0, 32), ErrorCode::kBadInput,
               "tensor name of 65 bytes");
  EXPECT_OK(tensor(std::string(64, 'n'), {8}, 0, 32));
  EXPECT_ERROR(tensor("a", {}, 0, 32), ErrorCode::kBadInput, "0 dimensions");
  EXPECT_ERROR(tensor("a", {2, 2, 2, 1, 1}, 0, 32), ErrorCode::kBadInput, "5 dimensions");
  EXPECT_ERROR(tensor("a", {8, 0}, 0, 32), ErrorCode::kBadInput, "a dimension of 0");
  EXPECT_ERROR(tensor("a", {UINT64_MAX}, 0, 32), ErrorCode::kBadInput, "a dimension of");
  // Products that wrap around to something small.
  EXPECT_ERROR(tensor("a", {uint64_t{1} << 32, uint64_t{1} << 32}, 0, 32), ErrorCode::kBadInput,
               "larger than the file");
  EXPECT_ERROR(tensor("a", {uint64_t{1} << 62}, 0, 32), ErrorCode::kBadInput,
               "larger than the file");
  // A size just below 2^63, whose padding would wrap around.
  EXPECT_ERROR(tensor("a", {(uint64_t{1} << 61) - 1}, 0, 32), ErrorCode::kBadInput,
               "larger than the file");
  EXPECT_ERROR(tensor("a", {48}, 2, 32), ErrorCode::kBadInput, "not made of blocks of 32 (Q4_0)");
  EXPECT_ERROR(tensor("a", {128, 2}, 12, 160), ErrorCode::kBadInput, "blocks of 256 (Q4_K)");
  EXPECT_ERROR(tensor("a", {256}, 23, 136), ErrorCode::kBadInput, "type IQ4_XS are not supported");
  EXPECT_ERROR(tensor("a", {256}, 10, 136), ErrorCode::kBadInput, "type Q2_K are not supported");
  EXPECT_ERROR(tensor("a", {256}, 77, 136), ErrorCode::kBadInput, "type number 77");
  EXPECT_ERROR(Parse(OneTensor().Tensor("a", {8}, 0, Floats(8)).Build()), ErrorCode::kBadInput,
               "tensor a occurs twice");
  EXPECT_ERROR(Parse(OneTensor().TensorAt("b", {8}, 0, 8, Floats(8)).Build()), ErrorCode::kBadInput,
               "not a multiple of 32");
  EXPECT_ERROR(Parse(OneTensor().TensorAt("b", {8}, 0, UINT64_MAX - 31, Floats(8)).Build()),
               ErrorCode::kBadInput, "beyond the file");
  EXPECT_ERROR(Parse(OneTensor().TensorAt("b", {8}, 0, 0, Floats(8)).Build()), ErrorCode::kBadInput,
               "b: data at offset 0 overlaps");
  EXPECT_ERROR(Parse(OneTensor().TensorAt("b", {8}, 0, 64, Floats(8)).Build()),
               ErrorCode::kBadInput, "b: data at offset 64 leaves a hole");
  GgufBuilder overlong = OneTensor();
  overlong.tail = "x";
  EXPECT_ERROR(Parse(overlong.Build()), ErrorCode::kBadInput, "1 bytes after the last tensor");
}

TEST(Gguf, EveryTruncationIsAnError) {
  const std::string bytes = OneTensor().U32("k", 1).String("s", "text").Build();
  ASSERT_OK(Parse(bytes));
  for (size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_FALSE(Parse(bytes.substr(0, size))) << size;
  }
}

}  // namespace
}  // namespace nibble

#include "src/checkpoint/safetensors.h"

#include <gtest/gtest.h>

#include "src/checkpoint/test_files.h"

namespace nibble {
namespace {

Result<std::vector<SafetensorsEntry>> Parse(const std::string& file) {
  return ParseSafetensors(BytesOfString(file), "model.safetensors");
}
// A file with this header and `data_bytes` of data.
Result<std::vector<SafetensorsEntry>> ParseHeader(std::string_view header, size_t data_bytes) {
  return Parse(SafetensorsFile(header, std::string(data_bytes, 'x')));
}

TEST(Safetensors, ReadsEntriesInTheOrderOfTheirBytes) {
  const auto entries = ParseHeader(R"({"__metadata__":{"format":"pt"},)"
                                   R"("b":{"dtype":"F32","shape":[2,1],"data_offsets":[6,14]},)"
                                   R"("a":{"shape":[3],"data_offsets":[0,6],"dtype":"BF16"}}   )",
                                   14);
  ASSERT_OK(entries);
  ASSERT_EQ(entries->size(), 2u);
  const uint64_t data = entries->at(0).begin;
  EXPECT_EQ(entries->at(0).name, "a");
  EXPECT_EQ(entries->at(0).dtype, DType::kBF16);
  EXPECT_EQ(entries->at(0).shape, Shape{3});
  EXPECT_EQ(entries->at(0).end, data + 6);
  EXPECT_EQ(entries->at(1).name, "b");
  EXPECT_EQ(entries->at(1).shape, (Shape{2, 1}));
  EXPECT_EQ(entries->at(1).begin, data + 6);
}

TEST(Safetensors, EmptyAndRankZeroTensorsAndUnreadTypesAreLegal) {
  const auto entries = ParseHeader(R"({"empty":{"dtype":"F16","shape":[0,5],"data_offsets":[0,0]},)"
                                   R"("scalar":{"dtype":"I64","shape":[],"data_offsets":[0,8]},)"
                                   R"("f8":{"dtype":"F8_E4M3","shape":[3],"data_offsets":[8,11]},)"
                                   R"("end":{"dtype":"BOOL","shape":[0],"data_offsets":[11,11]}})",
                                   11);
  ASSERT_OK(entries);
  EXPECT_EQ(entries->at(0).name, "empty");
  EXPECT_EQ(entries->at(1).shape.rank(), 0u);
  EXPECT_EQ(entries->at(2).dtype, std::nullopt);
  EXPECT_EQ(entries->at(2).type, "F8_E4M3");
  EXPECT_OK(ParseHeader("{}", 0));
}

TEST(Safetensors, RefusesWhatIsNotAFile) {
  EXPECT_ERROR(Parse(""), ErrorCode::kBadInput, "too short");
  EXPECT_ERROR(Parse("1234567"), ErrorCode::kBadInput, "too short");
  EXPECT_ERROR(Parse(Raw<uint64_t>(100'000'001) + "{}"), ErrorCode::kBadInput, "more than");
  EXPECT_ERROR(Parse(Raw<uint64_t>(UINT64_MAX) + "{}"), ErrorCode::kBadInput, "more than");
  EXPECT_ERROR(Parse(Raw<uint64_t>(3) + "{}"), ErrorCode::kBadInput, "truncated");
  EXPECT_ERROR(ParseHeader(" {}", 0), ErrorCode::kBadInput, "does not start with '{'");
  EXPECT_ERROR(ParseHeader("", 0), ErrorCode::kBadInput, "does not start with '{'");
  EXPECT_ERROR(ParseHeader("{", 0), ErrorCode::kBadInput, "not valid JSON");
  EXPECT_ERROR(ParseHeader("{} x", 0), ErrorCode::kBadInput, "not valid JSON");
  EXPECT_ERROR(ParseHeader("{\"\xff\":1}", 0), ErrorCode::kBadInput, "not valid JSON");
}

struct BadHeader {
  const char* header;
  size_t data_bytes;
  const char* message;
};

TEST(Safetensors, RefusesHeadersThatLie) {
  constexpr BadHeader kCases[] = {
      // Sizes.
      {R"({"a":{"dtype":"F16","shape":[2],"data_offsets":[0,2]}})", 2, "takes 4 bytes"},
      {R"({"a":{"dtype":"F16","shape":[4294967296,4294967296],"data_offsets":[0,0]}})", 0,
       "more than 2^64"},
      {R"({"a":{"dtype":"F64","shape":[2305843009213693952],"data_offsets":[0,0]}})", 0,
       "more than 2^64"},
      {R"({"a":{"dtype":"U8","shape":[18446744073709551615],"data_offsets":[0,0]}})", 0,
       "a dimension of"},
      {R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[4,0]}})", 4, "run backwards"},
      // Truncated and overlong files, overlap and holes.
      {R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})", 3, "truncated"},
      {R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})", 5, "the file holds 5"},
      {R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[1,5]}})", 5, "leave a hole"},
      {R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
       R"("b":{"dtype":"U8","shape":[2],"data_offsets":[3,5]}})",
       5, "b: data_offsets [3, 5] leave a hole"},
      {R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
       R"("b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
       3, "b: data_offsets [1, 3] overlap"},
      // The same name, or the same field, twice.
      {R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},)"
       R"("a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})",
       0, "\"a\" occurs twice"},
      {R"({"__metadata__":{},"__metadata__":{}})", 0, "\"__metadata__\" occurs twice"},
      {R"({"__metadata__":{"k":"1","k":"2"}})", 0, "\"k\" occurs twice"},
      {R"({"a":{"dtype":"U8","dtype":"F16","shape":[0],"data_offsets":[0,0]}})", 0,
       "\"dtype\" occurs twice"},
      // Types.
      {R"({"a":{"dtype":"F17","shape":[0],"data_offsets":[0,0]}})", 0, "unknown type \"F17\""},
      {R"({"a":{"dtype":"f16","shape":[0],"data_offsets":[0,0]}})", 0, "unknown type \"f16\""},
      {R"({"a":{"dtype":16,"shape":[0],"data_offsets":[0,0]}})", 0, "unexpected a number"},
      // Structure.
      {R"({"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,0]}})", 0, "unexpected a negative"},
      {R"({"a":{"dtype":"U8","shape":[1.5],"data_offsets":[0,0]}})", 0, "unexpected a fraction"},
      {R"({"a":{"dtype":"U8","shape":[[1]],"data_offsets":[0,0]}})", 0, "unexpected an array"},
      {R"({"a":{"dtype":"U8","shape":0,"data_offsets":[0,0]}})", 0, "unexpected a number"},
      {R"({"a":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1],"data_offsets":[0,1]}})",
       1, "more than 16 dimensions"},
      {R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[0]}})", 0, "want two numbers"},
      {R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0,0]}})", 0, "want two numbers"},
      {R"({"a":{"dtype":"U8","shape":[0]}})", 0, "want dtype, shape and data_offsets"},
      {R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0],"x":1}})", 0, "unknown field \"x\""},
      {R"({"a":{"dtype":{},"shape":[0],"data_offsets":[0,0]}})", 0, "unexpected an object"},
      {R"({"a":1})", 0, "unexpected a number"},
      {R"({"a":null})", 0, "unexpected null"},
      {R"({"a":[]})", 0, "unexpected an array"},
      {R"({"__metadata__":{"k":1}})", 0, "unexpected a number"},
      {R"({"__metadata__":"pt"})", 0, "unexpected a string"},
      {R"({"__metadata__":{"k":{}}})", 0, "unexpected an object"},
  };
  for (const BadHeader& bad : kCases) {
    SCOPED_TRACE(bad.header);
    EXPECT_ERROR(ParseHeader(bad.header, bad.data_bytes), ErrorCode::kBadInput, bad.message);
  }
}

TEST(Safetensors, ManyTensorsTakeLinearTime) {
  // 200,000 names: a reader that searches all earlier ones for each would take minutes.
  std::string header = "{";
  for (int i = 0; i < 200'000; ++i) {
    header += fmt::format("{}\"{:x}\":{{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}",
                          i == 0 ? "" : ",", i);
  }
  const auto entries = ParseHeader(header + "}", 0);
  ASSERT_OK(entries);
  EXPECT_EQ(entries->size(), 200'000u);
}

TEST(SafetensorsIndex, ReadsTheMap) {
  const auto files = ParseSafetensorsIndex(
      R"({"metadata":{"total_size":1,"x":[1,{"y":null}],"z":true},)"
      R"("weight_map":{"a":"model-1.safetensors","b":"model-2.safetensors"}})",
      "index");
  ASSERT_OK(files);
  EXPECT_EQ(*files, (std::map<std::string, std::string>{{"a", "model-1.safetensors"},
                                                        {"b", "model-2.safetensors"}}));
}

TEST(SafetensorsIndex, Refuses) {
  const auto parse = [](std::string_view text) { return ParseSafetensorsIndex(text, "index"); };
  for (const char* name :
       {"../x.safetensors", "/etc/passwd", "a/b.safetensors", "..", ".", "", "a\\\\b"}) {
    SCOPED_TRACE(name);
    EXPECT_ERROR(parse(fmt::format(R"({{"weight_map":{{"t":"{}"}}}})", name)), ErrorCode::kBadInput,
                 "is not the name of a file in this directory");
  }
  EXPECT_ERROR(parse(R"({"weight_map":{"t":"a\u0000b"}})"), ErrorCode::kBadInput,
               "is not the name of a file");
  EXPECT_ERROR(parse(R"({"weight_map":{"t":"a","t":"a"}})"), ErrorCode::kBadInput, "occurs twice");
  EXPECT_ERROR(parse(R"({"weight_map":{},"weight_map":{}})"), ErrorCode::kBadInput, "occurs twice");
  EXPECT_ERROR(parse(R"({"metadata":{}})"), ErrorCode::kBadInput, "\"weight_map\" is missing");
  EXPECT_ERROR(parse(R"({"weight_map":{"t":1}})"), ErrorCode::kBadInput, "unexpected a number");
  EXPECT_ERROR(parse(R"({"weight_map":{"t":{"u":"v"}}})"), ErrorCode::kBadInput,
               "unexpected an object");
  EXPECT_ERROR(parse(R"({"weight_map":"x"})"), ErrorCode::kBadInput, "unexpected a string");
  EXPECT_ERROR(parse("[]"), ErrorCode::kBadInput, "unexpected an array");
  EXPECT_ERROR(parse(""), ErrorCode::kBadInput, "not valid JSON");
  EXPECT_ERROR(parse("{\"m\":" + std::string(1000, '[')), ErrorCode::kBadInput, "nested deeper");
}

}  // namespace
}  // namespace nibble

#include "src/tokenizer/utf8.h"

#include <gtest/gtest.h>

namespace nibble {
namespace {

TEST(Utf8, ReadsWholeCharacters) {
  for (const char32_t c : {U'\0', U'a', U'\x7F', U'\x80', U'\x7FF', U'\x800', U'\xD7FF', U'\xE000',
                           U'\xFFFD', U'\xFFFF', U'\x10000', U'\x10FFFF'}) {
    std::string text;
    AppendUtf8(c, text);
    const Utf8Step step = NextUtf8(text + "x");
    EXPECT_EQ(step.kind, Utf8Kind::kCharacter);
    EXPECT_EQ(step.code_point, c);
    EXPECT_EQ(step.bytes, text.size());
    EXPECT_EQ(Utf8Length(text[0]), text.size());
    for (size_t cut = 1; cut < text.size(); ++cut) {
      EXPECT_EQ(NextUtf8(text.substr(0, cut)).kind, Utf8Kind::kIncomplete);
      EXPECT_EQ(NextUtf8(text.substr(0, cut)).bytes, cut);
    }
  }
}

// The examples of Unicode 15, section 3.9, tables 3-8 to 3-11.
TEST(Utf8, ReplacesMaximalSubparts) {
  const auto repaired = [](std::string_view bytes) {
    std::string text = ReplaceMalformedUtf8(bytes);
    EXPECT_TRUE(IsValidUtf8(text));
    for (size_t at = text.find(kReplacementCharacter); at != std::string::npos;
         at = text.find(kReplacementCharacter, at)) {
      text.replace(at, kReplacementCharacter.size(), "?");
    }
    return text;
  };
  EXPECT_EQ(repaired("\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41"), "????????A");
  EXPECT_EQ(repaired("\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41"), "????????A");
  EXPECT_EQ(repaired("\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42"), "?????A??B");
  EXPECT_EQ(repaired("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41"), "????A");
  EXPECT_EQ(repaired("abcdefgh\xC3"), "abcdefgh?");
  EXPECT_EQ(repaired("ab\xC3\xA9"), "ab\xC3\xA9");
  EXPECT_EQ(repaired(""), "");
  EXPECT_FALSE(IsValidUtf8("abcdefghijklmnop\xFF"));
}

}  // namespace
}  // namespace nibble

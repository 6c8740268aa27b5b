#include "src/base/file.h"

#include <gtest/gtest.h>

namespace nibble {
namespace {

TEST(FileTest, TheLastPartOfAPath) {
  EXPECT_EQ(LastPart("models/llama"), "llama");
  EXPECT_EQ(LastPart("/models/llama//"), "llama");
  EXPECT_EQ(LastPart("model.gguf"), "model.gguf");
  EXPECT_EQ(LastPart("random:tiny"), "random:tiny");
  EXPECT_EQ(LastPart("/"), "");
  EXPECT_EQ(LastPart(""), "");
}

}  // namespace
}  // namespace nibble

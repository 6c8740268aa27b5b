#include "src/tensor/memory.h"

#include <gtest/gtest.h>

namespace nibble {
namespace {

TEST(MemoryTest, NothingIsAllocatedBeyondTheLimit) {
  MemoryTracker tracker;
  tracker.SetLimit(4096);
  const Result<Buffer> first = AllocateHost(tracker, MemoryClass::kWeights, 3000);
  ASSERT_TRUE(first);
  EXPECT_EQ(tracker.Room(), 4096 - first->size());
  const Result<Buffer> second = AllocateHost(tracker, MemoryClass::kKvCache, 2000);
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code(), ErrorCode::kResources);
  tracker.SetLimit(100);
  EXPECT_EQ(tracker.Room(), 0u);
}

}  // namespace
}  // namespace nibble

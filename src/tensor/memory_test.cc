#include "src/tensor/memory.h"

#include <gtest/gtest.h>

#include <cstring>
#include <optional>
#include <vector>

#include "src/base/must.h"

namespace nibble {
namespace {

constexpr size_t kMiB = size_t{1} << 20;

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

TEST(HostArenaTest, BuffersLieSideBySideAndAreCounted) {
  MemoryTracker tracker;
  tracker.SetLimit(64 * kMiB);
  HostArena arena;
  const Buffer first = Must(arena.Allocate(tracker, MemoryClass::kWeights, 3 * kMiB + 100));
  const Buffer second = Must(arena.Allocate(tracker, MemoryClass::kWeights, 5 * kMiB));
  EXPECT_EQ(first.size(), 3 * kMiB + 128);
  const auto distance = second.as<std::byte>() - first.as<std::byte>();
  EXPECT_GE(distance, static_cast<ptrdiff_t>(first.size()));
  EXPECT_LT(distance, static_cast<ptrdiff_t>(first.size() + (size_t{64} << 10)));  // a page
  EXPECT_EQ(tracker.current()[MemoryClass::kWeights], first.size() + second.size());
  const Result<Buffer> refused = arena.Allocate(tracker, MemoryClass::kWeights, 60 * kMiB);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code(), ErrorCode::kResources);
}

// The memory of a buffer that is gone is the system's again, whoever lies beside it, and no more is
// taken than what the buffers hold and the rest of a huge page.
TEST(HostArenaTest, MemoryComesAndGoesWithTheBuffers) {
  MemoryTracker tracker;
  std::optional<HostArena> arena(std::in_place);
  const uint64_t before = ResidentBytes();
  constexpr size_t kBytes = 7 * kMiB;
  std::vector<Buffer> buffers;
  for (int i = 0; i < 40; ++i) {  // of several chunks
    buffers.push_back(Must(arena->Allocate(tracker, MemoryClass::kWeights, kBytes)));
    std::memset(buffers.back().data(), i, kBytes);
  }
  EXPECT_NEAR(static_cast<double>(ResidentBytes() - before), 40.0 * kBytes, 8.0 * kMiB);
  arena.reset();
  for (int i = 0; i < 40; ++i) {
    const auto* bytes = buffers[static_cast<size_t>(i)].as<const unsigned char>();
    ASSERT_EQ(bytes[0], i);
    ASSERT_EQ(bytes[kBytes - 1], i);
  }
  for (size_t i = 0; i < 40; i += 2) buffers[i] = Buffer();
  EXPECT_NEAR(static_cast<double>(ResidentBytes() - before), 20.0 * kBytes, 8.0 * kMiB);
  buffers.clear();
  EXPECT_LT(ResidentBytes(), before + 8 * kMiB);
  EXPECT_EQ(tracker.current().total(), 0u);
}

}  // namespace
}  // namespace nibble

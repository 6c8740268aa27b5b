#include "src/engine/kv_pool.h"

#include <gtest/gtest.h>

namespace nibble {
namespace {

TEST(KvPoolTest, CountsHolders) {
  KvPool pool(2);
  const int32_t first = pool.Take().value();
  const int32_t second = pool.Take().value();
  EXPECT_NE(first, second);
  EXPECT_FALSE(pool.Take());
  pool.Share(first);
  pool.Release(first);
  EXPECT_EQ(pool.free_blocks(), 0);
  pool.Release(first);
  EXPECT_EQ(pool.free_blocks(), 1);
  EXPECT_EQ(pool.Take(), first);
}

}  // namespace
}  // namespace nibble

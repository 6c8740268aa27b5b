#include "src/base/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <mutex>
#include <thread>
#include <vector>

namespace nibble {
namespace {

TEST(ThreadPoolTest, EveryItemOnceInRangesOfTheGrain) {
  for (const int threads : {1, 2, 3, 5}) {
    ThreadPool pool(threads);
    for (const int64_t count : {0, 1, 2, 3, 4, 5, 7, 16, 97}) {
      for (const int64_t grain : {1, 4, 10}) {
        std::vector<int> seen(static_cast<size_t>(count));
        std::mutex mutex;
        pool.ParallelFor(count, grain, [&](int64_t begin, int64_t end, int thread) {
          const std::lock_guard lock(mutex);
          EXPECT_EQ(begin % grain, 0);
          EXPECT_LE(end - begin, grain);
          EXPECT_LT(thread, threads);
          for (int64_t i = begin; i < end; ++i) ++seen[static_cast<size_t>(i)];
        });
        EXPECT_EQ(seen, std::vector<int>(static_cast<size_t>(count), 1))
            << count << " items by " << grain << ", " << threads << " threads";
      }
    }
  }
}

// A thread that is done takes from the others' stretches: the other items do not wait for item 0.
TEST(ThreadPoolTest, ThreadsHelpEachOther) {
  ThreadPool pool(2);
  std::atomic<int> others{0};
  bool helped = false;
  pool.ParallelFor(8, 1, [&](int64_t begin, int64_t, int) {
    if (begin != 0) {
      ++others;
      return;
    }
    const auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (others < 7 && std::chrono::steady_clock::now() < limit) std::this_thread::yield();
    helped = others == 7;
  });
  EXPECT_TRUE(helped);
}

}  // namespace
}  // namespace nibble

#include "src/base/thread_pool.h"

#include <sched.h>

#include <algorithm>

#include "src/base/error.h"

namespace nibble {
namespace {

// Decode issues a loop every few tens of microseconds; sleeping in between would cost more than the
// loop. A worker spins this long (about 50 µs) before it goes to sleep.
constexpr int kSpins = 2000;

inline void Relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

ThreadPool::ThreadPool(int threads) : shares_(static_cast<size_t>(std::max(threads, 1))) {
  CHECK(threads >= 1);
  workers_.reserve(static_cast<size_t>(threads - 1));
  for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { WorkerLoop(i); });
}

ThreadPool::~ThreadPool() {
  stop_ = true;
  ++epoch_;
  epoch_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::RunShares(int thread) {
  const auto own = static_cast<size_t>(thread);
  for (size_t i = 0; i < shares_.size(); ++i) {
    Share& share = shares_[(own + i) % shares_.size()];
    while (true) {
      const int64_t begin = share.next.fetch_add(grain_, std::memory_order_relaxed);
      if (begin >= share.end) break;
      (*body_)(begin, std::min(begin + grain_, share.end), thread);
    }
  }
}

void ThreadPool::WorkerLoop(int thread) {
  uint64_t seen = 0;
  while (true) {
    for (int i = 0; i < kSpins && epoch_.load(std::memory_order_acquire) == seen; ++i) Relax();
    epoch_.wait(seen, std::memory_order_acquire);
    seen = epoch_.load(std::memory_order_acquire);
    if (stop_) return;
    RunShares(thread);
    finished_.fetch_add(1, std::memory_order_release);
    finished_.notify_one();
  }
}

void ThreadPool::ParallelFor(int64_t count, int64_t grain, const Body& body) {
  CHECK(grain >= 1);
  if (count <= 0) return;
  if (workers_.empty() || count <= grain) {
    for (int64_t begin = 0; begin < count; begin += grain) {
      body(begin, std::min(begin + grain, count), 0);
    }
    return;
  }
  grain_ = grain;
  body_ = &body;
  const int64_t ranges = (count + grain - 1) / grain;
  for (int64_t i = 0, begin = 0; i < threads(); ++i) {
    Share& share = shares_[static_cast<size_t>(i)];
    share.next.store(begin, std::memory_order_relaxed);
    share.end = begin = std::min(ranges * (i + 1) / threads() * grain, count);
  }
  finished_.store(0, std::memory_order_relaxed);
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  RunShares(0);
  const int workers = static_cast<int>(workers_.size());
  for (int i = 0; i < kSpins && finished_.load(std::memory_order_acquire) < workers; ++i) Relax();
  for (int done = finished_.load(std::memory_order_acquire); done < workers;
       done = finished_.load(std::memory_order_acquire)) {
    finished_.wait(done, std::memory_order_acquire);
  }
}

int UsableCores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (::sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

void RunTogether(int64_t count, int64_t grain, const ThreadPool::Body& body) {
  if (count <= grain) {
    if (count > 0) body(0, count, 0);
    return;
  }
  ThreadPool pool(static_cast<int>(std::min<int64_t>(UsableCores(), (count + grain - 1) / grain)));
  pool.ParallelFor(count, grain, body);
}

}  // namespace nibble

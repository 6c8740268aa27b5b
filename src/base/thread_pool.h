// A fixed set of threads for data-parallel loops.
#ifndef NIBBLE_BASE_THREAD_POOL_H_
#define NIBBLE_BASE_THREAD_POOL_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

namespace nibble {

class ThreadPool {
 public:
  // The calling thread is one of the `threads` (at least 1) that work on a loop.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(begin, end, thread) on disjoint ranges of at most `grain` items that cover [0, count)
  // in no particular order; `thread` is in [0, threads()) and unique among concurrent calls. Returns
  // when all are done. Not reentrant; `body` must not throw. A thread goes through a stretch of its
  // own in order, as prefetching likes it, and then helps with the others' stretches.
  using Body = std::function<void(int64_t begin, int64_t end, int thread)>;
  void ParallelFor(int64_t count, int64_t grain, const Body& body);

 private:
  void WorkerLoop(int thread);
  void RunShares(int thread);

  // A stretch of the items that one thread begins with.
  struct alignas(64) Share {  // a cache line each
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };

  // One loop at a time. A worker sees `epoch_` change, works, then adds itself to `finished_`.
  std::atomic<uint64_t> epoch_{0};
  std::atomic<int> finished_{0};
  std::atomic<bool> stop_{false};
  std::vector<Share> shares_;  // of each thread
  int64_t grain_ = 1;
  const Body* body_ = nullptr;
  std::vector<std::thread> workers_;
};

// The number of cores this process may use.
int UsableCores();

// ParallelFor by all usable cores, in a pool that ends with the call: for work of a millisecond and more
// where there is no pool, such as reading a checkpoint. One range or less is done by the caller.
void RunTogether(int64_t count, int64_t grain, const ThreadPool::Body& body);

}  // namespace nibble

#endif  // NIBBLE_BASE_THREAD_POOL_H_

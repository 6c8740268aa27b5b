// Tokens on their way from the device to the host: kernels write them into page-locked memory, and
// the host reads them a step late.
#ifndef NIBBLE_OPS_CUDA_TOKEN_QUEUE_H_
#define NIBBLE_OPS_CUDA_TOKEN_QUEUE_H_

#include <cuda_runtime_api.h>

#include <deque>
#include <memory>
#include <span>
#include <vector>

#include "src/ops/cuda/stream.h"
#include "src/tensor/memory.h"

namespace nibble::cuda {

class TokenQueue {
 public:
  // For at most `rows` tokens at a time.
  static Result<std::unique_ptr<TokenQueue>> Create(int64_t rows, Stream& stream);
  ~TokenQueue();

  // Where the kernel that is launched next writes `rows` tokens; Sent must follow its launch.
  int32_t* Next(int64_t rows);
  void Sent();
  // The oldest that were sent and not received; waits for them. Valid until the next call.
  Result<std::span<const int32_t>> Receive();

 private:
  struct Slot {
    Buffer memory;
    cudaEvent_t written = nullptr;
    int64_t rows = 0;
  };

  TokenQueue(int64_t rows, Stream& stream) : rows_(rows), stream_(stream) {}
  Status AddSlot();

  int64_t rows_;
  Stream& stream_;
  std::vector<std::unique_ptr<Slot>> slots_;
  std::deque<Slot*> free_, waiting_;  // the last received is the last of free_
  Status status_;                     // of growing
};

}  // namespace nibble::cuda

#endif  // NIBBLE_OPS_CUDA_TOKEN_QUEUE_H_

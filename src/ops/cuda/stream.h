// A stream of device work, and the first thing that went wrong in it.
#ifndef NIBBLE_OPS_CUDA_STREAM_H_
#define NIBBLE_OPS_CUDA_STREAM_H_

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>

#include "src/base/error.h"

namespace nibble::cuda {

// "out of memory" for cudaErrorMemoryAllocation, with the runtime's name of the error.
std::string ErrorText(cudaError_t error);

// What launches need to know of a kernel; to ask costs about as much as a launch.
struct KernelState {
  bool is_prepared = false;
  bool waits = false;  // see LaunchDependent
};

class Stream {
 public:
  // Of the current device.
  static Result<std::unique_ptr<Stream>> Create();
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  cudaStream_t get() const { return stream_; }
  int multiprocessors() const { return multiprocessors_; }
  KernelState& kernel(const void* function) { return kernels_[function]; }

  // To be called after each launch or copy: remembers the first that failed, with the operation's
  // name and the matrix that it was to make.
  void Check(cudaError_t error, const char* operation, int64_t rows, int64_t columns);
  void CheckLaunch(const char* operation, int64_t rows, int64_t columns) {
    Check(cudaGetLastError(), operation, rows, columns);
  }

  // Waits for all work issued so far. kInternal, naming the operation, where some of it failed; a
  // fault during execution names the last operation that was issued.
  Status Synchronize();
  // The same for the work that was issued before the event was recorded.
  Status WaitFor(cudaEvent_t event);

 private:
  Stream(cudaStream_t stream, int multiprocessors)
      : stream_(stream), multiprocessors_(multiprocessors) {}

  Status Outcome(cudaError_t error);  // of waiting

  cudaStream_t stream_;
  int multiprocessors_;
  std::unordered_map<const void*, KernelState> kernels_;
  const char* last_operation_ = "nothing";
  std::string failure_;  // empty while nothing failed
};

}  // namespace nibble::cuda

#endif  // NIBBLE_OPS_CUDA_STREAM_H_

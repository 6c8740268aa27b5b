// Copies from global to shared memory that run in the background (cp.async, compute capability 8.0 and
// newer) and pass the first-level cache.
#ifndef NIBBLE_OPS_CUDA_ASYNC_COPY_CUH_
#define NIBBLE_OPS_CUDA_ASYNC_COPY_CUH_

#include <cuda_runtime.h>

#include <cstdint>

namespace nibble::cuda {

__device__ inline uint32_t SharedAddress(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// 16 bytes, zeros where not wanted; the address must be valid all the same.
__device__ inline void CopyAsync16(uint32_t shared, const void* global, bool wanted = true) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global),
               "r"(wanted ? 16 : 0)
               : "memory");
}
__device__ inline void CommitCopies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until no more than kPending of this thread's groups are under way.
template <int kPending>
__device__ void WaitForCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace nibble::cuda

#endif  // NIBBLE_OPS_CUDA_ASYNC_COPY_CUH_

// Operands of the tensor cores from shared memory and from results (ldmatrix, movmatrix; compute
// capability 7.5 and newer).
#ifndef NIBBLE_OPS_CUDA_LOAD_MATRICES_CUH_
#define NIBBLE_OPS_CUDA_LOAD_MATRICES_CUH_

#include <cuda_runtime.h>

#include <cstdint>

namespace nibble::cuda {

// Four 8 x 8 matrices of 16-bit elements; lane i names row i % 8 of matrix i / 8.
inline __device__ void LoadMatrices(uint32_t shared, uint32_t (&fragment)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(shared)
               : "memory");
}
inline __device__ void LoadMatricesTransposed(uint32_t shared, uint32_t (&fragment)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(shared)
               : "memory");
}

// An 8 x 8 matrix of 16-bit elements, of which a lane has two of row lane / 4, transposed.
inline __device__ uint32_t TransposedMatrix(uint32_t pair) {
  uint32_t result;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(pair));
  return result;
}

}  // namespace nibble::cuda

#endif  // NIBBLE_OPS_CUDA_LOAD_MATRICES_CUH_

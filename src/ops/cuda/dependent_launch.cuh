// Programmatic dependent launch (CUDA Programming Guide, "Programmatic Dependent Launch and
// Synchronization"): a kernel's blocks may start while the kernel before it ends, so that launches and
// first loads of weights cost no time of their own.
//
// A kernel so launched calls StartNextKernel as soon as it can, and WaitForLastKernel before it reads or
// writes anything that an earlier kernel wrote or read; all but weights, that is. On devices before
// compute capability 9.0 both do nothing and the launch is an ordinary one.
#ifndef NIBBLE_OPS_CUDA_DEPENDENT_LAUNCH_CUH_
#define NIBBLE_OPS_CUDA_DEPENDENT_LAUNCH_CUH_

#include <cuda_runtime.h>

#include <cstddef>

#include "src/ops/cuda/stream.h"

namespace nibble::cuda {

__device__ inline void StartNextKernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}
__device__ inline void WaitForLastKernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Before a kernel's first launch in a stream.
template <typename... Parameters>
KernelState Prepared(Stream& stream, void (*kernel)(Parameters...)) {
  cudaFuncAttributes attributes{};
  stream.Check(cudaFuncGetAttributes(&attributes, kernel), "asking about a kernel", 1, 1);
  int device = 0, most_shared = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&most_shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  // As much as there is, so that no stream's figure takes the place of another's.
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                       most_shared - static_cast<int>(attributes.sharedSizeBytes));
  // The same division of the L1 cache for all kernels: a multiprocessor must be idle to change it, and
  // then nothing would overlap (818 µs of a float16 step's 4,152 on an H200).
  cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                       cudaSharedmemCarveoutMaxShared);
  // Code for older devices does not wait, and must not start early on newer ones either.
  return {.is_prepared = true, .waits = attributes.ptxVersion >= 90};
}

// Launches a kernel that waits, in clusters of so many blocks; the arguments are converted to its
// parameters.
template <typename... Parameters, typename... Arguments>
void LaunchDependentClusters(Stream& stream, void (*kernel)(Parameters...), unsigned cluster,
                             dim3 grid, dim3 block, size_t shared_bytes, Arguments... arguments) {
  KernelState& state = stream.kernel(reinterpret_cast<const void*>(kernel));
  if (!state.is_prepared) state = Prepared(stream, kernel);
  cudaLaunchAttribute attributes[2];
  unsigned count = 0;
  if (state.waits) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count++].val.clusterDim = {cluster, 1, 1};
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream.get();
  config.attrs = attributes;
  config.numAttrs = count;
  cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

template <typename... Parameters, typename... Arguments>
void LaunchDependent(Stream& stream, void (*kernel)(Parameters...), dim3 grid, dim3 block,
                     size_t shared_bytes, Arguments... arguments) {
  LaunchDependentClusters(stream, kernel, 1, grid, block, shared_bytes, arguments...);
}

}  // namespace nibble::cuda

#endif  // NIBBLE_OPS_CUDA_DEPENDENT_LAUNCH_CUH_

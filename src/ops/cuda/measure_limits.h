// The rates that bound every kernel on a GPU, measured.
#ifndef NIBBLE_OPS_CUDA_MEASURE_LIMITS_H_
#define NIBBLE_OPS_CUDA_MEASURE_LIMITS_H_

#include "src/base/error.h"

namespace nibble {

struct CudaLimits {
  double read_bytes_per_second = 0;    // 16-byte loads of 2 GiB that nothing has cached
  double matrix_flops_per_second = 0;  // cuBLASLt, float16, 8192³, random operands
};

// On the current device; the median of several tries each. Takes about 3 GiB of its memory for a
// moment: kResources where that is not free.
Result<CudaLimits> MeasureCudaLimits();

}  // namespace nibble

#endif  // NIBBLE_OPS_CUDA_MEASURE_LIMITS_H_

// The RMS norm of a product's input, for the products' kernels that apply it as they load the input
// (see Backend::NormLinear): for few rows, where a kernel of its own costs more than the norm.
#ifndef NIBBLE_OPS_CUDA_ROW_NORM_H_
#define NIBBLE_OPS_CUDA_ROW_NORM_H_

namespace nibble::cuda {

struct RowNorm {
  const float* gain = nullptr;  // [in], aligned to 16 bytes; null: the input as it is
  float epsilon = 0;
};

}  // namespace nibble::cuda

#endif  // NIBBLE_OPS_CUDA_ROW_NORM_H_

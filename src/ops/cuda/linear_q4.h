// 4-bit linear layers: one packed layout, made on the device, for one row to thousands.
//
// out = x · Wᵀ with W[n][k] = scale[n][k / group] · (code[n][k] - zero[n][k / group]), 16-bit
// activations, float32 sums.
#ifndef NIBBLE_OPS_CUDA_LINEAR_Q4_H_
#define NIBBLE_OPS_CUDA_LINEAR_Q4_H_

#include <cstddef>
#include <cstdint>

#include "src/format/weight.h"
#include "src/ops/backend.h"
#include "src/ops/cuda/cuda_backend.h"
#include "src/ops/cuda/stream.h"

namespace nibble::cuda {

// Where a packed weight's parts lie in one allocation.
struct Q4Layout {
  int64_t out_features = 0;
  int64_t in_features = 0;
  int64_t group_length = 0;
  bool symmetric = false;  // no zeros are kept: all are 8
  size_t codes_offset = 0, scales_offset = 0, zeros_offset = 0;  // in bytes, multiples of 256
  size_t largest_offset = 0;  // of the largest scale's float16 bits, without the sign, as a uint32
  size_t total_bytes = 0;

  static Q4Layout Of(int64_t out_features, int64_t in_features, const QuantSpec& spec);
};

// Packs rows [first_row, first_row + rows) from the form of QuantizedWeight, already on the device:
// codes [rows, in / 2], scales [rows, groups] float16 bits, zeros [rows, groups]. Row r goes to
// output first_row + r · row_step (row_step 2 interleaves gate and up). `activations` is the type
// that LinearQ4 will be given: scales are kept as float16 or converted as its kernels want. The
// largest scale of `packed` starts at zero and is right when all rows are packed.
void PackQ4(Stream& stream, const Q4Layout& layout, DType activations, const uint8_t* codes,
            const uint16_t* scales, const uint8_t* zeros, int64_t rows, int64_t first_row,
            int64_t row_step, void* packed);

// For more rows it is faster to expand such a weight once (DequantizeQ4) and to multiply densely.
// No limit where Hopper's kernel takes them, and under kBatchInvariant, where all rows go through
// LinearQ4.
int64_t LinearQ4MostRows(const Q4Layout& layout, CudaKernels kernels);

// An RMS norm that the products around it take over (docs/kernels.md), where LinearQ4TakesNorms, of
// at most kMostLinkedRows rows. A row's norm is x · gain · factor. The product that the norm is
// behind, of Epilogue::kAdd, makes x, and writes x · gain and sums of its squares, too; the one
// that it is before has the former as its x, finds the factor from the latter, and multiplies its
// sums by it.
struct LinkedNorm {
  const float* gain = nullptr;  // [hidden]
  float scale = 1;              // of what is written: x · gain · scale; ScaleOfGain
  float epsilon = 0;
  MatrixView scaled;         // what is written, [rows, hidden], aligned as LinearQ4's x
  float* squares = nullptr;  // [rows, tiles of 16 outputs], room for LinkedSquares(hidden)
};
struct LinkedNorms {
  const LinkedNorm* before = nullptr;
  const LinkedNorm* behind = nullptr;
};

inline constexpr int64_t kMostLinkedRows = 8;
constexpr int64_t LinkedSquares(int64_t hidden) { return kMostLinkedRows * ((hidden + 15) / 16); }
// A power of two with which x · gain · scale is no larger than x, so that float16 has room for it.
float ScaleOfGain(float largest_gain);
bool LinearQ4TakesNorms(const Q4Layout& layout);

// Scratch bytes that LinearQ4 wants for up to `rows` rows of any weight with at most these inputs.
size_t LinearQ4ScratchBytes(int multiprocessors, int64_t rows, int64_t in_features);

// x: [rows, in], out: [rows, out_features] or half of that under kSiluMul, where packed rows 2i and
// 2i + 1 are gate and up i. bias: float32 [out_features] in packed order, or null. `scratch` may be
// shared by all linears of a stream. x must be aligned to 16 bytes and its stride a multiple of 8
// elements.
void LinearQ4(Stream& stream, const Q4Layout& layout, const void* packed, const float* bias,
              MatrixView x, Epilogue epilogue, MatrixView out, void* scratch, CudaKernels kernels,
              const LinkedNorms& norms = {});

// out[n][k] = W[first_row + n][k] for n < rows, in the activations' type; [rows, in_features]
// contiguous. first_row is a multiple of 128 (so that a large weight goes through small scratch).
void DequantizeQ4(Stream& stream, const Q4Layout& layout, const void* packed, DType dtype,
                  int64_t first_row, int64_t rows, void* out);

}  // namespace nibble::cuda

#endif  // NIBBLE_OPS_CUDA_LINEAR_Q4_H_

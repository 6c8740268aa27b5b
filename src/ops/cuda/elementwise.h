// The operations between the matrix products. Activations are 16-bit, arithmetic float32. Rows may be
// strided; columns need no alignment.
#ifndef NIBBLE_OPS_CUDA_ELEMENTWISE_H_
#define NIBBLE_OPS_CUDA_ELEMENTWISE_H_

#include "src/ops/backend.h"
#include "src/ops/cuda/device_batch.h"
#include "src/ops/cuda/stream.h"

namespace nibble::cuda {

// out[r] = table[the token of row r]; table: [vocabulary, out.columns], of out's type, contiguous.
void Embed(Stream& stream, const DeviceBatch& batch, const void* table, MatrixView out);

// out[r] = x[r] * gain / sqrt(mean(x[r]²) + epsilon); gain float32. out may alias x.
void RmsNorm(Stream& stream, MatrixView x, const float* gain, float epsilon, MatrixView out);
// out[i] = the same of x[rows[i]]; rows: in device memory. out may not alias x.
void RmsNormOfRows(Stream& stream, MatrixView x, const int32_t* rows, const float* gain,
                   float epsilon, MatrixView out);

// table[r][i] = {cos, sin}(positions[r] · frequencies[i]), the angle formed in float32.
void RopeTable(Stream& stream, const DeviceBatch& batch, const float* frequencies,
               int64_t half_dim, float2* table);

// Turns queries and keys, and stores keys and values in the cache (see Backend::RopeAndStoreKv).
void RopeAndStoreKv(Stream& stream, const DeviceBatch& batch, const AttentionSpec& attention,
                    const float2* table, MatrixView qkv, KvView kv);

// What a plain product leaves to do: out = y + bias, out += y + bias, or
// out[i] = silu(y[2i] + bias[2i]) · (y[2i + 1] + bias[2i + 1]). bias: float32, or null. y may be out
// for kNone.
void FinishLinear(Stream& stream, MatrixView y, const float* bias, Epilogue epilogue,
                  MatrixView out);

// out[r][k] = x[r][columns[k]].
void GatherColumns(Stream& stream, MatrixView x, const int32_t* columns, MatrixView out);

// out[first_row + r · row_step] = x[r] in out's type; x, out: f32, f16 or bf16, contiguous.
void ConvertRows(Stream& stream, MatrixView x, int64_t first_row, int64_t row_step, MatrixView out);

// Whether the current device can run this file's kernels, and so all portable ones.
cudaError_t FindElementwiseKernels();

}  // namespace nibble::cuda

#endif  // NIBBLE_OPS_CUDA_ELEMENTWISE_H_

// The operations without a product: normalization, rotary embedding, gathering.
#ifndef NIBBLE_OPS_CPU_ELEMENTWISE_H_
#define NIBBLE_OPS_CPU_ELEMENTWISE_H_

#include <cstdint>
#include <span>
#include <string_view>

#include "src/ops/backend.h"
#include "src/ops/cpu/cpu_kv_cache.h"
#include "src/ops/cpu/cpu_linear.h"

namespace nibble::cpu {

// out = x · gain / sqrt(mean(x²) + epsilon) over n values; out may be x.
void NormalizeRow(const float* x, const float* gain, int64_t n, float epsilon, float* out);

// cos and sin of position · frequencies[i], the product rounded to float32 as
// Hugging Face does.
void RopeAngles(int32_t position, std::span<const float> frequencies, float* cosines, float* sines);

// Turns the pairs (x[i], x[i + half]) in place.
void TurnHead(const float* cosines, const float* sines, int64_t half, float* x);

// Writes one token's keys and values, [kv_heads · head_dim] each, into its
// slot.
void StoreToken(const CpuKvCache& cache, int64_t layer, int64_t block, int64_t slot,
                const float* keys, const float* values);

// out[k] = table[row][k]
void EmbedRow(const CpuLinear& table, int64_t row, float* out);

// The instruction set that the kernels run on, such as "AVX2".
std::string_view TargetName();

}  // namespace nibble::cpu

#endif  // NIBBLE_OPS_CPU_ELEMENTWISE_H_

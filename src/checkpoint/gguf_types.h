// The tensor types of GGUF and what their blocks of quantized values stand for.
//
// Source: ggml's block formats (ggml/src/ggml-common.h, ggml-quants.c); the table with layouts and
// formulas stands beside each case in gguf_types.cc.
#ifndef NIBBLE_CHECKPOINT_GGUF_TYPES_H_
#define NIBBLE_CHECKPOINT_GGUF_TYPES_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace nibble {

enum class GgmlType : uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kBF16 = 30,
};

struct GgmlTypeInfo {
  GgmlType type;
  std::string_view name;   // "Q4_1"
  int64_t block_elements;  // 1 for the floating-point types
  int64_t block_bytes;
  bool quantized() const { return block_elements > 1; }
};

// Null for a type that is not read.
const GgmlTypeInfo* FindGgmlType(uint32_t type);
// The name of any type that ggml ever gave a number to, for errors: "IQ4_XS", or "number 77".
std::string GgmlTypeName(uint32_t type);

// Expands `blocks` blocks of a quantized type. out: [blocks · block_elements]. Products and sums
// are rounded to float one by one, in the order of the formulas.
void Dequantize(GgmlType type, const std::byte* in, int64_t blocks, float* out);

}  // namespace nibble

#endif  // NIBBLE_CHECKPOINT_GGUF_TYPES_H_

#include "src/checkpoint/gguf_types.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "src/base/error.h"
#include "src/tensor/dtype.h"

namespace nibble {
namespace {

constexpr std::array kTypes = {
    GgmlTypeInfo{GgmlType::kF32, "F32", 1, 4},
    GgmlTypeInfo{GgmlType::kF16, "F16", 1, 2},
    GgmlTypeInfo{GgmlType::kBF16, "BF16", 1, 2},
    GgmlTypeInfo{GgmlType::kQ4_0, "Q4_0", 32, 18},
    GgmlTypeInfo{GgmlType::kQ4_1, "Q4_1", 32, 20},
    GgmlTypeInfo{GgmlType::kQ5_0, "Q5_0", 32, 22},
    GgmlTypeInfo{GgmlType::kQ5_1, "Q5_1", 32, 24},
    GgmlTypeInfo{GgmlType::kQ8_0, "Q8_0", 32, 34},
    GgmlTypeInfo{GgmlType::kQ4_K, "Q4_K", 256, 144},
    GgmlTypeInfo{GgmlType::kQ5_K, "Q5_K", 256, 176},
    GgmlTypeInfo{GgmlType::kQ6_K, "Q6_K", 256, 210},
};

struct TypeName {
  uint32_t type;
  std::string_view name;
};
constexpr std::array kOtherNames = {
    TypeName{4, "Q4_2"},     TypeName{5, "Q4_3"},    TypeName{9, "Q8_1"},
    TypeName{10, "Q2_K"},    TypeName{11, "Q3_K"},   TypeName{15, "Q8_K"},
    TypeName{16, "IQ2_XXS"}, TypeName{17, "IQ2_XS"}, TypeName{18, "IQ3_XXS"},
    TypeName{19, "IQ1_S"},   TypeName{20, "IQ4_NL"}, TypeName{21, "IQ3_S"},
    TypeName{22, "IQ2_S"},   TypeName{23, "IQ4_XS"}, TypeName{24, "I8"},
    TypeName{25, "I16"},     TypeName{26, "I32"},    TypeName{27, "I64"},
    TypeName{28, "F64"},     TypeName{29, "IQ1_M"},  TypeName{34, "TQ1_0"},
    TypeName{35, "TQ2_0"},   TypeName{39, "MXFP4"},
};

int Byte(const std::byte* p, int i) { return std::to_integer<int>(p[i]); }
int SignedByte(const std::byte* p, int i) { return static_cast<int8_t>(p[i]); }

float Half(const std::byte* p) {
  uint16_t bits;
  std::memcpy(&bits, p, sizeof(bits));
  return FloatFromF16(bits);
}

// 16 bytes: the low nibbles are elements 0 … 15, the high ones 16 … 31. Bit i of `high` is the
// fifth bit of element i.
template <typename Value>
void Nibbles32(const std::byte* codes, uint32_t high, float* out, Value value) {
  for (int i = 0; i < 16; ++i) {
    out[i] = value((Byte(codes, i) & 15) | static_cast<int>((high >> i) & 1) << 4);
    out[i + 16] = value((Byte(codes, i) >> 4) | static_cast<int>((high >> (i + 16)) & 1) << 4);
  }
}

uint32_t Word(const std::byte* p) {
  uint32_t word;
  std::memcpy(&word, p, sizeof(word));
  return word;
}

// f16 d, 16 bytes: d · (q − 8)
void BlockQ4_0(const std::byte* in, float* out) {
  const float d = Half(in);
  Nibbles32(in + 2, 0, out, [&](int q) { return d * static_cast<float>(q - 8); });
}

// f16 d, f16 m, 16 bytes: d · q + m
void BlockQ4_1(const std::byte* in, float* out) {
  const float d = Half(in), m = Half(in + 2);
  Nibbles32(in + 4, 0, out, [&](int q) { return d * static_cast<float>(q) + m; });
}

// f16 d, u32 high bits, 16 bytes: d · (q − 16)
void BlockQ5_0(const std::byte* in, float* out) {
  const float d = Half(in);
  Nibbles32(in + 6, Word(in + 2), out, [&](int q) { return d * static_cast<float>(q - 16); });
}

// f16 d, f16 m, u32 high bits, 16 bytes: d · q + m
void BlockQ5_1(const std::byte* in, float* out) {
  const float d = Half(in), m = Half(in + 2);
  Nibbles32(in + 8, Word(in + 4), out, [&](int q) { return d * static_cast<float>(q) + m; });
}

// f16 d, 32 int8: d · q
void BlockQ8_0(const std::byte* in, float* out) {
  const float d = Half(in);
  for (int i = 0; i < 32; ++i) out[i] = d * static_cast<float>(SignedByte(in + 2, i));
}

// The j-th (of 8) pair of a 6-bit scale and a 6-bit minimum among 12 bytes.
struct ScaleMin {
  int scale, min;
};
ScaleMin SixBits(const std::byte* s, int j) {
  if (j < 4) return {Byte(s, j) & 63, Byte(s, j + 4) & 63};
  return {(Byte(s, j + 4) & 15) | ((Byte(s, j - 4) >> 6) << 4),
          (Byte(s, j + 4) >> 4) | ((Byte(s, j) >> 6) << 4)};
}

// f16 d, f16 dmin, 12 bytes of scales and minima, [32 bytes of fifth bits,] 128 bytes. Each 64
// elements take 32 bytes, low nibbles first: d · scale · q − dmin · min. Bit j of fifth byte i
// belongs to element 32j + i.
void BlockQ4Or5_K(const std::byte* in, const std::byte* fifth_bits, const std::byte* codes,
                  float* out) {
  const float d = Half(in), dmin = Half(in + 2);
  for (int j = 0; j < 8; ++j) {
    const ScaleMin s = SixBits(in + 4, j);
    const float scale = d * static_cast<float>(s.scale);
    const float min = dmin * static_cast<float>(s.min);
    const std::byte* bytes = codes + 32 * (j / 2);
    for (int i = 0; i < 32; ++i) {
      int q = (Byte(bytes, i) >> (4 * (j % 2))) & 15;
      if (fifth_bits != nullptr) q |= ((Byte(fifth_bits, i) >> j) & 1) << 4;
      out[32 * j + i] = scale * static_cast<float>(q) - min;
    }
  }
}

// 128 bytes of low nibbles, 64 of upper bit pairs, 16 int8 scales, f16 d: d · scale · (q − 32).
// Each half of 128 elements takes 64 and 32 bytes; its quarter of 32 elements number j takes the
// nibbles at 32 · (j % 2), low for j < 2, and the bit pair j; a scale serves 16 elements.
void BlockQ6_K(const std::byte* in, float* out) {
  const float d = Half(in + 208);
  for (int half = 0; half < 2; ++half) {
    const std::byte* low = in + 64 * half;
    const std::byte* high = in + 128 + 32 * half;
    const std::byte* scales = in + 192 + 8 * half;
    for (int j = 0; j < 4; ++j) {
      for (int i = 0; i < 32; ++i) {
        const int nibble = (Byte(low, 32 * (j % 2) + i) >> (4 * (j / 2))) & 15;
        const int q = nibble | ((Byte(high, i) >> (2 * j)) & 3) << 4;
        const float scale = d * static_cast<float>(SignedByte(scales, 2 * j + i / 16));
        out[128 * half + 32 * j + i] = scale * static_cast<float>(q - 32);
      }
    }
  }
}

}  // namespace

const GgmlTypeInfo* FindGgmlType(uint32_t type) {
  const auto it = std::find_if(kTypes.begin(), kTypes.end(), [&](const GgmlTypeInfo& info) {
    return static_cast<uint32_t>(info.type) == type;
  });
  return it == kTypes.end() ? nullptr : &*it;
}

std::string GgmlTypeName(uint32_t type) {
  if (const GgmlTypeInfo* info = FindGgmlType(type)) return std::string(info->name);
  for (const TypeName& other : kOtherNames) {
    if (other.type == type) return std::string(other.name);
  }
  return fmt::format("number {}", type);
}

void Dequantize(GgmlType type, const std::byte* in, int64_t blocks, float* out) {
  const GgmlTypeInfo* info = FindGgmlType(static_cast<uint32_t>(type));
  CHECK(info != nullptr && info->quantized());
  for (int64_t b = 0; b < blocks; ++b, in += info->block_bytes, out += info->block_elements) {
    switch (type) {
      case GgmlType::kQ4_0:
        BlockQ4_0(in, out);
        break;
      case GgmlType::kQ4_1:
        BlockQ4_1(in, out);
        break;
      case GgmlType::kQ5_0:
        BlockQ5_0(in, out);
        break;
      case GgmlType::kQ5_1:
        BlockQ5_1(in, out);
        break;
      case GgmlType::kQ8_0:
        BlockQ8_0(in, out);
        break;
      case GgmlType::kQ4_K:
        BlockQ4Or5_K(in, nullptr, in + 16, out);
        break;
      case GgmlType::kQ5_K:
        BlockQ4Or5_K(in, in + 16, in + 48, out);
        break;
      case GgmlType::kQ6_K:
        BlockQ6_K(in, out);
        break;
      case GgmlType::kF32:
      case GgmlType::kF16:
      case GgmlType::kBF16:
        break;  // excluded above
    }
  }
}

}  // namespace nibble

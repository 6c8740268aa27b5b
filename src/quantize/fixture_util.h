// What the quantizers' tests share: float matrices, and the oracles' files.
#ifndef NIBBLE_QUANTIZE_FIXTURE_UTIL_H_
#define NIBBLE_QUANTIZE_FIXTURE_UTIL_H_

#include <cstring>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "src/base/file.h"
#include "src/checkpoint/safetensors.h"
#include "src/format/weight.h"
#include "src/tensor/tensor.h"

namespace nibble {

struct FloatMatrix {
  int64_t rows = 0, columns = 0;
  std::vector<float> values;

  FloatMatrix(int64_t r, int64_t c) : rows(r), columns(c), values(static_cast<size_t>(r * c)) {}
  float& At(int64_t r, int64_t c) { return values[static_cast<size_t>(r * columns + c)]; }
  float At(int64_t r, int64_t c) const { return values[static_cast<size_t>(r * columns + c)]; }
  MatrixView view() const {
    return {const_cast<float*>(values.data()), DType::kF32, rows, columns, columns};
  }
};

inline FloatMatrix Dequantize(const QuantizedWeight& weight) {
  FloatMatrix values(weight.rows, weight.columns);
  for (int64_t n = 0; n < weight.rows; ++n) {
    for (int64_t k = 0; k < weight.columns; ++k) values.At(n, k) = weight.At(n, k);
  }
  return values;
}

// The matrices of fixtures/quant/NAME.safetensors by name; none where the reference data is absent.
inline std::optional<std::map<std::string, FloatMatrix>> ReadQuantFixture(const std::string& name) {
  const std::string path =
      std::string(NIBBLE_SHARED_DATA) + "/fixtures/quant/" + name + ".safetensors";
  const auto text = ReadFile(path);
  if (!text) return std::nullopt;
  const std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(text->data()),
                                         text->size());
  std::map<std::string, FloatMatrix> tensors;
  const std::vector<SafetensorsEntry> entries = ParseSafetensors(bytes, path).value();
  for (const SafetensorsEntry& entry : entries) {
    FloatMatrix matrix(entry.shape[0], entry.shape[1]);
    for (size_t i = 0; i < matrix.values.size(); ++i) {
      const std::byte* const from = &bytes[entry.begin + i * BytesOf(*entry.dtype)];
      if (*entry.dtype == DType::kF32) {
        std::memcpy(&matrix.values[i], from, sizeof(float));
      } else {
        uint16_t bits;
        std::memcpy(&bits, from, sizeof(bits));
        matrix.values[i] = FloatFromF16(bits);
      }
    }
    tensors.emplace(entry.name, std::move(matrix));
  }
  return tensors;
}

}  // namespace nibble

#endif  // NIBBLE_QUANTIZE_FIXTURE_UTIL_H_

#include "src/checkpoint/tensor_table.h"

#include <algorithm>
#include <array>
#include <new>

namespace nibble {

Result<std::shared_ptr<std::byte[]>> AllocateBytes(size_t bytes) {
  try {
    return std::make_shared_for_overwrite<std::byte[]>(bytes);
  } catch (const std::bad_alloc&) {
    return NotEnough("cannot allocate {} bytes of memory for a tensor", bytes);
  }
}

std::string DenseLabel(const std::vector<TensorInfo>& tensors) {
  constexpr std::array kTypes = {DType::kF16, DType::kBF16, DType::kF32};
  constexpr std::array kLabels = {"fp16", "bf16", "fp32"};
  std::array<double, kTypes.size()> bytes{};
  for (const TensorInfo& tensor : tensors) {
    for (size_t i = 0; i < kTypes.size(); ++i) {
      if (tensor.dtype == kTypes[i] && tensor.shape.rank() == 2) {
        bytes[i] += static_cast<double>(tensor.stored_bytes);
      }
    }
  }
  return kLabels[static_cast<size_t>(std::max_element(bytes.begin(), bytes.end()) - bytes.begin())];
}

}  // namespace nibble

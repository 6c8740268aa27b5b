#include "src/ops/host_backend.h"

#include <algorithm>

namespace nibble {

uint64_t HostBackend::MemoryBytes() const { return ReadHostMemory().total_bytes; }

uint64_t HostBackend::AvailableBytes() const {
  return std::min(ReadHostMemory().available_bytes, memory_.Room());
}

uint64_t HostBackend::SystemBytes() const { return PeakResidentBytes(); }

Result<Matrix> HostBackend::Allocate(MemoryClass memory_class, DType dtype, int64_t rows,
                                     int64_t columns) {
  NIBBLE_ASSIGN_OR_RETURN(
      Buffer buffer,
      AllocateHost(memory_, memory_class, static_cast<size_t>(rows * columns) * BytesOf(dtype)));
  return Matrix(std::move(buffer), dtype, rows, columns);
}

Result<Matrix> HostBackend::Upload(std::span<const float> values) {
  NIBBLE_ASSIGN_OR_RETURN(Matrix matrix, Allocate(MemoryClass::kWeights, DType::kF32, 1,
                                                  static_cast<int64_t>(values.size())));
  std::copy(values.begin(), values.end(), matrix.view().row<float>(0));
  return matrix;
}

Result<Matrix> HostBackend::AllocateBeside(const std::string& directory, DType dtype, int64_t rows,
                                           int64_t columns) {
  NIBBLE_ASSIGN_OR_RETURN(
      Buffer file, AllocateInFile(directory, static_cast<size_t>(rows * columns) * BytesOf(dtype)));
  return Matrix(std::move(file), dtype, rows, columns);
}

}  // namespace nibble

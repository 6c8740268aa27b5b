// Views borrow memory, owners hold it.
#ifndef NIBBLE_TENSOR_TENSOR_H_
#define NIBBLE_TENSOR_TENSOR_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>

#include "src/base/error.h"
#include "src/tensor/dtype.h"
#include "src/tensor/memory.h"
#include "src/tensor/shape.h"

namespace nibble {

// A tensor as a file holds it: contiguous, on the host. `owner`, where set, keeps the bytes alive;
// otherwise whoever made the view does.
struct TensorView {
  DType dtype = DType::kF32;
  Shape shape;
  std::span<const std::byte> bytes;
  std::shared_ptr<const void> owner;
};

// A matrix on a device: element (r, c) is data[r · stride + c], of type dtype.
struct MatrixView {
  void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t columns = 0;
  int64_t stride = 0;  // in elements, ≥ columns

  template <typename T>
  T* row(int64_t r) const {
    return static_cast<T*>(data) + r * stride;
  }
  MatrixView Rows(int64_t begin, int64_t count) const {
    MatrixView view = *this;
    view.data = static_cast<std::byte*>(data) +
                static_cast<size_t>(begin * stride) * BytesOf(dtype);
    view.rows = count;
    return view;
  }
  MatrixView Columns(int64_t begin, int64_t count) const {
    MatrixView view = *this;
    view.data = static_cast<std::byte*>(data) + static_cast<size_t>(begin) * BytesOf(dtype);
    view.columns = count;
    return view;
  }
};

// A contiguous matrix that owns its memory.
class Matrix {
 public:
  Matrix() = default;
  Matrix(Buffer buffer, DType dtype, int64_t rows, int64_t columns)
      : buffer_(std::move(buffer)), dtype_(dtype), rows_(rows), columns_(columns) {}

  MatrixView view() const { return {buffer_.data(), dtype_, rows_, columns_, columns_}; }
  MatrixView Rows(int64_t count) const { return view().Rows(0, count); }  // the first `count`
  int64_t rows() const { return rows_; }
  int64_t columns() const { return columns_; }

 private:
  Buffer buffer_;
  DType dtype_ = DType::kF32;
  int64_t rows_ = 0;
  int64_t columns_ = 0;
};

}  // namespace nibble

#endif  // NIBBLE_TENSOR_TENSOR_H_

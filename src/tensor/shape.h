// The extents of a tensor, outermost first.
#ifndef NIBBLE_TENSOR_SHAPE_H_
#define NIBBLE_TENSOR_SHAPE_H_

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

namespace nibble {

class Shape {
 public:
  Shape() = default;  // rank 0: a scalar
  Shape(std::initializer_list<int64_t> extents) : extents_(extents) {}
  explicit Shape(std::vector<int64_t> extents) : extents_(std::move(extents)) {}

  size_t rank() const { return extents_.size(); }
  int64_t operator[](size_t i) const { return extents_[i]; }
  const std::vector<int64_t>& extents() const { return extents_; }

  // The product of the extents; none where one is negative or the product overflows.
  std::optional<int64_t> Elements() const;
  std::string ToString() const;  // "[32, 4096]"

  friend bool operator==(const Shape&, const Shape&) = default;

 private:
  std::vector<int64_t> extents_;
};

}  // namespace nibble

#endif  // NIBBLE_TENSOR_SHAPE_H_

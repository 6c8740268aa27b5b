#include "src/tensor/shape.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "src/base/checked.h"

namespace nibble {

std::optional<int64_t> Shape::Elements() const {
  int64_t count = 1;
  for (const int64_t extent : extents_) {
    const auto product = CheckedMul(count, extent);
    if (extent < 0 || !product) return std::nullopt;
    count = *product;
  }
  return count;
}

std::string Shape::ToString() const { return fmt::format("[{}]", fmt::join(extents_, ", ")); }

}  // namespace nibble

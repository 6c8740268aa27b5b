// What every kind of checkpoint shares: the list of tensors, found by name, and memory for those
// that are made and not mapped.
#ifndef NIBBLE_CHECKPOINT_TENSOR_TABLE_H_
#define NIBBLE_CHECKPOINT_TENSOR_TABLE_H_

#include <cstddef>
#include <map>
#include <memory>
#include <string_view>
#include <vector>

#include "src/base/error.h"
#include "src/checkpoint/checkpoint.h"

namespace nibble {

class TensorTable {
 public:
  // False where the name is taken.
  bool Add(TensorInfo info) {
    if (!index_.emplace(info.name, tensors_.size()).second) return false;
    tensors_.push_back(std::move(info));
    return true;
  }
  const std::vector<TensorInfo>& tensors() const { return tensors_; }
  // The position in tensors(); none where there is no such tensor.
  std::optional<size_t> Index(std::string_view name) const {
    const auto it = index_.find(name);
    return it == index_.end() ? std::nullopt : std::optional(it->second);
  }
  const TensorInfo* Find(std::string_view name) const {
    const std::optional<size_t> i = Index(name);
    return i ? &tensors_[*i] : nullptr;
  }

 private:
  std::vector<TensorInfo> tensors_;
  std::map<std::string, size_t, std::less<>> index_;
};

// Not zeroed. Fails with kResources.
Result<std::shared_ptr<std::byte[]>> AllocateBytes(size_t bytes);

// "fp16", "bf16", "fp32": the type that holds most of the dense matrices' bytes.
std::string DenseLabel(const std::vector<TensorInfo>& tensors);

}  // namespace nibble

#endif  // NIBBLE_CHECKPOINT_TENSOR_TABLE_H_

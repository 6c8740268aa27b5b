// The tensors of one quantized linear layer in each published layout: which they are, and how they
// become a QuantizedWeight and come from one.
#ifndef NIBBLE_CHECKPOINT_QUANTIZED_LINEAR_H_
#define NIBBLE_CHECKPOINT_QUANTIZED_LINEAR_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "src/base/error.h"
#include "src/checkpoint/checkpoint.h"
#include "src/checkpoint/quantization_config.h"
#include "src/format/weight.h"
#include "src/tensor/tensor.h"

namespace nibble {

struct LinearTensor {
  std::string_view suffix;  // of the layer's name: ".qweight"
  DType dtype = DType::kF16;
  Shape shape;
};

// What is written for a layer of this shape, the codes first. Fails where the layout cannot hold
// it, and says what it wants.
Result<std::vector<LinearTensor>> TensorsOfLinear(const QuantizationConfig& config,
                                                  std::string_view linear_name,
                                                  int64_t out_features, int64_t in_features);

// The suffixes that a quantized layer's tensors may have, in any layout, the codes' first for each.
std::vector<std::string_view> QuantizedSuffixes();

// Whether the tensor is a quantized layer's codes in `layout`, and the layer's extent as its shape
// says it.
struct FoundLinear {
  std::string name;
  int64_t out_features = 0;
  int64_t in_features = 0;
};
std::optional<FoundLinear> LinearOfCodes(QuantLayout layout, const TensorInfo& tensor);

// Reads a layer that `config` covers: see ReadWeight.
Result<QuantizedWeight> ReadQuantizedLinear(const Checkpoint& checkpoint,
                                            std::string_view linear_name, int64_t out_features,
                                            int64_t in_features, const QuantizationConfig& config);

// Hands `write` each tensor of TensorsOfLinear. Fails with kBadInput, naming the layouts that can,
// where the layout as `config` describes it cannot express the weight: a zero other than 8 on a
// symmetric grid, groups that are not consecutive.
using TensorSink = std::function<Status(std::string_view suffix, const TensorView& tensor)>;
Status PackQuantizedLinear(const QuantizationConfig& config, std::string_view linear_name,
                           const QuantizedWeight& weight, const TensorSink& write);

}  // namespace nibble

#endif  // NIBBLE_CHECKPOINT_QUANTIZED_LINEAR_H_

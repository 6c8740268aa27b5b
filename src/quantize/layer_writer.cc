#include "src/quantize/layer_writer.h"

#include <cstring>
#include <utility>
#include <vector>

namespace nibble {
namespace {

// A vector in the type that the tensor is stored in.
Status AddVector(CheckpointWriter& writer, const TensorInfo& tensor,
                 const std::vector<float>& values) {
  const DType dtype = tensor.dtype.value_or(DType::kF16);
  std::vector<std::byte> bytes(values.size() * BytesOf(dtype));
  for (size_t i = 0; i < values.size(); ++i) {
    if (dtype == DType::kF32) {
      std::memcpy(&bytes[i * 4], &values[i], 4);
    } else {
      const uint16_t bits =
          dtype == DType::kBF16 ? BF16FromFloat(values[i]) : F16FromFloat(values[i]);
      std::memcpy(&bytes[i * 2], &bits, 2);
    }
  }
  return writer.Add(tensor.name, {.dtype = dtype, .shape = tensor.shape, .bytes = bytes});
}

}  // namespace

Status LayerWriter::Put(int64_t layer, QuantizedLayer quantized, Origin origin) {
  if (layer < next_) return {};
  CHECK(layer == next_);
  NIBBLE_RETURN_IF_ERROR(Wait());
  ++next_;
  pending_ = std::async(std::launch::async,
                        [this, layer, origin, quantized = std::move(quantized)]() -> Status {
                          return Write(layer, quantized, origin);
                        });
  return {};
}

Status LayerWriter::Wait() { return pending_.valid() ? pending_.get() : Status(); }

Status LayerWriter::Write(int64_t layer, const QuantizedLayer& quantized, Origin origin) {
  if (origin == Origin::kComputed) NIBBLE_RETURN_IF_ERROR(store_.Save(layer, quantized));
  for (const QuantizedLayer::Linear& linear : quantized.linears) {
    NIBBLE_RETURN_IF_ERROR(writer_.AddLinear(linear.name, linear.weight));
  }
  for (const QuantizedLayer::Vector& vector : quantized.vectors) {
    NIBBLE_RETURN_IF_ERROR(AddVector(writer_, *source_.Find(vector.name), vector.values));
    written_.insert(vector.name);
  }
  return {};
}

}  // namespace nibble

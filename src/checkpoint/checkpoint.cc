#include "src/checkpoint/checkpoint.h"

#include "src/base/file.h"
#include "src/checkpoint/gguf_checkpoint.h"
#include "src/checkpoint/hf_checkpoint.h"
#include "src/checkpoint/quantized_linear.h"
#include "src/checkpoint/random_checkpoint.h"

namespace nibble {
namespace {

Result<Weight> ReadDense(const Checkpoint& checkpoint, const std::string& name, int64_t out,
                         int64_t in) {
  const TensorInfo* info = checkpoint.Find(name);
  if (info == nullptr) return BadInput("{}: {} is missing", checkpoint.path(), name);
  const Shape want{out, in};
  if (info->shape != want) {
    return BadInput("{}: {}: want {}, got {}", checkpoint.path(), name, want.ToString(),
                    info->shape.ToString());
  }
  if (!info->dtype || !IsFloat(*info->dtype)) {
    return BadInput("{}: {}: want F16, BF16 or F32, got {}", checkpoint.path(), name,
                    info->stored_type);
  }
  NIBBLE_ASSIGN_OR_RETURN(TensorView view, checkpoint.Read(name));
  return DenseWeight{.dtype = view.dtype,
                     .rows = out,
                     .columns = in,
                     .data = view.bytes.data(),
                     .owner = std::move(view.owner)};
}

}  // namespace

Result<std::unique_ptr<Checkpoint>> OpenCheckpoint(const std::string& model) {
  if (model.starts_with("random:")) return OpenRandomCheckpoint(model);
  if (!FileExists(model)) return BadInput("{}: no such file or directory", model);
  if (IsDirectory(model)) return OpenHfCheckpoint(model);
  if (model.ends_with(".gguf")) return OpenGgufCheckpoint(model);
  return BadInput(
      "{}: not a model: want a directory in Hugging Face layout, a .gguf file or "
      "random:PRESET[:METHOD]",
      model);
}

Result<Weight> ReadWeight(const Checkpoint& checkpoint, std::string_view linear_name,
                          int64_t out_features, int64_t in_features,
                          const std::optional<QuantizationConfig>& quantization) {
  const std::string name(linear_name);
  const bool quantized = quantization && quantization->Covers(name);
  // What the file holds must be what its configuration says: loading the other kind would be a
  // guess about which of the two is wrong.
  const std::vector<std::string_view> foreign =
      quantized ? std::vector<std::string_view>{".weight"} : QuantizedSuffixes();
  for (const std::string_view suffix : foreign) {
    if (checkpoint.Find(name + std::string(suffix)) == nullptr) continue;
    return BadInput("{}: {}{}: according to the quantization config this layer is {}",
                    checkpoint.path(), name, suffix, quantized ? "quantized" : "not quantized");
  }
  if (!quantized) return ReadDense(checkpoint, name + ".weight", out_features, in_features);
  return ReadQuantizedLinear(checkpoint, name, out_features, in_features, *quantization);
}

Result<std::vector<float>> ReadVector(const Checkpoint& checkpoint, std::string_view tensor_name,
                                      int64_t length) {
  const TensorInfo* info = checkpoint.Find(tensor_name);
  if (info == nullptr) return BadInput("{}: {} is missing", checkpoint.path(), tensor_name);
  if (info->shape != Shape{length} || !info->dtype || !IsFloat(*info->dtype)) {
    return BadInput("{}: {}: want F16, BF16 or F32 [{}], got {} {}", checkpoint.path(), tensor_name,
                    length, info->stored_type, info->shape.ToString());
  }
  NIBBLE_ASSIGN_OR_RETURN(const TensorView view, checkpoint.Read(tensor_name));
  const DenseWeight dense{
      .dtype = view.dtype, .rows = 1, .columns = length, .data = view.bytes.data()};
  std::vector<float> values(static_cast<size_t>(length));
  for (int64_t i = 0; i < length; ++i) values[static_cast<size_t>(i)] = dense.At(0, i);
  return values;
}

}  // namespace nibble

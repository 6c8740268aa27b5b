#include "src/checkpoint/checkpoint.h"

#include <cmath>
#include <cstring>

#include "src/base/file.h"
#include "src/checkpoint/gguf_checkpoint.h"
#include "src/checkpoint/hf_checkpoint.h"
#include "src/checkpoint/random_checkpoint.h"
#include "src/format/awq_layout.h"
#include "src/format/gptq_layout.h"

namespace nibble {
namespace {

// Gives a mapped tensor's pages back once it has been unpacked.
class ReleaseAtEnd {
 public:
  ReleaseAtEnd(const Checkpoint& checkpoint, std::string name)
      : checkpoint_(checkpoint), name_(std::move(name)) {}
  ~ReleaseAtEnd() { checkpoint_.Release(name_); }
  ReleaseAtEnd(const ReleaseAtEnd&) = delete;
  ReleaseAtEnd& operator=(const ReleaseAtEnd&) = delete;

 private:
  const Checkpoint& checkpoint_;
  std::string name_;
};

Result<TensorView> ReadExpected(const Checkpoint& checkpoint, std::string_view name, DType dtype,
                                const Shape& shape) {
  const TensorInfo* info = checkpoint.Find(name);
  if (info == nullptr) return BadInput("{}: {} is missing", checkpoint.path(), name);
  if (info->shape != shape || info->dtype != dtype) {
    return BadInput("{}: {}: want {} {}, got {} {}", checkpoint.path(), name, Name(dtype),
                    shape.ToString(), info->stored_type, info->shape.ToString());
  }
  return checkpoint.Read(name);
}

template <typename T>
std::span<const T> As(const TensorView& view) {
  return {reinterpret_cast<const T*>(view.bytes.data()), view.bytes.size() / sizeof(T)};
}

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

// Only consecutive groups (k / group) can be held; another order is GPTQ's "act-order".
Status CheckGroupIndex(const Checkpoint& checkpoint, const std::string& name, int64_t in,
                       int64_t group) {
  if (checkpoint.Find(name) == nullptr) return {};
  NIBBLE_ASSIGN_OR_RETURN(const TensorView view,
                          ReadExpected(checkpoint, name, DType::kI32, Shape{in}));
  const std::span<const int32_t> index = As<int32_t>(view);
  for (int64_t k = 0; k < in; ++k) {
    if (index[static_cast<size_t>(k)] != k / group) {
      return BadInput(
          "{}: {}: input {} is in group {}, want {}: groups in activation order (desc_act) are not "
          "supported",
          checkpoint.path(), name, k, index[static_cast<size_t>(k)], k / group);
    }
  }
  return {};
}

Status CheckQuantizedValues(const Checkpoint& checkpoint, const std::string& name,
                            const QuantizedWeight& weight) {
  for (size_t i = 0; i < weight.scales.size(); ++i) {
    if (!std::isfinite(FloatFromF16(weight.scales[i]))) {
      return BadInput("{}: {}.scales: the scale of output {}, group {} is not finite",
                      checkpoint.path(), name, i / static_cast<size_t>(weight.groups()),
                      i % static_cast<size_t>(weight.groups()));
    }
  }
  if (weight.spec.grid == Grid::kAsymmetric) return {};
  for (size_t i = 0; i < weight.zeros.size(); ++i) {
    if (weight.zeros[i] != 8) {
      return BadInput(
          "{}: {}.qzeros: a zero of {} at output {}, group {}, where the quantization config says "
          "symmetric, which is 8 everywhere",
          checkpoint.path(), name, weight.zeros[i], i / static_cast<size_t>(weight.groups()),
          i % static_cast<size_t>(weight.groups()));
    }
  }
  return {};
}

Result<Weight> ReadQuantized(const Checkpoint& checkpoint, const std::string& name, int64_t out,
                             int64_t in, const QuantizationConfig& config) {
  const bool awq = config.layout == QuantLayout::kAwqGemm;
  if (!(awq ? FitsAwq(config.spec, out, in) : FitsGptq(config.spec, out, in))) {
    return BadInput("{}: {}: a weight of {} does not fit {} in groups of {}", checkpoint.path(),
                    name, Shape({out, in}).ToString(), Name(config.layout), config.spec.group_size);
  }
  const int64_t group = config.spec.GroupLength(in);
  const int64_t groups = in / group;
  const Shape codes_shape = awq ? Shape{in, out / 8} : Shape{in / 8, out};
  const ReleaseAtEnd release_codes(checkpoint, name + ".qweight");
  const ReleaseAtEnd release_zeros(checkpoint, name + ".qzeros");
  const ReleaseAtEnd release_scales(checkpoint, name + ".scales");
  NIBBLE_ASSIGN_OR_RETURN(const TensorView codes,
                          ReadExpected(checkpoint, name + ".qweight", DType::kI32, codes_shape));
  NIBBLE_ASSIGN_OR_RETURN(
      const TensorView zeros,
      ReadExpected(checkpoint, name + ".qzeros", DType::kI32, Shape{groups, out / 8}));
  NIBBLE_ASSIGN_OR_RETURN(const TensorView scales, ReadExpected(checkpoint, name + ".scales",
                                                                DType::kF16, Shape{groups, out}));
  if (!awq) NIBBLE_RETURN_IF_ERROR(CheckGroupIndex(checkpoint, name + ".g_idx", in, group));
  QuantizedWeight weight =
      awq ? UnpackAwq(config.spec, out, in, As<uint32_t>(codes), As<uint32_t>(zeros),
                      As<uint16_t>(scales))
          : UnpackGptq(config.spec,
                       config.layout == QuantLayout::kGptqV1 ? GptqVersion::kV1 : GptqVersion::kV2,
                       out, in, As<uint32_t>(codes), As<uint32_t>(zeros), As<uint16_t>(scales));
  NIBBLE_RETURN_IF_ERROR(CheckQuantizedValues(checkpoint, name, weight));
  return weight;
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
  const char* const foreign = quantized ? ".weight" : ".qweight";
  if (checkpoint.Find(name + foreign) != nullptr) {
    return BadInput("{}: {}{}: according to the quantization config this layer is {}",
                    checkpoint.path(), name, foreign, quantized ? "quantized" : "not quantized");
  }
  return quantized ? ReadQuantized(checkpoint, name, out_features, in_features, *quantization)
                   : ReadDense(checkpoint, name + ".weight", out_features, in_features);
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

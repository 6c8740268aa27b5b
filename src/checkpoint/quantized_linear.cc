#include "src/checkpoint/quantized_linear.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <span>
#include <utility>

#include "src/format/awq_layout.h"
#include "src/format/compressed_layout.h"
#include "src/format/gptq_layout.h"
#include "src/format/group_index.h"

namespace nibble {
namespace {

// The parts of a layer under the names that a layout gives them.
struct Suffixes {
  std::string_view codes, scales, zeros, index, shape;  // empty where the layout has none
};
constexpr Suffixes kAwqSuffixes = {".qweight", ".scales", ".qzeros", "", ""};
constexpr Suffixes kGptqSuffixes = {".qweight", ".scales", ".qzeros", ".g_idx", ""};
constexpr Suffixes kCompressedSuffixes = {".weight_packed", ".weight_scale", ".weight_zero_point",
                                          ".weight_g_idx", ".weight_shape"};

const Suffixes& SuffixesOf(QuantLayout layout) {
  switch (layout) {
    case QuantLayout::kAwqGemm:
      return kAwqSuffixes;
    case QuantLayout::kGptqV1:
    case QuantLayout::kGptqV2:
      break;
    case QuantLayout::kCompressedTensors:
      return kCompressedSuffixes;
  }
  return kGptqSuffixes;
}

bool IsSymmetric(const QuantSpec& spec) { return spec.grid != Grid::kAsymmetric; }

GptqVersion VersionOf(QuantLayout layout) {
  return layout == QuantLayout::kGptqV1 ? GptqVersion::kV1 : GptqVersion::kV2;
}

bool Fits(const QuantizationConfig& config, int64_t out, int64_t in) {
  switch (config.layout) {
    case QuantLayout::kAwqGemm:
      return FitsAwq(config.spec, out, in);
    case QuantLayout::kGptqV1:
    case QuantLayout::kGptqV2:
      break;
    case QuantLayout::kCompressedTensors:
      return FitsCompressed(config.spec, out, in);
  }
  return FitsGptq(config.spec, out, in);
}

// What every layout asks of a shape; some ask for less.
constexpr std::string_view kWantedShape =
    "want rows and columns in multiples of 8 and a group size that divides the columns";

template <typename T>
std::span<const T> As(const TensorView& view) {
  return {reinterpret_cast<const T*>(view.bytes.data()), view.bytes.size() / sizeof(T)};
}

template <typename T>
TensorView ViewOf(DType dtype, Shape shape, const std::vector<T>& values) {
  return {.dtype = dtype, .shape = std::move(shape), .bytes = std::as_bytes(std::span(values))};
}

// Reads one layer's tensors; their pages are given back at the end.
class Reader {
 public:
  Reader(const Checkpoint& checkpoint, std::string_view name, const QuantizationConfig& config,
         int64_t out, int64_t in)
      : checkpoint_(checkpoint),
        name_(name),
        config_(config),
        suffixes_(SuffixesOf(config.layout)),
        out_(out),
        in_(in),
        group_(config.spec.GroupLength(in)),
        groups_(in / group_) {}
  ~Reader() {
    for (const std::string& tensor : read_) checkpoint_.Release(tensor);
  }
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;

  Result<QuantizedWeight> Read() {
    NIBBLE_RETURN_IF_ERROR(RefuseOtherLayouts());
    NIBBLE_ASSIGN_OR_RETURN(QuantizedWeight weight, Unpack());
    NIBBLE_RETURN_IF_ERROR(CheckScales(weight));
    NIBBLE_RETURN_IF_ERROR(CheckZeros(weight));
    NIBBLE_RETURN_IF_ERROR(CheckShapeTensor());
    NIBBLE_RETURN_IF_ERROR(ApplyIndex(weight));
    return weight;
  }

 private:
  const TensorInfo* Find(std::string_view suffix) const {
    return checkpoint_.Find(name_ + std::string(suffix));
  }

  // Tensors that the layout of the config does not have say that the config is another file's.
  Status RefuseOtherLayouts() const {
    for (const std::string_view suffix : QuantizedSuffixes()) {
      const bool ours = suffix == suffixes_.codes || suffix == suffixes_.scales ||
                        suffix == suffixes_.zeros || suffix == suffixes_.index ||
                        suffix == suffixes_.shape;
      // An index among AWQ's tensors is harmless where it says what AWQ means.
      const bool index = config_.layout == QuantLayout::kAwqGemm && suffix == kGptqSuffixes.index;
      if (ours || index || Find(suffix) == nullptr) continue;
      return BadInput("{}: {}{} is there, which the layout of the quantization config ({}) has not",
                      checkpoint_.path(), name_, suffix, Name(config_.layout));
    }
    return {};
  }

  Result<TensorView> ReadAs(std::string_view suffix, DType dtype, const Shape& shape) {
    const std::string tensor = name_ + std::string(suffix);
    const TensorInfo* info = checkpoint_.Find(tensor);
    if (info == nullptr) {
      return BadInput("{}: {} is missing: want {} {}", checkpoint_.path(), tensor,
                      nibble::Name(dtype), shape.ToString());
    }
    if (info->shape != shape || info->dtype != dtype) {
      return BadInput("{}: {}: want {} {}, got {} {} (in groups of {}, as the config says)",
                      checkpoint_.path(), tensor, nibble::Name(dtype), shape.ToString(),
                      info->stored_type, info->shape.ToString(), group_);
    }
    read_.push_back(tensor);
    return checkpoint_.Read(tensor);
  }

  // As float16: other types are taken where every scale is exactly one.
  Result<std::vector<uint16_t>> ReadScales(const Shape& shape) {
    const TensorInfo* info = Find(suffixes_.scales);
    const bool wider =
        info != nullptr && (info->dtype == DType::kBF16 || info->dtype == DType::kF32);
    const DType dtype = wider ? *info->dtype : DType::kF16;
    NIBBLE_ASSIGN_OR_RETURN(const TensorView view, ReadAs(suffixes_.scales, dtype, shape));
    if (!wider) {
      const std::span<const uint16_t> halves = As<uint16_t>(view);
      return std::vector<uint16_t>(halves.begin(), halves.end());
    }
    const DenseWeight values{
        .dtype = dtype, .rows = shape[0], .columns = shape[1], .data = view.bytes.data()};
    std::vector<uint16_t> scales;
    scales.reserve(static_cast<size_t>(shape[0] * shape[1]));
    for (int64_t i = 0; i < shape[0]; ++i) {
      for (int64_t j = 0; j < shape[1]; ++j) {
        const float value = values.At(i, j);
        scales.push_back(F16FromFloat(value));
        // NaN and infinity are refused with the others that are not finite.
        if (std::isfinite(value) && FloatFromF16(scales.back()) != value) {
          return BadInput(
              "{}: {}{}: the scale {} at [{}, {}] is no float16, in which nibble keeps scales",
              checkpoint_.path(), name_, suffixes_.scales, value, i, j);
        }
      }
    }
    return scales;
  }

  Result<QuantizedWeight> Unpack() {
    const QuantSpec& spec = config_.spec;
    if (config_.layout == QuantLayout::kCompressedTensors) {
      NIBBLE_ASSIGN_OR_RETURN(const TensorView codes,
                              ReadAs(suffixes_.codes, DType::kI32, Shape{out_, in_ / 8}));
      NIBBLE_ASSIGN_OR_RETURN(const std::vector<uint16_t> scales, ReadScales(Shape{out_, groups_}));
      TensorView zeros;
      if (!IsSymmetric(spec)) {
        NIBBLE_ASSIGN_OR_RETURN(zeros,
                                ReadAs(suffixes_.zeros, DType::kI32, Shape{out_ / 8, groups_}));
      } else if (Find(suffixes_.zeros) != nullptr) {
        return BadInput("{}: {}{} is there, where the quantization config says symmetric",
                        checkpoint_.path(), name_, suffixes_.zeros);
      }
      return UnpackCompressed(spec, out_, in_, As<uint32_t>(codes), scales, As<uint32_t>(zeros));
    }
    const bool awq = config_.layout == QuantLayout::kAwqGemm;
    NIBBLE_ASSIGN_OR_RETURN(
        const TensorView codes,
        ReadAs(suffixes_.codes, DType::kI32, awq ? Shape{in_, out_ / 8} : Shape{in_ / 8, out_}));
    NIBBLE_ASSIGN_OR_RETURN(const TensorView zeros,
                            ReadAs(suffixes_.zeros, DType::kI32, Shape{groups_, out_ / 8}));
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<uint16_t> scales, ReadScales(Shape{groups_, out_}));
    return awq ? UnpackAwq(spec, out_, in_, As<uint32_t>(codes), As<uint32_t>(zeros), scales)
               : UnpackGptq(spec, VersionOf(config_.layout), out_, in_, As<uint32_t>(codes),
                            As<uint32_t>(zeros), scales);
  }

  Status CheckScales(const QuantizedWeight& weight) const {
    for (size_t i = 0; i < weight.scales.size(); ++i) {
      if (!std::isfinite(FloatFromF16(weight.scales[i]))) {
        return BadInput("{}: {}{}: the scale of output {}, group {} is not finite",
                        checkpoint_.path(), name_, suffixes_.scales,
                        i / static_cast<size_t>(groups_), i % static_cast<size_t>(groups_));
      }
    }
    return {};
  }

  Status CheckZeros(const QuantizedWeight& weight) const {
    if (!IsSymmetric(weight.spec)) return {};
    for (size_t i = 0; i < weight.zeros.size(); ++i) {
      if (weight.zeros[i] != 8) {
        return BadInput(
            "{}: {}{}: a zero of {} at output {}, group {}, where the quantization config says "
            "symmetric, which is 8 everywhere",
            checkpoint_.path(), name_, suffixes_.zeros, weight.zeros[i],
            i / static_cast<size_t>(groups_), i % static_cast<size_t>(groups_));
      }
    }
    return {};
  }

  Status CheckShapeTensor() {
    if (suffixes_.shape.empty()) return {};
    const TensorInfo* info = Find(suffixes_.shape);
    const DType dtype = info != nullptr && info->dtype == DType::kI32 ? DType::kI32 : DType::kI64;
    NIBBLE_ASSIGN_OR_RETURN(const TensorView view, ReadAs(suffixes_.shape, dtype, Shape{2}));
    const auto extent = [&](size_t i) -> int64_t {
      return dtype == DType::kI32 ? As<int32_t>(view)[i] : As<int64_t>(view)[i];
    };
    if (extent(0) != out_ || extent(1) != in_) {
      return BadInput("{}: {}{}: want {}, got [{}, {}]", checkpoint_.path(), name_, suffixes_.shape,
                      Shape({out_, in_}).ToString(), extent(0), extent(1));
    }
    return {};
  }

  Status ApplyIndex(QuantizedWeight& weight) {
    const bool indexed = config_.spec.order == GroupOrder::kIndexed;
    const std::string_view suffix = suffixes_.index.empty() ? kGptqSuffixes.index : suffixes_.index;
    if (Find(suffix) == nullptr) {
      if (!indexed) return {};
      return BadInput("{}: {}{} is missing: the quantization config says act-order",
                      checkpoint_.path(), name_, suffix);
    }
    NIBBLE_ASSIGN_OR_RETURN(const TensorView view, ReadAs(suffix, DType::kI32, Shape{in_}));
    const std::span<const int32_t> index = As<int32_t>(view);
    if (!indexed) {
      if (IsConsecutive(index, group_)) return {};
      size_t k = 0;
      while (index[k] == static_cast<int64_t>(k) / group_) ++k;
      return BadInput(
          "{}: {}{}: input {} is in group {}, want {}: the quantization config says neither "
          "\"desc_act\" nor \"actorder\", so that groups are consecutive inputs",
          checkpoint_.path(), name_, suffix, k, index[k], static_cast<int64_t>(k) / group_);
    }
    Result<std::vector<int32_t>> columns = ColumnsByGroup(index, group_);
    if (!columns) {
      return BadInput("{}: {}{}: {}", checkpoint_.path(), name_, suffix, columns.error().message());
    }
    SortColumns(*std::move(columns), weight);
    return {};
  }

  const Checkpoint& checkpoint_;
  const std::string name_;
  const QuantizationConfig& config_;
  const Suffixes& suffixes_;
  const int64_t out_, in_, group_, groups_;
  std::vector<std::string> read_;
};

// Why the layout cannot express the weight as the config describes it.
Status CheckExpressible(const QuantizationConfig& config, std::string_view name,
                        const QuantizedWeight& weight) {
  if (config.spec.order == GroupOrder::kConsecutive && !HasNaturalOrder(weight)) {
    return BadInput(
        "{}: its groups are not consecutive inputs (act-order), which the {} layout cannot "
        "express; gptq, gptq_v2 and compressed-tensors can",
        name, Name(config.layout));
  }
  if (!IsSymmetric(config.spec)) return {};
  const auto zero =
      std::find_if(weight.zeros.begin(), weight.zeros.end(), [](uint8_t z) { return z != 8; });
  if (zero == weight.zeros.end()) return {};
  return BadInput(
      "{}: a zero of {}, where a symmetric {} checkpoint has 8 everywhere; awq, gptq_v2 and "
      "asymmetric compressed-tensors can express it",
      name, *zero, Name(config.layout));
}

}  // namespace

Result<std::vector<LinearTensor>> TensorsOfLinear(const QuantizationConfig& config,
                                                  std::string_view linear_name,
                                                  int64_t out_features, int64_t in_features) {
  const QuantSpec& spec = config.spec;
  if (!Fits(config, out_features, in_features)) {
    return BadInput("{}: a weight of {} in groups of {} does not fit the {} layout: {}",
                    linear_name, Shape({out_features, in_features}).ToString(), spec.group_size,
                    Name(config.layout), kWantedShape);
  }
  const int64_t groups = in_features / spec.GroupLength(in_features);
  const Suffixes& suffixes = SuffixesOf(config.layout);
  std::vector<LinearTensor> tensors;
  if (config.layout == QuantLayout::kCompressedTensors) {
    tensors.push_back({suffixes.codes, DType::kI32, Shape{out_features, in_features / 8}});
    tensors.push_back({suffixes.scales, DType::kF16, Shape{out_features, groups}});
    if (!IsSymmetric(spec)) {
      tensors.push_back({suffixes.zeros, DType::kI32, Shape{out_features / 8, groups}});
    }
    if (spec.order == GroupOrder::kIndexed) {
      tensors.push_back({suffixes.index, DType::kI32, Shape{in_features}});
    }
    tensors.push_back({suffixes.shape, DType::kI64, Shape{2}});
    return tensors;
  }
  const bool awq = config.layout == QuantLayout::kAwqGemm;
  tensors.push_back(
      {suffixes.codes, DType::kI32,
       awq ? Shape{in_features, out_features / 8} : Shape{in_features / 8, out_features}});
  tensors.push_back({suffixes.zeros, DType::kI32, Shape{groups, out_features / 8}});
  tensors.push_back({suffixes.scales, DType::kF16, Shape{groups, out_features}});
  if (!awq) tensors.push_back({suffixes.index, DType::kI32, Shape{in_features}});
  return tensors;
}

std::vector<std::string_view> QuantizedSuffixes() {
  return {kGptqSuffixes.codes,       kGptqSuffixes.scales,      kGptqSuffixes.zeros,
          kGptqSuffixes.index,       kCompressedSuffixes.codes, kCompressedSuffixes.scales,
          kCompressedSuffixes.zeros, kCompressedSuffixes.index, kCompressedSuffixes.shape};
}

std::optional<FoundLinear> LinearOfCodes(QuantLayout layout, const TensorInfo& tensor) {
  const std::string_view suffix = SuffixesOf(layout).codes;
  if (!tensor.name.ends_with(suffix) || tensor.shape.rank() != 2) return std::nullopt;
  FoundLinear linear{.name = tensor.name.substr(0, tensor.name.size() - suffix.size())};
  // A word of codes has 4 bytes in the file, so eight times an extent is far from overflowing.
  const int64_t a = tensor.shape[0], b = tensor.shape[1];
  switch (layout) {
    case QuantLayout::kAwqGemm:
      linear.out_features = 8 * b;
      linear.in_features = a;
      break;
    case QuantLayout::kGptqV1:
    case QuantLayout::kGptqV2:
      linear.out_features = b;
      linear.in_features = 8 * a;
      break;
    case QuantLayout::kCompressedTensors:
      linear.out_features = a;
      linear.in_features = 8 * b;
      break;
  }
  return linear;
}

Result<QuantizedWeight> ReadQuantizedLinear(const Checkpoint& checkpoint,
                                            std::string_view linear_name, int64_t out_features,
                                            int64_t in_features, const QuantizationConfig& config) {
  if (!Fits(config, out_features, in_features)) {
    return BadInput("{}: {}: a weight of {} does not fit {} in groups of {}", checkpoint.path(),
                    linear_name, Shape({out_features, in_features}).ToString(), Name(config.layout),
                    config.spec.group_size);
  }
  return Reader(checkpoint, linear_name, config, out_features, in_features).Read();
}

Status PackQuantizedLinear(const QuantizationConfig& config, std::string_view linear_name,
                           const QuantizedWeight& weight, const TensorSink& write) {
  const int64_t out = weight.rows, in = weight.columns, groups = weight.groups();
  CHECK(Fits(config, out, in) && config.spec.group_size == weight.spec.group_size);
  NIBBLE_RETURN_IF_ERROR(CheckExpressible(config, linear_name, weight));
  const Suffixes& suffixes = SuffixesOf(config.layout);
  if (config.layout == QuantLayout::kAwqGemm) {
    const AwqTensors packed = PackAwq(weight);
    NIBBLE_RETURN_IF_ERROR(
        write(suffixes.codes, ViewOf(DType::kI32, Shape{in, out / 8}, packed.qweight)));
    NIBBLE_RETURN_IF_ERROR(
        write(suffixes.zeros, ViewOf(DType::kI32, Shape{groups, out / 8}, packed.qzeros)));
    return write(suffixes.scales, ViewOf(DType::kF16, Shape{groups, out}, packed.scales));
  }
  if (config.layout == QuantLayout::kCompressedTensors) {
    const bool symmetric = IsSymmetric(config.spec);
    const CompressedTensors packed =
        PackCompressed(weight, symmetric ? ZeroPoints::kImplied : ZeroPoints::kStored);
    NIBBLE_RETURN_IF_ERROR(
        write(suffixes.codes, ViewOf(DType::kI32, Shape{out, in / 8}, packed.weight_packed)));
    NIBBLE_RETURN_IF_ERROR(
        write(suffixes.scales, ViewOf(DType::kF16, Shape{out, groups}, packed.weight_scale)));
    if (!symmetric) {
      NIBBLE_RETURN_IF_ERROR(write(
          suffixes.zeros, ViewOf(DType::kI32, Shape{out / 8, groups}, packed.weight_zero_point)));
    }
    if (config.spec.order == GroupOrder::kIndexed) {
      NIBBLE_RETURN_IF_ERROR(
          write(suffixes.index, ViewOf(DType::kI32, Shape{in}, GroupOfInput(weight))));
    }
    return write(suffixes.shape, ViewOf(DType::kI64, Shape{2}, std::vector<int64_t>{out, in}));
  }
  const GptqTensors packed = PackGptq(weight, VersionOf(config.layout));
  NIBBLE_RETURN_IF_ERROR(
      write(suffixes.codes, ViewOf(DType::kI32, Shape{in / 8, out}, packed.qweight)));
  NIBBLE_RETURN_IF_ERROR(
      write(suffixes.zeros, ViewOf(DType::kI32, Shape{groups, out / 8}, packed.qzeros)));
  NIBBLE_RETURN_IF_ERROR(
      write(suffixes.scales, ViewOf(DType::kF16, Shape{groups, out}, packed.scales)));
  return write(suffixes.index, ViewOf(DType::kI32, Shape{in}, packed.g_idx));
}

}  // namespace nibble

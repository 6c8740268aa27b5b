#include "src/checkpoint/gguf.h"

#include <algorithm>
#include <bit>
#include <charconv>
#include <cmath>
#include <cstring>

#include "src/base/checked.h"

namespace nibble {
namespace {

static_assert(std::endian::native == std::endian::little);

constexpr uint32_t kVersion = 3;
constexpr uint64_t kMaxKeyBytes = 65535;
constexpr uint64_t kMaxTensorNameBytes = 64;
constexpr uint32_t kMaxDimensions = 4;
constexpr uint64_t kDefaultAlignment = 32;
constexpr uint64_t kMaxAlignment = 1u << 20;
// The least that one metadata entry (key length, a character, type, a byte) and one tensor's entry
// (name length, a character, dimensions, one extent, type, offset) take.
constexpr uint64_t kMinValueBytes = 8 + 1 + 4 + 1;
constexpr uint64_t kMinTensorBytes = 8 + 1 + 4 + 8 + 4 + 8;

// Text of the file in an error: bounded, and without what a terminal would obey.
std::string Shown(std::string_view text) {
  std::string shown(text.substr(0, 80));
  std::replace_if(
      shown.begin(), shown.end(), [](unsigned char c) { return c < 32 || c > 126; }, '?');
  return shown;
}

template <typename T>
T Load(const std::byte* p) {
  T value;
  std::memcpy(&value, p, sizeof(value));
  return value;
}

}  // namespace

class GgufParser {
 public:
  GgufParser(std::span<const std::byte> file, std::string_view source) {
    gguf_.file_ = file;
    gguf_.source_ = source;
  }

  Result<GgufFile> Run() {
    NIBBLE_RETURN_IF_ERROR(ReadHeader());
    for (uint64_t i = 0; i < values_; ++i) NIBBLE_RETURN_IF_ERROR(ReadKeyValue());
    NIBBLE_RETURN_IF_ERROR(ReadAlignment());
    if (tensors_ > left() / kMinTensorBytes) {
      return Corrupt("{} tensors, more than the file can hold", tensors_);
    }
    for (uint64_t i = 0; i < tensors_; ++i) NIBBLE_RETURN_IF_ERROR(ReadTensor());
    NIBBLE_RETURN_IF_ERROR(PlaceTensors());
    return std::move(gguf_);
  }

 private:
  using ValueType = GgufFile::ValueType;

  template <typename... Args>
  tl::unexpected<Error> Corrupt(fmt::format_string<Args...> format, Args&&... args) const {
    return BadInput("{}: {}", gguf_.source_, fmt::format(format, std::forward<Args>(args)...));
  }
  uint64_t left() const { return gguf_.file_.size() - at_; }

  // The next bytes, with the number checked against what is left.
  Result<std::span<const std::byte>> Take(uint64_t bytes, std::string_view what) {
    if (bytes > left()) {
      return Corrupt("{} of {} bytes at offset {}, where {} are left: the file is truncated", what,
                     bytes, at_, left());
    }
    const auto taken = gguf_.file_.subspan(at_, bytes);
    at_ += bytes;
    return taken;
  }
  template <typename T>
  Result<T> Number(std::string_view what) {
    NIBBLE_ASSIGN_OR_RETURN(const auto bytes, Take(sizeof(T), what));
    return Load<T>(bytes.data());
  }
  Result<std::string> Text(uint64_t max_bytes, std::string_view what) {
    NIBBLE_ASSIGN_OR_RETURN(const uint64_t length, Number<uint64_t>(what));
    if (length > max_bytes || length == 0) {
      return Corrupt("{} of {} bytes; want 1 to {}", what, length, max_bytes);
    }
    NIBBLE_ASSIGN_OR_RETURN(const auto bytes, Take(length, what));
    return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  }

  Status ReadHeader() {
    if (left() < 4 || std::memcmp(gguf_.file_.data(), "GGUF", 4) != 0) {
      return Corrupt("not a GGUF file: it does not start with \"GGUF\"");
    }
    at_ = 4;
    NIBBLE_ASSIGN_OR_RETURN(const uint32_t version, Number<uint32_t>("version"));
    if (version == __builtin_bswap32(kVersion)) {
      return Corrupt("a big-endian GGUF file; nibble reads little-endian ones");
    }
    if (version != kVersion) {
      return Corrupt("GGUF version {}; nibble reads version {}", version, kVersion);
    }
    NIBBLE_ASSIGN_OR_RETURN(tensors_, Number<uint64_t>("number of tensors"));
    NIBBLE_ASSIGN_OR_RETURN(values_, Number<uint64_t>("number of metadata entries"));
    if (values_ > left() / kMinValueBytes) {
      return Corrupt("{} metadata entries, more than the file can hold", values_);
    }
    if (tensors_ > left() / kMinTensorBytes) {
      return Corrupt("{} tensors, more than the file can hold", tensors_);
    }
    return {};
  }

  // Bytes of one value; none for strings and arrays.
  static std::optional<uint64_t> ScalarBytes(ValueType type) {
    switch (type) {
      case ValueType::kU8:
      case ValueType::kI8:
      case ValueType::kBool:
        return 1;
      case ValueType::kU16:
      case ValueType::kI16:
        return 2;
      case ValueType::kU32:
      case ValueType::kI32:
      case ValueType::kF32:
        return 4;
      case ValueType::kU64:
      case ValueType::kI64:
      case ValueType::kF64:
        return 8;
      case ValueType::kString:
      case ValueType::kArray:
        break;
    }
    return std::nullopt;
  }

  Result<ValueType> ReadType(const std::string& key) {
    NIBBLE_ASSIGN_OR_RETURN(const uint32_t type, Number<uint32_t>("type of a metadata value"));
    if (type > static_cast<uint32_t>(ValueType::kF64)) {
      return Corrupt("metadata {}: unknown type {}", Shown(key), type);
    }
    return static_cast<ValueType>(type);
  }

  Status SkipString(const std::string& key) {
    NIBBLE_ASSIGN_OR_RETURN(const uint64_t length, Number<uint64_t>("length of a string"));
    if (length > left()) {
      return Corrupt("metadata {}: a string of {} bytes, where {} are left", Shown(key), length,
                     left());
    }
    at_ += length;
    return {};
  }

  Status ReadKeyValue() {
    NIBBLE_ASSIGN_OR_RETURN(const std::string key, Text(kMaxKeyBytes, "metadata key"));
    GgufFile::Value value;
    NIBBLE_ASSIGN_OR_RETURN(value.type, ReadType(key));
    uint64_t begin = at_;
    if (value.type == ValueType::kString) {
      NIBBLE_RETURN_IF_ERROR(SkipString(key));
      begin += sizeof(uint64_t);
    } else if (value.type == ValueType::kArray) {
      NIBBLE_ASSIGN_OR_RETURN(value.element, ReadType(key));
      NIBBLE_ASSIGN_OR_RETURN(value.count, Number<uint64_t>("length of an array"));
      begin = at_;
      if (value.element == ValueType::kArray) {
        return Corrupt("metadata {}: arrays of arrays are not supported", Shown(key));
      }
      const uint64_t least = ScalarBytes(value.element).value_or(sizeof(uint64_t));
      if (value.count > left() / least) {
        return Corrupt("metadata {}: an array of {} elements, more than the file can hold",
                       Shown(key), value.count);
      }
      if (value.element == ValueType::kString) {
        for (uint64_t i = 0; i < value.count; ++i) NIBBLE_RETURN_IF_ERROR(SkipString(key));
      } else {
        at_ += value.count * least;
      }
    } else {
      NIBBLE_RETURN_IF_ERROR(Take(*ScalarBytes(value.type), "metadata value"));
    }
    value.bytes = gguf_.file_.subspan(begin, at_ - begin);
    if (!gguf_.values_.emplace(key, value).second) {
      return Corrupt("metadata {} occurs twice", Shown(key));
    }
    return {};
  }

  Status ReadAlignment() {
    NIBBLE_ASSIGN_OR_RETURN(const std::optional<int64_t> alignment,
                            gguf_.Integer("general.alignment", 8, kMaxAlignment));
    alignment_ = static_cast<uint64_t>(alignment.value_or(kDefaultAlignment));
    if (!std::has_single_bit(alignment_)) {
      return Corrupt("general.alignment of {} is not a power of two", alignment_);
    }
    return {};
  }

  Status ReadTensor() {
    GgufTensor tensor;
    NIBBLE_ASSIGN_OR_RETURN(tensor.name, Text(kMaxTensorNameBytes, "tensor name"));
    const std::string shown = Shown(tensor.name);
    NIBBLE_ASSIGN_OR_RETURN(const uint32_t rank, Number<uint32_t>("number of dimensions"));
    if (rank == 0 || rank > kMaxDimensions) {
      return Corrupt("{}: {} dimensions; want 1 to {}", shown, rank, kMaxDimensions);
    }
    std::vector<int64_t> extents(rank);
    for (uint32_t i = 0; i < rank; ++i) {
      NIBBLE_ASSIGN_OR_RETURN(const uint64_t extent, Number<uint64_t>("dimension"));
      if (extent == 0 || extent > uint64_t{INT64_MAX}) {
        return Corrupt("{}: a dimension of {}", shown, extent);
      }
      extents[rank - 1 - i] = static_cast<int64_t>(extent);  // the file's order is fastest first
    }
    tensor.shape = Shape(std::move(extents));
    NIBBLE_ASSIGN_OR_RETURN(const uint32_t type, Number<uint32_t>("tensor type"));
    NIBBLE_ASSIGN_OR_RETURN(tensor.begin, Number<uint64_t>("tensor offset"));
    tensor.type = FindGgmlType(type);
    if (tensor.type == nullptr) {
      return Corrupt("{}: tensors of type {} are not supported", shown, GgmlTypeName(type));
    }
    const int64_t row = tensor.shape[rank - 1];
    if (row % tensor.type->block_elements != 0) {
      return Corrupt("{}: rows of {} elements are not made of blocks of {} ({})", shown, row,
                     tensor.type->block_elements, tensor.type->name);
    }
    const std::optional<int64_t> elements = tensor.shape.Elements();
    const std::optional<int64_t> bytes =
        elements ? CheckedMul(*elements / tensor.type->block_elements, tensor.type->block_bytes)
                 : std::nullopt;
    if (!bytes || static_cast<uint64_t>(*bytes) > gguf_.file_.size()) {
      return Corrupt("{}: {} of shape {} is larger than the file", shown, tensor.type->name,
                     tensor.shape.ToString());
    }
    if (tensor.begin > gguf_.file_.size() || tensor.begin % alignment_ != 0) {
      return Corrupt("{}: an offset of {}, which is beyond the file or not a multiple of {}", shown,
                     tensor.begin, alignment_);
    }
    tensor.end = tensor.begin + static_cast<uint64_t>(*bytes);  // both at most the file's size
    if (!gguf_.tensor_index_.emplace(tensor.name, gguf_.tensors_.size()).second) {
      return Corrupt("tensor {} occurs twice", shown);
    }
    gguf_.tensors_.push_back(std::move(tensor));
    return {};
  }

  // Offsets, which count from the start of the data so far, become offsets into the file.
  Status PlaceTensors() {
    if (gguf_.tensors_.empty()) return Corrupt("the file has no tensors");
    // All numbers here are at most the file's size plus the alignment: no sum can overflow.
    const uint64_t data_begin = RoundUp(at_, alignment_);
    std::vector<GgufTensor*> order;
    for (GgufTensor& tensor : gguf_.tensors_) order.push_back(&tensor);
    std::sort(order.begin(), order.end(),
              [](const GgufTensor* a, const GgufTensor* b) { return a->begin < b->begin; });
    uint64_t expected = 0;
    for (GgufTensor* tensor : order) {
      if (tensor->begin != expected) {
        return Corrupt(
            "{}: data at offset {} {}: want {}", Shown(tensor->name), tensor->begin,
            tensor->begin < expected ? "overlaps another tensor" : "leaves a hole before it",
            expected);
      }
      expected = RoundUp(tensor->end, alignment_);
      tensor->begin += data_begin;
      tensor->end += data_begin;
      if (tensor->end > gguf_.file_.size()) {
        return Corrupt("{}: ends at byte {} of a file of {}: the file is truncated",
                       Shown(tensor->name), tensor->end, gguf_.file_.size());
      }
    }
    // The last tensor may or may not be padded.
    if (gguf_.file_.size() > data_begin + expected) {
      return Corrupt("{} bytes after the last tensor", gguf_.file_.size() - data_begin - expected);
    }
    return {};
  }

  GgufFile gguf_;
  uint64_t at_ = 0;
  uint64_t tensors_ = 0, values_ = 0;
  uint64_t alignment_ = kDefaultAlignment;
};

Result<GgufFile> GgufFile::Parse(std::span<const std::byte> file, std::string_view source) {
  return GgufParser(file, source).Run();
}

const GgufTensor* GgufFile::FindTensor(std::string_view name) const {
  const auto it = tensor_index_.find(name);
  return it == tensor_index_.end() ? nullptr : &tensors_[it->second];
}

std::vector<std::string> GgufFile::Keys() const {
  std::vector<std::string> keys;
  for (const auto& [key, value] : values_) keys.push_back(key);
  return keys;
}

const GgufFile::Value* GgufFile::Find(std::string_view key) const {
  const auto it = values_.find(key);
  return it == values_.end() ? nullptr : &it->second;
}

std::optional<int64_t> GgufFile::AsInteger(const Value& value) {
  const std::byte* p = value.bytes.data();
  switch (value.type) {
    case ValueType::kU8:
      return Load<uint8_t>(p);
    case ValueType::kI8:
      return Load<int8_t>(p);
    case ValueType::kU16:
      return Load<uint16_t>(p);
    case ValueType::kI16:
      return Load<int16_t>(p);
    case ValueType::kU32:
      return Load<uint32_t>(p);
    case ValueType::kI32:
      return Load<int32_t>(p);
    case ValueType::kI64:
      return Load<int64_t>(p);
    case ValueType::kU64: {
      const auto number = Load<uint64_t>(p);
      if (number > uint64_t{INT64_MAX}) return std::nullopt;
      return static_cast<int64_t>(number);
    }
    default:
      return std::nullopt;
  }
}

Result<std::optional<int64_t>> GgufFile::Integer(std::string_view key, int64_t min,
                                                 int64_t max) const {
  const Value* value = Find(key);
  if (value == nullptr) return std::nullopt;
  const std::optional<int64_t> number = AsInteger(*value);
  if (!number || *number < min || *number > max) {
    return BadInput("{}: metadata {}: want an integer from {} to {}{}", source_, key, min, max,
                    number ? fmt::format(", got {}", *number) : std::string());
  }
  return number;
}

Result<std::optional<double>> GgufFile::Number(std::string_view key) const {
  const Value* value = Find(key);
  if (value == nullptr) return std::nullopt;
  double number = 0;
  if (value->type == ValueType::kF32) {
    const auto single = Load<float>(value->bytes.data());
    number = single;
    if (std::isfinite(single)) {
      const std::string shortest = fmt::format("{}", single);
      std::from_chars(shortest.data(), shortest.data() + shortest.size(), number);
    }
  } else if (value->type == ValueType::kF64) {
    number = Load<double>(value->bytes.data());
  } else {
    return BadInput("{}: metadata {}: want a floating-point number", source_, key);
  }
  if (!std::isfinite(number)) {
    return BadInput("{}: metadata {}: the number is not finite", source_, key);
  }
  return number;
}

Result<std::optional<bool>> GgufFile::Boolean(std::string_view key) const {
  const Value* value = Find(key);
  if (value == nullptr) return std::nullopt;
  if (value->type != ValueType::kBool) {
    return BadInput("{}: metadata {}: want true or false", source_, key);
  }
  const auto byte = Load<uint8_t>(value->bytes.data());
  if (byte > 1) return BadInput("{}: metadata {}: want true or false", source_, key);
  return byte == 1;
}

Result<std::optional<std::string>> GgufFile::String(std::string_view key) const {
  const Value* value = Find(key);
  if (value == nullptr) return std::nullopt;
  if (value->type != ValueType::kString) {
    return BadInput("{}: metadata {}: want a string", source_, key);
  }
  return std::string(reinterpret_cast<const char*>(value->bytes.data()), value->bytes.size());
}

Result<std::vector<std::string>> GgufFile::Strings(std::string_view key) const {
  std::vector<std::string> strings;
  const Value* value = Find(key);
  if (value == nullptr) return strings;
  if (value->type != ValueType::kArray || value->element != ValueType::kString) {
    return BadInput("{}: metadata {}: want an array of strings", source_, key);
  }
  strings.reserve(value->count);
  const std::byte* p = value->bytes.data();
  for (uint64_t i = 0; i < value->count; ++i) {  // the lengths were checked by Parse
    const auto length = Load<uint64_t>(p);
    p += sizeof(length);
    strings.emplace_back(reinterpret_cast<const char*>(p), length);
    p += length;
  }
  return strings;
}

Result<std::vector<float>> GgufFile::Floats(std::string_view key) const {
  const Value* value = Find(key);
  if (value == nullptr) return std::vector<float>();
  if (value->type != ValueType::kArray || value->element != ValueType::kF32) {
    return BadInput("{}: metadata {}: want an array of float32", source_, key);
  }
  std::vector<float> numbers(value->count);
  if (value->count > 0) std::memcpy(numbers.data(), value->bytes.data(), value->bytes.size());
  return numbers;
}

Result<std::vector<int32_t>> GgufFile::Int32s(std::string_view key) const {
  const Value* value = Find(key);
  if (value == nullptr) return std::vector<int32_t>();
  if (value->type != ValueType::kArray ||
      (value->element != ValueType::kI32 && value->element != ValueType::kU32)) {
    return BadInput("{}: metadata {}: want an array of int32", source_, key);
  }
  std::vector<int32_t> numbers(value->count);
  if (value->count > 0) std::memcpy(numbers.data(), value->bytes.data(), value->bytes.size());
  return numbers;
}

std::optional<uint64_t> GgufFile::ArrayLength(std::string_view key) const {
  const Value* value = Find(key);
  if (value == nullptr || value->type != ValueType::kArray) return std::nullopt;
  return value->count;
}

}  // namespace nibble

#include "src/checkpoint/safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <unordered_set>

#include "src/base/checked.h"
#include "src/checkpoint/json_events.h"

namespace nibble {
namespace {

// Numbers in the file are little-endian and used as they lie.
static_assert(std::endian::native == std::endian::little);

struct TypeInfo {
  std::string_view name;
  uint64_t bytes;
  std::optional<DType> dtype;
};
constexpr std::array kTypes = {
    TypeInfo{"F64", 8, std::nullopt},     TypeInfo{"F32", 4, DType::kF32},
    TypeInfo{"F16", 2, DType::kF16},      TypeInfo{"BF16", 2, DType::kBF16},
    TypeInfo{"I64", 8, DType::kI64},      TypeInfo{"I32", 4, DType::kI32},
    TypeInfo{"I16", 2, std::nullopt},     TypeInfo{"I8", 1, DType::kI8},
    TypeInfo{"U64", 8, std::nullopt},     TypeInfo{"U32", 4, std::nullopt},
    TypeInfo{"U16", 2, std::nullopt},     TypeInfo{"U8", 1, DType::kU8},
    TypeInfo{"BOOL", 1, std::nullopt},    TypeInfo{"F8_E4M3", 1, std::nullopt},
    TypeInfo{"F8_E5M2", 1, std::nullopt}, TypeInfo{"F8_E8M0", 1, std::nullopt},
};

const TypeInfo* FindType(std::string_view name) {
  const auto it = std::find_if(kTypes.begin(), kTypes.end(),
                               [&](const TypeInfo& type) { return type.name == name; });
  return it == kTypes.end() ? nullptr : &*it;
}

constexpr size_t kMaxRank = 16;  // the largest of any model is below 6

// {"__metadata__": {string: string}, NAME: {"dtype": …, "shape": […], "data_offsets": [b, e]}, …}
class HeaderReader final : public JsonEvents {
 public:
  std::vector<SafetensorsEntry> TakeEntries() { return std::move(entries_); }

  bool start_object(std::size_t n) override {
    if (place_ == Place::kStart) {
      place_ = Place::kRoot;
      return true;
    }
    if (place_ != Place::kRoot) return JsonEvents::start_object(n);
    if (name_ == "__metadata__") {
      place_ = Place::kMetadata;
      return true;
    }
    place_ = Place::kTensor;
    entries_.emplace_back().name = name_;
    offsets_.clear();
    shape_.clear();
    has_type_ = has_shape_ = has_offsets_ = false;
    return true;
  }

  bool key(string_t& key) override {
    if (place_ == Place::kRoot) {
      if (!names_.insert(key).second) return Stop("\"{}\" occurs twice", key);
      name_ = key;
      return true;
    }
    if (place_ == Place::kMetadata) {
      if (!metadata_keys_.insert(key).second) return Stop("__metadata__: \"{}\" occurs twice", key);
      return true;
    }
    bool* const seen = key == "dtype"          ? &has_type_
                       : key == "shape"        ? &has_shape_
                       : key == "data_offsets" ? &has_offsets_
                                               : nullptr;
    if (seen == nullptr) return Stop("{}: unknown field \"{}\"", name_, key);
    if (*seen) return Stop("{}: \"{}\" occurs twice", name_, key);
    *seen = true;
    field_ = key;
    return true;
  }

  bool string(string_t& value) override {
    if (place_ == Place::kMetadata) return true;
    if (place_ != Place::kTensor || field_ != "dtype") return JsonEvents::string(value);
    if (FindType(value) == nullptr) return Stop("{}: unknown type \"{}\"", name_, value);
    entries_.back().type = value;
    return true;
  }

  bool start_array(std::size_t n) override {
    if (place_ != Place::kTensor || field_ == "dtype") return JsonEvents::start_array(n);
    place_ = field_ == "shape" ? Place::kShape : Place::kOffsets;
    return true;
  }

  bool number_unsigned(number_unsigned_t value) override {
    if (place_ == Place::kShape) {
      if (shape_.size() == kMaxRank) return Stop("{}: more than {} dimensions", name_, kMaxRank);
      if (value > uint64_t{INT64_MAX}) return Stop("{}: a dimension of {}", name_, value);
      shape_.push_back(static_cast<int64_t>(value));
      return true;
    }
    if (place_ == Place::kOffsets) {
      if (offsets_.size() == 2) return Stop("{}: data_offsets: want two numbers", name_);
      offsets_.push_back(value);
      return true;
    }
    return JsonEvents::number_unsigned(value);
  }

  bool end_array() override {
    place_ = Place::kTensor;
    return true;
  }

  bool end_object() override {
    if (place_ == Place::kRoot) {
      place_ = Place::kEnd;
      return true;
    }
    if (place_ == Place::kTensor) {
      if (!has_type_ || !has_shape_ || !has_offsets_) {
        return Stop("{}: want dtype, shape and data_offsets", name_);
      }
      if (offsets_.size() != 2) return Stop("{}: data_offsets: want two numbers", name_);
      entries_.back().shape = Shape(shape_);
      entries_.back().begin = offsets_[0];
      entries_.back().end = offsets_[1];
    }
    place_ = Place::kRoot;
    return true;
  }

 private:
  enum class Place { kStart, kRoot, kMetadata, kTensor, kShape, kOffsets, kEnd };

  std::string Where() const override {
    if (place_ == Place::kStart || name_.empty()) return "header";
    return place_ == Place::kTensor ? fmt::format("{}: {}", name_, field_) : name_;
  }

  Place place_ = Place::kStart;
  std::string name_, field_;
  bool has_type_ = false, has_shape_ = false, has_offsets_ = false;
  std::vector<int64_t> shape_;
  std::vector<uint64_t> offsets_;
  std::unordered_set<std::string> names_, metadata_keys_;
  std::vector<SafetensorsEntry> entries_;
};

// {"metadata": anything, "weight_map": {NAME: FILE, …}}
class IndexReader final : public JsonEvents {
 public:
  bool has_weight_map() const { return has_weight_map_; }
  std::map<std::string, std::string> TakeFiles() { return std::move(files_); }

  bool null() override { return Ignored() || JsonEvents::null(); }
  bool boolean(bool v) override { return Ignored() || JsonEvents::boolean(v); }
  bool number_integer(number_integer_t v) override {
    return Ignored() || JsonEvents::number_integer(v);
  }
  bool number_unsigned(number_unsigned_t v) override {
    return Ignored() || JsonEvents::number_unsigned(v);
  }
  bool number_float(number_float_t v, const string_t& s) override {
    return Ignored() || JsonEvents::number_float(v, s);
  }
  bool start_array(std::size_t n) override {
    if (!Ignored()) return JsonEvents::start_array(n);
    return Enter();
  }
  bool end_array() override {
    --depth_;
    return true;
  }
  bool start_object(std::size_t n) override {
    if (depth_ == 0 || Ignored()) return Enter();
    if (depth_ == 1 && root_key_ == "weight_map") {
      has_weight_map_ = true;
      return Enter();
    }
    return JsonEvents::start_object(n);
  }
  bool end_object() override {
    --depth_;
    return true;
  }
  bool key(string_t& key) override {
    if (depth_ == 1) {
      if (!root_keys_.insert(key).second) return Stop("\"{}\" occurs twice", key);
      root_key_ = key;
    } else if (root_key_ == "weight_map") {
      name_ = key;
      if (files_.contains(name_)) return Stop("weight_map: \"{}\" occurs twice", key);
    }
    return true;
  }
  bool string(string_t& value) override {
    if (Ignored()) return true;
    if (depth_ != 2) return JsonEvents::string(value);
    if (value.empty() || value == "." || value == ".." ||
        value.find_first_of(std::string_view("/\\\0", 3)) != std::string::npos) {
      return Stop("weight_map: {}: \"{}\" is not the name of a file in this directory", name_,
                  value);
    }
    files_.emplace(name_, value);
    return true;
  }

 private:
  bool Ignored() const { return depth_ >= 1 && root_key_ != "weight_map"; }
  bool Enter() {
    if (++depth_ > kMaxJsonDepth) return Stop("nested deeper than {} levels", kMaxJsonDepth);
    return true;
  }
  std::string Where() const override {
    return depth_ == 2 ? fmt::format("weight_map: {}", name_) : "the index";
  }

  int depth_ = 0;
  bool has_weight_map_ = false;
  std::string root_key_, name_;
  std::unordered_set<std::string> root_keys_;
  std::map<std::string, std::string> files_;
};

// Offsets of the entries, which are relative to the data so far, become offsets into the file.
Status CheckSpans(std::vector<SafetensorsEntry>& entries, uint64_t data_begin, uint64_t data_bytes,
                  std::string_view source) {
  std::stable_sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) {
    return a.begin != b.begin ? a.begin < b.begin : a.end < b.end;
  });
  uint64_t expected = 0;
  for (SafetensorsEntry& entry : entries) {
    const TypeInfo* type = FindType(entry.type);
    entry.dtype = type->dtype;
    if (entry.begin > entry.end) {
      return BadInput("{}: {}: data_offsets [{}, {}] run backwards", source, entry.name,
                      entry.begin, entry.end);
    }
    if (entry.begin != expected) {
      return BadInput("{}: {}: data_offsets [{}, {}] {}: want a start at {}", source, entry.name,
                      entry.begin, entry.end,
                      entry.begin < expected ? "overlap another tensor" : "leave a hole before it",
                      expected);
    }
    const std::optional<int64_t> elements = entry.shape.Elements();
    const std::optional<uint64_t> bytes =
        elements ? CheckedMul(static_cast<uint64_t>(*elements), type->bytes) : std::nullopt;
    if (!bytes || *bytes != entry.end - entry.begin) {
      return BadInput("{}: {}: {} of shape {} takes {} bytes, but data_offsets span {}", source,
                      entry.name, entry.type, entry.shape.ToString(),
                      bytes ? fmt::format("{}", *bytes) : std::string("more than 2^64"),
                      entry.end - entry.begin);
    }
    expected = entry.end;
    if (expected > data_bytes) {
      return BadInput(
          "{}: {}: data_offsets [{}, {}] reach beyond the file's {} bytes of data: the "
          "file is truncated or its header wrong",
          source, entry.name, entry.begin, entry.end, data_bytes);
    }
    entry.begin += data_begin;
    entry.end += data_begin;
  }
  if (expected != data_bytes) {
    return BadInput("{}: the tensors take {} bytes, but the file holds {} bytes of data", source,
                    expected, data_bytes);
  }
  return {};
}

}  // namespace

std::string_view SafetensorsTypeName(DType type) {
  return std::find_if(kTypes.begin(), kTypes.end(), [&](const auto& t) { return t.dtype == type; })
      ->name;
}

Result<std::vector<SafetensorsEntry>> ParseSafetensors(std::span<const std::byte> file,
                                                       std::string_view source) {
  uint64_t header_bytes = 0;
  if (file.size() < sizeof(header_bytes)) {
    return BadInput("{}: {} bytes, too short for a safetensors file", source, file.size());
  }
  std::memcpy(&header_bytes, file.data(), sizeof(header_bytes));
  if (header_bytes > kMaxSafetensorsHeaderBytes) {
    return BadInput("{}: not a safetensors file: a header of {} bytes, more than {}", source,
                    header_bytes, kMaxSafetensorsHeaderBytes);
  }
  if (header_bytes > file.size() - sizeof(header_bytes)) {
    return BadInput("{}: a header of {} bytes in a file of {}: the file is truncated", source,
                    header_bytes, file.size());
  }
  const std::string_view header(reinterpret_cast<const char*>(file.data()) + sizeof(header_bytes),
                                header_bytes);
  if (!header.starts_with('{')) {
    return BadInput("{}: not a safetensors file: the header does not start with '{{'", source);
  }
  HeaderReader reader;
  NIBBLE_RETURN_IF_ERROR(reader.Run(header, source));
  std::vector<SafetensorsEntry> entries = reader.TakeEntries();
  const uint64_t data_begin = sizeof(header_bytes) + header_bytes;
  NIBBLE_RETURN_IF_ERROR(CheckSpans(entries, data_begin, file.size() - data_begin, source));
  return entries;
}

Result<std::map<std::string, std::string>> ParseSafetensorsIndex(std::string_view text,
                                                                 std::string_view source) {
  IndexReader reader;
  NIBBLE_RETURN_IF_ERROR(reader.Run(text, source));
  if (!reader.has_weight_map()) return BadInput("{}: \"weight_map\" is missing", source);
  return reader.TakeFiles();
}

}  // namespace nibble

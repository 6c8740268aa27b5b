// The container format GGUF, version 3, little-endian: metadata and the place of every tensor.
//
// Every count and length is checked against what is left of the file before it is used, and every
// size before it is padded. Tensors must lie one after another, each at the next multiple of the
// alignment, and end with the file. Memory used is proportional to the file's metadata.
//
// Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
#ifndef NIBBLE_CHECKPOINT_GGUF_H_
#define NIBBLE_CHECKPOINT_GGUF_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "src/base/error.h"
#include "src/checkpoint/gguf_types.h"
#include "src/tensor/shape.h"

namespace nibble {

struct GgufTensor {
  std::string name;
  const GgmlTypeInfo* type = nullptr;
  Shape shape;         // outermost first, that is reversed from the file
  uint64_t begin = 0;  // from the start of the file
  uint64_t end = 0;
};

// Borrows the file's bytes.
class GgufFile {
 public:
  // `file` is the whole file; `source` names it in errors.
  static Result<GgufFile> Parse(std::span<const std::byte> file, std::string_view source);

  const std::vector<GgufTensor>& tensors() const { return tensors_; }  // in the order of the file
  const GgufTensor* FindTensor(std::string_view name) const;
  std::span<const std::byte> Bytes(const GgufTensor& tensor) const {
    return file_.subspan(tensor.begin, tensor.end - tensor.begin);
  }

  // Metadata. A wrong type is an error that names the key; none where the key is absent.
  bool Has(std::string_view key) const { return values_.contains(key); }
  std::vector<std::string> Keys() const;  // sorted
  // Of any integer type.
  Result<std::optional<int64_t>> Integer(std::string_view key, int64_t min, int64_t max) const;
  // float32 or float64, finite. A float32 becomes the shortest decimal that means it: 1e-5, not
  // 9.99999974737875e-06.
  Result<std::optional<double>> Number(std::string_view key) const;
  Result<std::optional<bool>> Boolean(std::string_view key) const;
  Result<std::optional<std::string>> String(std::string_view key) const;
  // Arrays; empty where the key is absent.
  Result<std::vector<std::string>> Strings(std::string_view key) const;
  Result<std::vector<float>> Floats(std::string_view key) const;
  Result<std::vector<int32_t>> Int32s(std::string_view key) const;
  // Whether the value is an array, and of how many elements.
  std::optional<uint64_t> ArrayLength(std::string_view key) const;

  const std::string& source() const { return source_; }

 private:
  friend class GgufParser;
  enum class ValueType : uint32_t {
    kU8,
    kI8,
    kU16,
    kI16,
    kU32,
    kI32,
    kF32,
    kBool,
    kString,
    kArray,
    kU64,
    kI64,
    kF64
  };
  struct Value {
    ValueType type = ValueType::kU8;
    ValueType element = ValueType::kU8;  // of an array
    uint64_t count = 0;                  // of an array
    std::span<const std::byte> bytes;    // of the value, or of all the elements
  };

  GgufFile() = default;
  const Value* Find(std::string_view key) const;
  // The value's number, where it is of an integer type and fits.
  static std::optional<int64_t> AsInteger(const Value& value);

  std::string source_;
  std::span<const std::byte> file_;
  std::map<std::string, Value, std::less<>> values_;
  std::vector<GgufTensor> tensors_;
  std::map<std::string, size_t, std::less<>> tensor_index_;
};

}  // namespace nibble

#endif  // NIBBLE_CHECKPOINT_GGUF_H_

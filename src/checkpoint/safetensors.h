// The safetensors format: u64 little-endian N, N bytes of JSON, then the tensors' bytes.
//
// Every statement of the header is checked against the file before a tensor is handed out: offsets
// start at 0, touch one another and end with the file; shape times type size is the span; nothing
// is named twice. Memory used is proportional to the header's length.
//
// Source: https://github.com/huggingface/safetensors (README, "Format").
#ifndef NIBBLE_CHECKPOINT_SAFETENSORS_H_
#define NIBBLE_CHECKPOINT_SAFETENSORS_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "src/base/error.h"
#include "src/tensor/dtype.h"
#include "src/tensor/shape.h"

namespace nibble {

inline constexpr uint64_t kMaxSafetensorsHeaderBytes = 100'000'000;

struct SafetensorsEntry {
  std::string name;
  std::string type;            // "F16"
  std::optional<DType> dtype;  // none for types that are legal in a file and not read: "F8_E4M3"
  Shape shape;
  uint64_t begin = 0;  // from the start of the file
  uint64_t end = 0;
};

// The entries in the order of their bytes. `file` is the whole file; `source` names it in errors.
Result<std::vector<SafetensorsEntry>> ParseSafetensors(std::span<const std::byte> file,
                                                       std::string_view source);

// `model.safetensors.index.json`: tensor name → file name, which is a plain name of a file in the
// index's own directory.
Result<std::map<std::string, std::string>> ParseSafetensorsIndex(std::string_view text,
                                                                 std::string_view source);

// The format's name of a type: "F16".
std::string_view SafetensorsTypeName(DType type);

}  // namespace nibble

#endif  // NIBBLE_CHECKPOINT_SAFETENSORS_H_

// Memory stays below a few hundred times the input; see tests/fuzz/make_corpus.py for the seeds.
#include <cstddef>
#include <cstdint>

#include "src/checkpoint/safetensors.h"

// The first byte chooses between a safetensors file and an index of shards.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::span<const std::byte> bytes = std::as_bytes(std::span(data + 1, size - 1));
  if (data[0] % 2 == 0) {
    if (const auto entries = nibble::ParseSafetensors(bytes, "fuzz")) {
      for (const nibble::SafetensorsEntry& entry : *entries) {
        CHECK(entry.begin <= entry.end && entry.end <= bytes.size());
        if (entry.dtype) {
          CHECK(entry.end - entry.begin ==
                static_cast<uint64_t>(*entry.shape.Elements()) * nibble::BytesOf(*entry.dtype));
        }
      }
    }
  } else {
    const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    if (const auto files = nibble::ParseSafetensorsIndex(text, "fuzz")) {
      for (const auto& [tensor, file] : *files) {
        CHECK(!file.empty() && file.find('/') == std::string::npos && file != "..");
      }
    }
  }
  return 0;
}

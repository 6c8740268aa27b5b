// Everything that opening and reading a GGUF file does, from bytes in memory.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "src/checkpoint/gguf_checkpoint.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // As a mapping is: aligned to a page.
  const size_t rounded = (size + 4095) / 4096 * 4096 + 4096;
  const std::unique_ptr<void, decltype(&std::free)> pages(std::aligned_alloc(4096, rounded),
                                                          &std::free);
  if (size > 0) std::memcpy(pages.get(), data, size);
  const std::span<const std::byte> bytes(static_cast<const std::byte*>(pages.get()), size);

  const auto file = nibble::GgufFile::Parse(bytes, "fuzz");
  if (!file) return 0;
  for (const nibble::GgufTensor& tensor : file->tensors()) {
    CHECK(tensor.begin <= tensor.end && tensor.end <= size);
  }
  if (const auto vocabulary = nibble::ReadGgufVocabulary(*file)) {
    CHECK(vocabulary->tokens.size() <= size && vocabulary->merges.size() <= size);
  }
  const auto model = nibble::InterpretGguf(*file);
  if (!model) return 0;
  for (const nibble::GgufMappedTensor& mapped : model->tensors) {
    if (const auto view = nibble::ReadGgufTensor(*file, mapped)) {
      // Touches every byte that was promised.
      uint64_t sum = 0;
      for (const std::byte byte : view->bytes) sum += std::to_integer<uint64_t>(byte);
      CHECK(sum <= view->bytes.size() * 255);
    }
  }
  return 0;
}

// Small files, right and wrong, for this folder's tests.
#ifndef NIBBLE_CHECKPOINT_TEST_FILES_H_
#define NIBBLE_CHECKPOINT_TEST_FILES_H_

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "src/base/file.h"

namespace nibble {

// A directory of its own, removed at the end.
class TempDirectory {
 public:
  TempDirectory() {
    std::string pattern = (std::filesystem::temp_directory_path() / "nibble-XXXXXX").string();
    path_ = ::mkdtemp(pattern.data());
  }
  ~TempDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempDirectory(const TempDirectory&) = delete;
  TempDirectory& operator=(const TempDirectory&) = delete;

  const std::string& path() const { return path_; }
  std::string operator/(std::string_view name) const { return JoinPath(path_, name); }
  void Write(std::string_view name, std::string_view content) const {
    ASSERT_TRUE(WriteFileAtomic(*this / name, content));
  }

 private:
  std::string path_;
};

inline std::span<const std::byte> BytesOfString(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

template <typename T>
std::string Raw(T value) {
  std::string bytes(sizeof(T), '\0');
  std::memcpy(bytes.data(), &value, sizeof(T));
  return bytes;
}
template <typename T>
std::string RawAll(const std::vector<T>& values) {
  std::string bytes;
  for (const T& value : values) bytes += Raw(value);
  return bytes;
}

inline std::string SafetensorsFile(std::string_view header, std::string_view data) {
  return Raw<uint64_t>(header.size()) + std::string(header) + std::string(data);
}

// Writes what it is told, right or wrong.
class GgufBuilder {
 public:
  uint32_t version = 3;
  uint64_t alignment = 32;
  int64_t extra_tensors = 0, extra_values = 0;  // added to the counts in the header
  std::string tail;                             // after the data

  static std::string Text(std::string_view text) {
    return Raw<uint64_t>(text.size()) + std::string(text);
  }
  GgufBuilder& Value(std::string_view key, uint32_t type, std::string_view bytes) {
    values_ += Text(key) + Raw(type) + std::string(bytes);
    ++value_count_;
    return *this;
  }
  GgufBuilder& U32(std::string_view key, uint32_t v) { return Value(key, 4, Raw(v)); }
  GgufBuilder& F32(std::string_view key, float v) { return Value(key, 6, Raw(v)); }
  GgufBuilder& Bool(std::string_view key, bool v) { return Value(key, 7, Raw(uint8_t{v})); }
  GgufBuilder& String(std::string_view key, std::string_view v) { return Value(key, 8, Text(v)); }
  GgufBuilder& Array(std::string_view key, uint32_t type, uint64_t count, std::string_view bytes) {
    return Value(key, 9, Raw(type) + Raw(count) + std::string(bytes));
  }
  // `extents` in the file's order, fastest first.
  GgufBuilder& Tensor(std::string_view name, const std::vector<uint64_t>& extents, uint32_t type,
                      std::string_view data) {
    return TensorAt(name, extents, type, data_.size(), data);
  }
  GgufBuilder& TensorAt(std::string_view name, const std::vector<uint64_t>& extents, uint32_t type,
                        uint64_t offset, std::string_view data) {
    tensors_ += Text(name) + Raw<uint32_t>(static_cast<uint32_t>(extents.size())) +
                RawAll(extents) + Raw(type) + Raw(offset);
    data_ += data;
    data_.resize((data_.size() + alignment - 1) / alignment * alignment);
    ++tensor_count_;
    return *this;
  }
  std::string Build() const {
    std::string file = "GGUF" + Raw(version) +
                       Raw(tensor_count_ + static_cast<uint64_t>(extra_tensors)) +
                       Raw(value_count_ + static_cast<uint64_t>(extra_values)) + values_ + tensors_;
    file.resize((file.size() + alignment - 1) / alignment * alignment);
    return file + data_ + tail;
  }

 private:
  std::string values_, tensors_, data_;
  uint64_t value_count_ = 0, tensor_count_ = 0;
};

#define EXPECT_OK(expression)                                          \
  do {                                                                 \
    const auto& nibble_expected = (expression);                        \
    EXPECT_TRUE(nibble_expected) << nibble_expected.error().message(); \
  } while (false)
// For results that the rest of the test needs.
#define ASSERT_OK(expression)                                          \
  do {                                                                 \
    const auto& nibble_expected = (expression);                        \
    ASSERT_TRUE(nibble_expected) << nibble_expected.error().message(); \
  } while (false)
// The error has this code and its message contains `part`.
#define EXPECT_ERROR(expression, expected_code, part)                          \
  do {                                                                         \
    const auto& nibble_expected = (expression);                                \
    ASSERT_FALSE(nibble_expected) << "want an error that says: " << (part);    \
    EXPECT_EQ(nibble_expected.error().code(), expected_code);                  \
    EXPECT_NE(nibble_expected.error().message().find(part), std::string::npos) \
        << nibble_expected.error().message();                                  \
  } while (false)

}  // namespace nibble

#endif  // NIBBLE_CHECKPOINT_TEST_FILES_H_

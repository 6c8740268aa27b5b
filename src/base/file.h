// Whole files, read with a bound and written so that a reader never sees half of one.
#ifndef NIBBLE_BASE_FILE_H_
#define NIBBLE_BASE_FILE_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "src/base/error.h"

namespace nibble {

bool FileExists(const std::string& path);
bool IsDirectory(const std::string& path);
Result<uint64_t> FileSize(const std::string& path);
std::string JoinPath(std::string_view directory, std::string_view name);
// The last part of a path, whether slashes follow it or not.
std::string LastPart(std::string_view path);

// Fails where the file is absent, is not a regular file, or is larger than `max_bytes`.
Result<std::string> ReadFile(const std::string& path, uint64_t max_bytes = uint64_t{1} << 32);

// Writes to a temporary name beside `path`, syncs it to disk, then renames.
Status WriteFileAtomic(const std::string& path, std::string_view content);
// The same of content that lies in pieces.
Status WriteFileAtomic(const std::string& path, std::span<const std::string_view> pieces);

// Creates the directory and its parents; one that exists is fine.
Status MakeDirectories(const std::string& path);

// Bytes free for an unprivileged user on the file system that holds `path` (or its nearest parent
// that exists).
Result<uint64_t> FreeDiskBytes(const std::string& path);

// A file's bytes, mapped read-only. Movable; the mapping lives as long as the object.
class MappedFile {
 public:
  static Result<MappedFile> Open(const std::string& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const std::string& path() const { return path_; }

  // Lets the system drop the pages of `part` (of bytes()) from this process's memory; they are read
  // again from the file if touched again.
  void Release(std::span<const std::byte> part) const;

 private:
  MappedFile() = default;
  std::string path_;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace nibble

#endif  // NIBBLE_BASE_FILE_H_

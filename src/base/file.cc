#include "src/base/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>

#include "src/base/descriptor.h"

namespace nibble {
namespace fs = std::filesystem;
namespace {

tl::unexpected<Error> SystemError(const std::string& path, std::string_view doing) {
  const int error = errno;
  const ErrorCode code =
      error == ENOSPC || error == EDQUOT || error == ENOMEM ? ErrorCode::kResources
                                                            : ErrorCode::kBadInput;
  return Fail(code, "{}: cannot {}: {}", path, doing, std::strerror(error));
}

}  // namespace

bool FileExists(const std::string& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

bool IsDirectory(const std::string& path) {
  std::error_code ignored;
  return fs::is_directory(path, ignored);
}

Result<uint64_t> FileSize(const std::string& path) {
  std::error_code error;
  const uint64_t size = fs::file_size(path, error);
  if (error) return BadInput("{}: {}", path, error.message());
  return size;
}

std::string JoinPath(std::string_view directory, std::string_view name) {
  return (fs::path(directory) / name).string();
}

std::string LastPart(std::string_view path) {
  while (path.size() > 1 && path.ends_with('/')) path.remove_suffix(1);
  return std::string(path.substr(path.rfind('/') + 1));
}

Result<std::string> ReadFile(const std::string& path, uint64_t max_bytes) {
  const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (file.get() < 0) return SystemError(path, "open");
  struct stat info;
  if (::fstat(file.get(), &info) != 0) return SystemError(path, "read");
  if (!S_ISREG(info.st_mode)) return BadInput("{}: not a regular file", path);
  if (static_cast<uint64_t>(info.st_size) > max_bytes) {
    return BadInput("{}: {} bytes, more than the {} allowed here", path, info.st_size, max_bytes);
  }
  std::string content(static_cast<size_t>(info.st_size), '\0');
  size_t done = 0;
  while (done < content.size()) {
    const ssize_t n = ::read(file.get(), content.data() + done, content.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return SystemError(path, "read");
    if (n == 0) return BadInput("{}: shrank while it was read", path);
    done += static_cast<size_t>(n);
  }
  return content;
}

Status WriteFileAtomic(const std::string& path, std::string_view content) {
  return WriteFileAtomic(path, std::span(&content, 1));
}

Status WriteFileAtomic(const std::string& path, std::span<const std::string_view> pieces) {
  const std::string temporary = fmt::format("{}.tmp.{}", path, ::getpid());
  const auto write = [&]() -> Status {
    const Descriptor file(
        ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
    if (file.get() < 0) return SystemError(temporary, "create");
    for (std::string_view left : pieces) {
      while (!left.empty()) {
        const ssize_t n = ::write(file.get(), left.data(), left.size());
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return SystemError(temporary, "write");
        left.remove_prefix(static_cast<size_t>(n));
      }
    }
    if (::fsync(file.get()) != 0) return SystemError(temporary, "write");
    return {};
  };
  Status status = write();
  if (status && ::rename(temporary.c_str(), path.c_str()) != 0) {
    status = SystemError(path, "write");
  }
  if (!status) ::unlink(temporary.c_str());
  return status;
}

Status MakeDirectories(const std::string& path) {
  std::error_code error;
  fs::create_directories(path, error);
  if (error) return BadInput("{}: cannot create the directory: {}", path, error.message());
  return {};
}

Result<uint64_t> FreeDiskBytes(const std::string& path) {
  fs::path at = fs::absolute(path);
  while (!FileExists(at.string()) && at.has_parent_path() && at != at.parent_path()) {
    at = at.parent_path();
  }
  struct statvfs info;
  if (::statvfs(at.c_str(), &info) != 0) return SystemError(at.string(), "measure free space");
  return uint64_t{info.f_bavail} * info.f_frsize;
}

Result<MappedFile> MappedFile::Open(const std::string& path) {
  const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (file.get() < 0) return SystemError(path, "open");
  struct stat info;
  if (::fstat(file.get(), &info) != 0) return SystemError(path, "read");
  if (!S_ISREG(info.st_mode)) return BadInput("{}: not a regular file", path);
  MappedFile mapped;
  mapped.path_ = path;
  mapped.size_ = static_cast<size_t>(info.st_size);
  if (mapped.size_ > 0) {
    void* data = ::mmap(nullptr, mapped.size_, PROT_READ, MAP_PRIVATE, file.get(), 0);
    if (data == MAP_FAILED) return SystemError(path, "map");
    mapped.data_ = static_cast<const std::byte*>(data);
  }
  return mapped;
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

void MappedFile::Release(std::span<const std::byte> part) const {
  if (part.empty()) return;
  // A page that is touched brings its neighbours in the same 64 KiB with it (Linux's fault-around),
  // so they go with it too. What another part still needs of them comes back when it is touched.
  constexpr uintptr_t kGranule = 64 << 10;
  const auto mapping = reinterpret_cast<uintptr_t>(data_);
  const auto first = reinterpret_cast<uintptr_t>(part.data());
  const uintptr_t begin = std::max(mapping, first / kGranule * kGranule);
  const uintptr_t end =
      std::min(mapping + size_, (first + part.size() + kGranule - 1) / kGranule * kGranule);
  ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

}  // namespace nibble

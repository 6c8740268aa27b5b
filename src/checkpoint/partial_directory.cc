#include "src/checkpoint/partial_directory.h"

#include <fcntl.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <optional>
#include <system_error>
#include <utility>
#include <vector>

namespace nibble {
namespace fs = std::filesystem;
namespace {

constexpr std::string_view kInfix = ".partial-";

int OpenDirectory(const std::string& path) {
  return ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

// The process that made NAME.partial-<pid>; none where `file` is something else.
std::optional<pid_t> MakerOf(std::string_view file, std::string_view name) {
  if (!file.starts_with(name)) return std::nullopt;
  file.remove_prefix(name.size());
  if (!file.starts_with(kInfix)) return std::nullopt;
  file.remove_prefix(kInfix.size());
  pid_t pid = 0;
  const auto [end, error] = std::from_chars(file.data(), file.data() + file.size(), pid);
  if (error != std::errc() || end != file.data() + file.size() || pid <= 0) return std::nullopt;
  return pid;
}

bool Lives(pid_t pid) { return ::kill(pid, 0) == 0 || errno != ESRCH; }

// Whether nobody writes to this directory any more.
bool IsAbandoned(const std::string& path, pid_t maker) {
  // Process numbers come back: one of ours with nobody's lock on it is of an earlier process.
  const bool ours = maker == ::getpid();
  if (!ours && Lives(maker)) return false;
  const int directory = OpenDirectory(path);
  if (directory < 0) return false;
  const bool locked = ::flock(directory, LOCK_EX | LOCK_NB) != 0;
  // Where the file system has no locks, the process number alone decides.
  const bool unknown = locked && errno != EWOULDBLOCK;
  ::close(directory);
  return unknown ? !ours : !locked;
}

}  // namespace

void RemoveAbandonedPartials(const std::string& directory) {
  const fs::path absolute = fs::absolute(directory);
  const std::string name = absolute.filename().string();
  std::error_code error;
  std::vector<std::string> found;
  for (fs::directory_iterator it(absolute.parent_path(), error), end; !error && it != end;
       it.increment(error)) {
    const std::optional<pid_t> maker = MakerOf(it->path().filename().string(), name);
    if (maker && IsAbandoned(it->path().string(), *maker)) found.push_back(it->path().string());
  }
  for (const std::string& path : found) {
    fs::remove_all(path, error);
    if (error) {
      spdlog::warn("{}: left by a process that was killed, and cannot be removed: {}", path,
                   error.message());
    } else {
      spdlog::warn("{}: removed; it was left by a process that was killed", path);
    }
  }
}

Result<PartialDirectory> PartialDirectory::Create(const std::string& directory) {
  PartialDirectory partial;
  std::string path = fmt::format("{}{}{}", directory, kInfix, ::getpid());
  if (::mkdir(path.c_str(), 0777) != 0) {
    const int error = errno;
    const bool full = error == ENOSPC || error == EDQUOT;
    return Fail(full ? ErrorCode::kResources : ErrorCode::kBadInput,
                "{}: cannot create the directory: {}", path, std::strerror(error));
  }
  partial.path_ = std::move(path);
  partial.lock_ = OpenDirectory(partial.path_);
  // Without a lock it is still known by its process.
  if (partial.lock_ >= 0) ::flock(partial.lock_, LOCK_EX | LOCK_NB);
  return partial;
}

PartialDirectory::PartialDirectory(PartialDirectory&& other) noexcept
    : path_(std::exchange(other.path_, {})), lock_(std::exchange(other.lock_, -1)) {}

PartialDirectory& PartialDirectory::operator=(PartialDirectory&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(lock_, other.lock_);
  return *this;
}

PartialDirectory::~PartialDirectory() {
  if (!path_.empty()) {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  Keep();
}

void PartialDirectory::Keep() {
  path_.clear();
  if (lock_ >= 0) ::close(std::exchange(lock_, -1));
}

}  // namespace nibble

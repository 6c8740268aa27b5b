#include "src/tensor/memory.h"

#include <fcntl.h>
#include <malloc.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <utility>

#include "src/base/checked.h"
#include "src/base/units.h"

namespace nibble {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kHugePage = size_t{2} << 20;
// An arena's chunk, and what lies alone: less than a thirtieth of it can be in small pages.
constexpr size_t kChunk = size_t{256} << 20;
constexpr size_t kLarge = size_t{64} << 20;

// The value in bytes of a "Name:   123 kB" line of a /proc file; 0 where there is none.
uint64_t ProcField(const char* file, std::string_view name) {
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) {
    if (line.size() <= name.size() || !line.starts_with(name) || line[name.size()] != ':') continue;
    const size_t digit = line.find_first_of("0123456789", name.size());
    if (digit == std::string::npos) return 0;
    uint64_t kib = 0;
    std::from_chars(line.data() + digit, line.data() + line.size(), kib);
    return kib * 1024;
  }
  return 0;
}

// A control group's figure; none where it is absent or "max".
std::optional<uint64_t> ReadNumber(const char* file) {
  std::ifstream in(file);
  uint64_t value = 0;
  if (in >> value) return value;
  return std::nullopt;
}

size_t RoundUpToPage(size_t bytes) {
  return RoundUp(bytes, static_cast<size_t>(::sysconf(_SC_PAGESIZE)));
}

tl::unexpected<Error> NoRoom(const MemoryTracker& tracker, MemoryClass memory_class, size_t bytes) {
  return NotEnough("{} of memory for {} are wanted, {} are left of what nibble may use",
                   FormatBytes(bytes), Name(memory_class), FormatBytes(tracker.Room()));
}

}  // namespace

std::string_view Name(MemoryClass memory_class) {
  constexpr std::string_view kNames[] = {"weights", "kv_cache", "workspace"};
  return kNames[static_cast<size_t>(memory_class)];
}

void MemoryTracker::Add(MemoryClass memory_class, uint64_t bytes) {
  const std::lock_guard lock(mutex_);
  current_[memory_class] += bytes;
  if (current_.total() > peak_.total()) peak_ = current_;
}

void MemoryTracker::Remove(MemoryClass memory_class, uint64_t bytes) {
  const std::lock_guard lock(mutex_);
  current_[memory_class] -= bytes;
}

MemoryUse MemoryTracker::current() const {
  const std::lock_guard lock(mutex_);
  return current_;
}

MemoryUse MemoryTracker::peak() const {
  const std::lock_guard lock(mutex_);
  return peak_;
}

void MemoryTracker::ResetPeak() {
  const std::lock_guard lock(mutex_);
  peak_ = current_;
}

void MemoryTracker::SetLimit(uint64_t bytes) {
  const std::lock_guard lock(mutex_);
  limit_ = bytes;
}

uint64_t MemoryTracker::Room() const {
  const std::lock_guard lock(mutex_);
  return limit_ - std::min(limit_, current_.total());
}

Buffer::Buffer(void* data, size_t bytes, Release release, MemoryTracker* tracker, MemoryClass c)
    : data_(data), bytes_(bytes), release_(release), tracker_(tracker), class_(c) {
  if (tracker_ != nullptr) tracker_->Add(class_, bytes_);
}

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)),
      release_(other.release_),
      tracker_(other.tracker_),
      class_(other.class_) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  std::swap(release_, other.release_);
  std::swap(tracker_, other.tracker_);
  std::swap(class_, other.class_);
  return *this;
}

Buffer::~Buffer() {
  if (data_ == nullptr) return;
  if (tracker_ != nullptr) tracker_->Remove(class_, bytes_);
  release_(data_, bytes_);
}

Result<Buffer> AllocateHost(MemoryTracker& tracker, MemoryClass memory_class, size_t bytes) {
  const bool huge = bytes >= kHugePage;
  const size_t alignment = huge ? kHugePage : kAlignment;
  const size_t rounded = RoundUp(std::max<size_t>(bytes, 1), kAlignment);
  if (rounded > tracker.Room()) return NoRoom(tracker, memory_class, bytes);
  void* data = std::aligned_alloc(alignment, RoundUp(rounded, alignment));
  if (data == nullptr) {
    return NotEnough("cannot allocate {} of memory for {}", FormatBytes(bytes), Name(memory_class));
  }
  if (huge) ::madvise(data, rounded, MADV_HUGEPAGE);
  return Buffer(
      data, rounded, [](void* p, size_t) { std::free(p); }, &tracker, memory_class);
}

HostArena::~HostArena() {
  if (free_bytes_ > 0) ::munmap(free_, free_bytes_);
}

Result<Buffer> HostArena::Allocate(MemoryTracker& tracker, MemoryClass memory_class, size_t bytes) {
  if (bytes >= kLarge) return AllocateHost(tracker, memory_class, bytes);
  const size_t rounded = RoundUp(std::max<size_t>(bytes, 1), kAlignment);
  if (rounded > tracker.Room()) return NoRoom(tracker, memory_class, bytes);
  const size_t pages = RoundUpToPage(rounded);
  if (pages > free_bytes_) {
    void* const chunk = ::mmap(nullptr, kChunk + kHugePage, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (chunk == MAP_FAILED) return AllocateHost(tracker, memory_class, bytes);
    if (free_bytes_ > 0) ::munmap(free_, free_bytes_);
    const size_t lead = kHugePage - reinterpret_cast<uintptr_t>(chunk) % kHugePage;
    ::munmap(chunk, lead);
    free_ = static_cast<std::byte*>(chunk) + lead;
    free_bytes_ = kChunk + kHugePage - lead;
    ::madvise(free_, free_bytes_, MADV_HUGEPAGE);
  }
  void* const data = std::exchange(free_, free_ + pages);
  free_bytes_ -= pages;
  const auto release = [](void* p, size_t n) { ::munmap(p, RoundUpToPage(n)); };
  return Buffer(data, rounded, release, &tracker, memory_class);
}

Result<Buffer> AllocateInFile(const std::string& directory, size_t bytes) {
  const size_t size = std::max<size_t>(bytes, 1);
  std::string name = directory + "/activations-XXXXXX";
  const int file = ::mkstemp(name.data());
  if (file < 0) {
    return BadInput("{}: cannot make a temporary file: {}", directory, std::strerror(errno));
  }
  ::unlink(name.c_str());
  // Reserved, so that a full disk is an error here and not a signal later.
  const int full = ::posix_fallocate(file, 0, static_cast<off_t>(size));
  void* const data = full != 0 ? MAP_FAILED
                               : ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  ::close(file);
  if (data == MAP_FAILED) {
    return NotEnough("{}: no room for {} of activations", directory, FormatBytes(size));
  }
  return Buffer(
      data, size, [](void* p, size_t n) { ::munmap(p, n); }, nullptr, MemoryClass::kWorkspace);
}

HostMemory ReadHostMemory() {
  HostMemory memory{.total_bytes = ProcField("/proc/meminfo", "MemTotal"),
                    .available_bytes = ProcField("/proc/meminfo", "MemAvailable")};
  const auto limit = ReadNumber("/sys/fs/cgroup/memory.max");
  if (limit && *limit < memory.total_bytes) {
    const uint64_t used = ReadNumber("/sys/fs/cgroup/memory.current").value_or(0);
    memory.total_bytes = *limit;
    memory.available_bytes = std::min(memory.available_bytes, *limit - std::min(*limit, used));
  }
  return memory;
}

uint64_t ResidentBytes() { return ProcField("/proc/self/status", "VmRSS"); }

uint64_t PeakResidentBytes() { return ProcField("/proc/self/status", "VmHWM"); }

void ResetPeakResident() { std::ofstream("/proc/self/clear_refs") << "5"; }

void ReturnFreedMemory() { ::mallopt(M_MMAP_THRESHOLD, 1 << 20); }

void TrimHeap() { ::malloc_trim(0); }

}  // namespace nibble

// Every byte that a model's work takes is counted, by class, where it is allocated.
#ifndef NIBBLE_TENSOR_MEMORY_H_
#define NIBBLE_TENSOR_MEMORY_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <mutex>
#include <span>
#include <string>

#include "src/base/error.h"

namespace nibble {

enum class MemoryClass : uint8_t { kWeights, kKvCache, kWorkspace };
inline constexpr size_t kMemoryClasses = 3;
std::string_view Name(MemoryClass memory_class);  // "weights", "kv_cache", "workspace"

// Bytes by class.
struct MemoryUse {
  std::array<uint64_t, kMemoryClasses> bytes{};
  uint64_t operator[](MemoryClass c) const { return bytes[static_cast<size_t>(c)]; }
  uint64_t& operator[](MemoryClass c) { return bytes[static_cast<size_t>(c)]; }
  uint64_t total() const { return bytes[0] + bytes[1] + bytes[2]; }
};

// What is allocated now, what was at the moment when the total was highest, and what may be. Thread-safe.
class MemoryTracker {
 public:
  void Add(MemoryClass memory_class, uint64_t bytes);
  void Remove(MemoryClass memory_class, uint64_t bytes);
  MemoryUse current() const;
  MemoryUse peak() const;
  void ResetPeak();  // the peak becomes what is allocated now
  void SetLimit(uint64_t bytes);  // in all; the allocators refuse more
  uint64_t Room() const;          // up to the limit

 private:
  mutable std::mutex mutex_;
  MemoryUse current_, peak_;
  uint64_t limit_ = std::numeric_limits<uint64_t>::max();
};

// Owned memory of one device. Movable. The allocator's tracker must outlive it.
class Buffer {
 public:
  using Release = void (*)(void* data, size_t bytes);

  Buffer() = default;
  // `tracker` may be null for what is not memory.
  Buffer(void* data, size_t bytes, Release release, MemoryTracker* tracker, MemoryClass c);
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer();

  void* data() const { return data_; }
  size_t size() const { return bytes_; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
  Release release_ = nullptr;
  MemoryTracker* tracker_ = nullptr;
  MemoryClass class_ = MemoryClass::kWorkspace;
};

// Host memory aligned to 64 bytes, in huge pages where the system grants them; not zeroed. Fails
// with ErrorCode::kResources. `tracker` counts it and must outlive the buffer.
Result<Buffer> AllocateHost(MemoryTracker& tracker, MemoryClass memory_class, size_t bytes);

// Host memory that lies side by side in huge pages: for buffers that are read one after the other and
// whose ends would each lie in small pages. A buffer may outlive the arena. Not thread-safe.
class HostArena {
 public:
  HostArena() = default;
  HostArena(const HostArena&) = delete;
  HostArena& operator=(const HostArena&) = delete;
  ~HostArena();

  // As AllocateHost, to which it leaves what is large enough to lie alone.
  Result<Buffer> Allocate(MemoryTracker& tracker, MemoryClass memory_class, size_t bytes);

 private:
  // Addresses that no buffer has yet; they take memory when they are written to.
  std::byte* free_ = nullptr;
  size_t free_bytes_ = 0;
};

// Storage in a nameless file of `directory` (which must exist), mapped, so that the system can keep
// it on disk; zeroed. Gone with the buffer or the process.
Result<Buffer> AllocateInFile(const std::string& directory, size_t bytes);

struct HostMemory {
  uint64_t total_bytes = 0;
  uint64_t available_bytes = 0;  // what a new allocation may use, the control group's limit included
};
HostMemory ReadHostMemory();

// The resident size of this process now (VmRSS), and the highest so far (VmHWM).
uint64_t ResidentBytes();
uint64_t PeakResidentBytes();
// Starts a new measurement of PeakResidentBytes() where the system allows it.
void ResetPeakResident();

// For the start of a program: from then on a freed block of 1 MiB or more goes back to the system at
// once. The C library would keep up to 64 MiB of them, which no prediction could know.
void ReturnFreedMemory();
// Gives back what smaller freed blocks still hold; after work that took many of them.
void TrimHeap();

}  // namespace nibble

#endif  // NIBBLE_TENSOR_MEMORY_H_

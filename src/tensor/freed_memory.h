// Keeping freed memory for a while.
#ifndef NIBBLE_TENSOR_FREED_MEMORY_H_
#define NIBBLE_TENSOR_FREED_MEMORY_H_

namespace nibble {

// While it lives, freed blocks of up to 32 MiB are kept for the next of their size: for work that
// takes and frees the same ones over and over, where the system would clear their pages each time.
// Then all that is free goes back, and what ReturnFreedMemory says holds again. One at a time.
class FreedMemoryKept {
 public:
  FreedMemoryKept();
  ~FreedMemoryKept();
  FreedMemoryKept(const FreedMemoryKept&) = delete;
  FreedMemoryKept& operator=(const FreedMemoryKept&) = delete;
};

}  // namespace nibble

#endif  // NIBBLE_TENSOR_FREED_MEMORY_H_

#include "src/tensor/freed_memory.h"

#include <malloc.h>

#include "src/tensor/memory.h"

namespace nibble {

FreedMemoryKept::FreedMemoryKept() {
  ::mallopt(M_MMAP_THRESHOLD, 32 << 20);
  ::mallopt(M_TRIM_THRESHOLD, 1 << 30);
}

FreedMemoryKept::~FreedMemoryKept() {
  ::mallopt(M_TRIM_THRESHOLD, 128 << 10);  // the C library's own
  ReturnFreedMemory();
  TrimHeap();
}

}  // namespace nibble

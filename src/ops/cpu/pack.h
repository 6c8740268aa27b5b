// From the weights of a checkpoint to the panels of cpu_linear.h.
#ifndef NIBBLE_OPS_CPU_PACK_H_
#define NIBBLE_OPS_CPU_PACK_H_

#include <memory>
#include <span>

#include "src/base/thread_pool.h"
#include "src/ops/cpu/cpu_linear.h"

namespace nibble::cpu {

// Backend::Prepare. Reads each weight once, where it lies, and allocates
// nothing but the result. Fails with kResources for want of memory and with
// kBadInput for weights that cannot be represented: a symmetric grid with a
// zero other than 8, groups shorter than 8 columns.
Result<std::unique_ptr<PreparedLinear>> PackLinear(std::span<const LinearSource> sources,
                                                   Interleave interleave, HostArena& arena,
                                                   MemoryTracker& memory, ThreadPool& pool);

}  // namespace nibble::cpu

#endif  // NIBBLE_OPS_CPU_PACK_H_

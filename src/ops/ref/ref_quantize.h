// QuantizeOps in scalar double arithmetic, each as its definition says: the oracle of the others.
#ifndef NIBBLE_OPS_REF_REF_QUANTIZE_H_
#define NIBBLE_OPS_REF_REF_QUANTIZE_H_

#include <memory>

#include "src/base/thread_pool.h"
#include "src/ops/quantize_ops.h"

namespace nibble {

std::unique_ptr<QuantizeOps> MakeRefQuantizeOps(ThreadPool& pool, MemoryTracker& memory);

}  // namespace nibble

#endif  // NIBBLE_OPS_REF_REF_QUANTIZE_H_

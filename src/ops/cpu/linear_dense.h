// The product with weights of 16 or 32 bits; see linear_task.h.
#ifndef NIBBLE_OPS_CPU_LINEAR_DENSE_H_
#define NIBBLE_OPS_CPU_LINEAR_DENSE_H_

#include "src/ops/cpu/linear_task.h"

namespace nibble::cpu {

void PackDenseTiles(const LinearTask& task, int64_t tile_begin, int64_t tile_end);
// panel_begin is a multiple of kGroupPanels.
void RunDensePanels(const LinearTask& task, int64_t panel_begin, int64_t panel_end, int thread);

}  // namespace nibble::cpu

#endif  // NIBBLE_OPS_CPU_LINEAR_DENSE_H_

// One product x · Wᵀ as the dense and the 4-bit kernels share it out.
//
// The rows of x are cut into tiles of at most kMaxTile. Before the product,
// PackTiles writes each tile where and how the kernels read it, columns
// outermost; then RunPanels computes panels of outputs for all tiles. Both are
// called for disjoint ranges by several threads.
#ifndef NIBBLE_OPS_CPU_LINEAR_TASK_H_
#define NIBBLE_OPS_CPU_LINEAR_TASK_H_

#include <cstdint>

#include "src/base/checked.h"
#include "src/ops/cpu/cpu_linear.h"

namespace nibble::cpu {

// 6 rows × 16 outputs are 12 accumulators of 8 lanes: with AVX2's 16 registers
// there is room left for two vectors of weights and a broadcast activation.
inline constexpr int64_t kMaxTile = 6;
// Panels that a thread takes at a time, an even number for gate and up.
inline constexpr int64_t kGroupPanels = 4;
// Between the rows of a thread's sums.
inline constexpr int64_t kSumsStride = kGroupPanels * kPanelRows;
// Rows whose sums a thread holds at a time, a multiple of kMaxTile.
inline constexpr int64_t kSumRows = 96;
// Rows packed at a time: bounds the scratch memory, and lets the packed tiles
// stay in the last-level cache while the weights stream by.
inline constexpr int64_t kPackedRows = 512;

// Tiles of near-equal size.
struct Tiling {
  int64_t rows = 0;

  int64_t tiles() const { return CeilDiv(rows, kMaxTile); }
  int64_t begin(int64_t tile) const { return rows * tile / tiles(); }
  int64_t size(int64_t tile) const { return begin(tile + 1) - begin(tile); }
};

// Scratch memory for kPackedRows rows (or fewer) of up to `columns` columns. A
// row takes as float32 4 bytes a column; as 16-bit integers at most 4 too (a
// group of 9 columns is padded to 16), and 8 bytes for each segment of at least
// 8 columns.
struct LinearScratch {
  std::byte* packed = nullptr;
  float* sums = nullptr;  // [threads][kSumRows][kSumsStride]

  static uint64_t PackedBytes(int64_t rows, int64_t columns) {
    return RoundUp<uint64_t>(static_cast<uint64_t>(rows) * static_cast<uint64_t>(5 * columns + 64),
                             64);
  }
  static constexpr int64_t kSumsPerThread = kSumRows * kSumsStride;
};

struct LinearTask {
  const CpuLinear* weight = nullptr;
  MatrixView x;    // [tiling.rows, in], float32
  MatrixView out;  // float32
  Epilogue epilogue = Epilogue::kNone;
  Tiling tiling;
  LinearScratch scratch;

  // Dense: a tile of T rows at x[tile.begin · in] as [in][T].
  float* packed_f32() const { return reinterpret_cast<float*>(scratch.packed); }

  // 4-bit: pairs of 16-bit integers [pairs][T], and by segment scales and
  // negated sums [count][T].
  int32_t* packed_pairs() const { return reinterpret_cast<int32_t*>(scratch.packed); }
  float* packed_scales() const {
    return reinterpret_cast<float*>(packed_pairs() +
                                    tiling.rows * weight->layout().segments.pairs());
  }
  int32_t* packed_negated_sums() const {
    return reinterpret_cast<int32_t*>(packed_scales() +
                                      tiling.rows * weight->layout().segments.count());
  }
};

}  // namespace nibble::cpu

#endif  // NIBBLE_OPS_CPU_LINEAR_TASK_H_

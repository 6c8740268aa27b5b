// The quantizers' inner loops. A tile holds kTileRows rows of a weight, columns outermost
// ([columns][kTileRows]), so that the vectors' lanes are rows and every row has its own grid.
#ifndef NIBBLE_OPS_CPU_QUANTIZE_KERNELS_H_
#define NIBBLE_OPS_CPU_QUANTIZE_KERNELS_H_

#include <cstdint>
#include <vector>

#include "src/ops/quantize_ops.h"

namespace nibble::cpu {

inline constexpr int64_t kTileRows = 32;
inline constexpr int64_t kMaxSweepBlock = 128;  // columns

// A group's grid for each row of a tile.
struct TileGrid {
  float scales[kTileRows];
  float zeros[kTileRows];
};

// The grid of `columns` columns. `importance`: H_jj of each, for ScaleSearch::kHessian.
void FindTileGrid(const float* tile, int64_t columns, const GridOptions& options,
                  const float* importance, TileGrid& grid);

// codes[columns][kTileRows] of the nearest grid values; where `values` is given, those too.
void RoundTile(const float* tile, int64_t columns, const TileGrid& grid, uint8_t* codes,
               float* values);

// Quantizes column `column` of a tile of a sweep's block of `columns` columns: codes[kTileRows];
// errors[kTileRows] = (w - q) / U_ii; subtracts error · U_ij from the columns j after it. `factor`
// points at U_ii of the block's row i = column.
void SweepColumn(float* tile, int64_t column, int64_t columns, const TileGrid& grid,
                 const float* factor, uint8_t* codes, float* errors);

// losses[kTileRows] += δᵀ · gram · δ for δ of `columns` columns; gram: row-major, its rows `stride`
// apart.
void AddQuadraticForm(const float* deltas, int64_t columns, const float* gram, int64_t stride,
                      float* losses);

// sums[k] += Σ |x_rk| over the rows, in order; x: [rows][columns], its rows `stride` apart.
void AddMagnitudes(const float* x, int64_t stride, int64_t rows, int64_t columns, double* sums);

}  // namespace nibble::cpu

#endif  // NIBBLE_OPS_CPU_QUANTIZE_KERNELS_H_

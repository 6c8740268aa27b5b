// The quantizers' kernels (see src/ops/quantize_ops.h for what they compute). Matrices are
// row-major; all pointers are to device memory, or to page-locked memory of the host where a matrix
// may lie there. Sums are formed in an order that the shapes alone decide: the same bits in every
// run.
#ifndef NIBBLE_OPS_CUDA_QUANTIZE_KERNELS_H_
#define NIBBLE_OPS_CUDA_QUANTIZE_KERNELS_H_

#include <cstdint>

#include "src/ops/cuda/stream.h"
#include "src/ops/quantize_ops.h"

namespace nibble::cuda {

// A weight's groups, and how each one's grid is found.
struct GroupSpec {
  int64_t length = 0;  // columns
  Grid grid = Grid::kAsymmetric;
  ScaleSearch search = ScaleSearch::kNone;
  ScaleRounding rounding = ScaleRounding::kFloat16;

  static GroupSpec Of(const GridOptions& options, int64_t columns) {
    return {options.spec.GroupLength(columns), options.spec.grid, options.search, options.rounding};
  }
};

// Rounding and clipping (quantize_round.cu) ------------------------------------------------------

// Finds the grids, [rows, groups]. `importance`: of each column, or null for ones. Where `codes` is
// given, the nearest grid values' too, as QuantizedWeight packs them: [rows, columns / 2].
void FindGrids(Stream& stream, MatrixView weight, const GroupSpec& spec, const float* importance,
               GroupGrid* grids, uint8_t* codes);

// out = Q(weight · diag(scales)), and then times diag(scales)⁻¹ where they are divided out again.
enum class ScalesAfter : uint8_t { kKept, kDividedOut };
void PseudoQuantize(Stream& stream, MatrixView weight, const GroupSpec& spec, const float* scales,
                    ScalesAfter after, MatrixView out);

inline constexpr int kClipLimits = 10;

// `gram`: Σ xᵀx, both triangles. `grids`: [rows, groups, kClipLimits]; `losses`: [rows, groups,
// ClipBlocks(), kClipLimits].
int64_t ClipBlocks(const GroupSpec& spec);
void Clip(Stream& stream, MatrixView weight, const GroupSpec& spec, const float* scales,
          const float* gram, GroupGrid* grids, float* losses);

// The sweep (quantize_sweep.cu) -------------------------------------------------------------------

inline constexpr int64_t kSweepBlock = 128;  // columns, at most

// out[r][i] = from[r][columns[i]]; 0 where `importance` is given and importance[i] is 0.
void GatherFloats(Stream& stream, MatrixView from, const int32_t* columns, const float* importance,
                  MatrixView out);

struct SweepBlock {
  MatrixView columns;    // the block's of the weight in sweep order; overwritten
  const int32_t* order;  // the weight's column of each
  const float* factor;   // U's block on the diagonal
  int64_t factor_stride;
  bool finds_grids;         // of groups as they begin; otherwise `grids` has them
  const float* importance;  // of each column, for kHessian
  GroupGrid* grids;         // [rows, groups]
  int64_t groups;
  uint8_t* codes;  // of the block's first column; [rows] of `codes_stride`, unpacked
  int64_t codes_stride;
  float* errors;  // [rows, kSweepBlock]
};
// Quantizes the block's columns one after the other, spreading each one's error over those of the
// block that follow; errors[r][i] = (w - q) / U_ii.
void Sweep(Stream& stream, const GroupSpec& spec, const SweepBlock& block);

// packed[r][k / 2] of codes[r][positions[k]].
void PackCodes(Stream& stream, const uint8_t* codes, const int32_t* positions, int64_t rows,
               int64_t columns, uint8_t* packed);
// As QuantizedWeight stores them.
void StoreGrids(Stream& stream, const GroupGrid* grids, int64_t count, uint16_t* scales,
                uint8_t* zeros);

// Statistics and factors (quantize_statistics.cu) ---------------------------------------------

// sums[k] += Σ |x[r][k]|; they begin as zeros. x: 16-bit.
void AddMagnitudes(Stream& stream, MatrixView x, double* sums);
// difference = from · diag(scales)⁻¹ - x, of x's type.
void Differences(Stream& stream, MatrixView from, const float* scales, MatrixView x,
                 MatrixView difference);
// The lower triangle from the upper one.
void Mirror(Stream& stream, float* gram, int64_t n);
// out[i] = scale · gram[k][k], k = order[i], or i where that is null.
void MeanSquares(Stream& stream, const float* gram, int64_t n, const int32_t* order, double scale,
                 float* out);
// The upper triangle of scale · gram with rows and columns in the reverse of `order`, 1 in place of a
// zero on the diagonal, and damping times the diagonal's mean added to it. `ridge`: scratch for one
// number.
void BuildHessian(Stream& stream, const float* gram, int64_t n, const int32_t* order, double scale,
                  double damping, double* ridge, double* hessian);
// out[i][j] = inverse[n - 1 - j][n - 1 - i] for j ≥ i, and 0 below.
void ReverseFactor(Stream& stream, const double* inverse, int64_t n, float* out);

// Whole matrices (quantize_elementwise.cu) ------------------------------------------------------

// out = diag(rows) · weight · diag(columns); null stands for ones.
void Scale(Stream& stream, MatrixView weight, const float* rows, const float* columns,
           MatrixView out);
// out[r][k] = weight[r][k] + change[r][positions[k]].
void AddInOrder(Stream& stream, MatrixView weight, MatrixView change, const int32_t* positions,
                MatrixView out);
// out is float32, [rows, columns].
void Dequantize(Stream& stream, const uint8_t* codes, const uint16_t* scales, const uint8_t* zeros,
                int64_t group_length, MatrixView out);
// a - b, rounded to the 10 bits that TF32 products read, so that they need not cut them off.
void RoundedDifference(Stream& stream, MatrixView a, MatrixView b, MatrixView out);
// The least row with a value that is not finite, or one beyond the last.
void FirstBadRow(Stream& stream, MatrixView matrix, int32_t* row);

inline constexpr int kPartialSums = 1024;
// kPartialSums sums of (a - b)²; b.data may be null for zeros.
void SumSquares(Stream& stream, MatrixView a, MatrixView b, double* partial);
// kPartialSums sums of (a - b) · product.
void SumProducts(Stream& stream, MatrixView a, MatrixView b, MatrixView product, double* partial);
void AddUp(Stream& stream, const double* partial, int64_t count, double* sum);

}  // namespace nibble::cuda

#endif  // NIBBLE_OPS_CUDA_QUANTIZE_KERNELS_H_

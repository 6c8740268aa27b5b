#include "src/ops/cpu/inverse_factor.h"

#include <cblas.h>
#include <f77blas.h>

#include <algorithm>
#include <functional>

#include "src/base/checked.h"

namespace nibble::cpu {
namespace {

// The upper factor R of h = RᵀR into h's upper triangle, columns first: a block of rows of R at a
// time, and what it takes from the rest of h by several threads.
bool FactorizeCholesky(double* h, int64_t n, ThreadPool& pool) {
  constexpr int64_t kBlock = 192;
  const auto at = [&](int64_t row, int64_t column) { return h + column * n + row; };
  const auto size = static_cast<blasint>(n);
  for (int64_t k = 0; k < n; k += kBlock) {
    const int64_t next = std::min(n, k + kBlock), blocks = CeilDiv(n - next, kBlock);
    char upper = 'U';
    auto rows = static_cast<blasint>(next - k), stride = size;
    blasint info = 0;
    dpotrf_(&upper, &rows, at(k, k), &stride, &info);
    if (info != 0) return false;
    const auto begin = [&](int64_t block) { return next + block * kBlock; };
    const auto length = [&](int64_t block) {
      return static_cast<blasint>(std::min(kBlock, n - begin(block)));
    };
    const auto solve = [&](int64_t j, int64_t, int) {
      cblas_dtrsm(CblasColMajor, CblasLeft, CblasUpper, CblasTrans, CblasNonUnit, rows, length(j),
                  1.0, at(k, k), size, at(k, begin(j)), size);
    };
    pool.ParallelFor(blocks, 1, std::ref(solve));
    const auto subtract = [&](int64_t number, int64_t, int) {
      int64_t i = number, j = 0;
      for (; i > j; ++j) i -= j + 1;  // column j of the triangle has j + 1 blocks
      if (i == j) {
        cblas_dsyrk(CblasColMajor, CblasUpper, CblasTrans, length(j), rows, -1.0, at(k, begin(j)),
                    size, 1.0, at(begin(j), begin(j)), size);
      } else {
        cblas_dgemm(CblasColMajor, CblasTrans, CblasNoTrans, length(i), length(j), rows, -1.0,
                    at(k, begin(i)), size, at(k, begin(j)), size, 1.0, at(begin(i), begin(j)),
                    size);
      }
    };
    pool.ParallelFor(blocks * (blocks + 1) / 2, 1, std::ref(subtract));
  }
  return true;
}

}  // namespace

// In reverse order H = R·Rᵀ for an upper R is an ordinary Cholesky factorization, and U = R⁻¹ since
// H⁻¹ = R⁻ᵀR⁻¹: one factorization and one triangular inverse in all.
bool FactorizeInverse(double* h, int64_t n, double* scratch, float* factor, ThreadPool& pool) {
  openblas_set_num_threads(1);
  // LAPACK counts columns first: its upper triangle is the lower one here.
  if (!FactorizeCholesky(h, n, pool)) return false;
  const auto size = static_cast<blasint>(n);
  const auto invert = [&](int64_t number, int64_t, int thread) {
    // From the last columns, which are the most work; solving for the identity's.
    const int64_t end = n - number * kInverseColumns;
    const int64_t begin = std::max<int64_t>(0, end - kInverseColumns);
    double* const solution = scratch + thread * kInverseColumns * n;
    std::fill_n(solution, end * (end - begin), 0.0);
    for (int64_t c = begin; c < end; ++c) solution[(c - begin) * end + c] = 1;
    cblas_dtrsm(CblasColMajor, CblasLeft, CblasUpper, CblasNoTrans, CblasNonUnit,
                static_cast<blasint>(end), static_cast<blasint>(end - begin), 1.0, h, size,
                solution, static_cast<blasint>(end));
    for (int64_t c = begin; c < end; ++c) {
      const int64_t i = n - 1 - c;
      float* const row = factor + i * n;
      std::fill(row, row + i, 0.0f);
      const double* const from = solution + (c - begin) * end;
      for (int64_t j = i; j < n; ++j) row[j] = static_cast<float>(from[n - 1 - j]);
    }
  };
  pool.ParallelFor(CeilDiv(n, kInverseColumns), 1, std::ref(invert));
  return true;
}

}  // namespace nibble::cpu

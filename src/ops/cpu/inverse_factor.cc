#include "src/ops/cpu/inverse_factor.h"

#include <cblas.h>
#include <f77blas.h>

#include <algorithm>
#include <functional>

#include "src/base/checked.h"

namespace nibble::cpu {

// In reverse order H = R·Rᵀ for an upper R is an ordinary Cholesky factorization, and U = R⁻¹ since
// H⁻¹ = R⁻ᵀR⁻¹: one factorization and one triangular inverse in all.
bool FactorizeInverse(double* h, int64_t n, double* scratch, float* factor, ThreadPool& pool) {
  // LAPACK counts columns first: its upper triangle is the lower one here.
  char upper = 'U';
  auto size = static_cast<blasint>(n);
  blasint info = 0;
  openblas_set_num_threads(1);
  dpotrf_(&upper, &size, h, &size, &info);
  if (info != 0) return false;
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

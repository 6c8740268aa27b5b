// Matrix products by OpenBLAS, cut into blocks over our own threads. OpenBLAS's threads would spin
// between the products, on the cores that the loops between them need, and cut the sums by their
// number; these are the same bits whatever the number of threads.
#ifndef NIBBLE_OPS_CPU_PRODUCT_BLOCKS_H_
#define NIBBLE_OPS_CPU_PRODUCT_BLOCKS_H_

#include <cblas.h>

#include <algorithm>
#include <functional>

#include "src/base/checked.h"
#include "src/base/thread_pool.h"
#include "src/tensor/tensor.h"

namespace nibble::cpu {

// Near-equal parts of [0, size), each of `most` at most.
struct Parts {
  int64_t size = 0, most = 1;

  int64_t count() const { return CeilDiv(size, most); }
  int64_t begin(int64_t i) const { return size * i / count(); }
  int64_t length(int64_t i) const { return begin(i + 1) - begin(i); }
};

// Enough that packing the factors is a small part of the work, few enough to keep threads busy.
inline constexpr int64_t kProductBlock = 768;

// The rows or columns of a product as its blocks take them: two parts at least, where they are not
// small, for a triangle of two is one block and two halves, which two threads share evenly.
inline Parts BlockParts(int64_t size) {
  constexpr int64_t kWorthHalving = 384;
  return {size, size < kWorthHalving ? size : std::min(kProductBlock, CeilDiv(size, int64_t{2}))};
}

// A block of aᵀb; values: [rows][kProductBlock].
struct ProductBlock {
  int64_t row = 0, column = 0, rows = 0, columns = 0;
  const float* values = nullptr;
};

enum class ProductPart : uint8_t { kAll, kUpperTriangle };

// How many blocks ForProductBlocks makes of [rows, columns].
inline int64_t ProductBlocks(int64_t rows, int64_t columns, ProductPart part) {
  const int64_t i = BlockParts(rows).count(), j = BlockParts(columns).count();
  return part == ProductPart::kAll ? i * j : i * (i + 1) / 2;
}

// use(number, block) for the blocks of aᵀb, by several threads. For kUpperTriangle, b is a, and of
// the blocks on the diagonal the triangle alone is computed. `scratch`: [threads][kProductBlock²].
template <typename Use>
void ForProductBlocks(MatrixView a, MatrixView b, ProductPart part, float* scratch,
                      ThreadPool& pool, const Use& use) {
  const Parts rows = BlockParts(a.columns), columns = BlockParts(b.columns);
  const auto count = static_cast<blasint>(a.rows);
  openblas_set_num_threads(1);
  const auto body = [&](int64_t number, int64_t, int thread) {
    int64_t i = number / columns.count(), j = number % columns.count();
    if (part == ProductPart::kUpperTriangle) {
      // From the corner to the diagonal, whose blocks are half the work.
      const int64_t n = columns.count();
      int64_t left = number, off = n - 1;
      for (; left >= n - off; --off) left -= n - off;
      i = left;
      j = left + off;
    }
    float* const values = scratch + thread * kProductBlock * kProductBlock;
    const ProductBlock block{rows.begin(i), columns.begin(j), rows.length(i), columns.length(j),
                             values};
    const auto m = static_cast<blasint>(block.rows), n = static_cast<blasint>(block.columns);
    constexpr auto kStride = static_cast<blasint>(kProductBlock);
    if (part == ProductPart::kUpperTriangle && i == j) {
      cblas_ssyrk(CblasRowMajor, CblasUpper, CblasTrans, m, count, 1.0f,
                  a.row<float>(0) + block.row, static_cast<blasint>(a.stride), 0.0f, values,
                  kStride);
    } else {
      cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, m, n, count, 1.0f,
                  a.row<float>(0) + block.row, static_cast<blasint>(a.stride),
                  b.row<float>(0) + block.column, static_cast<blasint>(b.stride), 0.0f, values,
                  kStride);
    }
    use(number, block);
  };
  pool.ParallelFor(ProductBlocks(a.columns, b.columns, part), 1, std::ref(body));
}

// work(begin, count) on parts of [0, rows), by several threads, for products whose rows do not
// depend on each other; it may call OpenBLAS.
template <typename Work>
void ForRowParts(int64_t rows, ThreadPool& pool, const Work& work) {
  // As with blocks; and a multiple of four parts, so that few threads are done together.
  constexpr int64_t kMostRows = 192, kMultiple = 4;
  const Parts parts{rows, CeilDiv(rows, RoundUp(CeilDiv(rows, kMostRows), kMultiple))};
  openblas_set_num_threads(1);
  const auto body = [&](int64_t i, int64_t, int) { work(parts.begin(i), parts.length(i)); };
  pool.ParallelFor(parts.count(), 1, std::ref(body));
}

}  // namespace nibble::cpu

#endif  // NIBBLE_OPS_CPU_PRODUCT_BLOCKS_H_

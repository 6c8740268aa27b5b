#include "src/ops/cpu/cpu_quantize.h"

#include <cblas.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

#include "src/base/checked.h"
#include "src/ops/cpu/cpu_statistics.h"
#include "src/ops/cpu/grid_table.h"
#include "src/ops/cpu/inverse_factor.h"
#include "src/ops/cpu/product_blocks.h"
#include "src/ops/cpu/quantize_kernels.h"
#include "src/ops/host_quantize.h"

namespace nibble {
namespace {

using cpu::GridTable;
using cpu::kMaxSweepBlock;
using cpu::kProductBlock;
using cpu::kTileRows;
using cpu::TileGrid;

const CpuStatistics& Cpu(const InputStatistics& statistics) {
  return static_cast<const CpuStatistics&>(statistics);
}

// Rows [first, first + kTileRows) of columns columns[0, count), missing rows as zeros.
void LoadTile(MatrixView weight, int64_t first, const int32_t* columns, int64_t count,
              float* tile) {
  const int64_t rows = std::min(kTileRows, weight.rows - first);
  for (int64_t r = 0; r < rows; ++r) {
    const float* row = weight.row<float>(first + r);
    for (int64_t k = 0; k < count; ++k) tile[k * kTileRows + r] = row[columns[k]];
  }
  if (rows == kTileRows) return;
  for (int64_t k = 0; k < count; ++k) {
    std::fill(tile + k * kTileRows + rows, tile + (k + 1) * kTileRows, 0.0f);
  }
}

std::vector<int32_t> Ascending(int64_t count) {
  std::vector<int32_t> order(static_cast<size_t>(count));
  std::iota(order.begin(), order.end(), 0);
  return order;
}

class CpuQuantizeOps final : public HostQuantizeOps {
 public:
  using HostQuantizeOps::HostQuantizeOps;

  Result<std::unique_ptr<InputStatistics>> CreateStatistics(int64_t columns) override {
    NIBBLE_RETURN_IF_ERROR(Grow(
        product_blocks_, static_cast<size_t>(pool_.threads()) * kProductBlock * kProductBlock));
    return CpuStatistics::Create(columns, memory_);
  }

  void Accumulate(MatrixView x, InputStatistics& statistics) override {
    static_cast<CpuStatistics&>(statistics).Add(x, product_blocks_.as<float>(), pool_);
  }

  std::vector<float> MeanSquares(const InputStatistics& statistics) override {
    const CpuStatistics& s = Cpu(statistics);
    std::vector<float> mean(static_cast<size_t>(s.columns()));
    for (int64_t k = 0; k < s.columns(); ++k) {
      mean[static_cast<size_t>(k)] = static_cast<float>(s.At(k, k) * s.mean_scale());
    }
    return mean;
  }

  std::vector<float> MeanMagnitudes(const InputStatistics& statistics) override {
    const CpuStatistics& s = Cpu(statistics);
    std::vector<float> mean;
    for (const double sum : s.magnitudes())
      mean.push_back(static_cast<float>(sum * s.mean_scale()));
    return mean;
  }

  Result<std::unique_ptr<InputDrift>> CreateDrift(std::span<const MatrixView> weights) override {
    return CpuDrift::Create(weights, memory_);
  }

  void AccumulateDrift(MatrixView unquantized, std::span<const float> scales, MatrixView x,
                       InputDrift& drift) override {
    const MatrixView difference = Differences(x.rows, x.columns);
    ForEach(x.rows, 16, [&](int64_t r) {
      for (int64_t k = 0; k < x.columns; ++k) {
        difference.row<float>(r)[k] =
            unquantized.row<float>(r)[k] / scales[static_cast<size_t>(k)] - x.row<float>(r)[k];
      }
    });
    static_cast<CpuDrift&>(drift).Add(difference, x, product_blocks_.as<float>(), pool_);
  }

  Result<Matrix> Factorize(const InputStatistics& statistics, std::span<const int32_t> order,
                           double damping) override {
    const CpuStatistics& s = Cpu(statistics);
    const int64_t n = s.columns();
    CHECK(static_cast<int64_t>(order.size()) == n);
    NIBBLE_RETURN_IF_ERROR(Grow(hessian_, static_cast<size_t>(n * n) * 2));
    auto* const h = hessian_.as<double>();
    const double scale = 2 * s.mean_scale();
    double trace = 0;
    for (int64_t k = 0; k < n; ++k) trace += s.At(k, k) == 0 ? 1 : s.At(k, k) * scale;
    const double ridge = damping * trace / static_cast<double>(n);
    const auto at = [&](int64_t i) { return order[static_cast<size_t>(n - 1 - i)]; };
    ForEach(n, 16, [&](int64_t i) {
      for (int64_t j = 0; j <= i; ++j) h[i * n + j] = s.At(at(i), at(j)) * scale;
      if (h[i * n + i] == 0) h[i * n + i] = 1;
      h[i * n + i] += ridge;
    });
    NIBBLE_RETURN_IF_ERROR(
        Grow(solutions_, static_cast<size_t>(pool_.threads() * cpu::kInverseColumns * n) * 2));
    NIBBLE_ASSIGN_OR_RETURN(Matrix factor, AllocateMatrix(n, n));
    if (!cpu::FactorizeInverse(h, n, solutions_.as<double>(), factor.view().row<float>(0), pool_)) {
      return BadInput("the Hessian is not positive definite");
    }
    return factor;
  }

  Result<Matrix> Retarget(MatrixView weight, const InputDrift& drift, const Matrix& factor,
                          std::span<const int32_t> order, double share) override {
    const auto& d = static_cast<const CpuDrift&>(drift);
    const int64_t n = weight.columns;
    CHECK(n == d.columns() && factor.rows() == n);
    CHECK(!d.has_weight() || d.rows() == weight.rows);
    NIBBLE_RETURN_IF_ERROR(Grow(scaled_drift_, static_cast<size_t>(d.rows() * n)));
    float* const scaled = scaled_drift_.as<float>();
    ForEach(d.rows(), 16, [&](int64_t i) {
      for (int64_t j = 0; j < n; ++j) {
        scaled[i * n + j] = static_cast<float>(2 * share * d.Mean(i, j));
      }
    });
    NIBBLE_RETURN_IF_ERROR(Grow(swept_, static_cast<size_t>(weight.rows * n)));
    NIBBLE_ASSIGN_OR_RETURN(Matrix target, AllocateMatrix(weight.rows, n));
    const auto size = static_cast<blasint>(n);
    cpu::ForRowParts(weight.rows, pool_, [&](int64_t begin, int64_t count) {
      const auto rows = static_cast<blasint>(count);
      const float* product = scaled + begin * n;
      if (!d.has_weight()) {
        product = target.view().row<float>(begin);
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, rows, size, size, 1.0f,
                    weight.row<float>(begin), static_cast<blasint>(weight.stride), scaled, size,
                    0.0f, target.view().row<float>(begin), size);
      }
      // Columns in sweep order, as the factor's.
      float* const change = swept_.as<float>() + begin * n;
      for (int64_t r = 0; r < count; ++r) {
        const float* const row = product + r * n;
        for (int64_t j = 0; j < n; ++j) change[r * n + j] = row[order[static_cast<size_t>(j)]];
      }
      for (const CBLAS_TRANSPOSE transposed : {CblasTrans, CblasNoTrans}) {
        cblas_strmm(CblasRowMajor, CblasRight, CblasUpper, transposed, CblasNonUnit, rows, size,
                    1.0f, factor.view().row<float>(0), size, change, size);
      }
      for (int64_t r = 0; r < count; ++r) {
        const float* const row = weight.row<float>(begin + r);
        float* const to = target.view().row<float>(begin + r);
        for (int64_t j = 0; j < n; ++j) {
          const int64_t k = order[static_cast<size_t>(j)];
          to[k] = row[k] + change[r * n + j];
        }
      }
    });
    return target;
  }

  Result<QuantizedWeight> Sweep(MatrixView weight, const InputStatistics& statistics,
                                const Matrix& factor, const SweepOptions& options) override {
    const CpuStatistics& s = Cpu(statistics);
    const int64_t columns = weight.columns;
    CHECK(columns == s.columns() && factor.rows() == columns);
    const std::vector<float> squares = MeanSquares(statistics);
    GridTable grids(options.grid.spec, weight.rows, columns);
    // The weight in sweep order; what an always-zero input is multiplied with does not matter.
    NIBBLE_RETURN_IF_ERROR(Grow(swept_, static_cast<size_t>(weight.rows * columns)));
    NIBBLE_RETURN_IF_ERROR(Grow(errors_, static_cast<size_t>(weight.rows * kMaxSweepBlock)));
    const MatrixView swept{swept_.data(), DType::kF32, weight.rows, columns, columns};
    float* const errors = errors_.as<float>();
    std::vector<uint8_t> codes(static_cast<size_t>(weight.rows * columns));
    std::vector<float> importance;
    for (const int32_t k : options.order) importance.push_back(squares[static_cast<size_t>(k)]);
    ForEach(weight.rows, 8, [&](int64_t r) {
      for (int64_t i = 0; i < columns; ++i) {
        const auto at = static_cast<size_t>(i);
        swept.row<float>(r)[i] =
            importance[at] == 0 ? 0.0f : weight.row<float>(r)[options.order[at]];
      }
    });
    const bool finds_grids_before =
        options.grid_time == GridTime::kStatic || grids.length() > kMaxSweepBlock;
    if (finds_grids_before) FindGrids(weight, options.grid, squares, grids);

    const std::vector<int32_t> ascending = Ascending(columns);
    for (int64_t begin = 0; begin < columns; begin += kMaxSweepBlock) {
      const int64_t count = std::min(kMaxSweepBlock, columns - begin);
      ForEach(CeilDiv(weight.rows, kTileRows), 1, [&](int64_t t) {
        alignas(64) float tile[kMaxSweepBlock * kTileRows];
        alignas(64) float error[kMaxSweepBlock * kTileRows];
        uint8_t code[kMaxSweepBlock * kTileRows];
        const int64_t first = t * kTileRows, rows = std::min(kTileRows, weight.rows - first);
        LoadTile(swept, first, &ascending[static_cast<size_t>(begin)], count, tile);
        for (int64_t k = 0; k < count; ++k) {
          const int64_t column = options.order[static_cast<size_t>(begin + k)];
          TileGrid& grid = grids.At(t, column / grids.length());
          if (!finds_grids_before && (begin + k) % grids.length() == 0) {
            FindTileGrid(tile + k * kTileRows, grids.length(), options.grid,
                         &importance[static_cast<size_t>(begin + k)], grid);
          }
          cpu::SweepColumn(tile, k, count, grid, factor.view().row<float>(begin + k) + begin + k,
                           code + k * kTileRows, error + k * kTileRows);
        }
        for (int64_t r = 0; r < rows; ++r) {
          for (int64_t k = 0; k < count; ++k) {
            const int64_t column = options.order[static_cast<size_t>(begin + k)];
            codes[static_cast<size_t>((first + r) * columns + column)] = code[k * kTileRows + r];
            errors[(first + r) * kMaxSweepBlock + k] = error[k * kTileRows + r];
          }
        }
      });
      const int64_t left = columns - begin - count;
      if (left == 0) break;
      cpu::ForRowParts(weight.rows, pool_, [&](int64_t first, int64_t rows) {
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, static_cast<blasint>(rows),
                    static_cast<blasint>(left), static_cast<blasint>(count), -1.0f,
                    errors + first * kMaxSweepBlock, static_cast<blasint>(kMaxSweepBlock),
                    factor.view().row<float>(begin) + begin + count, static_cast<blasint>(columns),
                    1.0f, swept.row<float>(first) + begin + count, static_cast<blasint>(columns));
      });
    }
    return Assemble(options.grid.spec, weight.rows, columns, codes, grids);
  }

  Result<QuantizedWeight> Round(MatrixView weight, const GridOptions& options,
                                const InputStatistics* statistics) override {
    GridTable grids(options.spec, weight.rows, weight.columns);
    std::vector<float> squares(static_cast<size_t>(weight.columns), 1.0f);
    if (statistics != nullptr) squares = MeanSquares(*statistics);
    std::vector<uint8_t> codes(static_cast<size_t>(weight.rows * weight.columns));
    ForEachGroup(
        weight, options.spec,
        [&](int64_t t, int64_t g, const int32_t* columns, float* tile, float*, uint8_t* code) {
          TileGrid& grid = grids.At(t, g);
          FindTileGrid(tile, grids.length(), options, &squares[static_cast<size_t>(columns[0])],
                       grid);
          cpu::RoundTile(tile, grids.length(), grid, code, nullptr);
          const int64_t first = t * kTileRows, rows = std::min(kTileRows, weight.rows - first);
          for (int64_t r = 0; r < rows; ++r) {
            for (int64_t k = 0; k < grids.length(); ++k) {
              codes[static_cast<size_t>((first + r) * weight.columns + columns[k])] =
                  code[k * kTileRows + r];
            }
          }
        });
    return Assemble(options.spec, weight.rows, weight.columns, codes, grids);
  }

  void PseudoQuantize(MatrixView weight, const GridOptions& options, std::span<const float> scales,
                      MatrixView out) override {
    const int64_t length = options.spec.GroupLength(weight.columns);
    const std::vector<float> importance(static_cast<size_t>(length), 1.0f);
    ForEachGroup(
        weight, options.spec,
        [&](int64_t t, int64_t, const int32_t* columns, float* tile, float* values, uint8_t* code) {
          for (int64_t k = 0; k < length; ++k) {
            const float scale = scales[static_cast<size_t>(columns[k])];
            for (int64_t r = 0; r < kTileRows; ++r) tile[k * kTileRows + r] *= scale;
          }
          TileGrid grid;
          FindTileGrid(tile, length, options, importance.data(), grid);
          cpu::RoundTile(tile, length, grid, code, values);
          const int64_t first = t * kTileRows, rows = std::min(kTileRows, weight.rows - first);
          for (int64_t r = 0; r < rows; ++r) {
            float* const row = out.row<float>(first + r);
            for (int64_t k = 0; k < length; ++k) {
              row[columns[k]] = values[k * kTileRows + r] / scales[static_cast<size_t>(columns[k])];
            }
          }
        });
  }

  void Clip(MatrixView weight, const GridOptions& options, std::span<const float> scales,
            const InputStatistics& statistics) override {
    const CpuStatistics& s = Cpu(statistics);
    const int64_t length = options.spec.GroupLength(weight.columns);
    const int64_t block = std::min(length, kMaxSweepBlock);
    // The Hessian's blocks on the diagonal, float32 [columns][block].
    std::vector<float> gram(static_cast<size_t>(weight.columns * block));
    ForEach(weight.columns, 16, [&](int64_t i) {
      const int64_t first = i / length * length + i % length / block * block;
      for (int64_t k = 0; k < std::min(block, weight.columns - first); ++k) {
        gram[static_cast<size_t>(i * block + k)] =
            static_cast<float>(s.At(i, first + k) * s.mean_scale());
      }
    });
    const std::vector<float> importance(static_cast<size_t>(length), 1.0f);
    ForEachGroup(
        weight, options.spec,
        [&](int64_t t, int64_t, const int32_t* columns, float* tile, float* values, uint8_t* code) {
          std::vector<float> clipped(static_cast<size_t>(length * kTileRows) + 16);
          auto* const trial = AlignedTo64(clipped.data());
          float most[kTileRows] = {}, best[kTileRows], limits[kTileRows];
          std::fill(best, best + kTileRows, std::numeric_limits<float>::infinity());
          for (int64_t i = 0; i < length * kTileRows; ++i) {
            most[i % kTileRows] = std::max(most[i % kTileRows], std::abs(tile[i]));
          }
          for (int step = 0; step < 10; ++step) {
            float limit[kTileRows];
            for (int64_t r = 0; r < kTileRows; ++r) {
              limit[r] = most[r] * (1 - static_cast<float>(step) / 20);
            }
            for (int64_t i = 0; i < length * kTileRows; ++i) {
              const float bound = limit[i % kTileRows];
              trial[i] = std::clamp(tile[i], -bound, bound);
            }
            TileGrid grid;
            FindTileGrid(trial, length, options, importance.data(), grid);
            cpu::RoundTile(trial, length, grid, code, values);
            for (int64_t i = 0; i < length * kTileRows; ++i) {
              const float scale = scales[static_cast<size_t>(columns[i / kTileRows])];
              values[i] = (tile[i] - values[i]) / scale;
            }
            alignas(64) float losses[kTileRows] = {};
            for (int64_t k = 0; k < length; k += block) {
              cpu::AddQuadraticForm(values + k * kTileRows, std::min(block, length - k),
                                    &gram[static_cast<size_t>((columns[0] + k) * block)], block,
                                    losses);
            }
            for (int64_t r = 0; r < kTileRows; ++r) {
              if (losses[r] < best[r]) {
                best[r] = losses[r];
                limits[r] = limit[r];
              }
            }
          }
          const int64_t first = t * kTileRows, rows = std::min(kTileRows, weight.rows - first);
          for (int64_t r = 0; r < rows; ++r) {
            if (std::isinf(best[r])) continue;  // no trial has a finite error: left as it is
            float* const row = weight.row<float>(first + r);
            for (int64_t k = 0; k < length; ++k) {
              row[columns[k]] = std::clamp(row[columns[k]], -limits[r], limits[r]);
            }
          }
        });
  }

  double OutputError(MatrixView weight, MatrixView other,
                     const InputStatistics& statistics) override {
    const CpuStatistics& s = Cpu(statistics);
    const int64_t n = s.columns(), rows = weight.rows;
    const MatrixView delta = Differences(rows, n);
    ForEach(rows, 16, [&](int64_t r) {
      for (int64_t k = 0; k < n; ++k) {
        delta.row<float>(r)[k] = weight.row<float>(r)[k] - other.row<float>(r)[k];
      }
    });
    // tr(Δ · G · Δᵀ) is the sum of G times ΔᵀΔ by elements, and both are symmetric. One sum for
    // each block, added in order: the same figure whatever the number of threads.
    constexpr auto kPart = cpu::ProductPart::kUpperTriangle;
    std::vector<double> sums(static_cast<size_t>(cpu::ProductBlocks(n, n, kPart)));
    cpu::ForProductBlocks(delta, delta, kPart, product_blocks_.as<float>(), pool_,
                          [&](int64_t number, const cpu::ProductBlock& block) {
                            double sum = 0;
                            for (int64_t i = 0; i < block.rows; ++i) {
                              const double* const gram =
                                  s.gram() + (block.row + i) * n + block.column;
                              const float* const values = block.values + i * kProductBlock;
                              int64_t j = 0;
                              if (block.row == block.column) {
                                sum += gram[i] * values[i] / 2;
                                j = i + 1;
                              }
                              for (; j < block.columns; ++j) sum += gram[j] * values[j];
                            }
                            sums[static_cast<size_t>(number)] = sum;
                          });
    return 2 * std::accumulate(sums.begin(), sums.end(), 0.0) * s.mean_scale();
  }

 private:
  static float* AlignedTo64(float* p) {
    return reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(p) + 63) & ~uintptr_t{63});
  }

  // Scratch memory, kept from call to call.
  MatrixView Differences(int64_t rows, int64_t columns) {
    const auto count = static_cast<size_t>(rows * columns);
    if (differences_.size() < count) differences_.resize(count);
    return {differences_.data(), DType::kF32, rows, columns, columns};
  }

  // For scratch memory of `count` floats, kept from call to call.
  Status Grow(Buffer& buffer, size_t count) {
    if (buffer.size() >= count * sizeof(float)) return {};
    buffer = Buffer();
    NIBBLE_ASSIGN_OR_RETURN(buffer,
                            AllocateHost(memory_, MemoryClass::kWorkspace, count * sizeof(float)));
    return {};
  }

  // work(tile number, group, its columns, tile, values, codes), the last two as scratch.
  template <typename Work>
  void ForEachGroup(MatrixView weight, const QuantSpec& spec, const Work& work) {
    const int64_t length = spec.GroupLength(weight.columns);
    const std::vector<int32_t> ascending = Ascending(weight.columns);
    const auto body = [&](int64_t begin, int64_t end, int) {
      const auto count = static_cast<size_t>(length * kTileRows);
      std::vector<float> memory(2 * count + 16);
      float* const tile = AlignedTo64(memory.data());
      std::vector<uint8_t> codes(count);
      for (int64_t t = begin; t < end; ++t) {
        for (int64_t g = 0; g < weight.columns / length; ++g) {
          const int32_t* const columns = &ascending[static_cast<size_t>(g * length)];
          LoadTile(weight, t * kTileRows, columns, length, tile);
          work(t, g, columns, tile, tile + count, codes.data());
        }
      }
    };
    pool_.ParallelFor(CeilDiv(weight.rows, kTileRows), 1, std::ref(body));
  }

  void FindGrids(MatrixView weight, const GridOptions& options, const std::vector<float>& squares,
                 GridTable& grids) {
    ForEachGroup(weight, options.spec,
                 [&](int64_t t, int64_t g, const int32_t* columns, float* tile, float*, uint8_t*) {
                   FindTileGrid(tile, grids.length(), options,
                                &squares[static_cast<size_t>(columns[0])], grids.At(t, g));
                 });
  }

  static void FindTileGrid(const float* tile, int64_t columns, const GridOptions& options,
                           const float* importance, TileGrid& grid) {
    cpu::FindTileGrid(tile, columns, options, importance, grid);
  }

  // codes: [rows][columns].
  Result<QuantizedWeight> Assemble(const QuantSpec& spec, int64_t rows, int64_t columns,
                                   const std::vector<uint8_t>& codes, GridTable& grids) {
    QuantizedWeight quantized = QuantizedWeight::Empty(spec, rows, columns);
    ForEach(rows, 16, [&](int64_t r) {
      const auto first = static_cast<size_t>(r * columns);
      for (size_t k = 0; k < static_cast<size_t>(columns); k += 2) {
        quantized.codes[(first + k) / 2] =
            static_cast<uint8_t>(codes[first + k] | codes[first + k + 1] << 4);
      }
    });
    NIBBLE_RETURN_IF_ERROR(grids.Store(quantized));
    return quantized;
  }

  // Scratch memory, of the largest call so far.
  Buffer product_blocks_;                 // see ForProductBlocks
  Buffer hessian_, solutions_;            // of Factorize
  Buffer scaled_drift_, swept_, errors_;  // of Retarget and Sweep
  std::vector<float> differences_;
};

}  // namespace

std::unique_ptr<QuantizeOps> MakeCpuQuantizeOps(ThreadPool& pool, MemoryTracker& memory) {
  return std::make_unique<CpuQuantizeOps>(pool, memory);
}

}  // namespace nibble

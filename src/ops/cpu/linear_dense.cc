#include "src/ops/cpu/linear_dense.h"

#include "src/ops/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/ops/cpu/linear_dense.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
#include "src/ops/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace nibble::cpu::HWY_NAMESPACE {
namespace {

// Columns at a time when there are several tiles: a panel's part (16 KB of
// 16-bit weights) and a tile's (12 KB) then share the first-level cache. The
// sums between wait in memory.
constexpr int64_t kDepthStep = 512;

template <typename W, int T>
void RunTile(const W* panels, int64_t panel_stride, int64_t count, const float* x, int64_t depth,
             float* sums, bool resume) {
  constexpr int kStep = PanelsFor(T);
  const W* at[kGroupPanels];
  for (int64_t p = 0; p < count; ++p) at[p] = panels + p * panel_stride;
  int64_t p = 0;
  for (; p + kStep <= count; p += kStep) {
    AccumulateDense<W, T, kStep>(at + p, x, depth, sums + p * kPanelRows, kSumsStride, resume);
  }
  if constexpr (kStep > 1) {
    for (; p < count; ++p) {
      AccumulateDense<W, T, 1>(at + p, x, depth, sums + p * kPanelRows, kSumsStride, resume);
    }
  }
}

template <typename W>
void RunTileOf(int64_t rows, const W* panels, int64_t panel_stride, int64_t count, const float* x,
               int64_t depth, float* sums, bool resume) {
  switch (rows) {
    case 1:
      return RunTile<W, 1>(panels, panel_stride, count, x, depth, sums, resume);
    case 2:
      return RunTile<W, 2>(panels, panel_stride, count, x, depth, sums, resume);
    case 3:
      return RunTile<W, 3>(panels, panel_stride, count, x, depth, sums, resume);
    case 4:
      return RunTile<W, 4>(panels, panel_stride, count, x, depth, sums, resume);
    case 5:
      return RunTile<W, 5>(panels, panel_stride, count, x, depth, sums, resume);
    default:
      return RunTile<W, 6>(panels, panel_stride, count, x, depth, sums, resume);
  }
}

template <typename W>
void RunGroup(const LinearTask& task, int64_t panel_begin, int64_t panel_end, float* sums) {
  const int64_t depth = task.weight->in_features();
  const int64_t panel_stride = depth * kPanelRows;
  const W* panels = reinterpret_cast<const W*>(task.weight->panel(panel_begin));
  const Tiling& tiling = task.tiling;
  const int64_t step = tiling.tiles() == 1 ? depth : kDepthStep;
  constexpr int64_t kTiles = kSumRows / kMaxTile;
  for (int64_t first = 0; first < tiling.tiles(); first += kTiles) {
    const int64_t last = std::min(first + kTiles, tiling.tiles());
    const int64_t row = tiling.begin(first);
    for (int64_t k = 0; k < depth; k += step) {
      for (int64_t tile = first; tile < last; ++tile) {
        const int64_t begin = tiling.begin(tile);
        const int64_t size = tiling.size(tile);
        RunTileOf<W>(size, panels + k * kPanelRows, panel_stride, panel_end - panel_begin,
                     task.packed_f32() + begin * depth + k * size, std::min(step, depth - k),
                     sums + (begin - row) * kSumsStride, k > 0);
      }
    }
    StoreGroup(task, panel_begin, panel_end, row, tiling.begin(last) - row, sums);
  }
}

void RunDense(const LinearTask& task, int64_t panel_begin, int64_t panel_end, int thread) {
  float* sums = task.scratch.sums + thread * LinearScratch::kSumsPerThread;
  for (int64_t p = panel_begin; p < panel_end; p += kGroupPanels) {
    const int64_t end = std::min(p + kGroupPanels, panel_end);
    switch (task.weight->layout().packing) {
      case Packing::kF32:
        RunGroup<float>(task, p, end, sums);
        break;
      case Packing::kF16:
        RunGroup<hwy::float16_t>(task, p, end, sums);
        break;
      case Packing::kBF16:
        RunGroup<hwy::bfloat16_t>(task, p, end, sums);
        break;
      case Packing::kQ4:
        break;
    }
  }
}

}  // namespace
}  // namespace nibble::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble::cpu {

HWY_EXPORT(RunDense);

void RunDensePanels(const LinearTask& task, int64_t panel_begin, int64_t panel_end, int thread) {
  HWY_DYNAMIC_DISPATCH(RunDense)(task, panel_begin, panel_end, thread);
}

void PackDenseTiles(const LinearTask& task, int64_t tile_begin, int64_t tile_end) {
  const int64_t depth = task.x.columns;
  for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
    const int64_t begin = task.tiling.begin(tile);
    const int64_t size = task.tiling.size(tile);
    float* out = task.packed_f32() + begin * depth;
    for (int64_t t = 0; t < size; ++t) {
      const float* x = task.x.row<float>(begin + t);
      for (int64_t k = 0; k < depth; ++k) out[k * size + t] = x[k];
    }
  }
}

}  // namespace nibble::cpu
#endif  // HWY_ONCE

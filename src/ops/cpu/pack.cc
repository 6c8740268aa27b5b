#include "src/ops/cpu/pack.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <functional>

namespace nibble::cpu {
namespace {

// A shorter group's activations would need more scratch memory than the plan
// counts on.
constexpr int64_t kMinGroupLength = 8;

// A row of one of the concatenated weights.
struct SourceRow {
  const LinearSource* source = nullptr;  // null for padding
  int64_t row = 0;
};
using PanelSources = std::array<SourceRow, kPanelRows>;

PanelSources SourcesOf(std::span<const LinearSource> sources, const LinearLayout& layout,
                       int64_t panel) {
  PanelSources rows;
  for (int64_t lane = 0; lane < kPanelRows; ++lane) {
    int64_t row = layout.RowOf(panel, lane);
    if (row < 0) continue;
    const LinearSource* source = sources.data();
    while (row >= RowsOf(*source->weight)) row -= RowsOf(*source++->weight);
    rows[static_cast<size_t>(lane)] = {source, row};
  }
  return rows;
}

// element [columns][16] from 16 rows; T is an unsigned integer of the element's
// size.
template <typename T>
void PackDensePanel(const PanelSources& rows, int64_t columns, T* out) {
  // 64 columns at a time, so that what is written stays in the first-level
  // cache.
  constexpr int64_t kStep = 64;
  for (int64_t begin = 0; begin < columns; begin += kStep) {
    const int64_t count = std::min(kStep, columns - begin);
    for (int64_t lane = 0; lane < kPanelRows; ++lane) {
      const SourceRow& row = rows[static_cast<size_t>(lane)];
      T* to = out + begin * kPanelRows + lane;
      if (row.source == nullptr) {
        for (int64_t k = 0; k < count; ++k) to[k * kPanelRows] = 0;
        continue;
      }
      const auto& weight = std::get<DenseWeight>(*row.source->weight);
      std::array<T, kStep> from;  // the file may not be aligned to the element
      std::memcpy(from.data(),
                  weight.data + static_cast<size_t>(row.row * columns + begin) * sizeof(T),
                  static_cast<size_t>(count) * sizeof(T));
      for (int64_t k = 0; k < count; ++k) to[k * kPanelRows] = from[static_cast<size_t>(k)];
    }
  }
}

// The word of columns [column, column + count) of a row, count ≤ 8.
uint32_t PackWord(const QuantizedWeight& weight, int64_t row, int64_t column, int64_t count) {
  uint32_t word = 0;
  if (count == Segments::kBlockColumns && column % 2 == 0) {
    std::memcpy(&word, &weight.codes[static_cast<size_t>((row * weight.columns + column) / 2)],
                sizeof(word));
    return word;
  }
  for (int64_t i = 0; i < count; ++i) {
    word |= static_cast<uint32_t>(weight.Code(row, column + i)) << (4 * i);
  }
  return word;
}

// Returns whether the zeros are what the layout says: 8 where none are stored.
bool PackQ4Panel(const PanelSources& rows, const LinearLayout& layout, uint32_t* words,
                 uint16_t* scales, uint8_t* zeros) {
  const Segments& s = layout.segments;
  bool as_expected = true;
  for (int64_t lane = 0; lane < kPanelRows; ++lane) {
    const SourceRow& row = rows[static_cast<size_t>(lane)];
    if (row.source == nullptr) {
      for (int64_t b = 0; b < s.blocks(); ++b) words[b * kPanelRows + lane] = 0;
      for (int64_t g = 0; g < s.groups; ++g) scales[g * kPanelRows + lane] = 0;
      for (int64_t g = 0; layout.has_zeros && g < s.groups; ++g) zeros[g * kPanelRows + lane] = 0;
      continue;
    }
    const auto& weight = std::get<QuantizedWeight>(*row.source->weight);
    for (int64_t g = 0; g < s.groups; ++g) {
      const auto from = static_cast<size_t>(row.row * s.groups + g);
      scales[g * kPanelRows + lane] = weight.scales[from];
      if (layout.has_zeros) {
        zeros[g * kPanelRows + lane] = weight.zeros[from];
      } else {
        as_expected &= weight.zeros[from] == 8;
      }
      for (int64_t b = 0; b < s.blocks_per_group; ++b) {
        const int64_t first = b * Segments::kBlockColumns;  // within the group
        words[(g * s.blocks_per_group + b) * kPanelRows + lane] =
            PackWord(weight, row.row, g * s.group_length + first,
                     std::min(Segments::kBlockColumns, s.group_length - first));
      }
    }
  }
  return as_expected;
}

void PackBias(const PanelSources& rows, float* out) {
  for (const SourceRow& row : rows) {
    const bool has = row.source != nullptr && !row.source->bias.empty();
    *out++ = has ? row.source->bias[static_cast<size_t>(row.row)] : 0.0f;
  }
}

}  // namespace

Result<std::unique_ptr<PreparedLinear>> PackLinear(std::span<const LinearSource> sources,
                                                   Interleave interleave, HostArena& arena,
                                                   MemoryTracker& memory, ThreadPool& pool) {
  CHECK(!sources.empty());
  const Weight& first = *sources[0].weight;
  const auto* quantized = std::get_if<QuantizedWeight>(&first);
  const DType dtype = quantized ? DType::kF16 : std::get<DenseWeight>(first).dtype;
  const int64_t in = ColumnsOf(first);
  int64_t out = 0;
  bool bias = false;
  for (const LinearSource& source : sources) {
    CHECK(ColumnsOf(*source.weight) == in && source.weight->index() == first.index());
    if (quantized) {
      const auto& weight = std::get<QuantizedWeight>(*source.weight);
      CHECK(weight.spec == quantized->spec && weight.column_of_input == quantized->column_of_input);
    } else {
      CHECK(std::get<DenseWeight>(*source.weight).dtype == dtype);
    }
    CHECK(source.bias.empty() ||
          static_cast<int64_t>(source.bias.size()) == RowsOf(*source.weight));
    out += RowsOf(*source.weight);
    bias |= !source.bias.empty();
  }
  CHECK(interleave == Interleave::kNone || out % 2 == 0);
  if (quantized) {
    CHECK(quantized->spec.bits == 4);
    if (quantized->group_length() < kMinGroupLength) {
      return BadInput("groups of {} columns: the CPU's kernels want at least {}",
                      quantized->group_length(), kMinGroupLength);
    }
  }

  const LinearLayout layout =
      LinearLayout::Of(out, in, dtype, quantized ? &quantized->spec : nullptr, bias, interleave);
  NIBBLE_ASSIGN_OR_RETURN(Buffer buffer,
                          arena.Allocate(memory, MemoryClass::kWeights, layout.total_bytes));
  auto linear = std::make_unique<CpuLinear>(layout, std::move(buffer));
  if (layout.has_order) {
    for (int64_t k = 0; k < in; ++k) {
      linear->order()[quantized->ColumnOf(k)] = static_cast<int32_t>(k);
    }
  }
  std::atomic<bool> as_expected{true};
  const auto pack = [&](int64_t begin, int64_t end, int) {
    for (int64_t p = begin; p < end; ++p) {
      const PanelSources rows = SourcesOf(sources, layout, p);
      switch (layout.packing) {
        case Packing::kF32:
          PackDensePanel(rows, in, reinterpret_cast<uint32_t*>(linear->panel(p)));
          break;
        case Packing::kF16:
        case Packing::kBF16:
          PackDensePanel(rows, in, reinterpret_cast<uint16_t*>(linear->panel(p)));
          break;
        case Packing::kQ4:
          if (!PackQ4Panel(rows, layout, reinterpret_cast<uint32_t*>(linear->panel(p)),
                           linear->scales(p), linear->zeros(p))) {
            as_expected = false;
          }
          break;
      }
      if (layout.has_bias) PackBias(rows, linear->bias(p));
    }
  };
  pool.ParallelFor(layout.panels, 1, std::ref(pack));
  if (!as_expected) {
    return BadInput("a weight on the {} grid has a zero other than 8", Name(quantized->spec.grid));
  }
  return linear;
}

}  // namespace nibble::cpu

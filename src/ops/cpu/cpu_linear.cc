#include "src/ops/cpu/cpu_linear.h"

#include <algorithm>

#include "src/base/checked.h"

namespace nibble::cpu {
namespace {

constexpr size_t kAlignment = 64;

Packing PackingOf(DType dtype) {
  CHECK(IsFloat(dtype), "a weight of type {}", Name(dtype));
  return dtype == DType::kF32   ? Packing::kF32
         : dtype == DType::kF16 ? Packing::kF16
                                : Packing::kBF16;
}

}  // namespace

Segments Segments::Of(int64_t columns, int64_t group_length) {
  Segments s{.group_length = group_length, .groups = columns / group_length};
  s.per_group = CeilDiv(group_length, kMaxColumns);
  const int64_t last = group_length - (s.per_group - 1) * kMaxColumns;
  s.blocks_per_group =
      (s.per_group - 1) * (kMaxColumns / kBlockColumns) + CeilDiv(last, kBlockColumns);
  return s;
}

Segments::Segment Segments::At(int64_t group, int64_t i) const {
  const int64_t columns = std::min(kMaxColumns, group_length - i * kMaxColumns);
  return {.column = group * group_length + i * kMaxColumns,
          .columns = columns,
          .block = group * blocks_per_group + i * (kMaxColumns / kBlockColumns),
          .blocks = CeilDiv(columns, kBlockColumns)};
}

LinearLayout LinearLayout::Of(int64_t out_features, int64_t in_features, DType dtype,
                              const QuantSpec* quant, bool bias, Interleave interleave) {
  LinearLayout layout{.packing = quant == nullptr ? PackingOf(dtype) : Packing::kQ4,
                      .interleave = interleave,
                      .out_features = out_features,
                      .in_features = in_features,
                      .has_bias = bias};
  layout.panels = interleave == Interleave::kGateUp ? 2 * CeilDiv(out_features / 2, kPanelRows)
                                                    : CeilDiv(out_features, kPanelRows);
  const auto panels = static_cast<size_t>(layout.panels);
  constexpr auto kRows = static_cast<size_t>(kPanelRows);
  if (quant == nullptr) {
    layout.panel_bytes = static_cast<size_t>(in_features) * kRows * BytesOf(dtype);
    layout.scales_at = layout.zeros_at = layout.bias_at = panels * layout.panel_bytes;
  } else {
    layout.segments = Segments::Of(in_features, quant->GroupLength(in_features));
    layout.has_zeros = quant->grid == Grid::kAsymmetric;
    const auto groups = static_cast<size_t>(layout.segments.groups);
    layout.panel_bytes = static_cast<size_t>(layout.segments.blocks()) * kRows * sizeof(uint32_t);
    layout.scales_at = panels * layout.panel_bytes;
    layout.zeros_at = layout.scales_at + panels * groups * kRows * sizeof(uint16_t);
    layout.bias_at =
        RoundUp(layout.zeros_at + (layout.has_zeros ? panels * groups * kRows : 0), kAlignment);
  }
  layout.order_at = layout.bias_at + (bias ? panels * kRows * sizeof(float) : 0);
  layout.has_order = quant != nullptr && quant->order == GroupOrder::kIndexed;
  const size_t order_bytes =
      layout.has_order ? static_cast<size_t>(in_features) * sizeof(int32_t) : 0;
  layout.total_bytes = RoundUp(std::max<size_t>(layout.order_at + order_bytes, 1), kAlignment);
  return layout;
}

int64_t LinearLayout::RowOf(int64_t panel, int64_t lane) const {
  if (interleave == Interleave::kNone) {
    const int64_t row = panel * kPanelRows + lane;
    return row < out_features ? row : -1;
  }
  const int64_t half = out_features / 2;
  const int64_t row = panel / 2 * kPanelRows + lane;
  if (row >= half) return -1;
  return panel % 2 == 0 ? row : half + row;
}

float CpuLinear::At(int64_t row, int64_t column) const {
  const int64_t p = row / kPanelRows;
  const int64_t lane = row % kPanelRows;
  const auto at = static_cast<size_t>(column * kPanelRows + lane);
  switch (layout_.packing) {
    case Packing::kF32:
      return reinterpret_cast<const float*>(panel(p))[at];
    case Packing::kF16:
      return FloatFromF16(reinterpret_cast<const uint16_t*>(panel(p))[at]);
    case Packing::kBF16:
      return FloatFromBF16(reinterpret_cast<const uint16_t*>(panel(p))[at]);
    case Packing::kQ4:
      break;
  }
  // A group is padded at its end only, so a column keeps its place within the
  // group.
  const Segments& s = layout_.segments;
  const int64_t group = column / s.group_length;
  const int64_t in_group = column % s.group_length;
  const int64_t block = group * s.blocks_per_group + in_group / Segments::kBlockColumns;
  const int64_t i = in_group % Segments::kBlockColumns;
  const uint32_t word =
      reinterpret_cast<const uint32_t*>(panel(p))[static_cast<size_t>(block * kPanelRows + lane)];
  const int code = static_cast<int>(word >> (4 * i)) & 15;
  const auto scale_at = static_cast<size_t>(group * kPanelRows + lane);
  const int zero = layout_.has_zeros ? zeros(p)[scale_at] : 8;
  return FloatFromF16(scales(p)[scale_at]) * static_cast<float>(code - zero);
}

}  // namespace nibble::cpu

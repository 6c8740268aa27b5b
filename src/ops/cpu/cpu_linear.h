// A linear layer's weights as the CPU kernels read them.
//
// The rows (outputs) are cut into panels of 16; the vectors' lanes are a
// panel's rows, so that every output has an accumulator of its own. Missing
// rows of the last panel are zero. Under Interleave::kGateUp panel 2i holds
// gate rows [16i, 16i + 16) and panel 2i + 1 the up rows of the same numbers.
//
//   dense:  panel = elements [in][16] of the weight's own type
//   4-bit:  panel = words [blocks][16], a block being 8 columns of one row:
//             word = Σ_i code[i] << 4i, i = 0 … 7
//           so that (word >> 4j) & 0x000F000F is a pair of codes, j and j + 4, as
//           16-bit integers;
//           then for all panels scales [groups][16] as float16
//           and, unless the grid is symmetric, zeros [groups][16] as bytes.
//   bias:   float32 [16] per panel.
//   order:  int32 [in], where groups are not consecutive inputs: the input of
//           each column. Activations are gathered by it when they are quantized.
#ifndef NIBBLE_OPS_CPU_CPU_LINEAR_H_
#define NIBBLE_OPS_CPU_CPU_LINEAR_H_

#include <cstddef>
#include <cstdint>
#include <span>

#include "src/ops/backend.h"

namespace nibble::cpu {

inline constexpr int64_t kPanelRows = 16;

enum class Packing : uint8_t { kF32, kF16, kBF16, kQ4 };

// How a row's columns are cut for the 4-bit kernels: groups share a weight's
// scale; segments, at most 128 columns of a group, also share the activations'
// scale. A segment is padded to whole blocks of 8 columns with zero
// activations.
struct Segments {
  static constexpr int64_t kMaxColumns = 128;
  static constexpr int64_t kBlockColumns = 8;

  int64_t group_length = 0;
  int64_t groups = 0;
  int64_t per_group = 0;         // segments
  int64_t blocks_per_group = 0;  // of 8 columns

  static Segments Of(int64_t columns, int64_t group_length);

  int64_t count() const { return groups * per_group; }
  int64_t blocks() const { return groups * blocks_per_group; }
  int64_t pairs() const { return blocks() * (kBlockColumns / 2); }  // of columns, padding included

  // Of each group's segment i; all are of kMaxColumns but the last.
  int64_t BlocksOf(int64_t i) const {
    constexpr int64_t kMaxBlocks = kMaxColumns / kBlockColumns;
    return i + 1 < per_group ? kMaxBlocks : blocks_per_group - i * kMaxBlocks;
  }

  struct Segment {
    int64_t column, columns;  // of the weight
    int64_t block, blocks;
  };
  Segment At(int64_t group, int64_t i) const;
};

// Where everything lies in a prepared linear's memory; offsets in bytes.
struct LinearLayout {
  Packing packing = Packing::kF32;
  Interleave interleave = Interleave::kNone;
  int64_t out_features = 0;
  int64_t in_features = 0;
  int64_t panels = 0;
  bool has_zeros = false;
  bool has_bias = false;
  bool has_order = false;
  Segments segments;  // for kQ4
  size_t panel_bytes = 0;
  size_t scales_at = 0;
  size_t zeros_at = 0;
  size_t bias_at = 0;
  size_t order_at = 0;
  size_t total_bytes = 0;  // a multiple of 64

  // `quant` is null for a dense weight.
  static LinearLayout Of(int64_t out_features, int64_t in_features, DType dtype,
                         const QuantSpec* quant, bool bias, Interleave interleave);

  // The concatenated weights' row in lane `lane` of a panel; -1 for padding.
  int64_t RowOf(int64_t panel, int64_t lane) const;
};

class CpuLinear final : public PreparedLinear {
 public:
  CpuLinear(const LinearLayout& layout, Buffer memory)
      : PreparedLinear(layout.out_features, layout.in_features, memory.size()),
        layout_(layout),
        memory_(std::move(memory)) {}

  const LinearLayout& layout() const { return layout_; }
  std::byte* panel(int64_t i) const {
    return memory_.as<std::byte>() + static_cast<size_t>(i) * layout_.panel_bytes;
  }
  uint16_t* scales(int64_t panel) const {  // float16 [groups][16]
    return reinterpret_cast<uint16_t*>(memory_.as<std::byte>() + layout_.scales_at) +
           panel * layout_.segments.groups * kPanelRows;
  }
  uint8_t* zeros(int64_t panel) const {  // [groups][16]
    return reinterpret_cast<uint8_t*>(memory_.as<std::byte>() + layout_.zeros_at) +
           panel * layout_.segments.groups * kPanelRows;
  }
  float* bias(int64_t panel) const {  // [16], or null
    if (!layout_.has_bias) return nullptr;
    return reinterpret_cast<float*>(memory_.as<std::byte>() + layout_.bias_at) + panel * kPanelRows;
  }

  int32_t* order() const {  // [in], or null
    if (!layout_.has_order) return nullptr;
    return reinterpret_cast<int32_t*>(memory_.as<std::byte>() + layout_.order_at);
  }

  // An element of an uninterleaved weight, by its column (see order()).
  float At(int64_t row, int64_t column) const;

 private:
  LinearLayout layout_;
  Buffer memory_;
};

}  // namespace nibble::cpu

#endif  // NIBBLE_OPS_CPU_CPU_LINEAR_H_

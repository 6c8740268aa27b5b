// How Hopper's 4-bit product (linear_q4_hopper.cu) is cut over a device. Host code without CUDA.
#ifndef NIBBLE_OPS_CUDA_LINEAR_Q4_FORM_H_
#define NIBBLE_OPS_CUDA_LINEAR_Q4_FORM_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>

namespace nibble::cuda::q4 {

// Clusters of 1, 2 and 4 blocks, one block to a multiprocessor, that a device runs at a time.
using ClusterRoom = std::array<int, 3>;

// A cluster of `parts` blocks, which divide the inputs, makes one tile of 64 · groups outputs by
// `rows` rows at a time.
struct HopperForm {
  int rows = 0;    // 16, 32, 48, 64, 96, 128 or 160
  int groups = 0;  // 2 or 3 warpgroups
  int parts = 0;   // 1, 2 or 4
  int stages = 0;  // of a block's ring
  int tiles = 0;   // of outputs by rows, one for each cluster where parts > 1
  int clusters = 0;
  double microseconds = 0;  // estimated

  size_t shared_bytes(int grids) const;
};

// Blocks for tiles of so many rows at most do not fill a multiprocessor: the norm behind them then
// starts beside them, and a shorter ring is less in its way (docs/results/kernels.md).
inline constexpr int kHopperFewRows = 32;
// Of a block, beside some for barriers.
constexpr size_t HopperSharedBytes(int rows) {
  return size_t{1024} * (rows <= kHopperFewRows ? 141 : 226);
}
inline constexpr int kHopperMostStages = 12;
// At least three: a consumer waits for the next one while it has this one and the one before. With
// fewer than four, memory's latency shows.
inline constexpr int kHopperFewestStages = 4;
inline constexpr int kHopperMostParts = 4;

// Bytes of a stage: one unit of 128 inputs, with `grids` scales of an output: 1, 2 or 4.
constexpr size_t HopperStageBytes(int rows, int groups, int grids) {
  const int bytes = rows * 256 + 4 * groups * (1024 + grids * 48);
  return static_cast<size_t>((bytes + 1023) / 1024 * 1024);
}
// Floats from one row of sums in shared memory to the next: so many that fragments have no bank
// conflicts.
constexpr int HopperSumPitch(int outputs) { return outputs + 4; }
// Bytes of the sums that one of `parts` blocks finishes.
constexpr size_t HopperPartBytes(int rows, int groups, int parts) {
  return sizeof(float) * static_cast<size_t>(rows / parts * HopperSumPitch(64 * groups));
}
// Rows of a warpgroup's that are stored at a time, and bytes of all groups' for them.
inline constexpr int kHopperStoredRows = 16;
constexpr size_t HopperStoreBytes(int groups) {
  return sizeof(float) * static_cast<size_t>(groups * kHopperStoredRows * HopperSumPitch(64));
}

// A form of which rows, groups and parts are given, with what follows from them for a weight
// of `tiles` · 16 outputs and `units` · 128 inputs: as many stages as a block has memory for and,
// without parts, no more clusters than there is room for at a time. None where a block's memory
// holds fewer than kHopperFewestStages, a part would have fewer than two units, the device runs no
// such clusters, or a grid cannot have so many.
std::optional<HopperForm> CompleteHopperForm(HopperForm form, int tiles, int units, int grids,
                                             int64_t rows, const ClusterRoom& room);

// The form that should take least time. The same for the same device.
HopperForm ChooseHopperForm(int tiles, int units, int grids, int64_t rows, const ClusterRoom& room);

}  // namespace nibble::cuda::q4

#endif  // NIBBLE_OPS_CUDA_LINEAR_Q4_FORM_H_

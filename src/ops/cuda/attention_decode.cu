#include "src/ops/cuda/attention_decode.cuh"
#include "src/ops/cuda/kv_fp8.h"

namespace nibble::cuda {

size_t DecodeScratchBytes(int multiprocessors, const AttentionSpec& attention) {
  const auto part_bytes = static_cast<size_t>(attention.head_dim) * sizeof(float) + sizeof(float2);
  return CounterBytes(multiprocessors) +
         static_cast<size_t>(2 * DecodeBlocks(multiprocessors) * TileHeads(attention)) * part_bytes;
}

void AttendDecode(Stream& stream, const DeviceBatch& batch, const AttentionSpec& attention,
                  MatrixView q, KvView kv, MatrixView out, void* scratch) {
  if (!batch.has_decode) return;
  if (kv.scales != nullptr) {
    return AttendDecodeFp8(stream, batch, attention, q, kv, out, scratch);
  }
  Decode<DecodeInput::kTurned, false>(stream, batch, attention, q, nullptr, kv, out, scratch);
}

bool CanRopeAndAttendDecode(const DeviceBatch& batch, const AttentionSpec& attention) {
  return batch.prefill_tile_count == 0 &&
         (attention.head_dim == 64 || attention.head_dim == 128 || attention.head_dim == 256);
}

void RopeAndAttendDecode(Stream& stream, const DeviceBatch& batch, const AttentionSpec& attention,
                         const float2* angles, MatrixView qkv, KvView kv, MatrixView out,
                         void* scratch) {
  CHECK(CanRopeAndAttendDecode(batch, attention) && kv.scales == nullptr);
  if (!batch.has_decode) return;
  Decode<DecodeInput::kFresh, false>(stream, batch, attention, qkv, angles, kv, out, scratch);
}

}  // namespace nibble::cuda

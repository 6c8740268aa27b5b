#include "src/ops/cuda/attention_decode.cuh"
#include "src/ops/cuda/kv_fp8.h"

namespace nibble::cuda {

void AttendDecodeFp8(Stream& stream, const DeviceBatch& batch, const AttentionSpec& attention,
                     MatrixView q, KvView kv, MatrixView out, void* scratch) {
  Decode<DecodeInput::kTurned, true>(stream, batch, attention, q, nullptr, kv, out, scratch);
}

void RopeAndAttendDecodeFp8(Stream& stream, const DeviceBatch& batch,
                            const AttentionSpec& attention, const float2* angles, MatrixView qkv,
                            KvView kv, MatrixView out, void* scratch) {
  Decode<DecodeInput::kFresh, true>(stream, batch, attention, qkv, angles, kv, out, scratch);
}

}  // namespace nibble::cuda

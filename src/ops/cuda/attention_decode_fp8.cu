#include "src/ops/cuda/attention_decode.cuh"
#include "src/ops/cuda/kv_fp8.h"

namespace nibble::cuda {

void AttendDecodeFp8(Stream& stream, const DeviceBatch& batch, const AttentionSpec& attention,
                     MatrixView q, KvView kv, MatrixView out, void* scratch) {
  Decode<DecodeInput::kTurned, true>(stream, batch, attention, q, nullptr, kv, out, scratch);
}

}  // namespace nibble::cuda

// Chooses tokens from logits on the device: the same as ChooseToken (ops/sampling.h), bit for bit.
#ifndef NIBBLE_OPS_CUDA_SAMPLING_H_
#define NIBBLE_OPS_CUDA_SAMPLING_H_

#include "src/ops/backend.h"
#include "src/ops/cuda/stream.h"

namespace nibble::cuda {

// Row r's token goes to tokens[r] and to host_tokens[r]. logits: float32. choices: [rows] in device
// memory, or null for the most probable; host_tokens: page-locked.
void ChooseTokens(Stream& stream, MatrixView logits, const TokenChoice* choices, int32_t* tokens,
                  int32_t* host_tokens);

}  // namespace nibble::cuda

#endif  // NIBBLE_OPS_CUDA_SAMPLING_H_

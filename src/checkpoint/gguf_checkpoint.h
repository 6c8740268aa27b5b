// A GGUF file as a checkpoint: quantized tensors are expanded to float16 when they are read, and
// the rows of q and k put into Hugging Face's order.
#ifndef NIBBLE_CHECKPOINT_GGUF_CHECKPOINT_H_
#define NIBBLE_CHECKPOINT_GGUF_CHECKPOINT_H_

#include <memory>
#include <string>

#include "src/base/error.h"
#include "src/checkpoint/checkpoint.h"
#include "src/checkpoint/gguf.h"
#include "src/checkpoint/gguf_model.h"

namespace nibble {

Result<std::unique_ptr<Checkpoint>> OpenGgufCheckpoint(const std::string& path);

// One tensor as the checkpoint delivers it; borrowed from the file where its bytes lie as wanted.
// Fails where a value is not finite or does not fit float16.
Result<TensorView> ReadGgufTensor(const GgufFile& file, const GgufMappedTensor& mapped);

// The type that ReadGgufTensor delivers.
DType DeliveredType(GgmlType type);

}  // namespace nibble

#endif  // NIBBLE_CHECKPOINT_GGUF_CHECKPOINT_H_

// What a GGUF file means as a Hugging Face checkpoint: its configuration, made from the metadata,
// and its tensors under Hugging Face's names.
//
// Architectures "llama" (Mistral's models come as that, too) and "qwen2". Metadata of the
// architecture that is not understood, and tensors that have no place in the model, are refused by
// name: leaving either out would change the result.
//
// Source: llama.cpp's convert_hf_to_gguf.py, which makes these files, and gguf-py's constants.
#ifndef NIBBLE_CHECKPOINT_GGUF_MODEL_H_
#define NIBBLE_CHECKPOINT_GGUF_MODEL_H_

#include <cstdint>
#include <string>
#include <vector>

#include "src/base/error.h"
#include "src/base/json.h"
#include "src/checkpoint/gguf.h"
#include "src/tokenizer/gguf_vocabulary.h"

namespace nibble {

struct GgufMappedTensor {
  std::string name;  // Hugging Face's
  size_t index = 0;  // in GgufFile::tensors()
  // Rows (of a bias, elements) belong to this many heads and lie interleaved for GGUF's rotary
  // embedding, half a head's rows at every other place; 0 where they lie in Hugging Face's order.
  int64_t interleaved_heads = 0;
};

struct GgufModel {
  Json config;             // config.json
  Json generation_config;  // generation_config.json
  std::vector<GgufMappedTensor> tensors;
};

Result<GgufModel> InterpretGguf(const GgufFile& file);

// The tokenizer's metadata as it stands.
Result<GgufVocabulary> ReadGgufVocabulary(const GgufFile& file);

// Row of the file's matrix that holds row `row` of Hugging Face's, for heads of `head_dim` rows.
constexpr int64_t InterleavedRow(int64_t row, int64_t head_dim) {
  const int64_t in_head = row % head_dim;
  const int64_t half = head_dim / 2;
  return row - in_head + 2 * (in_head % half) + in_head / half;
}
static_assert(InterleavedRow(8 + 0, 8) == 8 && InterleavedRow(8 + 1, 8) == 10 &&
              InterleavedRow(8 + 4, 8) == 9 && InterleavedRow(8 + 7, 8) == 15);

}  // namespace nibble

#endif  // NIBBLE_CHECKPOINT_GGUF_MODEL_H_

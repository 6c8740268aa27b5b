// An open model: its configuration in Hugging Face's spelling and its tensors under Hugging Face's
// names, whatever file format they lie in.
//
// Opening checks everything that a file's headers say against the file, so that what Find returns
// can be read. Tensors are read one at a time: those that lie in the file as they are wanted are
// borrowed from its mapping, others (expanded GGUF types, permuted rows, synthetic weights) are
// made by Read and owned by what it returns.
//
// Sources: the safetensors format (huggingface/safetensors), the GGUF specification
// (ggml/docs/gguf.md), Hugging Face's configuration files.
#ifndef NIBBLE_CHECKPOINT_CHECKPOINT_H_
#define NIBBLE_CHECKPOINT_CHECKPOINT_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "src/base/error.h"
#include "src/base/json.h"
#include "src/checkpoint/quantization_config.h"
#include "src/format/weight.h"
#include "src/tensor/tensor.h"
#include "src/tokenizer/chat_template_families.h"
#include "src/tokenizer/tokenizer.h"

namespace nibble {

struct TensorInfo {
  std::string name;            // Hugging Face's: "model.layers.0.self_attn.q_proj.weight"
  std::optional<DType> dtype;  // as Read delivers it; none for a type that Read refuses
  Shape shape;
  std::string stored_type;  // as the file names it: "BF16", "I32", "Q4_1", "F8_E4M3"
  uint64_t stored_bytes = 0;
};

class Checkpoint {
 public:
  virtual ~Checkpoint() = default;

  // config.json; for GGUF made from the metadata.
  virtual const Json& config() const = 0;
  // generation_config.json; an empty object where there is none.
  virtual const Json& generation_config() const = 0;

  // In file order. Find: null where there is none.
  virtual const std::vector<TensorInfo>& tensors() const = 0;
  virtual const TensorInfo* Find(std::string_view name) const = 0;

  // The tensor's bytes: valid as long as the checkpoint, or as long as `owner` of the view where
  // that is set. Thread-safe. Fails where there is no such tensor, its type is not one of DType, or
  // a value does not fit the delivered type.
  virtual Result<TensorView> Read(std::string_view name) const = 0;
  // Lets the system drop the pages of a mapped tensor; views of it stay valid.
  virtual void Release(std::string_view name) const = 0;

  // What the weights are, for people: "fp16", "bf16", "fp32", "fp16 (from Q4_1)", "awq-g128-asym".
  virtual std::string label() const = 0;
  // What OpenCheckpoint was given.
  virtual const std::string& path() const = 0;
  // Weights that mean nothing: random:…, or marked "nibble_synthetic" in config.json.
  virtual bool synthetic() const = 0;

  virtual Result<std::unique_ptr<Tokenizer>> LoadTokenizer() const = 0;
  // The chat templates, each name once; none where the model has none. Not parsed.
  virtual Result<std::vector<NamedChatTemplate>> ChatTemplates() const = 0;

  // The tokenizer's files as a Hugging Face directory holds them, by name; for copies of the model.
  struct File {
    std::string name;
    std::string content;
  };
  virtual Result<std::vector<File>> TokenizerFiles() const = 0;
};

// `model`: a directory in Hugging Face layout, a .gguf file, or random:PRESET[:METHOD].
Result<std::unique_ptr<Checkpoint>> OpenCheckpoint(const std::string& model);

// The weight [out_features, in_features] of a linear layer, for example
// "model.layers.0.self_attn.q_proj": NAME.weight as it is, or the layout's tensors (NAME.qweight
// and so on, see src/format) unpacked, as `quantization` says. Scales may lie in the file as
// float16, or as a wider type that holds nothing but float16 numbers. Fails where a tensor is
// missing or has another shape or type than these, where what the file holds and `quantization`
// disagree, and where a scale is not finite.
Result<Weight> ReadWeight(const Checkpoint& checkpoint, std::string_view linear_name,
                          int64_t out_features, int64_t in_features,
                          const std::optional<QuantizationConfig>& quantization);

// A vector such as a norm's gain or a bias, as float32. Fails where its length is not `length`.
Result<std::vector<float>> ReadVector(const Checkpoint& checkpoint, std::string_view tensor_name,
                                      int64_t length);

}  // namespace nibble

#endif  // NIBBLE_CHECKPOINT_CHECKPOINT_H_

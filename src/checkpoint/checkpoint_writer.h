// Writes a checkpoint in Hugging Face layout so that a directory that exists is complete:
// everything goes to DIR.partial-<pid>, which is renamed at the end and removed on failure. What a
// killed process left there is removed by the next that writes to DIR.
//
// All sizes are planned first; then tensors are written one by one, in any order.
//
//   CheckpointPlan plan;                       // config, files, quantization
//   plan.AddTensor("model.norm.weight", DType::kF16, Shape{4096});
//   plan.AddLinear("model.layers.0.mlp.up_proj", 11008, 4096);
//   auto writer = CheckpointWriter::Create(directory, std::move(plan));
//   writer->Add("model.norm.weight", view);
//   writer->AddLinear("model.layers.0.mlp.up_proj", quantized);
//   writer->Finish();
#ifndef NIBBLE_CHECKPOINT_CHECKPOINT_WRITER_H_
#define NIBBLE_CHECKPOINT_CHECKPOINT_WRITER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "src/base/error.h"
#include "src/base/json.h"
#include "src/checkpoint/checkpoint.h"
#include "src/checkpoint/quantization_config.h"
#include "src/format/weight.h"
#include "src/tensor/tensor.h"

namespace nibble {

// What a checkpoint will hold.
struct CheckpointPlan {
  struct Tensor {
    std::string name;
    DType dtype = DType::kF16;
    Shape shape;
  };

  Json config;                          // config.json
  Json generation_config;               // not written where it is empty
  std::vector<Checkpoint::File> files;  // tokenizer files, README.md, quantize.json, …
  std::vector<Tensor> tensors;          // in the order in which they will lie in the files
  // Becomes config.json's quantization_config and, for GPTQ, quantize_config.json.
  std::optional<QuantizationConfig> quantization;
  uint64_t max_shard_bytes = 5'000'000'000;  // a shard with a larger tensor holds just that
  // Set by AddLinear. config.json's dtype then becomes float16, the type of the layouts' scales.
  bool packs_linears = false;

  void AddTensor(std::string name, DType dtype, Shape shape);
  // The tensors of a quantized linear layer in the layout of `quantization`, which must be set.
  // Fails where the layout cannot hold the shape (multiples of 8, groups that divide in_features).
  Status AddLinear(std::string_view linear_name, int64_t out_features, int64_t in_features);
  // Bytes of all the tensors.
  uint64_t tensor_bytes() const;
};

class CheckpointWriter {
 public:
  // Fails with kUsage where `directory` exists, with kResources where the disk has too little room.
  static Result<std::unique_ptr<CheckpointWriter>> Create(const std::string& directory,
                                                          CheckpointPlan plan);
  // Removes what was written unless Finish succeeded.
  ~CheckpointWriter();
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;

  // The tensor must be in the plan with this type and shape, and be written once.
  Status Add(std::string_view name, const TensorView& tensor);
  // Fails where the layout, as the plan's `quantization` describes it, cannot express the weight:
  // see PackQuantizedLinear.
  Status AddLinear(std::string_view linear_name, const QuantizedWeight& weight);
  // A file whose content is known only once the weights are.
  void AddFile(Checkpoint::File file);
  // Writes the other files, syncs, renames. Every planned tensor must have been written.
  Status Finish();

 private:
  struct State;
  explicit CheckpointWriter(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// Fails with kUsage where `directory` exists: for commands that write one at their end.
Status CheckOutputDirectory(const std::string& directory);

}  // namespace nibble

#endif  // NIBBLE_CHECKPOINT_CHECKPOINT_WRITER_H_

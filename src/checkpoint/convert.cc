#include "src/checkpoint/convert.h"

#include "src/checkpoint/checkpoint_writer.h"

namespace nibble {

Status ConvertToDirectory(const Checkpoint& source, const std::string& output,
                          const ConvertOptions& options) {
  NIBBLE_RETURN_IF_ERROR(CheckOutputDirectory(output));
  CheckpointPlan plan;
  plan.config = source.config();
  plan.generation_config = source.generation_config();
  plan.max_shard_bytes = options.max_shard_bytes;
  NIBBLE_ASSIGN_OR_RETURN(plan.quantization,
                          ParseQuantizationConfig(source.config(), source.path()));
  NIBBLE_ASSIGN_OR_RETURN(plan.files, source.TokenizerFiles());
  if (!options.model_card.empty()) plan.files.push_back({"README.md", options.model_card});
  for (const TensorInfo& tensor : source.tensors()) {
    if (!tensor.dtype) {
      return BadInput("{}: {}: tensors of type {} are not supported", source.path(), tensor.name,
                      tensor.stored_type);
    }
    plan.AddTensor(tensor.name, *tensor.dtype, tensor.shape);
  }

  Progress progress(options.progress, "Writing the model",
                    static_cast<int64_t>(plan.tensors.size()));
  NIBBLE_ASSIGN_OR_RETURN(const auto writer, CheckpointWriter::Create(output, std::move(plan)));
  int64_t done = 0;
  for (const TensorInfo& tensor : source.tensors()) {
    if (options.cancel != nullptr) NIBBLE_RETURN_IF_ERROR(options.cancel->Check());
    NIBBLE_ASSIGN_OR_RETURN(const TensorView view, source.Read(tensor.name));
    NIBBLE_RETURN_IF_ERROR(writer->Add(tensor.name, view));
    source.Release(tensor.name);
    progress.Update(++done);
  }
  return writer->Finish();
}

}  // namespace nibble

#include "src/quantize/quantize.h"

#include <algorithm>
#include <chrono>
#include <set>

#include "src/checkpoint/checkpoint_writer.h"
#include "src/quantize/rtn.h"
#include "src/tensor/memory.h"

namespace nibble {
namespace {

using Clock = std::chrono::steady_clock;

// The linears of a layer in the groups that a backend packs together.
std::vector<std::vector<LinearName>> PackedGroups(const ModelConfig& config, int64_t layer) {
  const LayerLinears l = LinearsOfLayer(config, layer);
  return {{l.q, l.k, l.v}, {l.output}, {l.gate, l.up}, {l.down}};
}

// Why no layout or group holds the linear; empty where one does.
std::string ReasonToSkip(const LinearName& linear) {
  if (linear.out_features % 8 != 0 || linear.in_features % 8 != 0) {
    return fmt::format("[{}, {}] is not a multiple of 8 in both dimensions", linear.out_features,
                       linear.in_features);
  }
  if (linear.in_features % 32 != 0) {
    return fmt::format("its {} inputs are not a multiple of the smallest group, 32",
                       linear.in_features);
  }
  return {};
}

std::string ModelCard(const std::string& source, const QuantizationConfig& quantization,
                      const Json& record) {
  return fmt::format(
      "# {0}, quantized to 4 bits\n\n"
      "Method `{1}`, {2} grid, groups of {3}, in the `{4}` layout. Made by nibble {5} from `{0}`.\n\n"
      "{6} linear layers are quantized, {7} are left as they were; embeddings, the output layer and\n"
      "norms are untouched. Mean relative squared error of the quantized weights: {8:.3e}.\n"
      "`quantize.json` holds each layer's.\n",
      source, record["method"].get<std::string>(), Name(quantization.spec.grid),
      quantization.spec.group_size, Name(quantization.layout), NIBBLE_VERSION,
      record["modules"].size(), record["skipped"].size(), record["mean_error"].get<double>());
}

}  // namespace

Result<QuantizationPlan> PlanQuantization(const ModelDescription& model, const QuantSpec& wanted) {
  if (model.quantization) {
    return BadInput("the model is quantized already ({}); quantize its 16-bit original instead",
                    model.quantization->Label());
  }
  QuantizationPlan plan;
  plan.spec = wanted;
  for (int64_t layer = 0; layer < model.config.layers; ++layer) {
    for (const std::vector<LinearName>& group : PackedGroups(model.config, layer)) {
      std::string reason;
      for (const LinearName& linear : group) {
        if (const std::string why = ReasonToSkip(linear); reason.empty() && !why.empty()) {
          reason = group.size() == 1 ? why : fmt::format("{}: {}", linear.name, why);
        }
      }
      for (const LinearName& linear : group) {
        if (reason.empty()) {
          plan.quantized.push_back(linear);
        } else {
          plan.skipped.push_back({linear.name, reason});
        }
      }
    }
  }
  if (plan.quantized.empty()) {
    return BadInput("no linear layer of this model can be quantized: {}",
                    plan.skipped.front().reason);
  }
  if (wanted.group_size == kPerChannel) return plan;
  const auto divides = [&](int64_t group) {
    return std::all_of(plan.quantized.begin(), plan.quantized.end(),
                       [&](const LinearName& l) { return l.in_features % group == 0; });
  };
  while (!divides(plan.spec.group_size)) plan.spec.group_size /= 2;
  if (plan.spec.group_size != wanted.group_size) {
    const auto odd = std::find_if(
        plan.quantized.begin(), plan.quantized.end(),
        [&](const LinearName& l) { return l.in_features % wanted.group_size != 0; });
    plan.notes.push_back(
        fmt::format("groups of {} instead of {}, which do not divide the {} inputs of {}",
                    plan.spec.group_size, wanted.group_size, odd->in_features, odd->name));
  }
  return plan;
}

Result<Json> QuantizeCheckpoint(const Checkpoint& checkpoint, const ModelDescription& model,
                                const QuantizeOptions& options, ThreadPool& pool,
                                const QuantizeProgress& progress, const CancelToken& cancel) {
  const auto start = Clock::now();
  NIBBLE_ASSIGN_OR_RETURN(const QuantizationPlan plan,
                          PlanQuantization(model, options.method.quant));
  NIBBLE_RETURN_IF_ERROR(CheckLayout(options.layout, plan.spec.grid));

  CheckpointPlan target;
  target.config = checkpoint.config();
  target.generation_config = checkpoint.generation_config();
  target.quantization = QuantizationConfig{.layout = options.layout, .spec = plan.spec};
  std::set<std::string> quantized_weights;
  for (const LinearName& linear : plan.quantized) {
    quantized_weights.insert(linear.name + ".weight");
  }
  for (const QuantizationPlan::Skipped& skipped : plan.skipped) {
    target.quantization->modules_to_not_convert.push_back(skipped.name);
  }
  NIBBLE_ASSIGN_OR_RETURN(target.files, checkpoint.TokenizerFiles());
  for (const TensorInfo& tensor : checkpoint.tensors()) {
    if (!quantized_weights.contains(tensor.name)) {
      target.AddTensor(tensor.name, tensor.dtype.value_or(DType::kF16), tensor.shape);
    }
  }
  for (const LinearName& linear : plan.quantized) {
    NIBBLE_RETURN_IF_ERROR(
        target.AddLinear(linear.name, linear.out_features, linear.in_features));
  }
  const uint64_t checkpoint_bytes = target.tensor_bytes();
  const QuantizationConfig quantization = *target.quantization;
  NIBBLE_ASSIGN_OR_RETURN(const std::unique_ptr<CheckpointWriter> writer,
                          CheckpointWriter::Create(options.output, std::move(target)));

  for (const TensorInfo& tensor : checkpoint.tensors()) {
    if (quantized_weights.contains(tensor.name)) continue;
    NIBBLE_ASSIGN_OR_RETURN(const TensorView view, checkpoint.Read(tensor.name));
    NIBBLE_RETURN_IF_ERROR(writer->Add(tensor.name, view));
    checkpoint.Release(tensor.name);
  }
  Json modules = Json::array();
  double error_sum = 0;
  for (const LinearName& linear : plan.quantized) {
    NIBBLE_RETURN_IF_ERROR(cancel.Check());
    NIBBLE_ASSIGN_OR_RETURN(const Weight weight,
                            ReadWeight(checkpoint, linear.name, linear.out_features,
                                       linear.in_features, std::nullopt));
    const DenseWeight& dense = std::get<DenseWeight>(weight);
    NIBBLE_ASSIGN_OR_RETURN(const QuantizedWeight quantized,
                            RoundToNearest(dense, plan.spec, linear.name, pool));
    const double error = RelativeSquaredError(dense, quantized, pool);
    NIBBLE_RETURN_IF_ERROR(writer->AddLinear(linear.name, quantized));
    checkpoint.Release(linear.name + ".weight");
    error_sum += error;
    modules.push_back({{"name", linear.name}, {"error", error}});
    progress(static_cast<int64_t>(modules.size()), static_cast<int64_t>(plan.quantized.size()),
             linear.name, error);
  }

  Json skipped = Json::array();
  for (const QuantizationPlan::Skipped& s : plan.skipped) {
    skipped.push_back({{"name", s.name}, {"reason", s.reason}});
  }
  int64_t weights = 0;
  for (const LinearName& l : plan.quantized) weights += l.out_features * l.in_features;
  // Beside the codes, the layouts hold a 16-bit scale and a 4-bit zero for each group.
  const double bits_per_weight =
      plan.spec.group_size == kPerChannel ? 4.0
                                          : 4.0 + 20.0 / static_cast<double>(plan.spec.group_size);
  Json record = {
      {"schema", "nibble.quantize/1"},
      {"method", Name(options.method.method)},
      {"group_size", plan.spec.group_size},
      {"grid", Name(plan.spec.grid)},
      {"format", Name(options.layout)},
      {"bits_per_weight", bits_per_weight},
      {"quantized_parameters", weights},
      {"error_measure", "squared error of the weights, relative to their squares"},
      {"mean_error", error_sum / static_cast<double>(modules.size())},
      {"checkpoint_bytes", checkpoint_bytes},
      {"modules", std::move(modules)},
      {"skipped", std::move(skipped)},
      {"notes", plan.notes},
      {"seconds", std::chrono::duration<double>(Clock::now() - start).count()},
      {"peak_memory_bytes", PeakResidentBytes()},
  };
  writer->AddFile({"quantize.json", record.dump(1) + "\n"});
  writer->AddFile({"README.md", ModelCard(checkpoint.path(), quantization, record)});
  NIBBLE_RETURN_IF_ERROR(writer->Finish());
  return record;
}

}  // namespace nibble

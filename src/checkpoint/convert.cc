#include "src/checkpoint/convert.h"

#include <algorithm>
#include <map>
#include <set>

#include "src/base/file.h"
#include "src/checkpoint/checkpoint_writer.h"
#include "src/checkpoint/quantized_linear.h"

namespace nibble {
namespace {

constexpr uint64_t kMaxDocumentBytes = 64u << 20;
constexpr std::string_view kEmbedding = "model.embed_tokens.weight";
constexpr std::string_view kLmHead = "lm_head.weight";

// What becomes of the source's quantized layers: from one layout to another.
struct Relayout {
  QuantizationConfig from, to;
  std::map<std::string, FoundLinear, std::less<>> linears;  // by the name of their codes' tensor
  std::set<std::string, std::less<>> parts;                 // the source's tensors of all of them
};

// The grid as the other layout marks it: AWQ's marks every checkpoint as asymmetric, GPTQ's version
// 1 is written for symmetric ones only. CheckpointWriter::AddLinear refuses zeros that do not fit.
Grid GridIn(QuantLayout layout, Grid grid) {
  if (layout == QuantLayout::kAwqGemm) return Grid::kAsymmetric;
  if (layout == QuantLayout::kGptqV1 && grid == Grid::kAsymmetric) return Grid::kSymmetric;
  return grid;
}

// The modules that stay dense, each by its name: layouts differ in how they abbreviate them.
std::vector<std::string> DenseModules(const Checkpoint& source) {
  constexpr std::string_view kSuffix = ".weight";
  std::vector<std::string> modules;
  for (const TensorInfo& tensor : source.tensors()) {
    if (tensor.shape.rank() == 2 && tensor.name.ends_with(kSuffix) && tensor.name != kEmbedding &&
        tensor.name != kLmHead) {
      modules.push_back(tensor.name.substr(0, tensor.name.size() - kSuffix.size()));
    }
  }
  return modules;
}

Result<Relayout> PlanRelayout(const Checkpoint& source, const QuantizationConfig& from,
                              QuantLayout layout) {
  Relayout relayout{.from = from, .to = {.layout = layout, .spec = from.spec}};
  relayout.to.spec.grid = GridIn(layout, from.spec.grid);
  if (layout == QuantLayout::kAwqGemm) relayout.to.spec.order = GroupOrder::kConsecutive;
  relayout.to.modules_to_not_convert = DenseModules(source);
  for (const TensorInfo& tensor : source.tensors()) {
    const std::optional<FoundLinear> linear = LinearOfCodes(from.layout, tensor);
    if (!linear) continue;
    if (linear->name == "lm_head") {
      relayout.to.lm_head = true;
      if (layout == QuantLayout::kAwqGemm) {
        return BadInput(
            "{}: lm_head is quantized, which the awq layout cannot express; gptq, gptq_v2 and "
            "compressed-tensors can",
            source.path());
      }
    }
    relayout.linears.emplace(tensor.name, *linear);
    for (const std::string_view suffix : QuantizedSuffixes()) {
      relayout.parts.insert(linear->name + std::string(suffix));
    }
  }
  return relayout;
}

// README.md and quantize.json of a directory, which say how its weights came about.
Status AddDocuments(const Checkpoint& source, const ConvertOptions& options, bool relayout,
                    CheckpointPlan& plan) {
  const std::string card = JoinPath(source.path(), "README.md");
  if (!options.model_card.empty()) {
    plan.files.push_back({"README.md", options.model_card});
  } else if (FileExists(card)) {
    NIBBLE_ASSIGN_OR_RETURN(std::string text, ReadFile(card, kMaxDocumentBytes));
    if (relayout) {
      text +=
          fmt::format("\nConverted to the `{}` layout by nibble {}: the same codes and scales.\n",
                      Name(*options.layout), NIBBLE_VERSION);
    }
    plan.files.push_back({"README.md", std::move(text)});
  }
  const std::string record = JoinPath(source.path(), "quantize.json");
  if (FileExists(record)) {
    NIBBLE_ASSIGN_OR_RETURN(Json json, ReadJsonFile(record, kMaxDocumentBytes));
    NIBBLE_RETURN_IF_ERROR(JsonObject::Of(json, record));
    if (relayout) json["format"] = Name(*options.layout);
    plan.files.push_back(
        {"quantize.json", json.dump(1, ' ', false, Json::error_handler_t::replace) + "\n"});
  }
  return {};
}

Status PlanTensors(const Checkpoint& source, const Relayout* relayout, CheckpointPlan& plan) {
  for (const TensorInfo& tensor : source.tensors()) {
    if (relayout != nullptr) {
      if (const auto it = relayout->linears.find(tensor.name); it != relayout->linears.end()) {
        const FoundLinear& linear = it->second;
        NIBBLE_RETURN_IF_ERROR(
            plan.AddLinear(linear.name, linear.out_features, linear.in_features));
      }
      if (relayout->parts.contains(tensor.name)) continue;
    }
    if (!tensor.dtype) {
      return BadInput("{}: {}: tensors of type {} are not supported", source.path(), tensor.name,
                      tensor.stored_type);
    }
    plan.AddTensor(tensor.name, *tensor.dtype, tensor.shape);
  }
  return {};
}

Status CopyTensors(const Checkpoint& source, const Relayout* relayout,
                   const ConvertOptions& options, CheckpointWriter& writer) {
  Progress progress(options.progress, "Writing the model",
                    static_cast<int64_t>(source.tensors().size()));
  int64_t done = 0;
  for (const TensorInfo& tensor : source.tensors()) {
    if (options.cancel != nullptr) NIBBLE_RETURN_IF_ERROR(options.cancel->Check());
    progress.Update(++done);
    if (relayout != nullptr) {
      if (const auto it = relayout->linears.find(tensor.name); it != relayout->linears.end()) {
        const FoundLinear& linear = it->second;
        NIBBLE_ASSIGN_OR_RETURN(const Weight weight,
                                ReadWeight(source, linear.name, linear.out_features,
                                           linear.in_features, relayout->from));
        NIBBLE_RETURN_IF_ERROR(writer.AddLinear(linear.name, std::get<QuantizedWeight>(weight)));
      }
      if (relayout->parts.contains(tensor.name)) continue;
    }
    NIBBLE_ASSIGN_OR_RETURN(const TensorView view, source.Read(tensor.name));
    NIBBLE_RETURN_IF_ERROR(writer.Add(tensor.name, view));
    source.Release(tensor.name);
  }
  return {};
}

}  // namespace

Status ConvertToDirectory(const Checkpoint& source, const std::string& output,
                          const ConvertOptions& options) {
  NIBBLE_RETURN_IF_ERROR(CheckOutputDirectory(output));
  CheckpointPlan plan;
  plan.config = source.config();
  plan.generation_config = source.generation_config();
  plan.max_shard_bytes = options.max_shard_bytes;
  NIBBLE_ASSIGN_OR_RETURN(const std::optional<QuantizationConfig> from,
                          ParseQuantizationConfig(source.config(), source.path()));
  if (options.layout && !from) {
    return WrongUsage(
        "{}: is not quantized, so there is nothing to put into the {} layout; "
        "\"nibble quantize\" quantizes",
        source.path(), Name(*options.layout));
  }
  std::optional<Relayout> relayout;
  if (options.layout && *options.layout != from->layout) {
    NIBBLE_ASSIGN_OR_RETURN(relayout, PlanRelayout(source, *from, *options.layout));
    plan.quantization = relayout->to;
  } else {
    plan.quantization = from;
  }
  NIBBLE_ASSIGN_OR_RETURN(plan.files, source.TokenizerFiles());
  NIBBLE_RETURN_IF_ERROR(AddDocuments(source, options, relayout.has_value(), plan));
  const Relayout* const moved = relayout ? &*relayout : nullptr;
  NIBBLE_RETURN_IF_ERROR(PlanTensors(source, moved, plan));
  NIBBLE_ASSIGN_OR_RETURN(const auto writer, CheckpointWriter::Create(output, std::move(plan)));
  NIBBLE_RETURN_IF_ERROR(CopyTensors(source, moved, options, *writer));
  return writer->Finish();
}

}  // namespace nibble

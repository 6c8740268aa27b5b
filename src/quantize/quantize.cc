#include "src/quantize/quantize.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <set>

#include "src/base/file.h"
#include "src/base/fingerprint.h"
#include "src/base/units.h"
#include "src/checkpoint/checkpoint_writer.h"
#include "src/quantize/layer_store.h"
#include "src/quantize/layer_writer.h"
#include "src/tensor/freed_memory.h"
#include "src/tensor/memory.h"

namespace nibble {
namespace {

using Clock = std::chrono::steady_clock;

// Fewer activations in memory are as good as none.
constexpr uint64_t kLeastActivationBytes = uint64_t{1} << 20;

std::string ModelCard(const std::string& source, const QuantizationConfig& quantization,
                      QuantMethod method, const Json& record) {
  const bool scales = method == QuantMethod::kAwq || method == QuantMethod::kAwqGptq;
  return fmt::format(
      "# {0}, quantized to 4 bits\n\n"
      "Method `{1}`, {2} grid, groups of {3}, in the `{4}` layout. Made by nibble {5} from "
      "`{0}`.\n\n"
      "{6} linear layers are quantized, {7} are left as they were; embeddings and the output layer "
      "are\nuntouched, {9}. Mean relative squared error of the quantized weights: {8:.3e}.\n"
      "`quantize.json` holds each layer's.\n",
      source, record["method"].get<std::string>(), Name(quantization.spec.grid),
      quantization.spec.group_size, Name(quantization.layout), NIBBLE_VERSION,
      record["modules"].size(), record["skipped"].size(), record["mean_weight_error"].get<double>(),
      scales ? "AWQ's scales are folded into the norms" : "and so are the norms");
}

// What nibble allocated at its highest, and what the driver holds beside it.
uint64_t PeakDeviceBytes(Backend& backend) {
  const MemoryTracker& memory = backend.memory();
  const uint64_t held = backend.SystemBytes(), counted = memory.current().total();
  return memory.peak().total() + held - std::min(held, counted);
}

std::string FingerprintOfRun(const QuantizeOptions& options, const QuantizationPlan& plan) {
  Fingerprint fingerprint;
  fingerprint.Add(NIBBLE_VERSION).Add(options.source_fingerprint);
  fingerprint.Add(Name(options.method.method)).Add(Name(plan.spec.grid));
  fingerprint.Add(std::to_string(plan.spec.group_size)).Add(SolverRecord(options.solver).dump());
  if (options.calibration != nullptr) {
    const auto& tokens = options.calibration->tokens;
    fingerprint.Add(std::to_string(options.calibration->sequence_length));
    fingerprint.Add(
        {reinterpret_cast<const char*>(tokens.data()), tokens.size() * sizeof(int32_t)});
  }
  return fingerprint.Hex();
}

double Mean(const Json& modules, const char* key) {
  double sum = 0;
  for (const Json& module : modules) sum += module[key].get<double>();
  return sum / static_cast<double>(modules.size());
}

// Of the modules' errors to those of rounding to nearest.
double MeanErrorRatio(const Json& modules) {
  double sum = 0;
  for (const Json& module : modules) {
    const double rtn = module["error_rtn"].get<double>();
    sum += rtn == 0 ? 1 : module["error"].get<double>() / rtn;
  }
  return sum / static_cast<double>(modules.size());
}

const char* ErrorMeasure(const QuantizeOptions& options) {
  if (options.calibration == nullptr) {
    return "squared error of the weights, relative to their squares";
  }
  const QuantMethod method = options.method.method;
  const bool solves = method == QuantMethod::kGptq || method == QuantMethod::kAwqGptq;
  return solves && options.solver.gptq.drift_share != 0
             ? "mean squared change of its outputs on the calibration tokens, against a weight "
               "that "
               "makes up for the errors of the layers before"
             : "mean squared change of its outputs on the calibration tokens";
}

// What a layer's quantizing takes beside the calibration's activations, at most.
uint64_t LayerBytes(const ModelConfig& config, const Backend& backend) {
  constexpr uint64_t kUncounted = uint64_t{640} << 20;  // a driver's context, libraries, code
  uint64_t linears = 0, largest = 0, widest = 0;
  const LayerLinears names = LinearsOfLayer(config, 0);
  for (const LinearName* linear : names.All()) {
    const auto elements = static_cast<uint64_t>(linear->out_features * linear->in_features);
    // As float32, and prepared to run unquantized.
    linears += 4 * elements + backend.PreparedBytes(linear->out_features, linear->in_features,
                                                    DType::kF32, nullptr, linear->bias);
    largest = std::max(largest, elements);
    widest = std::max(widest, static_cast<uint64_t>(linear->in_features));
  }
  // The statistics and the drift of an input, its Hessian in double and two factors; a linear's
  // target, its state in the sweep, its quantized values and their differences. A GPU has sums in
  // float32, and one piece of scratch memory for the Hessian and for what comes behind it.
  const uint64_t solving =
      backend.queues_steps() ? 24 * widest * widest : 36 * widest * widest + 16 * largest;
  return kUncounted + linears + solving;
}

// Every layer into the store and the checkpoint; returns the modules' records.
Result<Json> QuantizeLayers(const Checkpoint& checkpoint, const ModelDescription& model,
                            const QuantizationPlan& plan, const QuantizeOptions& options,
                            const LayerStore& store, LayerWriter& writer, Backend& backend,
                            const ActivationStorage& storage, const QuantizeProgress& progress,
                            const CancelToken& cancel) {
  const FreedMemoryKept kept;  // every layer takes what the one before it gave back
  NIBBLE_ASSIGN_OR_RETURN(const std::unique_ptr<QuantizeOps> ops, backend.CreateQuantizeOps());
  NIBBLE_ASSIGN_OR_RETURN(
      const std::unique_ptr<LayerQuantizer> quantizer,
      LayerQuantizer::Create(checkpoint, model, plan, options.method.method, options.solver,
                             options.calibration, backend, *ops, storage));
  const auto total = static_cast<int64_t>(plan.quantized.size());
  int64_t done = 0;
  const LinearDone linear_done = [&](std::string_view name, const Json& record) {
    progress(++done, total, name, record);
  };
  Json modules = Json::array();
  for (int64_t i = 0; i < model.config.layers; ++i) {
    NIBBLE_RETURN_IF_ERROR(cancel.Check());
    NIBBLE_ASSIGN_OR_RETURN(std::optional<QuantizedLayer> layer, store.Load(i, plan.spec));
    const auto origin = layer ? LayerWriter::Origin::kStore : LayerWriter::Origin::kComputed;
    if (layer) {
      if (i == 0) spdlog::info("{}: going on where it was stopped", options.output);
      NIBBLE_RETURN_IF_ERROR(quantizer->Replay(i, *layer, cancel));
      for (const Json& module : layer->modules) {
        linear_done(module["name"].get<std::string>(), module);
      }
    } else {
      NIBBLE_ASSIGN_OR_RETURN(layer, quantizer->Quantize(i, linear_done, cancel));
    }
    for (const Json& module : layer->modules) modules.push_back(module);
    NIBBLE_RETURN_IF_ERROR(writer.Put(i, *std::move(layer), origin));
  }
  NIBBLE_RETURN_IF_ERROR(writer.Wait());
  return modules;
}

// The same. Where memory does not suffice it goes on with fewer activations in it, from the layers
// that are in the store: where they lie does not change the result.
Result<Json> QuantizeLayersWithin(const Checkpoint& checkpoint, const ModelDescription& model,
                                  const QuantizationPlan& plan, const QuantizeOptions& options,
                                  const LayerStore& store, LayerWriter& writer, Backend& backend,
                                  const QuantizeProgress& progress, const CancelToken& cancel) {
  using Beyond = ActivationStorage::Beyond;
  const std::string parent = std::filesystem::path(options.output).parent_path();
  const bool on_gpu = backend.queues_steps();
  const uint64_t most = std::min(on_gpu ? options.max_device_bytes : options.max_host_bytes,
                                 backend.AvailableBytes());
  ActivationStorage storage{.max_bytes = most - std::min(most, LayerBytes(model.config, backend)),
                            .directory = parent.empty() ? "." : parent,
                            .beyond = on_gpu ? Beyond::kComputeAgain : Beyond::kBeside};
  while (true) {
    Result<Json> modules = QuantizeLayers(checkpoint, model, plan, options, store, writer, backend,
                                          storage, progress, cancel);
    if (modules || modules.error().code() != ErrorCode::kResources || storage.max_bytes == 0) {
      return modules;
    }
    storage.max_bytes = storage.max_bytes < kLeastActivationBytes ? 0 : storage.max_bytes / 2;
    spdlog::warn("{}; going on with {} of activations in memory", modules.error().message(),
                 FormatBytes(storage.max_bytes));
  }
}

}  // namespace

Json SolverRecord(const SolverOptions& options) {
  Json forms = Json::array();
  for (const AwqForm form : options.awq.forms) forms.push_back(Name(form));
  const GptqOptions& gptq = options.gptq;
  return {{"awq", {{"forms", forms}, {"search_tokens", options.awq.search_tokens}}},
          {"gptq",
           {{"order", Name(gptq.order)},
            {"static_groups",
             gptq.order == ColumnOrder::kActivation || gptq.grid_time == GridTime::kStatic},
            {"scale_search", Name(gptq.search)},
            {"damping", gptq.damping},
            {"asymmetric_calibration", gptq.drift_share},
            {"asymmetric_samples", gptq.drift_samples}}}};
}

Result<Json> QuantizeCheckpoint(const Checkpoint& checkpoint, const ModelDescription& model,
                                const QuantizeOptions& options, Backend& backend,
                                const QuantizeProgress& progress, const CancelToken& cancel) {
  const auto start = Clock::now();
  NIBBLE_ASSIGN_OR_RETURN(const QuantizationPlan plan,
                          PlanQuantization(model, options.method.quant));
  NIBBLE_RETURN_IF_ERROR(CheckLayout(options.layout, plan.spec.grid));
  NIBBLE_RETURN_IF_ERROR(CheckOutputDirectory(options.output));

  CheckpointPlan target;
  target.config = checkpoint.config();
  target.generation_config = checkpoint.generation_config();
  target.quantization = QuantizationConfig{.layout = options.layout, .spec = plan.spec};
  std::set<std::string> written;
  for (const LinearName& linear : plan.quantized) written.insert(linear.name + ".weight");
  for (const QuantizationPlan::Skipped& skipped : plan.skipped) {
    target.quantization->modules_to_not_convert.push_back(skipped.name);
  }
  NIBBLE_ASSIGN_OR_RETURN(target.files, checkpoint.TokenizerFiles());
  for (const TensorInfo& tensor : checkpoint.tensors()) {
    if (!written.contains(tensor.name)) {
      target.AddTensor(tensor.name, tensor.dtype.value_or(DType::kF16), tensor.shape);
    }
  }
  for (const LinearName& linear : plan.quantized) {
    NIBBLE_RETURN_IF_ERROR(target.AddLinear(linear.name, linear.out_features, linear.in_features));
  }
  const uint64_t checkpoint_bytes = target.tensor_bytes();
  const QuantizationConfig quantization = *target.quantization;
  // The layers are on disk twice for a moment.
  NIBBLE_ASSIGN_OR_RETURN(const uint64_t free_bytes, FreeDiskBytes(options.output));
  if (free_bytes < 2 * checkpoint_bytes) {
    return NotEnough("{}: needs {} of disk, {} are free", options.output,
                     FormatBytes(2 * checkpoint_bytes), FormatBytes(free_bytes));
  }

  NIBBLE_ASSIGN_OR_RETURN(
      const LayerStore store,
      LayerStore::Open(options.output + ".quantizing", FingerprintOfRun(options, plan)));
  NIBBLE_ASSIGN_OR_RETURN(const std::unique_ptr<CheckpointWriter> writer,
                          CheckpointWriter::Create(options.output, std::move(target)));
  LayerWriter layer_writer(checkpoint, store, *writer);
  Result<Json> layers = QuantizeLayersWithin(checkpoint, model, plan, options, store, layer_writer,
                                             backend, progress, cancel);
  if (!layers) {
    layer_writer.Wait();
    const Error& error = layers.error();
    if (error.code() == ErrorCode::kBadInput) {
      store.Remove();  // no other attempt would get further
      return layers;
    }
    return Fail(
        error.code(),
        "{} (finished layers are kept in {}.quantizing: the same command goes on from there)",
        error.message(), options.output);
  }
  Json modules = *std::move(layers);
  written.insert(layer_writer.written().begin(), layer_writer.written().end());
  for (const TensorInfo& tensor : checkpoint.tensors()) {
    if (written.contains(tensor.name)) continue;
    NIBBLE_ASSIGN_OR_RETURN(const TensorView view, checkpoint.Read(tensor.name));
    NIBBLE_RETURN_IF_ERROR(writer->Add(tensor.name, view));
    checkpoint.Release(tensor.name);
  }

  Json skipped = Json::array();
  for (const QuantizationPlan::Skipped& s : plan.skipped) {
    skipped.push_back({{"name", s.name}, {"reason", s.reason}});
  }
  int64_t weights = 0;
  for (const LinearName& l : plan.quantized) weights += l.out_features * l.in_features;
  // Beside the codes, the layouts hold a 16-bit scale and a 4-bit zero for each group.
  const double bits_per_weight = plan.spec.group_size == kPerChannel
                                     ? 4.0
                                     : 4.0 + 20.0 / static_cast<double>(plan.spec.group_size);
  std::vector<std::string> notes = plan.notes;
  Json calibration = nullptr;
  if (const CalibrationSet* set = options.calibration) {
    notes.push_back(fmt::format("calibrated on {}: {} sequences of {} tokens", set->source,
                                set->samples, set->sequence_length));
    notes.insert(notes.end(), set->notes.begin(), set->notes.end());
    calibration = {{"source", set->source},
                   {"samples", set->samples},
                   {"sequence_length", set->sequence_length}};
  }
  Json record = {
      {"schema", "nibble.quantize/1"},
      {"method", Name(options.method.method)},
      {"group_size", plan.spec.group_size},
      {"grid", Name(plan.spec.grid)},
      {"format", Name(options.layout)},
      {"bits_per_weight", bits_per_weight},
      {"quantized_parameters", weights},
      {"calibration", std::move(calibration)},
      {"error_measure", ErrorMeasure(options)},
      {"mean_weight_error", Mean(modules, "weight_error")},
  };
  if (options.calibration != nullptr) {
    record["mean_error_ratio"] = MeanErrorRatio(modules);
    record["options"] = SolverRecord(options.solver);
  }
  record["checkpoint_bytes"] = checkpoint_bytes;
  record["modules"] = std::move(modules);
  record["skipped"] = std::move(skipped);
  record["notes"] = notes;
  record["seconds"] = std::chrono::duration<double>(Clock::now() - start).count();
  record["peak_memory_bytes"] = PeakResidentBytes();
  if (backend.queues_steps()) record["peak_device_memory_bytes"] = PeakDeviceBytes(backend);
  writer->AddFile({"quantize.json", record.dump(1) + "\n"});
  writer->AddFile({"README.md", ModelCard(LastPart(checkpoint.path()), quantization,
                                          options.method.method, record)});
  NIBBLE_RETURN_IF_ERROR(writer->Finish());
  store.Remove();
  return record;
}

}  // namespace nibble

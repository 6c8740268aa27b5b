#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <memory>

#include "src/base/units.h"
#include "src/bench/workload.h"
#include "src/cli/command.h"
#include "src/study/documents.h"

namespace nibble {
namespace {

struct InspectOptions {
  std::string model;
  std::vector<int64_t> batch_sizes = Workload().batch_sizes;
  int64_t input_length = 512;
  int64_t output_length = 200;
  std::string output;
};

Json MemoryRecord(const MemoryUse& use) {
  return {{"weights", use[MemoryClass::kWeights]},
          {"kv_cache", use[MemoryClass::kKvCache]},
          {"workspace", use[MemoryClass::kWorkspace]},
          {"total", use.total()}};
}

Json RopeRecord(const RopeConfig& rope) {
  const char* type = rope.type == RopeConfig::Type::kDefault  ? "default"
                     : rope.type == RopeConfig::Type::kLinear ? "linear"
                                                              : "llama3";
  return {{"type", type}, {"theta", rope.theta}, {"factor", rope.factor}};
}

void Print(const Json& d) {
  const Json& m = d["model"];
  fmt::print("{}\n", d["path"].get<std::string>());
  fmt::print("  {} with {:.4g} M parameters, weights {}{}\n", m["architecture"].get<std::string>(),
             static_cast<double>(m["parameters"].get<int64_t>()) / 1e6,
             d["weights"].get<std::string>(), d["synthetic"].get<bool>() ? " (synthetic)" : "");
  fmt::print("  layers {}, hidden {}, intermediate {}, heads {} (KV {}) of {}\n",
             m["layers"].get<int64_t>(), m["hidden_size"].get<int64_t>(),
             m["intermediate_size"].get<int64_t>(), m["heads"].get<int64_t>(),
             m["kv_heads"].get<int64_t>(), m["head_dim"].get<int64_t>());
  fmt::print("  vocabulary {}, context {}, RoPE {}, {} embeddings\n",
             m["vocabulary"].get<int64_t>(), m["context"].get<int64_t>(),
             m["rope"]["type"].get<std::string>(),
             m["tied_embeddings"].get<bool>() ? "tied" : "separate");
  if (!m["not_looked_at"].empty()) {
    fmt::print("  config members not looked at: {}\n", m["not_looked_at"].dump());
  }
  fmt::print("\nStored tensors\n");
  for (const auto& [type, entry] : d["stored"].items()) {
    fmt::print("  {:<8} {:>5} tensors {:>10}\n", type, entry["tensors"].get<int64_t>(),
               FormatBytes(entry["bytes"].get<uint64_t>()));
  }
  fmt::print("\nLoaded on {}\n", d["device"].get<std::string>());
  for (const auto& [part, bytes] : d["weight_bytes"].items()) {
    fmt::print("  {:<10} {:>10}\n", part, FormatBytes(bytes.get<uint64_t>()));
  }
  const Json& prediction = d["predicted_memory"];
  fmt::print("\nPredicted peak memory, {} tokens in, {} out, KV cache {} ({} available)\n",
             prediction["input_length"].get<int64_t>(), prediction["output_length"].get<int64_t>(),
             prediction["kv_dtype"].get<std::string>(),
             FormatBytes(d["available_bytes"].get<uint64_t>()));
  fmt::print("  {:>6} {:>10} {:>10} {:>10} {:>10} {:>10}\n", "batch", "weights", "KV cache",
             "workspace", "total", "process");
  for (const Json& row : prediction["by_batch_size"]) {
    const Json& bytes = row["bytes"];
    fmt::print("  {:>6} {:>10} {:>10} {:>10} {:>10} {:>10}{}\n", row["batch_size"].get<int64_t>(),
               FormatBytes(bytes["weights"].get<uint64_t>()),
               FormatBytes(bytes["kv_cache"].get<uint64_t>()),
               FormatBytes(bytes["workspace"].get<uint64_t>()),
               FormatBytes(bytes["total"].get<uint64_t>()),
               row["process_bytes"].is_null()
                   ? "–"
                   : FormatBytes(row["process_bytes"].get<uint64_t>()),
               row["fits"].get<bool>() ? "" : "  does not fit");
  }
}

Status Inspect(const InspectOptions& options, const CommandContext& context) {
  NIBBLE_ASSIGN_OR_RETURN(const OpenedModel model, OpenModel(options.model, RandomWeights::kAllow));
  const ModelConfig& c = model.description.config;
  NIBBLE_ASSIGN_OR_RETURN(const std::unique_ptr<Backend> backend,
                          MakeBackend(context.common.device, c));
  NIBBLE_ASSIGN_OR_RETURN(const DType kv_dtype, KvTypeFor(context.common.device, *backend, c));

  Json stored = Json::object();
  for (const TensorInfo& tensor : model.checkpoint->tensors()) {
    Json& entry = stored[tensor.stored_type];
    if (entry.is_null()) entry = {{"tensors", 0}, {"bytes", 0}};
    entry["tensors"] = entry["tensors"].get<int64_t>() + 1;
    entry["bytes"] = entry["bytes"].get<uint64_t>() + tensor.stored_bytes;
  }
  const WeightBytes bytes = PredictWeightBytes(*model.checkpoint, model.description, *backend);
  const bool on_host = backend->name() != "cuda";
  const uint64_t overhead = MeasureOverhead(*model.checkpoint);
  const uint64_t available = backend->AvailableBytes();
  Workload workload{.input_length = options.input_length, .output_length = options.output_length};
  if (workload.input_length < 1 || workload.output_length < 2) {
    return WrongUsage("want at least 1 input and 2 output tokens");
  }
  Json rows = Json::array();
  for (const int64_t batch_size : options.batch_sizes) {
    if (batch_size < 1) return WrongUsage("batch size {}: want at least 1", batch_size);
    const MemoryUse use =
        PredictMemory(*model.checkpoint, model.description, *backend,
                      BenchEngineOptions(workload, batch_size, *backend, kv_dtype))
            .use;
    rows.push_back({{"batch_size", batch_size},
                    {"bytes", MemoryRecord(use)},
                    {"process_bytes",
                     on_host ? Json(overhead + std::max(use.total(), bytes.loading_peak)) : Json()},
                    {"fits", use.total() <= available}});
  }
  const auto& quantization = model.description.quantization;
  const Json document = {{"schema", "nibble.inspect/1"},
                         {"path", options.model},
                         {"weights", model.checkpoint->label()},
                         {"synthetic", model.checkpoint->synthetic()},
                         {"quantization", quantization ? quantization->ToJson() : Json()},
                         {"model",
                          {{"architecture", c.architecture},
                           {"parameters", c.ParameterCount()},
                           {"layers", c.layers},
                           {"hidden_size", c.hidden},
                           {"intermediate_size", c.intermediate},
                           {"heads", c.heads},
                           {"kv_heads", c.kv_heads},
                           {"head_dim", c.head_dim},
                           {"vocabulary", c.vocabulary},
                           {"context", c.max_context},
                           {"rope", RopeRecord(c.rope)},
                           {"tied_embeddings", c.tied_embeddings},
                           {"not_looked_at", c.unrecognized}}},
                         {"stored", std::move(stored)},
                         {"device", backend->description()},
                         {"available_bytes", available},
                         {"weight_bytes",
                          {{"embedding", bytes.embedding},
                           {"lm_head", bytes.lm_head},
                           {"attention", bytes.attention},
                           {"mlp", bytes.mlp},
                           {"norms", bytes.norms},
                           {"total", bytes.total()}}},
                         {"predicted_memory",
                          {{"input_length", options.input_length},
                           {"output_length", options.output_length},
                           {"kv_dtype", Name(kv_dtype)},
                           {"by_batch_size", std::move(rows)}}}};
  Print(document);
  return WriteOutput(options.output, document);
}

}  // namespace

void AddInspectCommand(Program& program) {
  CLI::App* command = program.Add(
      "inspect", "Architecture, parameters, quantization, and predicted memory by batch size",
      "  nibble inspect ./Llama-2-7b-chat-hf\n"
      "  nibble inspect model.gguf --batch-sizes 1,8,64 --output inspect.json\n"
      "  nibble inspect random:llama-2-7b:gptq-g128-sym\n");
  auto options = std::make_shared<InspectOptions>();
  command->add_option("model", options->model, "the model")->required();
  command->add_option("--batch-sizes", options->batch_sizes, "batch sizes to predict memory for")
      ->delimiter(',');
  command->add_option("--input-length", options->input_length, "tokens in")->capture_default_str();
  command->add_option("--output-length", options->output_length, "tokens out")
      ->capture_default_str();
  command->add_option("--output", options->output, "also write the result as JSON");
  program.Run(command, [options](const CommandContext& c) { return Inspect(*options, c); });
}

}  // namespace nibble

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <memory>
#include <thread>

#include "src/base/file.h"
#include "src/base/units.h"
#include "src/cli/api_key_file.h"
#include "src/cli/chat_template_option.h"
#include "src/cli/command.h"
#include "src/serve/server.h"
#include "src/study/documents.h"

namespace nibble {
namespace {

// Of the memory that is free beside the weights: what the KV cache and the workspace take at most.
constexpr double kCacheShare = 0.8;
constexpr int64_t kMaxSequences = 4096;
constexpr int64_t kMaxQueue = 1'000'000;
constexpr uint64_t kMaxBodyBytes = uint64_t{1} << 30;

struct ServeOptions {
  std::vector<std::string> models;  // PATH or NAME=PATH
  std::string name;                 // of a single one
  ServerOptions server;
  std::string api_key_file;
  std::string chat_template;
  bool allow_unauthenticated = false;
  bool no_prefix_cache = false;
  int64_t context = 0;  // 0: the model's
  int64_t sequences = 64;
  int64_t kv_tokens = 0;  // 0: as many as help and fit
  int64_t queue = 1024;
  int64_t drain_seconds = 30;
};

Status CheckOptions(const ServeOptions& options) {
  const ServerOptions& server = options.server;
  if (server.port < 0 || server.port > 65535) {
    return WrongUsage("--port {}: want 0 to 65535", server.port);
  }
  if (options.sequences < 1 || options.queue < 0 || options.context < 0 || options.kv_tokens < 0 ||
      options.drain_seconds < 0 || server.max_connections < 1 || server.max_body_bytes < 1 ||
      server.header_seconds < 1 || server.body_seconds < 1 || server.write_seconds < 1) {
    return WrongUsage(
        "want --max-sequences, --max-connections, --max-body-bytes and the time limits of at least "
        "1, and no negative numbers");
  }
  if (server.max_body_bytes > kMaxBodyBytes) {
    return WrongUsage("--max-body-bytes {}: want up to {}", server.max_body_bytes, kMaxBodyBytes);
  }
  if (server.max_total_body_bytes < server.max_body_bytes) {
    return WrongUsage("--max-total-body-bytes {}: want at least --max-body-bytes {}",
                      server.max_total_body_bytes, server.max_body_bytes);
  }
  if (options.sequences > kMaxSequences || options.queue > kMaxQueue) {
    return WrongUsage("want --max-sequences up to {} and --max-queue up to {}", kMaxSequences,
                      kMaxQueue);
  }
  const bool loopback = server.host.starts_with("127.") || server.host == "::1";
  if (!loopback && options.api_key_file.empty() && !options.allow_unauthenticated) {
    return WrongUsage(
        "--host {} is open to others: give an --api-key-file, or --allow-unauthenticated",
        server.host);
  }
  return {};
}

// A model of the command line, and what serves it.
struct ServedModel {
  std::string name;
  std::string path;
  std::optional<ChatTemplate> chat;
  std::string chat_jinja;
  std::unique_ptr<LoadedModel> loaded;
  std::unique_ptr<Engine> engine;
  std::unique_ptr<EngineLoop> loop;
  std::unique_ptr<ModelService> service;
};

// "PATH", or "NAME=PATH" where that is no path itself.
ServedModel SplitModel(const std::string& argument) {
  const size_t equals = argument.find('=');
  std::error_code ignored;
  const std::string name = argument.substr(0, equals);
  const bool named = equals != std::string::npos && !name.empty() &&
                     name.find_first_of("/:") == std::string::npos &&
                     !std::filesystem::exists(argument, ignored);
  if (named) return {.name = name, .path = argument.substr(equals + 1)};
  return {.name = LastPart(argument), .path = argument};
}

Result<std::vector<ServedModel>> NamedModels(const ServeOptions& options) {
  std::vector<ServedModel> models;
  for (const std::string& argument : options.models) {
    ServedModel& model = models.emplace_back(SplitModel(argument));
    if (!options.name.empty()) model.name = options.name;
    const auto same = [&](const ServedModel& other) { return other.name == model.name; };
    if (std::count_if(models.begin(), models.end(), same) > 1) {
      return WrongUsage("two models are named {}; NAME=MODEL names them", model.name);
    }
  }
  if (models.size() > 1 && !options.name.empty()) {
    return WrongUsage("--model-name goes with one model; NAME=MODEL names several");
  }
  return models;
}

// Clients may render conversations themselves.
std::string JinjaOf(const std::string& choice, std::span<const NamedChatTemplate> of_model) {
  for (const ChatTemplateFamily& family : ChatTemplateFamilies()) {
    if (family.name == choice) return std::string(family.jinja);
  }
  for (const NamedChatTemplate& named : of_model) {
    if (named.name == (choice.empty() ? "default" : choice)) return named.jinja;
  }
  return ReadFile(choice, kMaxChatTemplateBytes).value_or("");
}

// Everything that can be wrong with a model but its size, before any is loaded.
Status CheckModel(ServedModel& model, const ServeOptions& options) {
  NIBBLE_ASSIGN_OR_RETURN(const OpenedModel opened, OpenModel(model.path, RandomWeights::kAllow));
  const int64_t most = opened.description.config.max_context;
  if (options.context > most) {
    return WrongUsage("--context {}: the model's is {}", options.context, most);
  }
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<NamedChatTemplate> of_model,
                          opened.checkpoint->ChatTemplates());
  if (of_model.empty() && options.chat_template.empty()) return {};
  NIBBLE_ASSIGN_OR_RETURN(model.chat,
                          ChooseChatTemplate(options.chat_template, of_model, model.path));
  model.chat_jinja = JinjaOf(options.chat_template, of_model);
  return {};
}

// Takes from the device's --memory-fraction what the model's weights hold, for those after it.
Status Load(ServedModel& model, DeviceOptions& device, const CommandContext& context) {
  if (device.memory_fraction <= 0) return NotEnough("the models before it left no memory");
  NIBBLE_ASSIGN_OR_RETURN(model.loaded, LoadModelOn(model.path, device, RandomWeights::kAllow,
                                                    context.common.progress(), context.cancel));
  if (device.memory_fraction < 1) {
    Backend& backend = *model.loaded->backend;
    device.memory_fraction -= static_cast<double>(backend.memory().current().total()) /
                              static_cast<double>(backend.MemoryBytes());
  }
  return model.loaded->tokenizer_status;
}

Result<EngineOptions> EngineOptionsFor(const ServeOptions& options, const LoadedModel& model,
                                       uint64_t available) {
  const ModelConfig& config = model.weights.config;
  const int64_t context = options.context > 0 ? options.context : config.max_context;
  const bool given = options.kv_tokens > 0;
  const EngineOptions wanted{
      .kv_dtype = model.kv_dtype,
      .kv_tokens =
          given ? options.kv_tokens : KvTokensFor(*model.backend, options.sequences, context),
      .limits = {.rows = std::max(options.sequences, model.backend->step_rows()),
                 .sequences = options.sequences,
                 .context = context,
                 .logit_rows = options.sequences}};
  return FitKvCache(wanted, given ? wanted.kv_tokens : KvTokensFor(*model.backend, 1, context),
                    config, *model.backend,
                    given ? available : static_cast<uint64_t>(kCacheShare * available));
}

Status StartService(ServedModel& model, const ServeOptions& options, uint64_t available) {
  LoadedModel& loaded = *model.loaded;
  NIBBLE_ASSIGN_OR_RETURN(const EngineOptions engine_options,
                          EngineOptionsFor(options, loaded, available));
  NIBBLE_ASSIGN_OR_RETURN(model.engine,
                          Engine::Create(loaded.weights, *loaded.backend, engine_options));
  model.loop = std::make_unique<EngineLoop>(
      *model.engine, *loaded.tokenizer,
      EngineLoopOptions{
          .max_choices = options.sequences + options.queue,
          .prefix_cache = options.no_prefix_cache ? PrefixCache::kOff : PrefixCache::kOn});
  const ModelConfig& config = loaded.weights.config;
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  model.service = std::make_unique<ModelService>(
      *loaded.tokenizer, *model.loop,
      ServiceOptions{.name = model.name,
                     .bos = loaded.tokenizer->bos() ? loaded.tokenizer->bos() : config.bos,
                     .stop_tokens = config.eos,
                     .chat = std::move(model.chat),
                     .chat_jinja = std::move(model.chat_jinja),
                     .created_s = std::chrono::duration_cast<std::chrono::seconds>(now).count()});
  return {};
}

Status RunServer(ServeOptions options, const CommandContext& context) {
  NIBBLE_RETURN_IF_ERROR(CheckOptions(options));
  NIBBLE_ASSIGN_OR_RETURN(options.server.api_key, ReadApiKey(options.api_key_file));
  // Outlives the models: until their loops end, these post to connections, also where the time to
  // drain was too short for the answers.
  std::unique_ptr<Server> server;
  NIBBLE_ASSIGN_OR_RETURN(std::vector<ServedModel> models, NamedModels(options));
  const auto of = [&](const ServedModel& model, const Status& status) -> Status {
    if (status || models.size() == 1) return status;
    return tl::unexpected(status.error().In(fmt::format("model {}", model.name)));
  };
  for (ServedModel& model : models) {
    NIBBLE_RETURN_IF_ERROR(of(model, CheckModel(model, options)));
  }
  // It listens before the models are loaded, so that a probe sees that they load.
  NIBBLE_ASSIGN_OR_RETURN(server, Server::Start(options.server));
  DeviceOptions device = context.common.device;
  for (ServedModel& model : models) {
    NIBBLE_RETURN_IF_ERROR(of(model, Load(model, device, context)));
  }
  // The last one's limit is what the weights of the others left, and so is the machine's memory.
  const uint64_t room = models.back().loaded->backend->AvailableBytes();
  std::vector<ModelService*> services;
  for (ServedModel& model : models) {
    NIBBLE_RETURN_IF_ERROR(of(model, StartService(model, options, room / models.size())));
    services.push_back(model.service.get());
  }
  const std::unique_ptr<EnergyMeter> meter = OpenEnergyMeter(*models.front().loaded->backend);
  const ServedModels served(std::move(services), meter.get());
  server->Serve(served);
  for (const ServedModel& model : models) {
    fmt::print("serving {} at http://{}:{} ({} sequences at a time, a KV cache of {} tokens)\n",
               model.name, options.server.host, server->port(), options.sequences,
               model.loop->metrics().kv_tokens);
  }
  std::fflush(stdout);

  while (!context.cancel.requested()) std::this_thread::sleep_for(std::chrono::milliseconds(20));
  spdlog::info("finishing what is being answered, for at most {} s", options.drain_seconds);
  server->Drain(options.drain_seconds);
  server->Stop();
  return {};
}

}  // namespace

void AddServeCommand(Program& program) {
  CLI::App* command = program.Add(
      "serve", "Serve models over HTTP, with OpenAI's API",
      "  nibble serve ./model\n"
      "  nibble serve fp16=./model gptq=./model-gptq\n"
      "  nibble serve ./model --host 0.0.0.0 --port 8000 --api-key-file key.txt\n"
      "  curl http://127.0.0.1:8000/v1/completions -d '{\"prompt\": \"The sky is\"}'\n");
  auto options = std::make_shared<ServeOptions>();
  command
      ->add_option("models", options->models,
                   "a model, or several that share the memory, each MODEL or NAME=MODEL")
      ->required();
  const auto add = [&](const char* name, auto& value, const char* description) {
    command->add_option(name, value, description)->capture_default_str();
  };
  add("--host", options->server.host, "the address to listen on");
  add("--port", options->server.port, "0: any that is free");
  add("--model-name", options->name,
      "of a single model, in requests and answers; by default its file's");
  add("--api-key-file", options->api_key_file, "holds the key that requests must bring");
  add("--report", options->server.report, "a study's directory, shown to browsers at /report/");
  command->add_flag("--allow-unauthenticated", options->allow_unauthenticated,
                    "serve others without a key");
  AddChatTemplateOption(*command, options->chat_template);
  command->add_flag("--no-prefix-cache", options->no_prefix_cache,
                    "compute every prompt, also where one with the same beginning was computed");
  add("--context", options->context, "tokens of a prompt and its answer; 0: the model's");
  add("--max-sequences", options->sequences, "texts computed at a time");
  add("--max-queue", options->queue, "texts that may wait");
  add("--kv-tokens", options->kv_tokens,
      "tokens in each model's KV cache; 0: as many as help and fit");
  add("--max-connections", options->server.max_connections, "clients at a time");
  add("--max-body-bytes", options->server.max_body_bytes, "of a request");
  add("--max-total-body-bytes", options->server.max_total_body_bytes,
      "of all requests that arrive at a time");
  add("--header-timeout", options->server.header_seconds, "seconds to send a request's headers");
  add("--body-timeout", options->server.body_seconds, "seconds to send a request's body");
  add("--write-timeout", options->server.write_seconds, "seconds to take a piece of an answer");
  add("--drain-timeout", options->drain_seconds, "seconds that SIGTERM waits for answers");
  program.Run(command, [options](const CommandContext& c) { return RunServer(*options, c); });
}

}  // namespace nibble

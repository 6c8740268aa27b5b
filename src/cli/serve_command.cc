#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <chrono>
#include <filesystem>
#include <memory>
#include <thread>

#include "src/base/units.h"
#include "src/cli/api_key_file.h"
#include "src/cli/command.h"
#include "src/serve/server.h"
#include "src/study/documents.h"

namespace nibble {
namespace {

// Of the memory that is free beside the weights: what the KV cache and the workspace take at most.
constexpr double kCacheShare = 0.8;
constexpr int64_t kMaxSequences = 4096;
constexpr int64_t kMaxQueue = 1'000'000;

struct ServeOptions {
  std::string model;
  std::string name;
  ServerOptions server;
  std::string api_key_file;
  bool allow_unauthenticated = false;
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

Result<EngineOptions> EngineOptionsFor(const ServeOptions& options, const LoadedModel& model) {
  const ModelConfig& config = model.weights.config;
  if (options.context > config.max_context) {
    return WrongUsage("--context {}: the model's is {}", options.context, config.max_context);
  }
  const int64_t context = options.context > 0 ? options.context : config.max_context;
  const uint64_t available = model.backend->AvailableBytes();
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

std::string NameOf(const ServeOptions& options) {
  if (!options.name.empty()) return options.name;
  const std::filesystem::path path(options.model);
  return path.has_filename() ? path.filename().string() : path.parent_path().filename().string();
}

Result<std::optional<ChatTemplate>> ReadChatTemplate(const Checkpoint& checkpoint) {
  NIBBLE_ASSIGN_OR_RETURN(const std::optional<std::string> source, checkpoint.ChatTemplateSource());
  if (!source) return std::nullopt;
  NIBBLE_ASSIGN_OR_RETURN(ChatTemplate parsed, ChatTemplate::Parse(*source, checkpoint.path()));
  return std::optional<ChatTemplate>(std::move(parsed));
}

Status RunServer(ServeOptions options, const CommandContext& context) {
  NIBBLE_RETURN_IF_ERROR(CheckOptions(options));
  NIBBLE_ASSIGN_OR_RETURN(options.server.api_key, ReadApiKey(options.api_key_file));
  // It listens before the model is loaded, so that a probe sees that it loads; what it serves is
  // gone before it is.
  NIBBLE_ASSIGN_OR_RETURN(const std::unique_ptr<Server> server, Server::Start(options.server));
  NIBBLE_ASSIGN_OR_RETURN(const std::unique_ptr<LoadedModel> model,
                          LoadModelOn(options.model, context.common.device, RandomWeights::kAllow,
                                      context.common.progress(), context.cancel));
  NIBBLE_RETURN_IF_ERROR(model->tokenizer_status);
  NIBBLE_ASSIGN_OR_RETURN(std::optional<ChatTemplate> chat, ReadChatTemplate(model->checkpoint()));
  NIBBLE_ASSIGN_OR_RETURN(const EngineOptions engine_options, EngineOptionsFor(options, *model));
  NIBBLE_ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine,
                          Engine::Create(model->weights, *model->backend, engine_options));
  const ModelConfig& config = model->weights.config;
  EngineLoop loop(*engine, *model->tokenizer, options.sequences + options.queue);
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  ModelService service(
      *model->tokenizer, loop,
      {.name = NameOf(options),
       .bos = model->tokenizer->bos() ? model->tokenizer->bos() : config.bos,
       .stop_tokens = config.eos,
       .chat = std::move(chat),
       .created_s = std::chrono::duration_cast<std::chrono::seconds>(now).count()});
  server->Serve(service);
  fmt::print("serving {} at http://{}:{} ({} sequences at a time, a KV cache of {} tokens)\n",
             service.name(), options.server.host, server->port(), options.sequences,
             engine_options.kv_tokens);
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
      "serve", "Serve a model over HTTP, with OpenAI's API",
      "  nibble serve ./model\n"
      "  nibble serve ./model --host 0.0.0.0 --port 8000 --api-key-file key.txt\n"
      "  curl http://127.0.0.1:8000/v1/completions -d '{\"prompt\": \"The sky is\"}'\n");
  auto options = std::make_shared<ServeOptions>();
  command->add_option("model", options->model, "the model")->required();
  const auto add = [&](const char* name, auto& value, const char* description) {
    command->add_option(name, value, description)->capture_default_str();
  };
  add("--host", options->server.host, "the address to listen on");
  add("--port", options->server.port, "0: any that is free");
  add("--model-name", options->name, "in requests and answers; by default the model's file name");
  add("--api-key-file", options->api_key_file, "holds the key that requests must bring");
  add("--report", options->server.report, "a study's directory, shown to browsers at /report/");
  command->add_flag("--allow-unauthenticated", options->allow_unauthenticated,
                    "serve others without a key");
  add("--context", options->context, "tokens of a prompt and its answer; 0: the model's");
  add("--max-sequences", options->sequences, "texts computed at a time");
  add("--max-queue", options->queue, "texts that may wait");
  add("--kv-tokens", options->kv_tokens, "tokens in the KV cache; 0: as many as help and fit");
  add("--max-connections", options->server.max_connections, "clients at a time");
  add("--max-body-bytes", options->server.max_body_bytes, "of a request");
  add("--header-timeout", options->server.header_seconds, "seconds to send a request's headers");
  add("--body-timeout", options->server.body_seconds, "seconds to send a request's body");
  add("--write-timeout", options->server.write_seconds, "seconds to take a piece of an answer");
  add("--drain-timeout", options->drain_seconds, "seconds that SIGTERM waits for answers");
  program.Run(command, [options](const CommandContext& c) { return RunServer(*options, c); });
}

}  // namespace nibble

#include <fmt/format.h>

#include <cstdio>
#include <memory>

#include "src/base/units.h"
#include "src/cli/chat_template_option.h"
#include "src/cli/command.h"
#include "src/cli/sampling_options.h"
#include "src/engine/scheduler.h"
#include "src/study/documents.h"
#include "src/tokenizer/chat_prompt.h"

namespace nibble {
namespace {

struct GenerateOptions {
  std::string model;
  std::string prompt;
  std::string token_ids;
  std::string system;
  bool chat = false;
  std::string chat_template;
  int64_t max_tokens = 256;
  bool ignore_eos = false;
  SamplingOptions sampling;
};

std::vector<ChatMessage> MessagesOf(const GenerateOptions& options) {
  std::vector<ChatMessage> messages;
  if (!options.system.empty()) messages.push_back({"system", options.system});
  messages.push_back({"user", options.prompt});
  return messages;
}

// `chat_template`: null for a prompt that is not a chat's.
Result<std::vector<int32_t>> PromptTokens(const GenerateOptions& options, const LoadedModel& model,
                                          const Tokenizer* tokenizer,
                                          const ChatTemplate* chat_template) {
  if (!options.token_ids.empty()) return ParseTokenIds(options.token_ids);
  std::vector<int32_t> tokens;
  if (chat_template != nullptr) {
    NIBBLE_ASSIGN_OR_RETURN(
        tokens, ChatPromptTokens(*chat_template, *tokenizer, MessagesOf(options), LocalTime()));
  } else {
    tokens = tokenizer->Encode(options.prompt, SpecialTokens::kAdd);
  }
  if (!tokens.empty()) return tokens;
  const std::optional<TokenId> bos = tokenizer->bos() ? tokenizer->bos() : model.weights.config.bos;
  if (!bos) {
    return BadInput("{}: an empty prompt starts from BOS, and the model has none", options.model);
  }
  return std::vector<int32_t>{*bos};
}

Status Generate(const GenerateOptions& options, const CommandContext& context) {
  if (options.max_tokens < 1)
    return WrongUsage("--max-tokens {}: want at least 1", options.max_tokens);
  NIBBLE_RETURN_IF_ERROR(CheckSamplingOptions(options.sampling));
  if (!options.token_ids.empty() && (options.chat || !options.prompt.empty())) {
    return WrongUsage("--token-ids goes with neither --prompt nor --chat");
  }
  if (!options.chat && !options.chat_template.empty()) {
    return WrongUsage("--chat-template goes with --chat");
  }
  // Before the weights are loaded: a template may be refused.
  std::optional<ChatTemplate> chat_template;
  if (options.chat) {
    NIBBLE_ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> checkpoint,
                            OpenCheckpoint(options.model));
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<NamedChatTemplate> of_model,
                            checkpoint->ChatTemplates());
    NIBBLE_ASSIGN_OR_RETURN(chat_template,
                            ChooseChatTemplate(options.chat_template, of_model, options.model));
  }
  NIBBLE_ASSIGN_OR_RETURN(const std::unique_ptr<LoadedModel> model,
                          LoadModelOn(options.model, context.common.device, RandomWeights::kAllow,
                                      context.common.progress(), context.cancel));
  // A model without a tokenizer still continues token ids.
  if (options.token_ids.empty()) NIBBLE_RETURN_IF_ERROR(model->tokenizer_status);
  const Tokenizer* tokenizer = model->tokenizer.get();
  NIBBLE_ASSIGN_OR_RETURN(
      std::vector<int32_t> prompt,
      PromptTokens(options, *model, tokenizer, chat_template ? &*chat_template : nullptr));

  const ModelConfig& config = model->weights.config;
  const int64_t length = static_cast<int64_t>(prompt.size()) + options.max_tokens;
  if (length > config.max_context) {
    return BadInput("{} prompt tokens and {} new ones exceed the model's context of {}",
                    prompt.size(), options.max_tokens, config.max_context);
  }
  const EngineOptions wanted{
      .kv_dtype = model->kv_dtype,
      .kv_tokens = KvTokensFor(*model->backend, 1, length),
      .limits = {.rows = std::min<int64_t>(static_cast<int64_t>(prompt.size()), 512),
                 .sequences = 1,
                 .context = length,
                 .logit_rows = 1}};
  NIBBLE_ASSIGN_OR_RETURN(const EngineOptions engine_options,
                          FitKvCache(wanted, wanted.kv_tokens, config, *model->backend,
                                     model->backend->AvailableBytes()));
  NIBBLE_ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine,
                          Engine::Create(model->weights, *model->backend, engine_options));

  std::optional<StreamingDecoder> decoder;
  if (tokenizer) decoder.emplace(*tokenizer);
  const auto print = [](const std::string& text) {
    std::fputs(text.c_str(), stdout);
    std::fflush(stdout);
  };
  // An empty prompt's text begins with the first token; any other's continues it.
  bool first = true;
  Scheduler scheduler(
      *engine,
      [&](Scheduler::RequestId, int32_t token) {
        print(decoder ? decoder->Push(token) : fmt::format("{}{}", first ? "" : ",", token));
        first = false;
      },
      [&](Scheduler::RequestId, FinishReason) {
        print((decoder ? decoder->Finish() : "") + "\n");
      });
  GenerationRequest request{
      .prompt = std::move(prompt), .max_tokens = options.max_tokens, .sampling = options.sampling};
  if (!options.ignore_eos) request.stop_tokens = config.eos;
  NIBBLE_RETURN_IF_ERROR(scheduler.Add(std::move(request)));
  while (true) {
    NIBBLE_ASSIGN_OR_RETURN(const bool more, scheduler.Step(context.cancel));
    if (!more) return {};
  }
}

}  // namespace

void AddGenerateCommand(Program& program) {
  CLI::App* command = program.Add(
      "generate", "Complete a prompt; greedy unless a temperature is given",
      "  nibble generate ./model --prompt 'The capital of France is'\n"
      "  nibble generate model.gguf --chat --prompt 'Why is the sky blue?' --max-tokens 200\n"
      "  nibble generate random:tinyllama-1.1b --token-ids 1,15,7 --max-tokens 16\n");
  auto options = std::make_shared<GenerateOptions>();
  command->add_option("model", options->model, "the model")->required();
  command->add_option("--prompt", options->prompt, "the text to continue; empty: from BOS");
  command->add_option("--token-ids", options->token_ids, "the prompt as ids, nothing added");
  command->add_flag("--chat", options->chat, "put the prompt into the model's chat template");
  AddChatTemplateOption(*command, options->chat_template);
  command->add_option("--system", options->system, "the system message, with --chat");
  command->add_option("--max-tokens", options->max_tokens, "tokens at most")->capture_default_str();
  command->add_flag("--ignore-eos", options->ignore_eos, "do not stop at end of sequence");
  AddSamplingOptions(*command, options->sampling);
  program.Run(command, [options](const CommandContext& c) { return Generate(*options, c); });
}

}  // namespace nibble

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <optional>

#include "src/cli/chat_template_option.h"
#include "src/cli/command.h"
#include "src/cli/interrupts.h"
#include "src/cli/line_reader.h"
#include "src/cli/sampling_options.h"
#include "src/engine/scheduler.h"
#include "src/study/documents.h"
#include "src/tokenizer/chat_prompt.h"

namespace nibble {
namespace {

// A cache for more is taken where --context asks for it.
constexpr int64_t kDefaultContext = 8192;
constexpr int64_t kLeastContext = 256;

constexpr const char* kHelp =
    "/reset          forget the conversation\n"
    "/system TEXT    set the system message; without TEXT, remove it\n"
    "/again          answer the last message again\n"
    "/quit           leave, as Ctrl-D does\n"
    "Ctrl-C stops an answer. A line that ends in \\ goes on in the next.\n";

struct ChatOptions {
  std::string model;
  std::string chat_template;
  std::string system;
  int64_t max_tokens = 0;  // 0: what is left of the context
  int64_t context = 0;     // 0: the model's, up to kDefaultContext
  SamplingOptions sampling;
};

class Chat {
 public:
  using Clock = std::chrono::steady_clock;

  // Borrows all but the options.
  Chat(const ChatOptions& options, const LoadedModel& model, const ChatTemplate& chat_template,
       Engine& engine, Interrupts& interrupts, bool quiet)
      : options_(options),
        model_(model),
        template_(chat_template),
        interrupts_(interrupts),
        quiet_(quiet),
        scheduler_(
            engine, [this](Scheduler::RequestId, int32_t token) { Token(token); },
            [this](Scheduler::RequestId, FinishReason reason) { reason_ = reason; },
            /*on_score=*/nullptr, PrefixCache::kOn,
            [this](Scheduler::RequestId, int64_t shared) { shared_tokens_ = shared; }) {}

  // A line: a command or a message. False where it was the last.
  Result<bool> Take(const std::string& line, const CancelToken& cancel) {
    if (line.empty()) return true;
    if (line == "/quit" || line == "/exit") return false;
    if (line == "/help") {
      fmt::print(stderr, "{}", kHelp);
    } else if (line == "/reset") {
      messages_.clear();
    } else if (line == "/system" || line.starts_with("/system ")) {
      options_.system = line.size() > 8 ? line.substr(8) : "";
    } else if (line == "/again") {
      if (!messages_.empty() && messages_.back().role == "assistant") messages_.pop_back();
      if (messages_.empty()) {
        fmt::print(stderr, "nothing was said yet\n");
      } else {
        ++options_.sampling.seed;  // another answer, unless it is greedy
        NIBBLE_RETURN_IF_ERROR(Answer(cancel));
      }
    } else if (line.starts_with('/')) {
      fmt::print(stderr, "{}: no such command; /help shows them\n", line);
    } else {
      messages_.push_back({"user", line});
      NIBBLE_RETURN_IF_ERROR(Answer(cancel));
    }
    return true;
  }

 private:
  void Token(int32_t token) {
    last_ = Clock::now();
    if (tokens_++ == 0) first_ = last_;
    Print(decoder_->Push(token));
  }

  void Print(const std::string& text) {
    answer_ += text;
    std::fputs(text.c_str(), stdout);
    std::fflush(stdout);
  }

  // Answers the last message. What the user can cause is said, and the message taken back; an error
  // is the engine's.
  Status Answer(const CancelToken& cancel) {
    std::vector<ChatMessage> prompt;
    if (!options_.system.empty()) prompt.push_back({"system", options_.system});
    prompt.insert(prompt.end(), messages_.begin(), messages_.end());
    Result<std::vector<TokenId>> tokens =
        ChatPromptTokens(template_, *model_.tokenizer, prompt, LocalTime());
    if (!tokens) return TakeBack(tokens.error());
    const auto length = static_cast<int64_t>(tokens->size());
    const int64_t left = scheduler_.context() - length;
    if (left < 1) {
      return TakeBack(
          Error(ErrorCode::kBadInput,
                fmt::format("the conversation's {} tokens fill the context of {}; /reset "
                            "begins a new one",
                            length, scheduler_.context())));
    }
    GenerationRequest request{
        .prompt = *std::move(tokens),
        .max_tokens = options_.max_tokens > 0 ? std::min(options_.max_tokens, left) : left,
        .sampling = options_.sampling,
        .stop_tokens = model_.weights.config.eos};
    answer_.clear();
    tokens_ = shared_tokens_ = 0;
    reason_.reset();
    decoder_.emplace(*model_.tokenizer);
    interrupts_.Clear();
    const Clock::time_point start = Clock::now();
    const Result<Scheduler::RequestId> id = scheduler_.Add(std::move(request));
    if (!id) return TakeBack(id.error());
    while (!reason_) {
      NIBBLE_ASSIGN_OR_RETURN(const bool more, scheduler_.Step(cancel));
      if (interrupts_.any() && !reason_) {
        scheduler_.Cancel(*id);
        break;
      }
      if (!more) break;
    }
    Print(decoder_->Finish());
    fmt::print("\n");
    std::fflush(stdout);
    ShowSpeed(length, start);
    messages_.push_back({"assistant", answer_});
    return {};
  }

  Status TakeBack(const Error& error) {
    fmt::print(stderr, "{}\n", error.message());
    messages_.pop_back();
    return {};
  }

  void ShowSpeed(int64_t prompt_tokens, Clock::time_point start) const {
    if (quiet_) return;
    const auto seconds = [](Clock::duration d) { return std::chrono::duration<double>(d).count(); };
    std::string text =
        fmt::format("[{} ({} kept) + {} tokens", prompt_tokens, shared_tokens_, tokens_);
    if (tokens_ > 0) text += fmt::format(", first after {:.2f} s", seconds(first_ - start));
    if (tokens_ > 1 && last_ > first_) {
      text += fmt::format(", {:.1f} tokens/s",
                          static_cast<double>(tokens_ - 1) / seconds(last_ - first_));
    }
    if (!reason_) text += ", stopped";
    if (reason_ == FinishReason::kLength) text += ", cut at its length";
    fmt::print(stderr, "{}]\n", text);
  }

  ChatOptions options_;
  const LoadedModel& model_;
  const ChatTemplate& template_;
  Interrupts& interrupts_;
  const bool quiet_;
  Scheduler scheduler_;
  std::vector<ChatMessage> messages_;  // without the system's
  // Of the answer under way:
  std::optional<StreamingDecoder> decoder_;
  std::string answer_;
  std::optional<FinishReason> reason_;
  int64_t shared_tokens_ = 0;  // of the prompt, that an earlier one left in the KV cache
  int64_t tokens_ = 0;
  Clock::time_point first_, last_;
};

// Messages and commands from standard input, until it ends.
Status Converse(Chat& chat, Interrupts& interrupts, const CancelToken& cancel) {
  LineReader reader("> ", interrupts);
  std::string message;
  while (true) {
    std::string line;
    const LineReader::Outcome outcome = reader.Read(line);
    if (outcome == LineReader::Outcome::kInterrupted) {
      message.clear();
      if (reader.on_terminal()) fmt::print("\n");
      continue;
    }
    if (outcome == LineReader::Outcome::kEnd) {
      if (reader.on_terminal()) fmt::print("\n");
      return {};
    }
    message += line;
    if (message.ends_with('\\')) {
      message.back() = '\n';
      continue;
    }
    NIBBLE_ASSIGN_OR_RETURN(const bool more, chat.Take(message, cancel));
    if (!more) return {};
    message.clear();
  }
}

Status RunChat(const ChatOptions& options, const CommandContext& context) {
  NIBBLE_RETURN_IF_ERROR(CheckSamplingOptions(options.sampling));
  if (options.max_tokens < 0 || options.context < 0) {
    return WrongUsage("want a --max-tokens and a --context of at least 0");
  }
  // Before the weights are loaded: a template may be refused.
  NIBBLE_ASSIGN_OR_RETURN(const OpenedModel opened,
                          OpenModel(options.model, RandomWeights::kAllow));
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<NamedChatTemplate> of_model,
                          opened.checkpoint->ChatTemplates());
  NIBBLE_ASSIGN_OR_RETURN(const ChatTemplate chat_template,
                          ChooseChatTemplate(options.chat_template, of_model, options.model));
  NIBBLE_ASSIGN_OR_RETURN(const std::unique_ptr<LoadedModel> model,
                          LoadModelOn(options.model, context.common.device, RandomWeights::kAllow,
                                      context.common.progress(), context.cancel));
  NIBBLE_RETURN_IF_ERROR(model->tokenizer_status);
  const ModelConfig& config = model->weights.config;
  if (options.context > config.max_context) {
    return WrongUsage("--context {}: the model's is {}", options.context, config.max_context);
  }
  const int64_t length =
      options.context > 0 ? options.context : std::min(config.max_context, kDefaultContext);
  const auto kv_tokens = [&](int64_t tokens) { return KvTokensFor(*model->backend, 1, tokens); };
  const EngineOptions wanted{.kv_dtype = model->kv_dtype,
                             .kv_tokens = kv_tokens(length),
                             .limits = {.rows = std::min<int64_t>(length, 512),
                                        .sequences = 1,
                                        .context = length,
                                        .logit_rows = 1}};
  const int64_t least = options.context > 0 ? length : std::min(length, kLeastContext);
  NIBBLE_ASSIGN_OR_RETURN(const EngineOptions engine_options,
                          FitKvCache(wanted, kv_tokens(least), config, *model->backend,
                                     model->backend->AvailableBytes()));
  NIBBLE_ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine,
                          Engine::Create(model->weights, *model->backend, engine_options));
  Interrupts interrupts;
  Chat chat(options, *model, chat_template, *engine, interrupts, context.common.quiet);
  return Converse(chat, interrupts, context.cancel);
}

}  // namespace

void AddChatCommand(Program& program) {
  CLI::App* command =
      program.Add("chat", "Talk to a model in the terminal, in its chat template",
                  "  nibble chat ./model\n"
                  "  nibble chat model.gguf --system 'You answer in one sentence.' --seed 7\n"
                  "  echo 'Why is the sky blue?' | nibble chat model.gguf --temperature 0\n\n"
                  "In the conversation:\n" +
                      std::string(kHelp));
  auto options = std::make_shared<ChatOptions>();
  options->sampling.temperature = 0.7;
  options->sampling.top_p = 0.95;
  command->add_option("model", options->model, "the model")->required();
  AddChatTemplateOption(*command, options->chat_template);
  command->add_option("--system", options->system, "the system message");
  command
      ->add_option("--max-tokens", options->max_tokens,
                   "of an answer; 0: what is left of the context")
      ->capture_default_str();
  command
      ->add_option("--context", options->context,
                   "tokens of the whole conversation; 0: the model's, up to 8192")
      ->capture_default_str();
  AddSamplingOptions(*command, options->sampling);
  program.Run(command, [options](const CommandContext& c) { return RunChat(*options, c); });
}

}  // namespace nibble

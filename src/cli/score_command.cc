#include <fmt/format.h>

#include <algorithm>
#include <memory>

#include "src/base/file.h"
#include "src/cli/command.h"
#include "src/eval/divergence.h"
#include "src/study/documents.h"

namespace nibble {
namespace {

struct ScoreOptions {
  std::string model;
  std::string text;
  std::string token_ids;
  int64_t top = 0;
  bool allow_random = false;
  std::string output;
};

// The `count` most probable tokens, most probable first.
Json TopTokens(const RowLogProbabilities& row, std::span<const float> logits, int64_t count,
               const Tokenizer* tokenizer) {
  Json top = Json::array();
  for (const int32_t id : MostProbableTokens(logits, count)) {
    top.push_back({{"id", id},
                   {"text", tokenizer ? Json(tokenizer->TokenText(id)) : Json()},
                   {"logprob", row.At(id)}});
  }
  return top;
}

Status ScoreText(const ScoreOptions& options, const CommandContext& context) {
  if (options.text.empty() == options.token_ids.empty()) {
    return WrongUsage("give either --text or --token-ids");
  }
  if (options.top < 0) return WrongUsage("--top {}: want 0 or more", options.top);
  NIBBLE_ASSIGN_OR_RETURN(
      const std::unique_ptr<LoadedModel> model,
      LoadModelOn(options.model, context.common.device, AllowRandom(options.allow_random),
                  context.common.progress(), context.cancel));
  // Token ids need no tokenizer; where there is one, it names them.
  if (!options.text.empty()) NIBBLE_RETURN_IF_ERROR(model->tokenizer_status);
  const Tokenizer* tokenizer = model->tokenizer.get();
  std::vector<int32_t> tokens;
  if (!options.token_ids.empty()) {
    NIBBLE_ASSIGN_OR_RETURN(tokens, ParseTokenIds(options.token_ids));
  } else {
    tokens = tokenizer->Encode(options.text, SpecialTokens::kAdd, ParseSpecial::kNo);
  }
  const auto length = static_cast<int64_t>(tokens.size());
  if (length > model->weights.config.max_context) {
    return BadInput("{} tokens are longer than the model's context of {}", length,
                    model->weights.config.max_context);
  }
  const int64_t rows = std::min<int64_t>(length, 128);
  NIBBLE_ASSIGN_OR_RETURN(
      const std::unique_ptr<Engine> engine,
      Engine::Create(
          model->weights, *model->backend,
          {.kv_dtype = model->kv_dtype,
           .kv_tokens = KvTokensFor(*model->backend, 1, length),
           .limits = {.rows = rows, .sequences = 1, .context = length, .logit_rows = rows}}));

  Json scored = Json::array();
  const auto add = [&](int32_t id, Json logprob, Json top) {
    scored.push_back({{"id", id},
                      {"text", tokenizer ? Json(tokenizer->TokenText(id)) : Json()},
                      {"logprob", std::move(logprob)},
                      {"top", std::move(top)}});
  };
  add(tokens.front(), nullptr, Json::array());
  double total = 0;
  const Extension all{engine->Open(), tokens, WantLogits::kAll};
  NIBBLE_RETURN_IF_ERROR(engine->Extend(
      {{all}},
      [&](std::span<const LogitRun> runs) {
        const auto& [extension, first, logits] = runs.front();
        for (int64_t r = 0; r < logits.rows; ++r) {
          const auto next = static_cast<size_t>(first + r + 1);
          if (next == tokens.size()) return;
          const std::span<const float> values(logits.row<float>(r),
                                              static_cast<size_t>(logits.columns));
          const RowLogProbabilities row(values);
          total += row.At(tokens[next]);
          add(tokens[next], row.At(tokens[next]), TopTokens(row, values, options.top, tokenizer));
        }
      },
      context.cancel));

  for (const Json& token : scored) {
    fmt::print(
        "{:>8} {:>12} {}\n", token["id"].get<int32_t>(),
        token["logprob"].is_null() ? "-" : fmt::format("{:.6f}", token["logprob"].get<double>()),
        token["text"].is_null() ? "" : token["text"].dump());
    for (const Json& other : token["top"]) {
      fmt::print("{:>8} {:>12} {:>8} {}\n", "",
                 fmt::format("{:.6f}", other["logprob"].get<double>()), other["id"].get<int32_t>(),
                 other["text"].is_null() ? "" : other["text"].dump());
    }
  }
  fmt::print("sum {:.6f} over {} tokens\n", total, length - 1);
  return WriteOutput(options.output, {{"schema", "nibble.score/1"},
                                      {"model", options.model},
                                      {"synthetic", model->checkpoint().synthetic()},
                                      {"device", model->backend->description()},
                                      {"logprob", total},
                                      {"tokens", std::move(scored)}});
}

}  // namespace

void AddScoreCommand(Program& program) {
  CLI::App* command =
      program.Add("score", "The log-probability of every token of a text",
                  "  nibble score ./model --text 'The sky is blue.' --top 3\n"
                  "  nibble score ./model --token-ids 1,15,7 --dtype f32 --output score.json\n");
  auto options = std::make_shared<ScoreOptions>();
  command->add_option("model", options->model, "the model")->required();
  command->add_option("--text", options->text, "the text; BOS is added if the tokenizer adds one");
  command->add_option("--token-ids", options->token_ids, "ids, nothing added");
  command->add_option("--top", options->top, "also the N most probable tokens at each place")
      ->capture_default_str();
  command->add_flag("--allow-random", options->allow_random, "accept synthetic weights");
  command->add_option("--output", options->output, "also write the result as JSON");
  program.Run(command, [options](const CommandContext& c) { return ScoreText(*options, c); });
}

}  // namespace nibble

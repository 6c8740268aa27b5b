#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <optional>

#include "src/base/file.h"
#include "src/base/progress.h"
#include "src/cli/api_key_file.h"
#include "src/cli/command.h"
#include "src/load/load_level.h"
#include "src/load/load_result.h"

namespace nibble {
namespace {

constexpr uint64_t kMaxPromptFileBytes = 64 << 20;
constexpr int64_t kMaxLength = 1 << 20;
constexpr int64_t kMaxConcurrency = 100'000;
constexpr int64_t kMaxRequests = 100'000'000;

struct LoadTestOptions {
  std::string url;
  LoadWorkload workload;
  LoadLimits limits;
  std::vector<int64_t> concurrency;
  std::vector<double> rates;
  int64_t requests = 0;  // 0: by default, or without a limit where --seconds is given
  double seconds = 0;
  int64_t warm_up = 4;
  std::string prompts_file;
  bool stop_at_eos = false;
  std::string api_key_file;
  std::optional<double> slo_first_ms, slo_per_token_ms;
  std::string output;
};

Status CheckLoadOptions(const LoadTestOptions& options) {
  if (!options.concurrency.empty() && !options.rates.empty()) {
    return WrongUsage("--concurrency and --request-rates exclude each other");
  }
  for (const int64_t clients : options.concurrency) {
    if (clients < 1 || clients > kMaxConcurrency) {
      return WrongUsage("--concurrency {}: want 1 to {}", clients, kMaxConcurrency);
    }
  }
  for (const double rate : options.rates) {
    if (!(rate > 0 && rate <= 1e6)) return WrongUsage("--request-rates {}: want up to 1e6", rate);
  }
  const LoadWorkload& workload = options.workload;
  if (workload.input_length < 1 || workload.input_length > kMaxLength ||
      workload.output_length < 1 || workload.output_length > kMaxLength ||
      workload.vocabulary < 4 || !(workload.temperature >= 0) || !(options.seconds >= 0) ||
      options.requests < 0 || options.requests > kMaxRequests || options.warm_up < 0 ||
      options.warm_up > kMaxRequests || options.limits.threads < 1 ||
      !(options.limits.request_seconds > 0)) {
    return WrongUsage(
        "want lengths of 1 to {}, a --vocabulary of at least 4, at least one thread, a positive "
        "--timeout and no negative numbers",
        kMaxLength);
  }
  return {};
}

// One prompt a line; empty lines are left out.
Result<std::vector<std::string>> ReadPromptLines(const std::string& path) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxPromptFileBytes));
  std::vector<std::string> prompts;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    std::string line = text.substr(begin, end - begin);
    if (line.ends_with('\r')) line.pop_back();
    if (!line.empty()) prompts.push_back(std::move(line));
    begin = end + 1;
  }
  if (prompts.empty()) return BadInput("{}: want a prompt on each line, got none", path);
  return prompts;
}

std::vector<LoadLevel> LevelsOf(const LoadTestOptions& options) {
  std::vector<LoadLevel> levels;
  const auto add = [&](Arrivals arrivals, double value) {
    // By default enough for percentiles, and several for each client.
    const int64_t by_default =
        options.seconds > 0 ? kMaxRequests : std::max<int64_t>(32, 4 * static_cast<int64_t>(value));
    levels.push_back({.arrivals = arrivals,
                      .value = value,
                      .requests = options.requests > 0 ? options.requests : by_default,
                      .seconds = options.seconds,
                      .warm_up = options.warm_up});
  };
  for (const int64_t clients : options.concurrency) {
    add(Arrivals::kClosedLoop, static_cast<double>(clients));
  }
  for (const double rate : options.rates) add(Arrivals::kPoisson, rate);
  if (levels.empty()) add(Arrivals::kClosedLoop, 1);
  return levels;
}

Status RunLoadTest(LoadTestOptions options, const CommandContext& context) {
  NIBBLE_RETURN_IF_ERROR(CheckLoadOptions(options));
  NIBBLE_ASSIGN_OR_RETURN(LoadTarget target, ParseLoadTarget(options.url));
  NIBBLE_ASSIGN_OR_RETURN(target.api_key, ReadApiKey(options.api_key_file));
  LoadWorkload& workload = options.workload;
  workload.end = options.stop_at_eos ? EndOfSequence::kStop : EndOfSequence::kIgnore;
  if (!options.prompts_file.empty()) {
    NIBBLE_ASSIGN_OR_RETURN(workload.texts, ReadPromptLines(options.prompts_file));
  }
  if (workload.model.empty()) {
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<std::string> models,
                            ListModels(target, options.limits, context.cancel));
    if (models.empty()) return BadInput("{}: the server has no model", options.url);
    workload.model = models.front();
  }
  const ServiceLevel service_level{options.slo_first_ms, options.slo_per_token_ms};

  std::vector<LoadSummary> runs;
  int64_t first_request = 0;
  for (const LoadLevel& level : LevelsOf(options)) {
    const std::string name = level.arrivals == Arrivals::kClosedLoop
                                 ? fmt::format("{} clients", level.value)
                                 : fmt::format("{} requests/s", level.value);
    Progress progress(context.common.progress(), name, level.seconds > 0 ? 0 : level.requests);
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<LoadRecord> records,
                            RunLoadLevel(
                                target, workload, level, options.limits, first_request,
                                [&](int64_t done) { progress.Update(done); }, context.cancel));
    first_request += level.warm_up + static_cast<int64_t>(records.size());
    runs.push_back(Summarize(level, records, service_level));
  }
  fmt::print("{} at {}, {} in, {} out\n\n{}", workload.model, options.url,
             workload.texts.empty() ? fmt::format("{} random tokens", workload.input_length)
                                    : fmt::format("{} prompts", workload.texts.size()),
             workload.output_length, LoadTable(runs));
  NIBBLE_RETURN_IF_ERROR(
      WriteOutput(options.output, LoadDocument(options.url, workload, service_level, runs)));
  for (const LoadSummary& run : runs) {
    if (run.completed == 0) return BadInput("{}: no request was answered", options.url);
  }
  return {};
}

}  // namespace

void AddLoadTestCommand(Program& program) {
  CLI::App* command =
      program.Add("load-test", "Measure a server with OpenAI's API under load",
                  "  nibble load-test http://127.0.0.1:8000 --concurrency 1,16,64\n"
                  "  nibble load-test http://127.0.0.1:8000 --request-rates 1,2,4 --seconds 60 \\\n"
                  "      --slo-ttft-ms 500 --slo-tpot-ms 50 --output load.json\n");
  auto options = std::make_shared<LoadTestOptions>();
  command->add_option("url", options->url, "http://HOST:PORT")->required();
  const auto add = [&](const char* name, auto& value, const char* description) {
    return command->add_option(name, value, description)->capture_default_str();
  };
  add("--concurrency", options->concurrency,
      "a closed loop of so many clients, one level each; by default 1")
      ->delimiter(',');
  add("--request-rates", options->rates,
      "requests a second that arrive as a Poisson process, one level each")
      ->delimiter(',');
  add("--requests", options->requests,
      "of a level; by default 4 for each client or request a second, and at least 32");
  add("--seconds", options->seconds, "of a level, after which no request is sent any more");
  add("--warmup", options->warm_up, "requests before each level, not counted");
  add("--input-length", options->workload.input_length, "random token ids in a prompt");
  add("--output-length", options->workload.output_length, "tokens of an answer");
  add("--vocabulary", options->workload.vocabulary, "random ids are below it");
  add("--prompts", options->prompts_file, "a text file with a prompt on each line, instead");
  add("--temperature", options->workload.temperature, "0: greedy");
  add("--seed", options->workload.seed, "of prompts, arrivals and sampling");
  command->add_flag("--stop-at-eos", options->stop_at_eos,
                    "let answers end early; by default the server is asked to ignore_eos");
  add("--model", options->workload.model, "by default the server's first");
  add("--api-key-file", options->api_key_file, "holds the key that the server wants");
  add("--timeout", options->limits.request_seconds, "seconds for one answer");
  add("--client-threads", options->limits.threads, "that send and receive");
  command->add_option("--slo-ttft-ms", options->slo_first_ms,
                      "goodput counts answers whose first token is in time");
  command->add_option("--slo-tpot-ms", options->slo_per_token_ms,
                      "and whose others follow in time on average");
  add("--output", options->output, "a JSON file (docs/json.md)");
  program.Run(command, [options](const CommandContext& c) { return RunLoadTest(*options, c); });
}

}  // namespace nibble

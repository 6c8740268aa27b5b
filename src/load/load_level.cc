// clang-format off
#include "src/load/load_client.h"
// clang-format on

#include <algorithm>
#include <atomic>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cmath>
#include <mutex>
#include <thread>

#include "src/base/json_text.h"
#include "src/base/open_files.h"
#include "src/base/random.h"

namespace nibble {
namespace {

namespace asio = boost::asio;
using boost::system::error_code;

constexpr int32_t kFirstToken = 3;
constexpr uint64_t kArrivalStream = 0x61727269;  // apart from the prompts'
constexpr std::chrono::milliseconds kCancelPoll{20};

// The host's addresses. kBadInput where it has none.
Result<LoadClient::Endpoints> Resolve(asio::io_context& io, const LoadTarget& target) {
  error_code error;
  asio::ip::tcp::resolver resolver(io);
  LoadClient::Endpoints endpoints =
      resolver.resolve(target.host, std::to_string(target.port), error);
  if (error) return BadInput("{}: {}", target.host, error.message());
  return endpoints;
}

// Runs what was spawned to its end on `threads` threads. kInterrupted once the user asks to stop.
Status RunAll(asio::io_context& io, int threads, const CancelToken& cancel) {
  std::atomic<int> running{threads};
  std::vector<std::thread> pool;
  for (int i = 0; i < threads; ++i) {
    pool.emplace_back([&] {
      io.run();
      --running;
    });
  }
  while (running.load() > 0) {
    if (cancel.requested()) io.stop();
    std::this_thread::sleep_for(kCancelPoll);
  }
  for (std::thread& thread : pool) thread.join();
  return cancel.Check();
}

// What the coroutines of a level share.
class LevelRun {
 public:
  LevelRun(asio::io_context& io, const LoadTarget& target, const LoadClient::Endpoints& endpoints,
           const LoadWorkload& workload, const LoadLevel& level, const LoadLimits& limits,
           int64_t first_request, const std::function<void(int64_t)>& on_done)
      : io_(io),
        target_(target),
        endpoints_(endpoints),
        workload_(workload),
        level_(level),
        limits_(limits),
        first_request_(first_request),
        on_done_(on_done),
        epoch_(LoadClock::now()) {}

  void Start() {
    if (level_.arrivals == Arrivals::kPoisson) {
      asio::co_spawn(asio::make_strand(io_), Arrive(), asio::detached);
      return;
    }
    const auto clients = std::min(static_cast<int64_t>(level_.value), level_.requests);
    for (int64_t i = 0; i < clients; ++i) {
      const auto strand = asio::make_strand(io_);
      asio::co_spawn(strand, Loop(strand), asio::detached);
    }
  }

  std::vector<LoadRecord> Take() {
    std::sort(records_.begin(), records_.end(),
              [](const LoadRecord& a, const LoadRecord& b) { return a.sent_s < b.sent_s; });
    return std::move(records_);
  }

 private:
  bool Late() const {
    return level_.seconds > 0 &&
           LoadClock::now() - epoch_ > std::chrono::duration<double>(level_.seconds);
  }

  void Record(LoadRecord record) {
    const std::lock_guard lock(mutex_);
    records_.push_back(std::move(record));
    on_done_(static_cast<int64_t>(records_.size()));
  }

  // One client of the closed loop.
  asio::awaitable<void> Loop(asio::any_io_executor strand) {
    LoadClient client(strand, target_, endpoints_, limits_.request_seconds);
    while (!Late()) {
      const int64_t number = next_.fetch_add(1);
      if (number >= level_.requests) co_return;
      const std::string body = LoadRequestBody(workload_, first_request_ + number);
      LoadRecord record = co_await client.Complete(body, epoch_);
      Record(std::move(record));
    }
  }

  asio::awaitable<void> Arrive() {
    Random random(workload_.seed ^ kArrivalStream, static_cast<uint64_t>(first_request_));
    asio::steady_timer timer(co_await asio::this_coro::executor);
    double at_s = 0;
    for (int64_t number = 0; number < level_.requests; ++number) {
      // The waits between arrivals are exponential: -log(u) / rate, u in (0, 1].
      if (number > 0) at_s += -std::log(1 - random.Uniform()) / level_.value;
      if (level_.seconds > 0 && at_s > level_.seconds) co_return;
      timer.expires_at(epoch_ + std::chrono::duration_cast<LoadClock::duration>(
                                    std::chrono::duration<double>(at_s)));
      error_code ignored;
      co_await timer.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
      if (open_.load() >= limits_.open_requests) {
        Record({.sent_s = at_s, .failure = "too many open requests"});
        continue;
      }
      ++open_;
      const auto strand = asio::make_strand(io_);
      asio::co_spawn(strand, Once(strand, number), asio::detached);
    }
  }

  // One request of the Poisson process, on a connection of its own.
  asio::awaitable<void> Once(asio::any_io_executor strand, int64_t number) {
    LoadClient client(strand, target_, endpoints_, limits_.request_seconds);
    const std::string body = LoadRequestBody(workload_, first_request_ + number);
    LoadRecord record = co_await client.Complete(body, epoch_);
    --open_;
    Record(std::move(record));
  }

  asio::io_context& io_;
  const LoadTarget& target_;
  const LoadClient::Endpoints& endpoints_;
  const LoadWorkload& workload_;
  const LoadLevel& level_;
  const LoadLimits& limits_;
  const int64_t first_request_;
  const std::function<void(int64_t)>& on_done_;
  const LoadClock::time_point epoch_;
  std::atomic<int64_t> next_{0};
  std::atomic<int64_t> open_{0};
  std::mutex mutex_;  // guards what follows, and calls of on_done_
  std::vector<LoadRecord> records_;
};

}  // namespace

std::string LoadRequestBody(const LoadWorkload& workload, int64_t number) {
  Json body = {{"model", workload.model}};
  if (workload.texts.empty()) {
    Random random(Random::Mix(workload.seed) + static_cast<uint64_t>(number));
    std::vector<int32_t> prompt(static_cast<size_t>(workload.input_length));
    const auto choices = static_cast<uint64_t>(workload.vocabulary - kFirstToken);
    for (int32_t& token : prompt) token = kFirstToken + static_cast<int32_t>(random.Below(choices));
    body["prompt"] = std::move(prompt);
  } else {
    body["prompt"] = workload.texts[static_cast<size_t>(number) % workload.texts.size()];
  }
  body["max_tokens"] = workload.output_length;
  body["temperature"] = workload.temperature;
  body["seed"] = workload.seed + static_cast<uint64_t>(number);
  body["stream"] = true;
  body["stream_options"] = {{"include_usage", true}};
  if (workload.end == EndOfSequence::kIgnore) body["ignore_eos"] = true;
  return JsonText(body);
}

Result<std::vector<std::string>> ListModels(const LoadTarget& target, const LoadLimits& limits,
                                            const CancelToken& cancel) {
  asio::io_context io;
  NIBBLE_ASSIGN_OR_RETURN(const LoadClient::Endpoints endpoints, Resolve(io, target));
  Result<std::string> text = std::string();
  const auto strand = asio::make_strand(io);
  asio::co_spawn(
      strand,
      [&]() -> asio::awaitable<void> {
        LoadClient client(strand, target, endpoints, limits.request_seconds);
        text = co_await client.Get("/v1/models");
      },
      asio::detached);
  NIBBLE_RETURN_IF_ERROR(RunAll(io, 1, cancel));
  if (!text) return tl::unexpected(text.error());
  const std::string source = target.authority() + target.path + "/v1/models";
  NIBBLE_ASSIGN_OR_RETURN(const Json document, ParseJson(*text, source));
  const auto data = document.is_object() ? document.find("data") : document.end();
  if (data == document.end() || !data->is_array()) return BadInput("{}: want data[]", source);
  std::vector<std::string> names;
  for (const Json& model : *data) {
    if (!model.is_object() || !model.contains("id") || !model["id"].is_string()) {
      return BadInput("{}: want data[].id", source);
    }
    names.push_back(model["id"].get<std::string>());
  }
  return names;
}

Result<std::vector<LoadRecord>> RunLoadLevel(const LoadTarget& target, const LoadWorkload& workload,
                                             const LoadLevel& level, const LoadLimits& limits,
                                             int64_t first_request,
                                             const std::function<void(int64_t)>& on_done,
                                             const CancelToken& cancel) {
  AllowConnections(level.arrivals == Arrivals::kPoisson ? limits.open_requests
                                                        : static_cast<int64_t>(level.value));
  if (level.warm_up > 0) {
    // A closed loop even before a Poisson process: how many at a time is known.
    const LoadLevel warm_up{.value = level.arrivals == Arrivals::kClosedLoop
                                         ? level.value
                                         : std::min<double>(4, static_cast<double>(level.warm_up)),
                            .requests = level.warm_up};
    NIBBLE_ASSIGN_OR_RETURN(
        const std::vector<LoadRecord> records,
        RunLoadLevel(
            target, workload, warm_up, limits, first_request, [](int64_t) {}, cancel));
    first_request += level.warm_up;
  }
  asio::io_context io(limits.threads);
  NIBBLE_ASSIGN_OR_RETURN(const LoadClient::Endpoints endpoints, Resolve(io, target));
  LevelRun run(io, target, endpoints, workload, level, limits, first_request, on_done);
  run.Start();
  NIBBLE_RETURN_IF_ERROR(RunAll(io, limits.threads, cancel));
  return run.Take();
}

}  // namespace nibble

#include "src/serve/connection.h"

#include <poll.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>

#include <boost/asio/post.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <cerrno>
#include <chrono>
#include <deque>
#include <optional>

#include "src/base/json_text.h"
#include "src/serve/endpoints.h"
#include "src/serve/http_messages.h"

namespace nibble {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using boost::system::error_code;
using Request = Connection::Request;
using Response = Connection::Response;

// Parts of an answer that wait for a client that takes them too slowly; beyond it is cut.
constexpr size_t kMaxPartsWaiting = 1 << 16;

constexpr std::chrono::seconds kLinger{2};
constexpr size_t kLingerBytes = 16 << 10;

// A client that asked for more before it had its answer is looked after in this interval.
constexpr std::chrono::seconds kLookAgain{1};

int64_t UnixSeconds() {
  return std::chrono::duration_cast<std::chrono::seconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

// Counts a request for as long as it is being answered.
class Counted {
 public:
  explicit Counted(std::atomic<int64_t>& count) : count_(count) { ++count_; }
  ~Counted() { --count_; }
  Counted(const Counted&) = delete;
  Counted& operator=(const Counted&) = delete;

 private:
  std::atomic<int64_t>& count_;
};

}  // namespace

// What the engine's thread sends to a connection; touched on the connection's strand alone.
struct Connection::Mailbox {
  explicit Mailbox(const asio::any_io_executor& executor)
      : signal(executor, asio::steady_timer::time_point::max()), look_again(executor) {}

  void Notify() { signal.cancel(); }
  bool Ended() const { return gone || failure || parts.size() > kMaxPartsWaiting; }

  std::deque<ChoicePart> parts;
  std::optional<ApiError> failure;
  bool gone = false;      // the client
  bool complete = false;  // nobody looks here any more
  asio::steady_timer signal;
  asio::steady_timer look_again;  // whether the client is there
};

struct Connection::CompleteAtEnd {
  Mailbox& mailbox;
  ~CompleteAtEnd() {
    mailbox.complete = true;
    mailbox.look_again.cancel();
  }
};

// A request that was understood.
struct Connection::Wanted {
  enum class Kind { kCompletion, kChat };
  Kind kind;
  AnswerHead head;
  Logprobs logprobs;
  Delivery delivery;
  bool include_usage;
  int64_t prompt_tokens;
  size_t choices;

  Json Chunk(const ChoicePart& part) const {
    return kind == Kind::kChat ? ChatChunk(head, part, logprobs)
                               : CompletionChunk(head, part, logprobs);
  }
  Json UsageChunk(const Usage& usage) const {
    return kind == Kind::kChat ? ChatUsageChunk(head, usage) : CompletionUsageChunk(head, usage);
  }
  Json Whole(std::span<const ChoicePart> parts, const Usage& usage) const {
    return kind == Kind::kChat ? ChatDocument(head, parts, usage, logprobs)
                               : CompletionDocument(head, parts, usage, logprobs);
  }
};

// The bytes of a body, counted among those of all connections for as long as they are kept.
class Connection::HeldBody {
 public:
  explicit HeldBody(ServerContext& context) : context_(context) {}
  ~HeldBody() { Release(); }
  HeldBody(const HeldBody&) = delete;
  HeldBody& operator=(const HeldBody&) = delete;

  // The body has grown. False where all together would be too many.
  bool Grow(uint64_t bytes) {
    const uint64_t more = bytes - bytes_, most = context_.options.max_total_body_bytes;
    uint64_t all = context_.body_bytes.load();
    do {
      if (more > most - all) return false;
    } while (!context_.body_bytes.compare_exchange_weak(all, all + more));
    bytes_ = bytes;
    return true;
  }
  void Release() { context_.body_bytes -= std::exchange(bytes_, 0); }

 private:
  ServerContext& context_;
  uint64_t bytes_ = 0;
};

asio::awaitable<void> Connection::Run() {
  while (co_await ServeOne() == After::kKeep) {
  }
  // What the client still sends is read for a moment: a connection closed over unread bytes is
  // reset, and takes the answer with it.
  error_code error;
  stream_.socket().shutdown(asio::ip::tcp::socket::shutdown_send, error);
  stream_.expires_after(kLinger);
  for (uint64_t left = 2 * context_.options.max_body_bytes; !error && left > 0;) {
    buffer_.clear();
    const auto room = buffer_.prepare(kLingerBytes);
    const size_t count =
        co_await stream_.async_read_some(room, asio::redirect_error(asio::use_awaitable, error));
    left -= std::min<uint64_t>(left, count);
  }
}

asio::awaitable<Connection::After> Connection::ServeOne() {
  const ServerOptions& options = context_.options;
  HeldBody held(context_);
  http::request_parser<http::string_body> parser;
  parser.header_limit(options.max_header_bytes);
  parser.body_limit(options.max_body_bytes);
  error_code error;
  stream_.expires_after(std::chrono::seconds(options.header_seconds));
  co_await http::async_read_header(stream_, buffer_, parser,
                                   asio::redirect_error(asio::use_awaitable, error));
  if (!error) {
    if (std::optional<Response> answer = AnswerToHead(parser.get())) {
      if (!parser.is_done()) answer->keep_alive(false);  // its body is not read
      co_return co_await Send(parser.get(), std::move(*answer));
    }
    if (parser.get()[http::field::expect] == "100-continue") {
      std::string interim = "HTTP/1.1 100 Continue\r\n\r\n";
      const bool taken = co_await WriteText(std::move(interim));
      if (!taken) co_return After::kClose;
    }
    stream_.expires_after(std::chrono::seconds(options.body_seconds));
    while (!error && !parser.is_done()) {
      co_await http::async_read_some(stream_, buffer_, parser,
                                     asio::redirect_error(asio::use_awaitable, error));
      if (!error && !held.Grow(parser.get().body().size())) {
        Response refusal = Unavailable(parser.get(), "The bodies of all requests are too large");
        refusal.keep_alive(false);  // the rest is not read
        parser.get().body() = std::string();
        held.Release();
        co_return co_await Send(parser.get(), std::move(refusal));
      }
    }
  }
  if (error) {
    std::optional<Response> refusal = Refusal(error, options);
    if (!refusal) co_return After::kClose;
    co_return co_await Send(parser.get(), std::move(*refusal));
  }
  Request request = parser.release();
  const Counted counted(context_.answering);
  // Again: while the body came, the server may have begun to stop.
  std::optional<Response> answer = AnswerToHead(request);
  if (!answer) answer = PlainAnswerTo(request);
  if (answer) co_return co_await Send(request, std::move(*answer));
  co_return co_await Answer(request, held);
}

std::optional<Response> Connection::AnswerToHead(const Request& request) {
  if (!HasClearEnd(request)) {
    Response response = ErrorResponse(
        request, {.status = 400, .message = "want the Transfer-Encoding chunked, or none"});
    response.keep_alive(false);
    return response;
  }
  const ServedModels* const models = context_.models.load();
  const std::string_view path = PathOf(request);
  const KeyState key = KeyOf(request, context_.options.api_key);
  if (std::optional<Response> page = context_.browser->Answer(request, key)) return page;
  if (path != "/health" && key == KeyState::kMissing) {
    return ErrorResponse(request, {.status = 401,
                                   .message = "want the header Authorization: Bearer KEY",
                                   .type = "authentication_error",
                                   .code = "invalid_api_key"});
  }
  const Endpoint* const endpoint = FindEndpoint(path);
  if (endpoint == nullptr) {
    return ErrorResponse(request, {.status = 404, .message = "there is no such endpoint"});
  }
  const beast::string_view method(endpoint->method.data(), endpoint->method.size());
  if (request.method_string() != method && !(IsHead(request) && method == "GET")) {
    Response response = ErrorResponse(
        request, {.status = 405, .message = fmt::format("want {}", endpoint->method)});
    response.set(http::field::allow, method);
    return response;
  }
  const bool needs_models = endpoint->needs == Endpoint::Needs::kModels;
  if (needs_models && models == nullptr) return Unavailable(request, "Loading model");
  if (needs_models && context_.draining.load() && path != "/metrics") {
    return Unavailable(request, "The server is about to stop");
  }
  return std::nullopt;
}

std::optional<Response> Connection::PlainAnswerTo(const Request& request) const {
  const Endpoint* const endpoint = FindEndpoint(PathOf(request));
  if (endpoint->answer == nullptr) return std::nullopt;
  const ApiResult<PlainAnswer> answer = endpoint->answer(context_.models.load(), request.body());
  if (!answer) return ErrorResponse(request, answer.error());
  return TextResponse(request, 200, answer->body, answer->type);
}

asio::awaitable<Connection::After> Connection::Answer(Request& request, HeldBody& held) {
  const bool chat = PathOf(request) == "/v1/chat/completions";
  Wanted wanted{.kind = chat ? Wanted::Kind::kChat : Wanted::Kind::kCompletion};
  ModelService* service = nullptr;
  const auto prepare = [&](const auto& parsed) -> ApiResult<PreparedAnswer> {
    if (!parsed) return tl::unexpected(parsed.error());
    const GenerationParameters& parameters = parsed->parameters;
    for (const std::string& name : parameters.unknown_members) {
      spdlog::warn("a request's member {} is ignored", JsonText(name));
    }
    const ApiResult<ModelService*> found = context_.models.load()->Find(parameters.model);
    if (!found) return tl::unexpected(found.error());
    service = *found;
    wanted.head = {.id = service->NewId(chat ? "chatcmpl" : "cmpl"),
                   .created_s = UnixSeconds(),
                   .model = service->name()};
    wanted.logprobs = parameters.top_logprobs ? Logprobs::kYes : Logprobs::kNo;
    wanted.delivery = parameters.delivery;
    wanted.include_usage = parameters.include_usage;
    return service->Prepare(*parsed);
  };
  ApiResult<PreparedAnswer> prepared = chat ? prepare(ParseChatRequest(request.body()))
                                            : prepare(ParseCompletionRequest(request.body()));
  request.body() = std::string();  // it was parsed, and the answer may take long
  held.Release();
  if (!prepared) {
    Response refusal = ErrorResponse(request, prepared.error());
    co_return co_await Send(request, std::move(refusal));
  }
  wanted.prompt_tokens = prepared->prompt_tokens;
  wanted.choices = prepared->choices.size();

  const asio::any_io_executor executor = stream_.get_executor();
  const auto mailbox = std::make_shared<Mailbox>(executor);
  const ApiResult<EngineLoop::AnswerId> answer = service->loop().Submit(
      std::move(prepared->choices),
      [mailbox, executor](ChoicePart part) {
        asio::post(executor, [mailbox, part = std::move(part)]() mutable {
          if (mailbox->Ended()) return;
          mailbox->parts.push_back(std::move(part));
          mailbox->Notify();
        });
      },
      [mailbox, executor](ApiError error) {
        asio::post(executor, [mailbox, error = std::move(error)]() mutable {
          mailbox->failure = std::move(error);
          mailbox->Notify();
        });
      });
  if (!answer) {
    Response refusal = ErrorResponse(request, answer.error());
    co_return co_await Send(request, std::move(refusal));
  }
  const CompleteAtEnd complete_at_end{*mailbox};
  WatchForEnd(stream_.socket(), mailbox);
  After after = After::kClose;
  if (wanted.delivery == Delivery::kStream) {
    after = co_await SendStream(request, wanted, *mailbox);
  } else {
    after = co_await SendWhole(request, wanted, *mailbox);
  }
  service->loop().Cancel(*answer);  // of one that is complete nothing is left to cancel
  error_code ignored;
  stream_.socket().cancel(ignored);  // the watch
  co_return after;
}

void Connection::WatchForEnd(asio::ip::tcp::socket& socket, std::shared_ptr<Mailbox> mailbox) {
  socket.async_wait(asio::ip::tcp::socket::wait_read, [&socket, mailbox](error_code error) {
    if (error || mailbox->complete) return;
    // Bytes are a next request, sent early. Nothing is the end, but for a wait that ended because
    // of bytes that were read already.
    char byte = 0;
    const ssize_t count = recv(socket.native_handle(), &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    if (count > 0) return LookAgain(socket, mailbox);
    if (count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) {
      return WatchForEnd(socket, mailbox);
    }
    mailbox->gone = true;
    mailbox->Notify();
  });
}

// Bytes that nobody reads hide the end from a wait for more of them.
void Connection::LookAgain(asio::ip::tcp::socket& socket, std::shared_ptr<Mailbox> mailbox) {
  mailbox->look_again.expires_after(kLookAgain);
  mailbox->look_again.async_wait([&socket, mailbox](error_code error) {
    if (error || mailbox->complete) return;
    pollfd state{.fd = socket.native_handle(), .events = POLLRDHUP, .revents = 0};
    if (poll(&state, 1, 0) <= 0) return LookAgain(socket, mailbox);
    mailbox->gone = true;
    mailbox->Notify();
  });
}

asio::awaitable<Connection::After> Connection::SendWhole(const Request& request,
                                                         const Wanted& wanted, Mailbox& mailbox) {
  std::vector<ChoicePart> choices(wanted.choices);
  for (size_t i = 0; i < choices.size(); ++i) choices[i].index = static_cast<int64_t>(i);
  Usage usage{.prompt_tokens = wanted.prompt_tokens};
  size_t open = wanted.choices;
  while (open > 0 && !mailbox.Ended()) {
    if (mailbox.parts.empty()) {
      error_code ignored;
      co_await mailbox.signal.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
      continue;
    }
    ChoicePart part = std::move(mailbox.parts.front());
    mailbox.parts.pop_front();
    ChoicePart& choice = choices[static_cast<size_t>(part.index)];
    choice.text += part.text;
    std::move(part.tokens.begin(), part.tokens.end(), std::back_inserter(choice.tokens));
    choice.end = part.end;
    usage.completion_tokens += part.generated;
    usage.cached_tokens += part.cached;
    if (part.end != ChoiceEnd::kNone) --open;
  }
  if (open > 0 && !mailbox.failure) co_return After::kClose;
  Response response = mailbox.failure
                          ? ErrorResponse(request, *mailbox.failure)
                          : TextResponse(request, 200, JsonText(wanted.Whole(choices, usage)));
  co_return co_await Send(request, std::move(response));
}

asio::awaitable<Connection::After> Connection::SendStream(const Request& request,
                                                          const Wanted& wanted, Mailbox& mailbox) {
  // HTTP/1.0 knows no chunks: the connection's end is the answer's.
  const bool chunked = request.version() >= 11;
  const bool keep = chunked && request.keep_alive();
  const auto framed = [&](const std::string& text) {
    return chunked ? fmt::format("{:x}\r\n{}\r\n", text.size(), text) : text;
  };
  std::string head = fmt::format(
      "HTTP/1.{} 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
      "Cache-Control: no-store\r\n{}Connection: {}\r\n\r\n",
      chunked ? 1 : 0, chunked ? "Transfer-Encoding: chunked\r\n" : "",
      keep ? "keep-alive" : "close");
  std::string events;
  if (wanted.kind == Wanted::Kind::kChat) {
    for (size_t i = 0; i < wanted.choices; ++i) {
      events += EventText(ChatRoleChunk(wanted.head, static_cast<int64_t>(i)));
    }
  }
  if (!events.empty()) head += framed(events);
  bool taken = co_await WriteText(std::move(head));

  Usage usage{.prompt_tokens = wanted.prompt_tokens};
  size_t open = wanted.choices;
  while (taken && open > 0 && !mailbox.Ended()) {
    if (mailbox.parts.empty()) {
      error_code ignored;
      co_await mailbox.signal.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
      continue;
    }
    events.clear();
    const std::deque<ChoicePart> parts = std::exchange(mailbox.parts, {});
    for (const ChoicePart& part : parts) {
      usage.completion_tokens += part.generated;
      usage.cached_tokens += part.cached;
      const bool ends = part.end != ChoiceEnd::kNone;
      if (ends) --open;
      // A token that completes no character says nothing.
      if (ends || !part.text.empty() || !part.tokens.empty()) {
        events += EventText(wanted.Chunk(part));
      }
    }
    if (events.empty()) continue;
    std::string frame = framed(events);
    taken = co_await WriteText(std::move(frame));
  }
  if (!taken || (open > 0 && !mailbox.failure)) co_return After::kClose;
  events.clear();
  if (mailbox.failure) {
    events = EventText(ErrorDocument(*mailbox.failure));
  } else if (wanted.include_usage) {
    events = EventText(wanted.UsageChunk(usage));
  }
  events += kLastEvent;
  std::string last = framed(events);
  if (chunked) last += "0\r\n\r\n";
  taken = co_await WriteText(std::move(last));
  co_return taken&& keep ? After::kKeep : After::kClose;
}

asio::awaitable<Connection::After> Connection::Send(const Request& request, Response response) {
  error_code error;
  stream_.expires_after(std::chrono::seconds(context_.options.write_seconds));
  const bool keep = response.keep_alive();
  if (IsHead(request)) {  // no body, but its length
    http::response<http::empty_body> head(std::move(response.base()));
    co_await http::async_write(stream_, head, asio::redirect_error(asio::use_awaitable, error));
  } else {
    co_await http::async_write(stream_, response, asio::redirect_error(asio::use_awaitable, error));
  }
  co_return keep && !error ? After::kKeep : After::kClose;
}

asio::awaitable<bool> Connection::WriteText(std::string text) {
  error_code error;
  stream_.expires_after(std::chrono::seconds(context_.options.write_seconds));
  co_await asio::async_write(stream_, asio::buffer(text),
                             asio::redirect_error(asio::use_awaitable, error));
  co_return !error;
}

}  // namespace nibble

// One client's connection: its requests, one after the other, and their answers.
#ifndef NIBBLE_SERVE_CONNECTION_H_
#define NIBBLE_SERVE_CONNECTION_H_

// clang-format off
#include <utility>  // before Asio's coroutines, which use it without including it
// clang-format on

#include <atomic>
#include <boost/asio/awaitable.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http.hpp>
#include <memory>
#include <optional>
#include <string>

#include "src/serve/browser_routes.h"
#include "src/serve/server.h"

namespace nibble {

// What all connections share.
struct ServerContext {
  ServerOptions options;
  std::optional<BrowserRoutes> browser;              // set before the first connection
  std::atomic<const ServedModels*> models{nullptr};  // null while they load
  std::atomic<bool> draining{false};
  std::atomic<int64_t> connections{0};
  std::atomic<int64_t> answering{0};    // requests
  std::atomic<uint64_t> body_bytes{0};  // that connections hold
};

class Connection {
 public:
  using Request = boost::beast::http::request<boost::beast::http::string_body>;
  using Response = boost::beast::http::response<boost::beast::http::string_body>;

  // The stream's executor is a strand. Borrows the context.
  Connection(ServerContext& context, boost::beast::tcp_stream stream)
      : context_(context),
        stream_(std::move(stream)),
        buffer_(context.options.max_header_bytes + kReadBytes) {}

  // Until the client leaves or is left.
  boost::asio::awaitable<void> Run();

 private:
  struct Mailbox;
  struct CompleteAtEnd;
  struct Wanted;
  class HeldBody;
  enum class After { kKeep, kClose };

  // Beside the headers, what is read at a time. Chunks' extensions and trailers have to fit in too.
  static constexpr size_t kReadBytes = 64 << 10;

  boost::asio::awaitable<After> ServeOne();
  // The answer to a request of which the headers say enough; empty for what needs its body.
  std::optional<Response> AnswerToHead(const Request& request);
  // The answer of an endpoint that needs no engine; empty for the others.
  std::optional<Response> PlainAnswerTo(const Request& request) const;
  boost::asio::awaitable<After> Answer(Request& request, HeldBody& held);
  boost::asio::awaitable<After> SendWhole(const Request& request, const Wanted& wanted,
                                          Mailbox& mailbox);
  boost::asio::awaitable<After> SendStream(const Request& request, const Wanted& wanted,
                                           Mailbox& mailbox);
  boost::asio::awaitable<After> Send(const Request& request, Response response);
  // False where the client did not take it in time.
  boost::asio::awaitable<bool> WriteText(std::string text);
  static void LookAgain(boost::asio::ip::tcp::socket& socket, std::shared_ptr<Mailbox> mailbox);
  static void WatchForEnd(boost::asio::ip::tcp::socket& socket, std::shared_ptr<Mailbox> mailbox);

  ServerContext& context_;
  boost::beast::tcp_stream stream_;
  boost::beast::flat_buffer buffer_;
};

}  // namespace nibble

#endif  // NIBBLE_SERVE_CONNECTION_H_

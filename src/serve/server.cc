#include "src/serve/server.h"

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <thread>

#include "src/base/open_files.h"
#include "src/serve/connection.h"

namespace nibble {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;

// Bytes that the system may keep of an answer that its client does not take.
constexpr int kSendBufferBytes = 128 << 10;

asio::awaitable<void> RunConnection(ServerContext& context, tcp::socket socket) {
  error_code ignored;
  socket.set_option(tcp::no_delay(true), ignored);
  socket.set_option(tcp::socket::send_buffer_size(kSendBufferBytes), ignored);
  Connection connection(context, boost::beast::tcp_stream(std::move(socket)));
  co_await connection.Run();
}

asio::awaitable<void> Accept(ServerContext& context, tcp::acceptor& acceptor) {
  asio::io_context& io = static_cast<asio::io_context&>(acceptor.get_executor().context());
  while (acceptor.is_open()) {
    error_code error;
    tcp::socket socket = co_await acceptor.async_accept(
        asio::make_strand(io), asio::redirect_error(asio::use_awaitable, error));
    if (error) {
      // Out of files, most likely: others have to leave first.
      asio::steady_timer pause(io, std::chrono::milliseconds(50));
      co_await pause.async_wait(asio::redirect_error(asio::use_awaitable, error));
      continue;
    }
    if (context.connections.load() >= context.options.max_connections) continue;  // closes it
    ++context.connections;
    const auto executor = socket.get_executor();
    asio::co_spawn(executor, RunConnection(context, std::move(socket)),
                   [&context](std::exception_ptr) { --context.connections; });
  }
}

}  // namespace

struct Server::State {
  ServerContext context;
  asio::io_context io;
  tcp::acceptor acceptor{io};
  std::vector<std::thread> threads;
};

Server::Server(std::unique_ptr<State> state) : state_(std::move(state)) {}

Server::~Server() { Stop(); }

Result<std::unique_ptr<Server>> Server::Start(const ServerOptions& options) {
  auto state = std::make_unique<State>();
  state->context.options = options;
  NIBBLE_ASSIGN_OR_RETURN(state->context.browser,
                          BrowserRoutes::Create(options.report, options.api_key));
  AllowConnections(options.max_connections);
  error_code error;
  const asio::ip::address address = asio::ip::make_address(options.host, error);
  if (error) return WrongUsage("--host {}: want an IP address", options.host);
  const tcp::endpoint endpoint(address, static_cast<uint16_t>(options.port));
  tcp::acceptor& acceptor = state->acceptor;
  acceptor.open(endpoint.protocol(), error);
  if (!error) acceptor.set_option(asio::socket_base::reuse_address(true), error);
  if (!error) acceptor.bind(endpoint, error);
  if (!error) acceptor.listen(asio::socket_base::max_listen_connections, error);
  if (error) {
    return BadInput("cannot listen on {} port {}: {}", options.host, options.port, error.message());
  }
  asio::co_spawn(state->io, Accept(state->context, acceptor), asio::detached);
  for (int i = 0; i < options.threads; ++i) {
    state->threads.emplace_back([io = &state->io] { io->run(); });
  }
  return std::unique_ptr<Server>(new Server(std::move(state)));
}

int Server::port() const { return state_->acceptor.local_endpoint().port(); }

void Server::Serve(const ServedModels& models) { state_->context.models = &models; }

void Server::Drain(int64_t seconds) {
  state_->context.draining = true;
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(seconds);
  while (state_->context.answering.load() > 0 && std::chrono::steady_clock::now() < end) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
}

void Server::Stop() {
  state_->io.stop();
  for (std::thread& thread : state_->threads) thread.join();
  state_->threads.clear();
}

}  // namespace nibble

// The client's side of one HTTP connection.
#ifndef NIBBLE_LOAD_LOAD_CLIENT_H_
#define NIBBLE_LOAD_LOAD_CLIENT_H_

// clang-format off
#include <utility>  // before Asio's coroutines, which use it without including it
// clang-format on

#include <boost/asio/awaitable.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <chrono>
#include <optional>
#include <string>

#include "src/load/load_level.h"

namespace nibble {

using LoadClock = std::chrono::steady_clock;

// Used by one coroutine at a time. Connects when it is first used, and again where the server ended
// the connection after an answer.
class LoadClient {
 public:
  using Endpoints = boost::asio::ip::tcp::resolver::results_type;

  // Borrows the target and the endpoints. The executor is a strand.
  LoadClient(const boost::asio::any_io_executor& executor, const LoadTarget& target,
             const Endpoints& endpoints, double request_seconds)
      : target_(target),
        endpoints_(endpoints),
        request_seconds_(request_seconds),
        stream_(executor) {}

  // Sends a completion's body and takes the streamed answer; times are since `epoch`.
  boost::asio::awaitable<LoadRecord> Complete(const std::string& body, LoadClock::time_point epoch);
  // The body of a 200 answer to GET; else what went wrong, as an error.
  boost::asio::awaitable<Result<std::string>> Get(const std::string& path);

 private:
  boost::asio::awaitable<void> TakeStream(LoadRecord& record, LoadClock::time_point epoch);
  boost::asio::awaitable<std::string> Connect();
  std::string RequestText(std::string_view method, std::string_view path,
                          std::string_view body) const;
  void Close();

  const LoadTarget& target_;
  const Endpoints& endpoints_;
  const double request_seconds_;
  boost::beast::tcp_stream stream_;
  boost::beast::flat_buffer buffer_;
  bool connected_ = false;
};

}  // namespace nibble

#endif  // NIBBLE_LOAD_LOAD_CLIENT_H_

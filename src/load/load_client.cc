#include "src/load/load_client.h"

#include <array>
#include <boost/asio/connect.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/http.hpp>

#include "src/base/json.h"
#include "src/load/event_stream.h"

namespace nibble {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using boost::system::error_code;

constexpr uint64_t kMaxDocumentBytes = 16 << 20;
constexpr size_t kPieceBytes = 8192;

std::string FailureKind(const error_code& error) {
  if (error == beast::error::timeout) return "timeout";
  if (error == http::error::end_of_stream || error == http::error::partial_message ||
      error == asio::error::connection_reset || error == asio::error::broken_pipe ||
      error == asio::error::eof) {
    return "connection closed";
  }
  return error.message();
}

double Since(LoadClock::time_point epoch) {
  return std::chrono::duration<double>(LoadClock::now() - epoch).count();
}

// A non-negative whole number that the server sent, or 0.
int64_t CountIn(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_number_unsigned() ? found->get<int64_t>() : 0;
}

// What one event adds to the record; what kind of failure it is, or nothing.
std::string TakeEvent(const std::string& data, double now_s, int64_t& parts, LoadRecord& record) {
  const Json event = Json::parse(data, nullptr, /*allow_exceptions=*/false);
  if (!event.is_object()) return "not JSON";
  if (event.contains("error")) return "error in the stream";
  const auto usage = event.find("usage");
  if (usage != event.end() && usage->is_object()) {
    record.input_tokens = CountIn(*usage, "prompt_tokens");
    record.output_tokens = CountIn(*usage, "completion_tokens");
  }
  const auto choices = event.find("choices");
  if (choices == event.end() || !choices->is_array()) return "no choices";
  if (choices->empty()) return "";
  const Json& choice = choices->front();
  const auto text = choice.is_object() ? choice.find("text") : choice.end();
  if (text == choice.end() || !text->is_string()) return "no text";
  // The last chunk may bring nothing but the reason for the end.
  if (text->get_ref<const std::string&>().empty()) return "";
  if (parts++ == 0) record.first_s = now_s;
  record.last_s = now_s;
  return "";
}

}  // namespace

std::string LoadClient::RequestText(std::string_view method, std::string_view path,
                                    std::string_view body) const {
  std::string text =
      fmt::format("{} {}{} HTTP/1.1\r\nHost: {}\r\nUser-Agent: nibble/{}\r\nAccept: */*\r\n",
                  method, target_.path, path, target_.authority(), NIBBLE_VERSION);
  if (!target_.api_key.empty()) {
    text += fmt::format("Authorization: Bearer {}\r\n", target_.api_key);
  }
  if (!body.empty()) {
    text += fmt::format("Content-Type: application/json\r\nContent-Length: {}\r\n", body.size());
  }
  return text + "\r\n" + std::string(body);
}

asio::awaitable<std::string> LoadClient::Connect() {
  if (connected_) co_return std::string();
  error_code error;
  co_await stream_.async_connect(endpoints_, asio::redirect_error(asio::use_awaitable, error));
  if (error == beast::error::timeout) co_return std::string("timeout");
  if (error) co_return std::string("no connection");
  connected_ = true;
  stream_.socket().set_option(asio::ip::tcp::no_delay(true), error);
  co_return std::string();
}

void LoadClient::Close() {
  stream_.close();
  buffer_.clear();
  connected_ = false;
}

asio::awaitable<LoadRecord> LoadClient::Complete(const std::string& body,
                                                 LoadClock::time_point epoch) {
  LoadRecord record;
  record.sent_s = Since(epoch);
  stream_.expires_after(std::chrono::duration_cast<LoadClock::duration>(
      std::chrono::duration<double>(request_seconds_)));
  record.failure = co_await Connect();
  if (record.failure.empty()) {
    const std::string text = RequestText("POST", "/v1/completions", body);
    error_code error;
    co_await asio::async_write(stream_, asio::buffer(text),
                               asio::redirect_error(asio::use_awaitable, error));
    if (error) {
      record.failure = FailureKind(error);
    } else {
      co_await TakeStream(record, epoch);
    }
  }
  if (!record.failure.empty()) Close();
  stream_.expires_never();
  co_return record;
}

asio::awaitable<void> LoadClient::TakeStream(LoadRecord& record, LoadClock::time_point epoch) {
  http::response_parser<http::buffer_body> parser;
  parser.body_limit(boost::none);
  error_code error;
  co_await http::async_read_header(stream_, buffer_, parser,
                                   asio::redirect_error(asio::use_awaitable, error));
  if (error) {
    record.failure = FailureKind(error);
    co_return;
  }
  if (parser.get().result_int() != 200) {
    record.failure = fmt::format("HTTP {}", parser.get().result_int());
    co_return;
  }
  EventStream stream;
  std::vector<std::string> events;
  std::array<char, kPieceBytes> piece;
  int64_t parts = 0;
  bool complete = false;
  while (!parser.is_done()) {
    parser.get().body().data = piece.data();
    parser.get().body().size = piece.size();
    parser.get().body().more = true;
    // Some of it at a time: the moment of each part's arrival is what is measured.
    co_await http::async_read_some(stream_, buffer_, parser,
                                   asio::redirect_error(asio::use_awaitable, error));
    if (error && error != http::error::need_buffer) {
      record.failure = FailureKind(error);
      co_return;
    }
    const double now_s = Since(epoch);
    const size_t count = piece.size() - parser.get().body().size;
    events.clear();
    if (!stream.Push({piece.data(), count}, events)) record.failure = "an event too long";
    for (const std::string& event : events) {
      if (event == "[DONE]") {
        complete = true;
      } else if (record.failure.empty() && !complete) {
        record.failure = TakeEvent(event, now_s, parts, record);
      }
    }
    if (!record.failure.empty()) co_return;
  }
  if (!complete) {
    record.failure = "ended without [DONE]";
  } else if (parts == 0) {
    record.failure = "no tokens";
  } else if (record.output_tokens == 0) {
    record.output_tokens = parts;
  }
  if (!parser.get().keep_alive()) Close();
}

asio::awaitable<Result<std::string>> LoadClient::Get(const std::string& path) {
  stream_.expires_after(std::chrono::duration_cast<LoadClock::duration>(
      std::chrono::duration<double>(request_seconds_)));
  const auto fail = [&](const std::string& why) -> Result<std::string> {
    Close();
    return BadInput("{}{}: {}", target_.authority(), target_.path + path, why);
  };
  if (const std::string failure = co_await Connect(); !failure.empty()) co_return fail(failure);
  const std::string text = RequestText("GET", path, "");
  error_code error;
  co_await asio::async_write(stream_, asio::buffer(text),
                             asio::redirect_error(asio::use_awaitable, error));
  http::response_parser<http::string_body> parser;
  parser.body_limit(kMaxDocumentBytes);
  if (!error) {
    co_await http::async_read(stream_, buffer_, parser,
                              asio::redirect_error(asio::use_awaitable, error));
  }
  if (error) co_return fail(FailureKind(error));
  if (parser.get().result_int() != 200) {
    co_return fail(fmt::format("HTTP {}", parser.get().result_int()));
  }
  std::string body = std::move(parser.get().body());
  if (!parser.get().keep_alive()) Close();
  co_return Result<std::string>(std::move(body));
}

}  // namespace nibble

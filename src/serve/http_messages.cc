#include "src/serve/http_messages.h"

#include <string>
#include <utility>

#include "src/base/json_text.h"
#include "src/serve/api_key.h"

namespace nibble {
namespace {

namespace beast = boost::beast;
namespace http = beast::http;
using boost::system::error_code;

}  // namespace

HttpResponse TextResponse(const HttpRequest& request, int status, std::string body,
                          std::string_view type) {
  HttpResponse response{static_cast<http::status>(status), request.version()};
  response.set(http::field::content_type, beast::string_view(type.data(), type.size()));
  response.keep_alive(request.keep_alive());
  response.body() = std::move(body);
  response.prepare_payload();
  return response;
}

HttpResponse ErrorResponse(const HttpRequest& request, const ApiError& error) {
  HttpResponse response = TextResponse(request, error.status, JsonText(ErrorDocument(error)));
  if (error.status == 429 || error.status == 503) response.set(http::field::retry_after, "1");
  if (error.status == 401) response.set(http::field::www_authenticate, "Bearer");
  return response;
}

HttpResponse Unavailable(const HttpRequest& request, const char* message) {
  const Json document = {
      {"error", {{"code", 503}, {"message", message}, {"type", "unavailable_error"}}}};
  HttpResponse response = TextResponse(request, 503, JsonText(document));
  response.set(http::field::retry_after, "1");
  return response;
}

KeyState KeyOf(const HttpRequest& request, const std::string& key) {
  if (key.empty()) return KeyState::kNoneWanted;
  constexpr std::string_view kScheme = "Bearer ";
  const beast::string_view value = request[http::field::authorization];
  const std::string_view given(value.data(), value.size());
  const bool right = given.starts_with(kScheme) && SameKey(given.substr(kScheme.size()), key);
  return right ? KeyState::kGiven : KeyState::kMissing;
}

std::string_view PathOf(const HttpRequest& request) {
  const std::string_view target(request.target().data(), request.target().size());
  return target.substr(0, target.find('?'));
}

bool IsHead(const HttpRequest& request) { return request.method() == http::verb::head; }

bool HasClearEnd(const HttpRequest& request) {
  const size_t count = request.count(http::field::transfer_encoding);
  if (count == 0) return true;
  return count == 1 && request.version() >= 11 &&
         beast::iequals(request[http::field::transfer_encoding], "chunked");
}

std::optional<HttpResponse> Refusal(const error_code& error, const ServerOptions& options) {
  HttpRequest none;
  none.version(11);
  none.keep_alive(false);
  if (error == http::error::body_limit) {
    return ErrorResponse(
        none, {.status = 413,
               .message = fmt::format("the body exceeds {} bytes", options.max_body_bytes)});
  }
  // The buffer is full of what is neither headers nor body: a chunk's extensions, or trailers.
  if (error == http::error::header_limit || error == http::error::buffer_overflow) {
    return ErrorResponse(
        none, {.status = 431,
               .message = fmt::format("the headers exceed {} bytes", options.max_header_bytes)});
  }
  const bool malformed = error.category() == make_error_code(http::error::bad_target).category() &&
                         error != http::error::end_of_stream &&
                         error != http::error::partial_message;
  if (!malformed) return std::nullopt;
  return ErrorResponse(none, {.message = fmt::format("not HTTP/1.1: {}", error.message())});
}

}  // namespace nibble

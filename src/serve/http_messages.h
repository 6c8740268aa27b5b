// What the server makes of a request's headers, and the answers that it writes itself.
#ifndef NIBBLE_SERVE_HTTP_MESSAGES_H_
#define NIBBLE_SERVE_HTTP_MESSAGES_H_

#include <boost/beast/http.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "src/serve/api_response.h"
#include "src/serve/browser_routes.h"
#include "src/serve/server.h"

namespace nibble {

using HttpRequest = boost::beast::http::request<boost::beast::http::string_body>;
using HttpResponse = boost::beast::http::response<boost::beast::http::string_body>;

HttpResponse TextResponse(const HttpRequest& request, int status, std::string body,
                          std::string_view type = "application/json");
HttpResponse ErrorResponse(const HttpRequest& request, const ApiError& error);
// 503, as long as models load, the server stops, or too much is asked at once.
HttpResponse Unavailable(const HttpRequest& request, const char* message);
// What a request that could not be read gets; nothing where the client is gone or was too slow.
std::optional<HttpResponse> Refusal(const boost::system::error_code& error,
                                    const ServerOptions& options);

KeyState KeyOf(const HttpRequest& request, const std::string& key);
// The target without its query.
std::string_view PathOf(const HttpRequest& request);
// Asks for what GET would get, without its body.
bool IsHead(const HttpRequest& request);
// Whether the headers say where the body ends, in the one way that is understood here. What a proxy
// may take for a body must not be another request to us.
bool HasClearEnd(const HttpRequest& request);

}  // namespace nibble

#endif  // NIBBLE_SERVE_HTTP_MESSAGES_H_

#include "src/serve/browser_routes.h"

#include <fmt/format.h>

#include <random>
#include <string_view>
#include <utility>

#include "src/base/json_text.h"
#include "src/serve/api_key.h"
#include "src/serve/api_response.h"
#include "src/serve/page_files.h"

namespace nibble {
namespace {

namespace beast = boost::beast;
namespace http = beast::http;
using Request = BrowserRoutes::Request;
using Response = BrowserRoutes::Response;

constexpr std::string_view kFolder = "/page/";
constexpr std::string_view kReport = "/report/";
constexpr std::string_view kCookie = "nibble_report";

// Nothing from elsewhere, nothing inline, nothing evaluated; no other page may frame it.
constexpr const char* kPagePolicy =
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; frame-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'";
// A report brings its styles and pictures along, and has no script. One in what lies in the
// directory does not run: it must not reach the page's key.
constexpr const char* kReportPolicy =
    "default-src 'none'; style-src 'unsafe-inline'; img-src 'self' data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'self'";

std::string_view TextOf(beast::string_view text) { return {text.data(), text.size()}; }

Response PageResponse(const Request& request, int status, std::string_view type, std::string body) {
  Response response{static_cast<http::status>(status), request.version()};
  response.set(http::field::content_type, beast::string_view(type.data(), type.size()));
  response.set(http::field::cache_control, "no-cache");
  response.set("X-Content-Type-Options", "nosniff");
  response.set("Referrer-Policy", "no-referrer");
  response.set("Cross-Origin-Resource-Policy", "same-origin");
  response.keep_alive(request.keep_alive());
  response.body() = std::move(body);
  response.prepare_payload();
  return response;
}

Response PageRefusal(const Request& request, int status, const char* message) {
  return PageResponse(request, status, "application/json",
                      JsonText(ErrorDocument({.status = status, .message = message})));
}

std::string_view PageType(std::string_view name) {
  if (name.ends_with(".html")) return "text/html; charset=utf-8";
  if (name.ends_with(".css")) return "text/css; charset=utf-8";
  return "text/javascript; charset=utf-8";
}

std::optional<Response> PageAnswer(const Request& request, std::string_view name) {
  for (const PageFile& file : PageFiles()) {
    if (file.name != name) continue;
    Response response = PageResponse(request, 200, PageType(name), std::string(file.content));
    response.set("Content-Security-Policy", kPagePolicy);
    response.set("Cross-Origin-Opener-Policy", "same-origin");
    return response;
  }
  return std::nullopt;
}

std::string NewTicket() {
  std::random_device device;
  std::string ticket;
  for (int i = 0; i < 8; ++i) ticket += fmt::format("{:08x}", device());
  return ticket;
}

bool HasCookie(const Request& request, std::string_view value) {
  std::string_view cookies = TextOf(request[http::field::cookie]);
  while (!cookies.empty()) {
    const size_t end = cookies.find(';');
    std::string_view cookie = cookies.substr(0, end);
    while (cookie.starts_with(' ')) cookie.remove_prefix(1);
    if (cookie.starts_with(kCookie) && cookie.substr(kCookie.size()).starts_with('=') &&
        SameKey(cookie.substr(kCookie.size() + 1), value)) {
      return true;
    }
    if (end == std::string_view::npos) break;
    cookies.remove_prefix(end + 1);
  }
  return false;
}

}  // namespace

Result<BrowserRoutes> BrowserRoutes::Create(const std::string& report, const std::string& api_key) {
  std::optional<ReportDirectory> directory;
  if (!report.empty()) {
    NIBBLE_ASSIGN_OR_RETURN(directory, ReportDirectory::Open(report));
  }
  return BrowserRoutes(std::move(directory), !api_key.empty());
}

BrowserRoutes::BrowserRoutes(std::optional<ReportDirectory> report, bool wants_key)
    : report_(std::move(report)), wants_key_(wants_key), ticket_(NewTicket()) {}

std::optional<Response> BrowserRoutes::Answer(const Request& request, KeyState key) const {
  const std::string_view target = TextOf(request.target());
  const std::string_view path = target.substr(0, target.find('?'));
  std::optional<Response> response;
  if (path == "/") {
    response = PageAnswer(request, "index.html");
  } else if (path == "/page/settings.json") {
    const Json settings = {{"report", report_.has_value()}, {"key", wants_key_}};
    response = PageResponse(request, 200, "application/json", settings.dump());
  } else if (path.starts_with(kFolder) && !path.ends_with(".html")) {
    response = PageAnswer(request, path.substr(kFolder.size()));
  } else if (report_ && (path == "/report" || path.starts_with(kReport))) {
    response = AnswerReport(request, path, key);
  }
  // The body of an answer to HEAD is left out where it is sent.
  if (response && request.method() != http::verb::get && request.method() != http::verb::head) {
    response = PageRefusal(request, 405, "want GET");
    response->set(http::field::allow, "GET");
  }
  return response;
}

std::optional<Response> BrowserRoutes::AnswerReport(const Request& request, std::string_view path,
                                                    KeyState key) const {
  if (key == KeyState::kMissing && !HasCookie(request, ticket_)) return std::nullopt;
  if (path == "/report") {
    Response response = PageResponse(request, 308, "text/plain; charset=utf-8", "");
    response.set(http::field::location, "report/");
    return response;
  }
  std::optional<ReportDirectory::File> file = report_->Read(path.substr(kReport.size()));
  if (!file) return PageRefusal(request, 404, "the report has no such file");
  Response response = PageResponse(request, 200, file->content_type, std::move(file->content));
  response.set("Content-Security-Policy", kReportPolicy);
  if (key == KeyState::kGiven) {
    // Without a path of its own it is sent to /report/ alone, wherever a proxy puts that.
    response.set(http::field::set_cookie,
                 fmt::format("{}={}; HttpOnly; SameSite=Strict", kCookie, ticket_));
  }
  return response;
}

}  // namespace nibble

// What a browser gets beside the API: the page at /, its files under /page/, and under /report/ the
// files of a study's directory.
//
// The page and its files are the same for everyone and need no key; the report does. A browser's
// frames and links cannot send a key, so a request that brings it gets a cookie, which stands for
// the key under /report/ until the server ends.
#ifndef NIBBLE_SERVE_BROWSER_ROUTES_H_
#define NIBBLE_SERVE_BROWSER_ROUTES_H_

#include <boost/beast/http.hpp>
#include <optional>
#include <string>

#include "src/base/error.h"
#include "src/serve/report_directory.h"

namespace nibble {

enum class KeyState { kNoneWanted, kGiven, kMissing };

// Thread-safe.
class BrowserRoutes {
 public:
  using Request = boost::beast::http::request<boost::beast::http::string_body>;
  using Response = boost::beast::http::response<boost::beast::http::string_body>;

  // `report`: a study's directory; empty: none. `api_key`: empty where none is wanted.
  static Result<BrowserRoutes> Create(const std::string& report, const std::string& api_key);

  // Nothing for a path that is not among these, and for a report without the key.
  std::optional<Response> Answer(const Request& request, KeyState key) const;

 private:
  explicit BrowserRoutes(std::optional<ReportDirectory> report, bool wants_key);
  std::optional<Response> AnswerReport(const Request& request, std::string_view path,
                                       KeyState key) const;

  std::optional<ReportDirectory> report_;
  bool wants_key_;
  std::string ticket_;  // the cookie's value
};

}  // namespace nibble

#endif  // NIBBLE_SERVE_BROWSER_ROUTES_H_

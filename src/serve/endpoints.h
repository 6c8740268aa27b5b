// The endpoints: paths, methods, and what those answer that need no engine.
#ifndef NIBBLE_SERVE_ENDPOINTS_H_
#define NIBBLE_SERVE_ENDPOINTS_H_

#include <string>
#include <string_view>

#include "src/serve/served_models.h"

namespace nibble {

// A document of status 200.
struct PlainAnswer {
  std::string body;
  std::string_view type = "application/json";
};

struct Endpoint {
  std::string_view path;
  std::string_view method;  // "GET", "POST"
  enum class Needs { kNothing, kModels } needs;
  // From the request's body; null for what an engine answers. `models` is null while they load,
  // where none are needed.
  ApiResult<PlainAnswer> (*answer)(const ServedModels* models, std::string_view body);
};

// Null where there is none of that path.
const Endpoint* FindEndpoint(std::string_view path);

}  // namespace nibble

#endif  // NIBBLE_SERVE_ENDPOINTS_H_

// Reads the members of one JSON object that a client sent. The first thing wrong is kept, and
// values read after it are fallbacks, so that a reader reads everything and asks for the error
// once.
#ifndef NIBBLE_SERVE_BODY_READER_H_
#define NIBBLE_SERVE_BODY_READER_H_

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "src/serve/api_request.h"

namespace nibble {

// A value as an error message shows it: short.
std::string ShownValue(const Json& value);

class BodyReader {
 public:
  // `object` is borrowed. Names in errors begin with `prefix`.
  explicit BodyReader(const Json& object, std::string prefix = "")
      : object_(object), prefix_(std::move(prefix)) {
    if (!object.is_object()) Fail("", "want an object, got " + ShownValue(object));
  }

  // Null where the member is absent or JSON null.
  const Json* Find(std::string_view name);
  std::optional<int64_t> Integer(std::string_view name, int64_t min, int64_t max);
  double Number(std::string_view name, double min, double max, double fallback);
  bool Boolean(std::string_view name, bool fallback);
  std::optional<std::string> String(std::string_view name);

  // Keeps the error where it is the first.
  void Fail(std::string_view name, std::string message);
  const std::optional<ApiError>& error() const { return error_; }
  // The object's members that were never looked for, kMaxUnknownNamed at most.
  std::vector<std::string> UnknownMembers() const;

 private:
  const Json& object_;
  std::string prefix_;
  std::vector<std::string> known_;
  std::optional<ApiError> error_;
};

}  // namespace nibble

#endif  // NIBBLE_SERVE_BODY_READER_H_

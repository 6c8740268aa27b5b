// JSON read from files that nobody vouches for: duplicate keys, excessive depth and wrong types are
// errors that name the file and the field.
#ifndef NIBBLE_BASE_JSON_H_
#define NIBBLE_BASE_JSON_H_

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "src/base/error.h"

namespace nibble {

// Keys keep the order in which they were written.
using Json = nlohmann::ordered_json;

inline constexpr int kMaxJsonDepth = 64;

// Rejects duplicate keys, nesting deeper than kMaxJsonDepth, invalid UTF-8 and trailing text.
// `source` names the text in errors.
Result<Json> ParseJson(std::string_view text, std::string_view source);
Result<Json> ReadJsonFile(const std::string& path, uint64_t max_bytes = uint64_t{1} << 30);

// Typed access to the members of one JSON object. An absent member or JSON null is "absent".
class JsonObject {
 public:
  // `object` is borrowed and must outlive this. Fails where it is not an object.
  static Result<JsonObject> Of(const Json& object, std::string_view source);

  bool Has(std::string_view key) const { return Find(key) != nullptr; }
  const Json* Find(std::string_view key) const;  // null where absent

  Result<int64_t> Integer(std::string_view key, int64_t min, int64_t max) const;
  Result<double> Number(std::string_view key) const;  // finite
  Result<bool> Boolean(std::string_view key) const;
  Result<std::string> String(std::string_view key) const;
  Result<JsonObject> Object(std::string_view key) const;

  // The value, or `fallback` where the member is absent; a wrong type is still an error.
  Result<int64_t> IntegerOr(std::string_view key, int64_t min, int64_t max, int64_t fallback) const;
  Result<double> NumberOr(std::string_view key, double fallback) const;
  Result<bool> BooleanOr(std::string_view key, bool fallback) const;
  Result<std::string> StringOr(std::string_view key, std::string_view fallback) const;

  const Json& json() const { return *object_; }
  const std::string& source() const { return source_; }

 private:
  JsonObject(const Json* object, std::string source)
      : object_(object), source_(std::move(source)) {}
  const Json* object_;
  std::string source_;
};

}  // namespace nibble

#endif  // NIBBLE_BASE_JSON_H_

#include "src/base/json.h"

#include <cmath>
#include <set>
#include <vector>

#include "src/base/file.h"

namespace nibble {
namespace {

std::string Shown(const Json& value) {
  std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
  if (text.size() > 60) text = text.substr(0, 57) + "...";
  return text;
}

}  // namespace

Result<Json> ParseJson(std::string_view text, std::string_view source) {
  // One set of keys for each object that is open.
  std::vector<std::set<std::string>> open_objects;
  int depth = 0;
  std::string problem;
  const auto watch = [&](int, Json::parse_event_t event, Json& parsed) {
    switch (event) {
      case Json::parse_event_t::object_start:
        open_objects.emplace_back();
        [[fallthrough]];
      case Json::parse_event_t::array_start:
        if (++depth > kMaxJsonDepth && problem.empty()) {
          problem = fmt::format("nested deeper than {} levels", kMaxJsonDepth);
        }
        break;
      case Json::parse_event_t::object_end:
        open_objects.pop_back();
        [[fallthrough]];
      case Json::parse_event_t::array_end:
        --depth;
        break;
      case Json::parse_event_t::key:
        if (!open_objects.back().insert(parsed.get<std::string>()).second && problem.empty()) {
          problem = fmt::format("key {} occurs twice", Shown(parsed));
        }
        break;
      case Json::parse_event_t::value:
        break;
    }
    // What lies beyond the limit is dropped, so that a hostile depth costs no memory.
    return depth <= kMaxJsonDepth;
  };
  try {
    Json json = Json::parse(text.begin(), text.end(), watch);
    if (!problem.empty()) return BadInput("{}: {}", source, problem);
    return json;
  } catch (const Json::exception& e) {
    return BadInput("{}: not valid JSON: {}", source, e.what());
  }
}

Result<Json> ReadJsonFile(const std::string& path, uint64_t max_bytes) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, max_bytes));
  return ParseJson(text, path);
}

Result<JsonObject> JsonObject::Of(const Json& object, std::string_view source) {
  if (!object.is_object()) {
    return BadInput("{}: want an object, got {}", source, Shown(object));
  }
  return JsonObject(&object, std::string(source));
}

const Json* JsonObject::Find(std::string_view key) const {
  const auto it = object_->find(std::string(key));
  return it == object_->end() || it->is_null() ? nullptr : &*it;
}

Result<int64_t> JsonObject::Integer(std::string_view key, int64_t min, int64_t max) const {
  const Json* value = Find(key);
  if (value == nullptr) return BadInput("{}: \"{}\" is missing", source_, key);
  const bool fits = value->is_number_integer() &&
                    (!value->is_number_unsigned() || value->get<uint64_t>() <= uint64_t{INT64_MAX});
  if (!fits || value->get<int64_t>() < min || value->get<int64_t>() > max) {
    return BadInput("{}: \"{}\": want an integer from {} to {}, got {}", source_, key, min, max,
                    Shown(*value));
  }
  return value->get<int64_t>();
}

Result<double> JsonObject::Number(std::string_view key) const {
  const Json* value = Find(key);
  if (value == nullptr) return BadInput("{}: \"{}\" is missing", source_, key);
  if (!value->is_number() || !std::isfinite(value->get<double>())) {
    return BadInput("{}: \"{}\": want a finite number, got {}", source_, key, Shown(*value));
  }
  return value->get<double>();
}

Result<bool> JsonObject::Boolean(std::string_view key) const {
  const Json* value = Find(key);
  if (value == nullptr) return BadInput("{}: \"{}\" is missing", source_, key);
  if (!value->is_boolean()) {
    return BadInput("{}: \"{}\": want true or false, got {}", source_, key, Shown(*value));
  }
  return value->get<bool>();
}

Result<std::string> JsonObject::String(std::string_view key) const {
  const Json* value = Find(key);
  if (value == nullptr) return BadInput("{}: \"{}\" is missing", source_, key);
  if (!value->is_string()) {
    return BadInput("{}: \"{}\": want a string, got {}", source_, key, Shown(*value));
  }
  return value->get<std::string>();
}

Result<JsonObject> JsonObject::Object(std::string_view key) const {
  const Json* value = Find(key);
  if (value == nullptr) return BadInput("{}: \"{}\" is missing", source_, key);
  return Of(*value, fmt::format("{}: \"{}\"", source_, key));
}

Result<int64_t> JsonObject::IntegerOr(std::string_view key, int64_t min, int64_t max,
                                      int64_t fallback) const {
  return Has(key) ? Integer(key, min, max) : Result<int64_t>(fallback);
}
Result<double> JsonObject::NumberOr(std::string_view key, double fallback) const {
  return Has(key) ? Number(key) : Result<double>(fallback);
}
Result<bool> JsonObject::BooleanOr(std::string_view key, bool fallback) const {
  return Has(key) ? Boolean(key) : Result<bool>(fallback);
}
Result<std::string> JsonObject::StringOr(std::string_view key, std::string_view fallback) const {
  return Has(key) ? String(key) : Result<std::string>(std::string(fallback));
}

}  // namespace nibble

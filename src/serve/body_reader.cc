#include "src/serve/body_reader.h"

#include <algorithm>
#include <cmath>

#include "src/base/json_text.h"

namespace nibble {

std::string ShownValue(const Json& value) {
  constexpr size_t kMost = 60;
  if (value.is_array()) return fmt::format("an array of {} values", value.size());
  if (value.is_object()) return fmt::format("an object of {} members", value.size());
  if (value.is_string() && value.get_ref<const std::string&>().size() > kMost) {
    return fmt::format("a string of {} bytes", value.get_ref<const std::string&>().size());
  }
  return JsonText(value);
}

const Json* BodyReader::Find(std::string_view name) {
  known_.emplace_back(name);
  if (!object_.is_object()) return nullptr;
  const auto it = object_.find(known_.back());
  return it == object_.end() || it->is_null() ? nullptr : &*it;
}

std::optional<int64_t> BodyReader::Integer(std::string_view name, int64_t min, int64_t max) {
  const Json* value = Find(name);
  if (value == nullptr) return std::nullopt;
  const bool fits = value->is_number_integer() &&
                    (!value->is_number_unsigned() || value->get<uint64_t>() <= uint64_t{INT64_MAX});
  if (!fits || value->get<int64_t>() < min || value->get<int64_t>() > max) {
    Fail(name, fmt::format("want an integer from {} to {}, got {}", min, max, ShownValue(*value)));
    return std::nullopt;
  }
  return value->get<int64_t>();
}

double BodyReader::Number(std::string_view name, double min, double max, double fallback) {
  const Json* value = Find(name);
  if (value == nullptr) return fallback;
  const double number = value->is_number() ? value->get<double>() : std::nan("");
  if (!(number >= min && number <= max)) {
    Fail(name, fmt::format("want a number from {} to {}, got {}", min, max, ShownValue(*value)));
    return fallback;
  }
  return number;
}

bool BodyReader::Boolean(std::string_view name, bool fallback) {
  const Json* value = Find(name);
  if (value == nullptr) return fallback;
  if (!value->is_boolean()) {
    Fail(name, fmt::format("want true or false, got {}", ShownValue(*value)));
    return fallback;
  }
  return value->get<bool>();
}

std::optional<std::string> BodyReader::String(std::string_view name) {
  const Json* value = Find(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string()) {
    Fail(name, fmt::format("want a string, got {}", ShownValue(*value)));
    return std::nullopt;
  }
  return value->get<std::string>();
}

void BodyReader::Fail(std::string_view name, std::string message) {
  if (error_) return;
  ApiError error;
  const std::string whole = name.empty()      ? prefix_
                            : prefix_.empty() ? std::string(name)
                                              : fmt::format("{}.{}", prefix_, name);
  error.message = whole.empty() ? std::move(message) : fmt::format("{}: {}", whole, message);
  if (!whole.empty()) error.param = whole;
  error_ = std::move(error);
}

std::vector<std::string> BodyReader::UnknownMembers() const {
  std::vector<std::string> unknown;
  if (!object_.is_object()) return unknown;
  for (const auto& [key, value] : object_.items()) {
    if (unknown.size() == kMaxUnknownNamed) break;
    if (std::find(known_.begin(), known_.end(), key) == known_.end()) unknown.push_back(key);
  }
  return unknown;
}

}  // namespace nibble

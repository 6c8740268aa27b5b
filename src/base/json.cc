#include "src/base/json.h"

#include <cmath>
#include <unordered_set>
#include <vector>

#include "src/base/file.h"
#include "src/base/json_text.h"

namespace nibble {
namespace {

std::string Shown(const Json& value) {
  std::string text = JsonText(value);
  if (text.size() > 60) text = text.substr(0, 57) + "...";
  return text;
}

// Builds the value as it is read. nlohmann's own builder looks for each new key among all the keys
// before it, which takes minutes on a vocabulary's 150,000.
class JsonBuilder : public Json::json_sax_t {
 public:
  Json Take() { return std::move(root_); }
  const std::string& problem() const { return problem_; }

  bool null() override { return Add(nullptr); }
  bool boolean(bool value) override { return Add(value); }
  bool number_integer(number_integer_t value) override { return Add(value); }
  bool number_unsigned(number_unsigned_t value) override { return Add(value); }
  bool number_float(number_float_t value, const string_t&) override { return Add(value); }
  bool string(string_t& value) override { return Add(std::move(value)); }
  bool binary(binary_t& value) override { return Add(std::move(value)); }

  bool start_object(size_t) override { return Open(Json::object()); }
  bool start_array(size_t) override { return Open(Json::array()); }
  bool end_object() override { return Close(); }
  bool end_array() override { return Close(); }

  bool key(string_t& key) override {
    if (!open_.back().keys.insert(key).second) {
      problem_ = fmt::format("key {} occurs twice", Shown(key));
      return false;
    }
    key_ = std::move(key);
    return true;
  }

  bool parse_error(size_t, const std::string&, const Json::exception& e) override {
    problem_ = fmt::format("not valid JSON: {}", e.what());
    return false;
  }

 private:
  struct OpenValue {
    Json value;
    std::string key;  // of this value in the object that holds it
    std::unordered_set<std::string> keys;
  };

  bool Add(Json value) {
    if (open_.empty()) {
      root_ = std::move(value);
    } else if (Json& holder = open_.back().value; holder.is_array()) {
      holder.push_back(std::move(value));
    } else {
      holder.get_ref<Json::object_t&>().emplace_back(std::move(key_), std::move(value));
    }
    return true;
  }

  bool Open(Json empty) {
    if (open_.size() == kMaxJsonDepth) {
      problem_ = fmt::format("nested deeper than {} levels", kMaxJsonDepth);
      return false;
    }
    open_.push_back({std::move(empty), std::move(key_), {}});
    return true;
  }

  bool Close() {
    Json closed = std::move(open_.back().value);
    key_ = std::move(open_.back().key);
    open_.pop_back();
    return Add(std::move(closed));
  }

  Json root_;
  std::vector<OpenValue> open_;
  std::string key_;
  std::string problem_;
};

}  // namespace

Result<Json> ParseJson(std::string_view text, std::string_view source) {
  JsonBuilder builder;
  try {
    if (Json::sax_parse(text.begin(), text.end(), &builder)) return builder.Take();
  } catch (const Json::exception& e) {
    return BadInput("{}: not valid JSON: {}", source, e.what());
  }
  return BadInput("{}: {}", source, builder.problem());
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

// A base for readers of large, flat JSON texts: they take what they need from the stream of events,
// so that memory stays proportional to what is kept and no step depends on the number of keys
// already seen.
#ifndef NIBBLE_CHECKPOINT_JSON_EVENTS_H_
#define NIBBLE_CHECKPOINT_JSON_EVENTS_H_

#include <string>
#include <string_view>

#include "src/base/error.h"
#include "src/base/json.h"

namespace nibble {

// Every event is refused as "unexpected" unless a reader overrides it.
class JsonEvents : public nlohmann::json_sax<Json> {
 public:
  // Reads `text`, all of it. `source` names it in errors.
  Status Run(std::string_view text, std::string_view source) {
    bool complete = false;
    try {
      complete = Json::sax_parse(text.begin(), text.end(), this);
    } catch (const Json::exception& e) {
      problem_ = fmt::format("not valid JSON: {}", e.what());
    }
    if (complete && problem_.empty()) return {};
    return BadInput("{}: {}", source, problem_);
  }

  bool null() override { return Unexpected("null"); }
  bool boolean(bool) override { return Unexpected("true or false"); }
  bool number_integer(number_integer_t) override { return Unexpected("a negative number"); }
  bool number_unsigned(number_unsigned_t) override { return Unexpected("a number"); }
  bool number_float(number_float_t, const string_t&) override { return Unexpected("a fraction"); }
  bool string(string_t&) override { return Unexpected("a string"); }
  bool binary(binary_t&) override { return Unexpected("binary data"); }
  bool start_object(std::size_t) override { return Unexpected("an object"); }
  bool key(string_t&) override { return Unexpected("a key"); }
  bool end_object() override { return Unexpected("the end of an object"); }
  bool start_array(std::size_t) override { return Unexpected("an array"); }
  bool end_array() override { return Unexpected("the end of an array"); }
  bool parse_error(std::size_t, const std::string&, const Json::exception& e) override {
    return Stop("not valid JSON: {}", e.what());
  }

 protected:
  // Ends the reading with an error.
  template <typename... Args>
  bool Stop(fmt::format_string<Args...> format, Args&&... args) {
    if (problem_.empty()) problem_ = fmt::format(format, std::forward<Args>(args)...);
    return false;
  }
  // Where in the text the reader is, for errors.
  virtual std::string Where() const = 0;

 private:
  bool Unexpected(std::string_view what) { return Stop("{}: unexpected {}", Where(), what); }
  std::string problem_;
};

}  // namespace nibble

#endif  // NIBBLE_CHECKPOINT_JSON_EVENTS_H_

// Global functions and the methods of containers.
#include <algorithm>

#include "src/tokenizer/jinja_builtins.h"

namespace nibble::jinja {
namespace {

constexpr int64_t kMaxRange = 100'000;  // as jinja2's sandbox has it

Result<Value> Range(Context& context, const Arguments& arguments) {
  NIBBLE_ASSIGN_OR_RETURN(const auto bound, arguments.Bind("range", {"", "", ""}, 1));
  int64_t parts[3] = {0, 0, 1};  // start, stop, step
  const bool stop_only = !bound[1];
  for (size_t i = 0; i < 3; ++i) {
    if (!bound[i]) continue;
    NIBBLE_ASSIGN_OR_RETURN(parts[stop_only ? 1 : i], IntegerArgument("range", *bound[i]));
  }
  const auto [start, stop, step] = parts;
  if (step == 0) return BadInput("range: the step must not be 0");
  const __int128 distance =
      step > 0 ? static_cast<__int128>(stop) - start : static_cast<__int128>(start) - stop;
  const __int128 stride = step > 0 ? static_cast<__int128>(step) : -static_cast<__int128>(step);
  const __int128 count = distance <= 0 ? 0 : (distance - 1) / stride + 1;
  if (count > kMaxRange) return BadInput("range: more than {} items", kMaxRange);
  std::vector<Value> items;
  items.reserve(static_cast<size_t>(count));
  for (int64_t i = 0; i < static_cast<int64_t>(count); ++i) items.emplace_back(start + i * step);
  return MakeSequence(context.budget, Sequence::Type::kRange, std::move(items));
}

// The entries that dict() and namespace() are called with.
Result<std::vector<std::pair<Value, Value>>> Entries(Context& context, std::string_view function,
                                                     const Arguments& arguments) {
  std::vector<std::pair<Value, Value>> entries;
  if (arguments.positional.size() > 1) {
    return BadInput("{}: takes at most one argument without a name", function);
  }
  if (!arguments.positional.empty()) {
    const Value& source = arguments.positional[0];
    if (source.Is(Kind::kDict)) {
      entries = source.dict().entries;
      NIBBLE_RETURN_IF_ERROR(context.budget.Bytes(entries.size() * 2 * sizeof(Value)));
    } else {
      NIBBLE_ASSIGN_OR_RETURN(const std::vector<Value> items, Items(context.budget, source));
      for (const Value& item : items) {
        NIBBLE_ASSIGN_OR_RETURN(std::vector<Value> pair, Items(context.budget, item));
        if (pair.size() != 2) return BadInput("{}: wants pairs of key and value", function);
        entries.emplace_back(std::move(pair[0]), std::move(pair[1]));
      }
    }
  }
  for (const auto& [name, value] : arguments.named) {
    NIBBLE_RETURN_IF_ERROR(context.budget.Bytes(name.size()));
    entries.emplace_back(Value::String(name), value);
  }
  return entries;
}

Result<Value> NewNamespace(Context& context, const Arguments& arguments) {
  NIBBLE_ASSIGN_OR_RETURN(const auto entries, Entries(context, "namespace", arguments));
  NIBBLE_RETURN_IF_ERROR(context.budget.Bytes(sizeof(Namespace)));
  Namespace created;
  for (const auto& [key, value] : entries) {
    if (!key.Is(Kind::kString)) return BadInput("namespace: names are strings");
    if (key.string().starts_with('_')) {
      return BadInput("namespace: '{}': names must not start with _", key.string());
    }
    NIBBLE_RETURN_IF_ERROR(context.budget.Bytes(key.string().size() + 4 * sizeof(Value)));
    created.variables.insert_or_assign(key.string(), value);
  }
  context.namespaces.push_back(std::move(created));
  return Value(&context.namespaces.back());
}

Result<Value> StrftimeNow(Context& context, const Arguments& arguments) {
  NIBBLE_ASSIGN_OR_RETURN(const auto bound, arguments.Bind("strftime_now", {"format"}, 1));
  NIBBLE_ASSIGN_OR_RETURN(const std::string_view format, TextArgument("strftime_now", *bound[0]));
  if (!context.now) return BadInput("strftime_now: the time is not known");
  NIBBLE_RETURN_IF_ERROR(context.budget.Bytes(format.size() * 16));
  std::string text;
  for (size_t i = 0; i < format.size(); ++i) {
    if (format[i] != '%') {
      text.push_back(format[i]);
      continue;
    }
    std::string directive = "%";
    if (i + 1 < format.size() && format[i + 1] == '-') directive.push_back(format[++i]);
    const char conversion = ++i < format.size() ? format[i] : '\0';
    if (conversion == 'z' || conversion == 'Z') continue;  // a time without a zone
    constexpr std::string_view kConversions = "aAbBcCdDeFgGhHIjmMnprRSStTuUVwWxXyY%";
    if (conversion == '\0' || kConversions.find(conversion) == std::string_view::npos) {
      return BadInput("strftime_now: the conversion {}{} is not supported", directive,
                      conversion == '\0' ? std::string() : std::string(1, conversion));
    }
    directive.push_back(conversion);
    char buffer[128];
    const size_t size = std::strftime(buffer, sizeof(buffer), directive.c_str(), &*context.now);
    text.append(buffer, size);
  }
  return MakeString(context.budget, std::move(text));
}

Result<Value> DictMethod(Context& context, const Dict& dict, std::string_view name,
                         const Arguments& arguments) {
  if (name == "get") {
    NIBBLE_ASSIGN_OR_RETURN(const auto bound, arguments.Bind("get", {"", ""}, 1));
    if (!MayBeSought(*bound[0])) {
      return BadInput("get: a {} cannot be a key", bound[0]->TypeName());
    }
    NIBBLE_ASSIGN_OR_RETURN(const Value* found, Lookup(context.budget, dict, *bound[0]));
    return found != nullptr ? *found : bound[1].value_or(Value());
  }
  NIBBLE_RETURN_IF_ERROR(arguments.Bind(name, {}, 0));
  if (name == "copy") return MakeDict(context.budget, dict.entries);
  std::vector<Value> items;
  NIBBLE_RETURN_IF_ERROR(context.budget.Bytes(dict.entries.size() * 4 * sizeof(Value)));
  for (const auto& [key, value] : dict.entries) {
    if (name == "keys") {
      items.push_back(key);
    } else if (name == "values") {
      items.push_back(value);
    } else {
      NIBBLE_ASSIGN_OR_RETURN(Value pair,
                              MakeSequence(context.budget, Sequence::Type::kTuple, {key, value}));
      items.push_back(std::move(pair));
    }
  }
  const auto type = name == "keys"     ? Sequence::Type::kDictKeys
                    : name == "values" ? Sequence::Type::kDictValues
                                       : Sequence::Type::kDictItems;
  return MakeSequence(context.budget, type, std::move(items));
}

Result<Value> SequenceMethod(Context& context, const Sequence& sequence, std::string_view name,
                             const Arguments& arguments) {
  NIBBLE_ASSIGN_OR_RETURN(const auto bound, arguments.Bind(name, {""}, 1));
  int64_t count = 0;
  for (size_t i = 0; i < sequence.items.size(); ++i) {
    NIBBLE_ASSIGN_OR_RETURN(const bool equal, Equals(context.budget, sequence.items[i], *bound[0]));
    if (!equal) continue;
    if (name == "index") return Value(static_cast<int64_t>(i));
    ++count;
  }
  if (name == "index") return BadInput("index: the value is not in the list");
  return Value(count);
}

Result<Value> Cycle(const Loop& loop, const Arguments& arguments) {
  if (arguments.positional.empty() || !arguments.named.empty()) {
    return BadInput("loop.cycle: wants values without names");
  }
  const auto size = static_cast<int64_t>(arguments.positional.size());
  return arguments.positional[static_cast<size_t>(std::max<int64_t>(loop.index0, 0) % size)];
}

}  // namespace

Result<std::vector<std::optional<Value>>> Arguments::Bind(
    std::string_view function, std::initializer_list<std::string_view> parameters,
    size_t required) const {
  if (positional.size() > parameters.size()) {
    return BadInput("{}: takes at most {} arguments, got {}", function, parameters.size(),
                    positional.size());
  }
  std::vector<std::optional<Value>> bound(parameters.size());
  for (size_t i = 0; i < positional.size(); ++i) bound[i] = positional[i];
  for (const auto& [name, value] : named) {
    const auto* it = std::find(parameters.begin(), parameters.end(), name);
    if (it == parameters.end() || name.empty()) {
      return BadInput("{}: the argument '{}' is not supported", function, name);
    }
    std::optional<Value>& slot = bound[static_cast<size_t>(it - parameters.begin())];
    if (slot) return BadInput("{}: the argument '{}' is given twice", function, name);
    slot = value;
  }
  for (size_t i = 0; i < required; ++i) {
    if (!bound[i]) return BadInput("{}: an argument is missing", function);
  }
  return bound;
}

std::optional<Function> FindFunction(std::string_view name) {
  if (name == "range") return Function::kRange;
  if (name == "namespace") return Function::kNamespace;
  if (name == "dict") return Function::kDict;
  if (name == "raise_exception") return Function::kRaiseException;
  if (name == "strftime_now") return Function::kStrftimeNow;
  return std::nullopt;
}

Result<Value> CallFunction(Context& context, Function function, const Arguments& arguments) {
  switch (function) {
    case Function::kRange:
      return Range(context, arguments);
    case Function::kNamespace:
      return NewNamespace(context, arguments);
    case Function::kDict: {
      NIBBLE_ASSIGN_OR_RETURN(auto entries, Entries(context, "dict", arguments));
      return MakeDict(context.budget, std::move(entries));
    }
    case Function::kStrftimeNow:
      return StrftimeNow(context, arguments);
    case Function::kRaiseException:
      break;
  }
  NIBBLE_ASSIGN_OR_RETURN(const auto bound, arguments.Bind("raise_exception", {"message"}, 1));
  NIBBLE_ASSIGN_OR_RETURN(const std::string message, ToText(context.budget, *bound[0]));
  return BadInput("the template refuses the conversation: {}", message);
}

Result<Value> CallMethod(Context& context, const Method& method, const Arguments& arguments) {
  switch (method.self.kind()) {
    case Kind::kString:
      return CallStringMethod(context, method.self.string(), method.name, arguments);
    case Kind::kDict:
      return DictMethod(context, method.self.dict(), method.name, arguments);
    case Kind::kSequence:
      return SequenceMethod(context, method.self.sequence(), method.name, arguments);
    case Kind::kLoop:
      return Cycle(*method.self.loop(), arguments);
    default:
      return BadInput("a {} has no method '{}'", method.self.TypeName(), method.name);
  }
}

Result<std::string_view> TextArgument(std::string_view function, const Value& value) {
  if (value.Is(Kind::kUndefined)) return FailUndefined(value);
  if (!value.Is(Kind::kString)) {
    return BadInput("{}: want a string, got a {}", function, value.TypeName());
  }
  return std::string_view(value.string());
}

Result<int64_t> IntegerArgument(std::string_view function, const Value& value) {
  if (value.Is(Kind::kUndefined)) return FailUndefined(value);
  if (!value.Is(Kind::kInt) && !value.Is(Kind::kBool)) {
    return BadInput("{}: want an integer, got a {}", function, value.TypeName());
  }
  return value.AsInteger();
}

Result<bool> TruthArgument(const std::optional<Value>& value) {
  if (!value) return false;
  return IsTrue(*value);
}

}  // namespace nibble::jinja

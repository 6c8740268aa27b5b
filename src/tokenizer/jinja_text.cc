// str() and repr() of values.
#include <charconv>
#include <cmath>

#include "src/tokenizer/jinja_unicode.h"
#include "src/tokenizer/jinja_value.h"
#include "src/tokenizer/utf8.h"

namespace nibble::jinja {
namespace {

void AppendQuoted(std::string_view text, std::string* out) {
  const bool has_single = text.find('\'') != std::string_view::npos;
  const bool has_double = text.find('"') != std::string_view::npos;
  const char32_t quote = has_single && !has_double ? '"' : '\'';
  AppendUtf8(quote, *out);
  for (size_t offset = 0; offset < text.size();) {
    const char32_t c = NextCodePoint(text, &offset);
    if (c == quote || c == '\\') {
      out->push_back('\\');
      AppendUtf8(c, *out);
    } else if (c == '\n') {
      out->append("\\n");
    } else if (c == '\r') {
      out->append("\\r");
    } else if (c == '\t') {
      out->append("\\t");
    } else if (IsPrintable(c)) {
      AppendUtf8(c, *out);
    } else if (c < 0x100) {
      fmt::format_to(std::back_inserter(*out), "\\x{:02x}", static_cast<uint32_t>(c));
    } else if (c < 0x10000) {
      fmt::format_to(std::back_inserter(*out), "\\u{:04x}", static_cast<uint32_t>(c));
    } else {
      fmt::format_to(std::back_inserter(*out), "\\U{:08x}", static_cast<uint32_t>(c));
    }
  }
  AppendUtf8(quote, *out);
}

// Writes repr() piece by piece, each charged before the next is made.
class Writer {
 public:
  explicit Writer(Budget& budget) : budget_(budget) {}

  Status Write(const Value& value) {
    const size_t before = text_.size();
    NIBBLE_RETURN_IF_ERROR(budget_.Step());
    switch (value.kind()) {
      case Kind::kUndefined:
        text_ += "Undefined";
        break;
      case Kind::kNone:
        text_ += "None";
        break;
      case Kind::kBool:
        text_ += value.boolean() ? "True" : "False";
        break;
      case Kind::kInt:
        text_ += fmt::to_string(value.integer());
        break;
      case Kind::kFloat:
        text_ += FloatText(value.floating());
        break;
      case Kind::kString:
        // At worst every byte becomes four.
        NIBBLE_RETURN_IF_ERROR(budget_.Bytes(value.string().size() * 4));
        AppendQuoted(value.string(), &text_);
        break;
      case Kind::kSequence:
        return WriteSequence(value.sequence());
      case Kind::kDict:
        return WriteDict(value.dict());
      default:
        return BadInput("a {} cannot be written as text", value.TypeName());
    }
    return budget_.Bytes(text_.size() - before);
  }

  std::string Take() { return std::move(text_); }

 private:
  Status WriteSequence(const Sequence& sequence) {
    using Type = Sequence::Type;
    switch (sequence.type) {
      case Type::kList:
        return WriteItems("[", sequence.items, "]");
      case Type::kTuple:
        return WriteItems("(", sequence.items, sequence.items.size() == 1 ? ",)" : ")");
      case Type::kDictItems:
        return WriteItems("dict_items([", sequence.items, "])");
      case Type::kDictKeys:
        return WriteItems("dict_keys([", sequence.items, "])");
      case Type::kDictValues:
        return WriteItems("dict_values([", sequence.items, "])");
      case Type::kRange:
        break;
    }
    return BadInput("a range cannot be written as text");
  }

  Status WriteItems(std::string_view open, const std::vector<Value>& items,
                    std::string_view close) {
    text_ += open;
    for (size_t i = 0; i < items.size(); ++i) {
      if (i > 0) text_ += ", ";
      NIBBLE_RETURN_IF_ERROR(Write(items[i]));
    }
    text_ += close;
    return budget_.Bytes(open.size() + close.size() + 2 * items.size());
  }

  Status WriteDict(const Dict& dict) {
    text_ += "{";
    for (size_t i = 0; i < dict.entries.size(); ++i) {
      if (i > 0) text_ += ", ";
      NIBBLE_RETURN_IF_ERROR(Write(dict.entries[i].first));
      text_ += ": ";
      NIBBLE_RETURN_IF_ERROR(Write(dict.entries[i].second));
    }
    text_ += "}";
    return budget_.Bytes(2 + 4 * dict.entries.size());
  }

  Budget& budget_;
  std::string text_;
};

}  // namespace

std::string FloatText(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  // The shortest digits that read back as the same number, placed as Python's repr() places them.
  char buffer[64];
  const auto end =
      std::to_chars(buffer, buffer + sizeof(buffer), value, std::chars_format::scientific);
  std::string_view shortest(buffer, static_cast<size_t>(end.ptr - buffer));
  const size_t e = shortest.find('e');
  const int exponent = std::stoi(std::string(shortest.substr(e + 1)));
  std::string digits;
  for (const char c : shortest.substr(0, e)) {
    if (c >= '0' && c <= '9') digits.push_back(c);
  }
  const std::string sign = std::signbit(value) ? "-" : "";
  if (exponent < -4 || exponent >= 16) {
    const std::string fraction = digits.size() > 1 ? "." + digits.substr(1) : "";
    return fmt::format("{}{}{}e{}{:02}", sign, digits[0], fraction, exponent < 0 ? '-' : '+',
                       std::abs(exponent));
  }
  if (exponent < 0) {
    return sign + "0." + std::string(static_cast<size_t>(-exponent - 1), '0') + digits;
  }
  const size_t whole = static_cast<size_t>(exponent) + 1;
  if (digits.size() <= whole) return sign + digits + std::string(whole - digits.size(), '0') + ".0";
  return sign + digits.substr(0, whole) + "." + digits.substr(whole);
}

Result<std::string> ToText(Budget& budget, const Value& value) {
  if (value.Is(Kind::kUndefined)) return std::string();
  if (value.Is(Kind::kString)) {
    NIBBLE_RETURN_IF_ERROR(budget.Bytes(value.string().size()));
    return value.string();
  }
  return Representation(budget, value);
}

Result<std::string> Representation(Budget& budget, const Value& value) {
  Writer writer(budget);
  NIBBLE_RETURN_IF_ERROR(writer.Write(value));
  return writer.Take();
}

}  // namespace nibble::jinja

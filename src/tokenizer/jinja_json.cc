// json.dumps of values.
#include <algorithm>
#include <cmath>

#include "src/tokenizer/jinja_builtins.h"
#include "src/tokenizer/jinja_unicode.h"
#include "src/tokenizer/utf8.h"

namespace nibble::jinja {
namespace {

std::string JsonFloat(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value < 0 ? "-Infinity" : "Infinity";
  return FloatText(value);
}

class JsonWriter {
 public:
  JsonWriter(Budget& budget, const JsonStyle& style) : budget_(budget), style_(style) {}

  Status Write(const Value& value) {
    NIBBLE_RETURN_IF_ERROR(budget_.Step());
    switch (value.kind()) {
      case Kind::kNone:
        return Put("null");
      case Kind::kBool:
        return Put(value.boolean() ? "true" : "false");
      case Kind::kInt:
        return Put(fmt::to_string(value.integer()));
      case Kind::kFloat:
        return Put(JsonFloat(value.floating()));
      case Kind::kString:
        return PutString(value.string());
      case Kind::kSequence:
        if (value.sequence().type == Sequence::Type::kList ||
            value.sequence().type == Sequence::Type::kTuple) {
          return WriteArray(value.sequence().items);
        }
        break;
      case Kind::kDict:
        return WriteObject(value.dict());
      default:
        break;
    }
    return BadInput("tojson: a {} has no JSON form", value.TypeName());
  }

  std::string Take() { return std::move(text_); }

 private:
  Status Put(std::string_view text) {
    NIBBLE_RETURN_IF_ERROR(budget_.Bytes(text.size()));
    text_ += text;
    return {};
  }

  Status PutString(std::string_view text) {
    // At worst a byte becomes six.
    NIBBLE_RETURN_IF_ERROR(budget_.Bytes(text.size() * 2 + 2));
    const size_t before = text_.size();
    text_ += '"';
    for (size_t offset = 0; offset < text.size();) PutCharacter(NextCodePoint(text, &offset));
    text_ += '"';
    return budget_.Bytes(text_.size() - before);
  }

  void PutCharacter(char32_t c) {
    switch (c) {
      case '"':
        text_ += "\\\"";
        return;
      case '\\':
        text_ += "\\\\";
        return;
      case '\n':
        text_ += "\\n";
        return;
      case '\r':
        text_ += "\\r";
        return;
      case '\t':
        text_ += "\\t";
        return;
      case '\f':
        text_ += "\\f";
        return;
      case '\b':
        text_ += "\\b";
        return;
      default:
        break;
    }
    const bool ascii = style_.ascii == JsonStyle::Ascii::kYes;
    if (c >= 0x20 && (c < 0x7F || !ascii)) {
      AppendUtf8(c, text_);
    } else if (c < 0x10000) {
      PutUnit(c);
    } else {
      PutUnit(0xD800 + ((c - 0x10000) >> 10));
      PutUnit(0xDC00 + ((c - 0x10000) & 0x3FF));
    }
  }

  void PutUnit(char32_t unit) {
    fmt::format_to(std::back_inserter(text_), "\\u{:04x}", static_cast<uint32_t>(unit));
  }

  Status NewLine() {
    if (!style_.indent) return {};
    NIBBLE_RETURN_IF_ERROR(Put("\n"));
    for (int i = 0; i < level_; ++i) NIBBLE_RETURN_IF_ERROR(Put(*style_.indent));
    return {};
  }

  Status WriteArray(const std::vector<Value>& items) {
    if (items.empty()) return Put("[]");
    NIBBLE_RETURN_IF_ERROR(Put("["));
    ++level_;
    for (size_t i = 0; i < items.size(); ++i) {
      if (i > 0) NIBBLE_RETURN_IF_ERROR(Put(style_.item_separator));
      NIBBLE_RETURN_IF_ERROR(NewLine());
      NIBBLE_RETURN_IF_ERROR(Write(items[i]));
    }
    --level_;
    NIBBLE_RETURN_IF_ERROR(NewLine());
    return Put("]");
  }

  Status WriteKey(const Value& key) {
    switch (key.kind()) {
      case Kind::kString:
        return PutString(key.string());
      case Kind::kNone:
        return PutString("null");
      case Kind::kBool:
        return PutString(key.boolean() ? "true" : "false");
      case Kind::kInt:
        return PutString(fmt::to_string(key.integer()));
      default:
        return PutString(JsonFloat(key.floating()));
    }
  }

  Status WriteObject(const Dict& dict) {
    if (dict.entries.empty()) return Put("{}");
    std::vector<size_t> order(dict.entries.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = i;
    if (style_.keys == JsonStyle::Keys::kSorted) {
      uint64_t key_bytes = 0;
      for (const auto& [key, value] : dict.entries) {
        if (!key.Is(Kind::kString)) return BadInput("tojson: only text can be sorted as keys");
        key_bytes += key.string().size() + 1;
      }
      NIBBLE_RETURN_IF_ERROR(budget_.Bytes(16 * key_bytes));
      std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
        return dict.entries[a].first.string() < dict.entries[b].first.string();
      });
    }
    NIBBLE_RETURN_IF_ERROR(Put("{"));
    ++level_;
    for (size_t i = 0; i < order.size(); ++i) {
      const auto& [key, value] = dict.entries[order[i]];
      if (i > 0) NIBBLE_RETURN_IF_ERROR(Put(style_.item_separator));
      NIBBLE_RETURN_IF_ERROR(NewLine());
      NIBBLE_RETURN_IF_ERROR(WriteKey(key));
      NIBBLE_RETURN_IF_ERROR(Put(style_.key_separator));
      NIBBLE_RETURN_IF_ERROR(Write(value));
    }
    --level_;
    NIBBLE_RETURN_IF_ERROR(NewLine());
    return Put("}");
  }

  Budget& budget_;
  const JsonStyle& style_;
  std::string text_;
  int level_ = 0;
};

}  // namespace

Result<std::string> ToJson(Budget& budget, const Value& value, const JsonStyle& style) {
  JsonWriter writer(budget, style);
  NIBBLE_RETURN_IF_ERROR(writer.Write(value));
  return writer.Take();
}

}  // namespace nibble::jinja

#include "src/tokenizer/tokenizer_json_parts.h"

#include <algorithm>
#include <functional>
#include <string>

#include "src/base/checked.h"
#include "src/tokenizer/utf8.h"

namespace nibble {
namespace {

constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// A hostile file could otherwise make every text grow without bound.
constexpr size_t kMaxSteps = 32;
constexpr size_t kMaxGrowth = 64;
constexpr size_t kMaxTemplateTokens = 64;

tl::unexpected<Error> NotSupported(std::string_view source, std::string_view what,
                                   std::string_view name) {
  return BadInput("{}: {} \"{}\" is not supported", source, what, name);
}

// Calls read(object, type) for `json`, or for each member of `list` where its type is Sequence.
// A null is nothing.
Status ForEachPart(
    const Json& json, std::string_view list, std::string_view source,
    const std::function<Status(const JsonObject& object, const std::string& type)>& read) {
  if (json.is_null()) return {};
  NIBBLE_ASSIGN_OR_RETURN(const JsonObject object, JsonObject::Of(json, source));
  NIBBLE_ASSIGN_OR_RETURN(const std::string type, object.String("type"));
  if (type != "Sequence") return read(object, type);
  const Json* parts = object.Find(list);
  if (parts == nullptr || !parts->is_array()) {
    return BadInput("{}: want a list \"{}\"", source, list);
  }
  for (size_t i = 0; i < parts->size(); ++i) {
    NIBBLE_RETURN_IF_ERROR(
        ForEachPart((*parts)[i], list, fmt::format("{}: {}[{}]", source, list, i), read));
  }
  return {};
}

Result<std::string> ReadCharacter(const JsonObject& object, std::string_view key) {
  NIBBLE_ASSIGN_OR_RETURN(std::string text, object.String(key));
  if (text.empty() || NextUtf8(text).bytes != text.size()) {
    return BadInput("{}: \"{}\": want one character, got \"{}\"", object.source(), key, text);
  }
  return text;
}

// {"String": text}; {"Regex": pattern} is refused.
Result<ReplaceStep> ReadReplace(const JsonObject& object) {
  NIBBLE_ASSIGN_OR_RETURN(const JsonObject pattern, object.Object("pattern"));
  if (!pattern.Has("String")) return NotSupported(object.source(), "Replace with", "Regex");
  ReplaceStep step;
  NIBBLE_ASSIGN_OR_RETURN(step.from, pattern.String("String"));
  NIBBLE_ASSIGN_OR_RETURN(step.to, object.String("content"));
  if (step.from.empty()) return BadInput("{}: nothing to replace", object.source());
  return step;
}

// Refuses replacements that, one after the other, could make a text more than kMaxGrowth times as
// long.
Status CheckGrowth(const ReplaceStep& step, std::string_view source, size_t& growth) {
  growth *= std::max<size_t>(1, CeilDiv(step.to.size(), step.from.size()));
  if (growth > kMaxGrowth) {
    return BadInput("{}: replacements that make a text more than {} times as long", source,
                    kMaxGrowth);
  }
  return {};
}

Result<MetaspaceStep> ReadMetaspace(const JsonObject& object) {
  MetaspaceStep step;
  NIBBLE_ASSIGN_OR_RETURN(step.replacement, ReadCharacter(object, "replacement"));
  // Before there were schemes, there was a flag.
  NIBBLE_ASSIGN_OR_RETURN(const bool flag, object.BooleanOr("add_prefix_space", true));
  NIBBLE_ASSIGN_OR_RETURN(const std::string scheme,
                          object.StringOr("prepend_scheme", flag ? "always" : "never"));
  if (!flag && scheme != "never") {
    return BadInput("{}: add_prefix_space is false, yet prepend_scheme is \"{}\"", object.source(),
                    scheme);
  }
  if (scheme == "always") {
    step.prepend = PrependScheme::kAlways;
  } else if (scheme == "first") {
    step.prepend = PrependScheme::kFirst;
  } else if (scheme == "never") {
    step.prepend = PrependScheme::kNever;
  } else {
    return NotSupported(object.source(), "prepend_scheme", scheme);
  }
  NIBBLE_ASSIGN_OR_RETURN(step.split, object.BooleanOr("split", true));
  return step;
}

std::string EscapedPattern(std::string_view literal) {
  std::string pattern;
  for (const char c : literal) {
    constexpr std::string_view kMeaningful = R"(\^$.[]|()?*+{}-#&)";
    if (kMeaningful.find(c) != std::string_view::npos) pattern += '\\';
    pattern += c;
  }
  return pattern;
}

Result<SplitBehavior> ReadBehavior(const JsonObject& object) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string name, object.String("behavior"));
  if (name == "Removed") return SplitBehavior::kRemoved;
  if (name == "Isolated") return SplitBehavior::kIsolated;
  if (name == "MergedWithPrevious") return SplitBehavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return SplitBehavior::kMergedWithNext;
  if (name == "Contiguous") return SplitBehavior::kContiguous;
  return NotSupported(object.source(), "behavior", name);
}

Result<SplitStep> ReadSplit(const JsonObject& object) {
  NIBBLE_ASSIGN_OR_RETURN(const JsonObject pattern, object.Object("pattern"));
  std::string text;
  if (pattern.Has("String")) {
    NIBBLE_ASSIGN_OR_RETURN(text, pattern.String("String"));
    text = EscapedPattern(text);
  } else {
    NIBBLE_ASSIGN_OR_RETURN(text, pattern.String("Regex"));
  }
  NIBBLE_ASSIGN_OR_RETURN(Regex regex, Regex::Compile(text, object.source()));
  NIBBLE_ASSIGN_OR_RETURN(const SplitBehavior behavior, ReadBehavior(object));
  NIBBLE_ASSIGN_OR_RETURN(const bool invert, object.BooleanOr("invert", false));
  return SplitStep{std::move(regex), behavior,
                   invert ? SplitAt::kBetweenMatches : SplitAt::kMatches};
}

Status ReadByteLevel(const JsonObject& object, PreTokenizerParts& parts) {
  NIBBLE_ASSIGN_OR_RETURN(const bool prefix, object.BooleanOr("add_prefix_space", true));
  NIBBLE_ASSIGN_OR_RETURN(const bool use_regex, object.BooleanOr("use_regex", true));
  if (prefix) parts.steps.emplace_back(PrefixSpaceStep{});
  if (use_regex) {
    NIBBLE_ASSIGN_OR_RETURN(Regex regex, Regex::Compile(kGpt2Pattern, object.source()));
    parts.steps.emplace_back(
        SplitStep{std::move(regex), SplitBehavior::kIsolated, SplitAt::kMatches});
  }
  parts.byte_level = true;
  return {};
}

// "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}, ...]
Status ReadTemplate(const JsonObject& object, PostProcessorParts& parts) {
  const Json* single = object.Find("single");
  if (single == nullptr || !single->is_array()) {
    return BadInput("{}: want a list \"single\"", object.source());
  }
  PostProcessorParts here;
  bool text_seen = false;
  for (const Json& item : *single) {
    NIBBLE_ASSIGN_OR_RETURN(const JsonObject part,
                            JsonObject::Of(item, fmt::format("{}: single", object.source())));
    if (part.Has("Sequence")) {
      if (text_seen) return BadInput("{}: two texts", part.source());
      text_seen = true;
      continue;
    }
    NIBBLE_ASSIGN_OR_RETURN(const JsonObject special, part.Object("SpecialToken"));
    NIBBLE_ASSIGN_OR_RETURN(const std::string name, special.String("id"));
    NIBBLE_ASSIGN_OR_RETURN(const JsonObject tokens, object.Object("special_tokens"));
    NIBBLE_ASSIGN_OR_RETURN(const JsonObject token, tokens.Object(name));
    const Json* ids = token.Find("ids");
    if (ids == nullptr || !ids->is_array()) {
      return BadInput("{}: want a list \"ids\"", token.source());
    }
    for (const Json& id : *ids) {
      const std::optional<TokenId> value = ReadTokenId(id);
      if (!value) return BadInput("{}: want a list of token ids", token.source());
      (text_seen ? here.suffix : here.prefix).push_back(*value);
    }
  }
  if (!text_seen) return BadInput("{}: \"single\" has no place for the text", object.source());
  if (parts.prefix.size() + parts.suffix.size() + here.prefix.size() + here.suffix.size() >
      kMaxTemplateTokens) {
    return BadInput("{}: more than {} tokens around a text", object.source(), kMaxTemplateTokens);
  }
  parts.prefix.insert(parts.prefix.begin(), here.prefix.begin(), here.prefix.end());
  parts.suffix.insert(parts.suffix.end(), here.suffix.begin(), here.suffix.end());
  return {};
}

}  // namespace

Result<std::vector<NormalizerStep>> ReadNormalizer(const Json& json, std::string_view source) {
  std::vector<NormalizerStep> steps;
  size_t growth = 1;
  const auto read = [&](const JsonObject& object, const std::string& type) -> Status {
    if (steps.size() == kMaxSteps) return BadInput("{}: too many normalizers", source);
    if (type == "Prepend") {
      NIBBLE_ASSIGN_OR_RETURN(std::string text, object.String("prepend"));
      if (text.size() > kMaxAddedTokenBytes) return BadInput("{}: Prepend is too long", source);
      steps.emplace_back(PrependStep{std::move(text)});
    } else if (type == "Replace") {
      NIBBLE_ASSIGN_OR_RETURN(ReplaceStep step, ReadReplace(object));
      NIBBLE_RETURN_IF_ERROR(CheckGrowth(step, source, growth));
      steps.emplace_back(std::move(step));
    } else if (type == "NFC") {
      steps.emplace_back(NfcStep{});
    } else {
      return NotSupported(source, "normalizer", type);
    }
    return {};
  };
  NIBBLE_RETURN_IF_ERROR(ForEachPart(json, "normalizers", source, read));
  return steps;
}

Result<PreTokenizerParts> ReadPreTokenizer(const Json& json, std::string_view source) {
  PreTokenizerParts parts;
  const auto read = [&](const JsonObject& object, const std::string& type) -> Status {
    if (parts.byte_level) return NotSupported(source, "after ByteLevel, pre-tokenizer", type);
    if (parts.steps.size() == kMaxSteps) return BadInput("{}: too many pre-tokenizers", source);
    if (type == "Split") {
      NIBBLE_ASSIGN_OR_RETURN(SplitStep step, ReadSplit(object));
      parts.steps.emplace_back(std::move(step));
    } else if (type == "Digits") {
      NIBBLE_ASSIGN_OR_RETURN(const bool each, object.BooleanOr("individual_digits", false));
      parts.steps.emplace_back(
          DigitsStep{each ? SplitBehavior::kIsolated : SplitBehavior::kContiguous});
    } else if (type == "Metaspace") {
      NIBBLE_ASSIGN_OR_RETURN(MetaspaceStep step, ReadMetaspace(object));
      parts.steps.emplace_back(std::move(step));
    } else if (type == "ByteLevel") {
      return ReadByteLevel(object, parts);
    } else {
      return NotSupported(source, "pre-tokenizer", type);
    }
    return {};
  };
  NIBBLE_RETURN_IF_ERROR(ForEachPart(json, "pretokenizers", source, read));
  return parts;
}

Result<PostProcessorParts> ReadPostProcessor(const Json& json, std::string_view source) {
  PostProcessorParts parts;
  const auto read = [&](const JsonObject& object, const std::string& type) -> Status {
    if (type == "TemplateProcessing") return ReadTemplate(object, parts);
    if (type == "ByteLevel") return {};  // changes offsets only
    return NotSupported(source, "post-processor", type);
  };
  NIBBLE_RETURN_IF_ERROR(ForEachPart(json, "processors", source, read));
  return parts;
}

Result<Decoding> ReadDecoder(const Json& json, std::string_view source) {
  if (json.is_null()) return TextDecoding{.separator = " "};
  TextDecoding text;
  bool byte_level = false;
  bool fused = false;
  bool stripped = false;
  size_t parts = 0;
  size_t growth = 1;
  // What one decoder makes of the tokens is what the next gets, so only the usual order is the
  // simple thing that TextDecoding does.
  const auto read = [&](const JsonObject& object, const std::string& type) -> Status {
    if (++parts > kMaxSteps) return BadInput("{}: too many decoders", source);
    const bool first_stage = !text.byte_fallback && !fused && !stripped && !byte_level;
    if (type == "ByteLevel" && parts == 1) {
      byte_level = true;
    } else if (type == "Replace" && first_stage && !text.metaspace) {
      NIBBLE_ASSIGN_OR_RETURN(ReplaceStep step, ReadReplace(object));
      NIBBLE_RETURN_IF_ERROR(CheckGrowth(step, source, growth));
      text.replace.push_back(std::move(step));
    } else if (type == "Metaspace" && first_stage && !text.metaspace) {
      NIBBLE_ASSIGN_OR_RETURN(text.metaspace, ReadMetaspace(object));
    } else if (type == "ByteFallback" && first_stage) {
      text.byte_fallback = true;
    } else if (type == "Fuse" && !stripped) {
      fused = true;
    } else if (type == "Strip" && fused && !stripped && !byte_level) {
      stripped = true;
      NIBBLE_ASSIGN_OR_RETURN(text.strip, ReadCharacter(object, "content"));
      NIBBLE_ASSIGN_OR_RETURN(const int64_t start, object.Integer("start", 0, INT32_MAX));
      NIBBLE_ASSIGN_OR_RETURN(const int64_t stop, object.IntegerOr("stop", 0, INT32_MAX, 0));
      if (stop != 0) return NotSupported(source, "Strip with", "stop");
      text.strip_count = static_cast<size_t>(start);
    } else {
      return NotSupported(source, "at this place, decoder", type);
    }
    return {};
  };
  NIBBLE_RETURN_IF_ERROR(ForEachPart(json, "decoders", source, read));
  if (byte_level) return ByteLevelDecoding{};
  return text;
}

}  // namespace nibble

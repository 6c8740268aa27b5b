#include "src/tokenizer/pipeline.h"

#include <algorithm>
#include <charconv>

#include "src/tokenizer/utf8.h"

namespace nibble {
namespace {

// A special token is written as its text, or as an object that holds it.
Result<std::optional<std::string>> SpecialTokenText(const JsonObject& config,
                                                    std::string_view key) {
  const Json* value = config.Find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_object()) {
    NIBBLE_ASSIGN_OR_RETURN(std::string text, config.String(key));
    return text;
  }
  NIBBLE_ASSIGN_OR_RETURN(const JsonObject object, config.Object(key));
  NIBBLE_ASSIGN_OR_RETURN(std::string text, object.String("content"));
  return text;
}

Result<std::optional<bool>> OptionalBoolean(const JsonObject& config, std::string_view key) {
  if (!config.Has(key)) return std::nullopt;
  NIBBLE_ASSIGN_OR_RETURN(const bool value, config.Boolean(key));
  return value;
}

// The token that the configuration names, now special; nothing where it is not in the vocabulary.
std::optional<TokenId> Specialize(const std::optional<std::string>& text,
                                  TokenizerPipeline& pipeline) {
  if (!text || text->empty()) return std::nullopt;
  const std::optional<TokenId> id = pipeline.vocabulary.Find(*text);
  if (!id) return std::nullopt;
  AddedToken& token =
      pipeline.added_tokens.try_emplace(*id, AddedToken{.id = *id, .content = *text}).first->second;
  token.special = true;
  return id;
}

}  // namespace

Vocabulary::Entry& Vocabulary::Add(TokenId id, std::string_view text) {
  CHECK(id >= 0 && id < kMaxVocabularySize && Get(id) == nullptr);
  if (id >= size()) entries_.resize(static_cast<size_t>(id) + 1);
  CHECK(ids_.emplace(text, id).second, "token {}", text);
  Entry& entry = entries_[static_cast<size_t>(id)];
  entry.used = true;
  entry.text = text;
  return entry;
}

const Vocabulary::Entry* Vocabulary::Get(TokenId id) const {
  if (id < 0 || id >= size() || !entries_[static_cast<size_t>(id)].used) return nullptr;
  return &entries_[static_cast<size_t>(id)];
}

Vocabulary::Entry* Vocabulary::Get(TokenId id) {
  return const_cast<Entry*>(std::as_const(*this).Get(id));
}

std::optional<TokenId> Vocabulary::Find(std::string_view text) const {
  const auto found = ids_.find(text);
  if (found == ids_.end()) return std::nullopt;
  return found->second;
}

std::optional<TokenId> ReadTokenId(const Json& json) {
  // A number that was read is unsigned; one that was made here need not be.
  if (!json.is_number_integer()) return std::nullopt;
  if (!json.is_number_unsigned() && json.get<int64_t>() < 0) return std::nullopt;
  if (json.get<uint64_t>() >= uint64_t{kMaxVocabularySize}) return std::nullopt;
  return json.get<TokenId>();
}

Result<AddedToken> ReadAddedToken(const Json& json, TokenId id, std::string_view source) {
  NIBBLE_ASSIGN_OR_RETURN(const JsonObject object, JsonObject::Of(json, source));
  AddedToken token;
  token.id = id;
  NIBBLE_ASSIGN_OR_RETURN(token.content, object.String("content"));
  NIBBLE_ASSIGN_OR_RETURN(token.special, object.BooleanOr("special", false));
  NIBBLE_ASSIGN_OR_RETURN(token.normalized, object.BooleanOr("normalized", !token.special));
  NIBBLE_ASSIGN_OR_RETURN(token.single_word, object.BooleanOr("single_word", false));
  NIBBLE_ASSIGN_OR_RETURN(token.strip_left, object.BooleanOr("lstrip", false));
  NIBBLE_ASSIGN_OR_RETURN(token.strip_right, object.BooleanOr("rstrip", false));
  return token;
}

Result<TokenizerConfig> ReadTokenizerConfig(const Json& json, std::string_view source) {
  NIBBLE_ASSIGN_OR_RETURN(const JsonObject object, JsonObject::Of(json, source));
  TokenizerConfig config;
  NIBBLE_ASSIGN_OR_RETURN(config.bos, SpecialTokenText(object, "bos_token"));
  NIBBLE_ASSIGN_OR_RETURN(config.eos, SpecialTokenText(object, "eos_token"));
  NIBBLE_ASSIGN_OR_RETURN(config.unknown, SpecialTokenText(object, "unk_token"));
  NIBBLE_ASSIGN_OR_RETURN(config.padding, SpecialTokenText(object, "pad_token"));
  NIBBLE_ASSIGN_OR_RETURN(config.add_bos, OptionalBoolean(object, "add_bos_token"));
  NIBBLE_ASSIGN_OR_RETURN(config.add_eos, OptionalBoolean(object, "add_eos_token"));
  NIBBLE_ASSIGN_OR_RETURN(config.legacy, OptionalBoolean(object, "legacy"));

  if (object.Has("added_tokens_decoder")) {
    NIBBLE_ASSIGN_OR_RETURN(const JsonObject tokens, object.Object("added_tokens_decoder"));
    for (const auto& [key, value] : tokens.json().items()) {
      TokenId id = -1;
      const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
      if (error != std::errc() || end != key.data() + key.size() || id < 0) {
        return BadInput("{}: want token ids as keys, got \"{}\"", tokens.source(), key);
      }
      NIBBLE_ASSIGN_OR_RETURN(
          AddedToken token,
          ReadAddedToken(value, id, fmt::format("{}: \"{}\"", tokens.source(), key)));
      config.added_tokens.push_back(std::move(token));
    }
    std::stable_sort(config.added_tokens.begin(), config.added_tokens.end(),
                     [](const AddedToken& a, const AddedToken& b) { return a.id < b.id; });
  }
  return config;
}

Status AddToken(const AddedToken& token, std::string_view source, TokenizerPipeline& pipeline) {
  if (token.content.empty()) return {};
  if (token.content.size() > kMaxAddedTokenBytes) {
    return BadInput("{}: added token {} has {} bytes; at most {} are supported", source, token.id,
                    token.content.size(), kMaxAddedTokenBytes);
  }
  const std::optional<TokenId> known = pipeline.vocabulary.Find(token.content);
  const TokenId id = known.value_or(pipeline.vocabulary.count());
  const bool taken = !known && pipeline.vocabulary.Get(id) != nullptr;
  if (id != token.id || taken || id >= kMaxVocabularySize) {
    return BadInput("{}: added token \"{}\" has id {}; {} {}", source, token.content, token.id,
                    known ? "the vocabulary has it under" : "the next one free would be", id);
  }
  if (!known) pipeline.vocabulary.Add(id, token.content);
  pipeline.added_tokens[id] = token;
  return {};
}

Status ApplyConfig(const TokenizerConfig& config, std::string_view source,
                   TokenizerPipeline& pipeline) {
  for (const AddedToken& token : config.added_tokens) {
    NIBBLE_RETURN_IF_ERROR(AddToken(token, source, pipeline));
  }
  const auto name = [&](const std::optional<std::string>& text, std::optional<TokenId>& id) {
    if (const std::optional<TokenId> found = Specialize(text, pipeline)) id = found;
  };
  name(config.bos, pipeline.bos);
  name(config.eos, pipeline.eos);
  name(config.unknown, pipeline.unknown);
  name(config.padding, pipeline.padding);

  if (config.add_bos || config.add_eos) {
    pipeline.prefix.clear();
    pipeline.suffix.clear();
    if (config.add_bos.value_or(false) && pipeline.bos) pipeline.prefix = {*pipeline.bos};
    if (config.add_eos.value_or(false) && pipeline.eos) pipeline.suffix = {*pipeline.eos};
  }
  return {};
}

void FinishAddedTokens(TokenizerPipeline& pipeline) {
  for (const auto& [id, token] : pipeline.added_tokens) {
    Vocabulary::Entry& entry = *pipeline.vocabulary.Get(id);
    entry.special = token.special;
    // SentencePiece models have no normal form of an added token.
    if (!token.normalized || std::holds_alternative<SpModel>(pipeline.model)) {
      pipeline.added.Add(token, token.content);
      continue;
    }
    entry.decoded = Normalize(pipeline.normalizer, token.content);
    if (!entry.decoded.empty()) pipeline.added_normalized.Add(token, entry.decoded);
    if (entry.decoded == entry.text) entry.decoded.clear();
  }
}

}  // namespace nibble

// A tokenizer from a `tokenizer.json`.
#include <array>

#include "src/tokenizer/byte_level.h"
#include "src/tokenizer/pipeline.h"
#include "src/tokenizer/tokenizer_json_parts.h"

namespace nibble {
namespace {

const Json& Member(const JsonObject& object, std::string_view key) {
  static const Json kNull;
  const Json* member = object.Find(key);
  return member == nullptr ? kNull : *member;
}

Status ReadVocabulary(const JsonObject& model, StringMap<TokenId>& vocabulary,
                      Vocabulary& entries) {
  NIBBLE_ASSIGN_OR_RETURN(const JsonObject object, model.Object("vocab"));
  const auto& members = object.json().get_ref<const Json::object_t&>();
  if (members.size() > static_cast<size_t>(kMaxVocabularySize)) {
    return BadInput("{}: {} tokens; at most {} are supported", object.source(), members.size(),
                    kMaxVocabularySize);
  }
  vocabulary.reserve(members.size());
  for (const auto& [text, value] : members) {
    const std::optional<TokenId> read = ReadTokenId(value);
    if (!read) {
      return BadInput("{}: \"{}\": want an id below {}", object.source(), text, kMaxVocabularySize);
    }
    const TokenId id = *read;
    if (const Vocabulary::Entry* other = std::as_const(entries).Get(id)) {
      return BadInput("{}: \"{}\" and \"{}\" have the same id {}", object.source(), other->text,
                      text, id);
    }
    if (!vocabulary.emplace(text, id).second) {
      return BadInput("{}: \"{}\" occurs twice", object.source(), text);
    }
    entries.Add(id, text);
  }
  return {};
}

// A merge is written as "left right" or as ["left", "right"].
Status ReadMerges(const JsonObject& model,
                  std::vector<std::pair<std::string, std::string>>& merges) {
  const Json* list = model.Find("merges");
  if (list == nullptr || !list->is_array()) {
    return BadInput("{}: want a list \"merges\"", model.source());
  }
  merges.reserve(list->size());
  for (size_t i = 0; i < list->size(); ++i) {
    const Json& merge = (*list)[i];
    if (merge.is_string()) {
      const auto& text = merge.get_ref<const std::string&>();
      if (text.starts_with("#version")) continue;
      const size_t space = text.find(' ');
      if (space != std::string::npos && text.find(' ', space + 1) == std::string::npos) {
        merges.emplace_back(text.substr(0, space), text.substr(space + 1));
        continue;
      }
    } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() &&
               merge[1].is_string()) {
      merges.emplace_back(merge[0].get<std::string>(), merge[1].get<std::string>());
      continue;
    }
    return BadInput("{}: merges[{}]: want two tokens", model.source(), i);
  }
  return {};
}

// Members of a BPE model other than those read here would change the ids.
Status RefuseOtherMembers(const JsonObject& model) {
  constexpr std::array<std::string_view, 10> kRead = {"type",
                                                      "vocab",
                                                      "merges",
                                                      "unk_token",
                                                      "fuse_unk",
                                                      "byte_fallback",
                                                      "ignore_merges",
                                                      "dropout",
                                                      "continuing_subword_prefix",
                                                      "end_of_word_suffix"};
  for (const auto& [key, value] : model.json().items()) {
    if (!value.is_null() && std::find(kRead.begin(), kRead.end(), key) == kRead.end()) {
      return BadInput("{}: \"{}\" is not supported", model.source(), key);
    }
  }
  if (model.Has("dropout")) {
    NIBBLE_ASSIGN_OR_RETURN(const double dropout, model.Number("dropout"));
    if (dropout != 0) return BadInput("{}: dropout is not supported", model.source());
  }
  for (const std::string_view key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    NIBBLE_ASSIGN_OR_RETURN(const std::string text, model.StringOr(key, ""));
    if (!text.empty()) {
      return BadInput("{}: {} \"{}\" is not supported", model.source(), key, text);
    }
  }
  return {};
}

Result<BpeModel> ReadModel(const JsonObject& model, bool byte_level, Vocabulary& entries) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string type, model.StringOr("type", "BPE"));
  if (type != "BPE") {
    return BadInput("{}: type \"{}\" is not supported, only BPE", model.source(), type);
  }
  NIBBLE_RETURN_IF_ERROR(RefuseOtherMembers(model));
  BpeModel::Settings settings;
  NIBBLE_RETURN_IF_ERROR(ReadVocabulary(model, settings.vocabulary, entries));
  NIBBLE_RETURN_IF_ERROR(ReadMerges(model, settings.merges));
  if (model.Has("unk_token")) {
    NIBBLE_ASSIGN_OR_RETURN(settings.unknown, model.String("unk_token"));
  }
  NIBBLE_ASSIGN_OR_RETURN(settings.fuse_unknown, model.BooleanOr("fuse_unk", false));
  NIBBLE_ASSIGN_OR_RETURN(settings.byte_fallback, model.BooleanOr("byte_fallback", false));
  NIBBLE_ASSIGN_OR_RETURN(settings.ignore_merges, model.BooleanOr("ignore_merges", false));
  const std::optional<std::string> unknown = settings.unknown;
  NIBBLE_ASSIGN_OR_RETURN(BpeModel bpe, BpeModel::Create(std::move(settings), model.source()));

  if (bpe.lacks_unknown() && !bpe.covers_all_characters()) {
    bool covered = byte_level;
    for (int byte = 0; byte < 256 && covered; ++byte) {
      const char c = static_cast<char>(byte);
      covered = bpe.vocabulary().contains(BytesToPrintable({&c, 1}));
    }
    if (!covered) {
      return BadInput("{}: unk_token \"{}\" is not in the vocabulary", model.source(), *unknown);
    }
  }
  return bpe;
}

Status ReadAddedTokens(const JsonObject& object, TokenizerPipeline& pipeline) {
  const Json& list = Member(object, "added_tokens");
  if (list.is_null()) return {};
  if (!list.is_array()) return BadInput("{}: \"added_tokens\": want a list", object.source());
  for (size_t i = 0; i < list.size(); ++i) {
    const std::string source = fmt::format("{}: added_tokens[{}]", object.source(), i);
    NIBBLE_ASSIGN_OR_RETURN(const JsonObject item, JsonObject::Of(list[i], source));
    NIBBLE_ASSIGN_OR_RETURN(const int64_t id, item.Integer("id", 0, kMaxVocabularySize - 1));
    NIBBLE_ASSIGN_OR_RETURN(const AddedToken token,
                            ReadAddedToken(list[i], static_cast<TokenId>(id), source));
    NIBBLE_RETURN_IF_ERROR(AddToken(token, source, pipeline));
  }
  return {};
}

}  // namespace

Result<std::unique_ptr<Tokenizer>> TokenizerFromJson(const Json& tokenizer_json,
                                                     const Json& tokenizer_config,
                                                     std::string_view source) {
  NIBBLE_ASSIGN_OR_RETURN(const JsonObject object, JsonObject::Of(tokenizer_json, source));
  const std::string config_source = fmt::format("{} (tokenizer_config)", source);
  NIBBLE_ASSIGN_OR_RETURN(const TokenizerConfig config,
                          ReadTokenizerConfig(tokenizer_config, config_source));

  NIBBLE_ASSIGN_OR_RETURN(auto normalizer, ReadNormalizer(Member(object, "normalizer"), source));
  NIBBLE_ASSIGN_OR_RETURN(auto pre_tokenizer,
                          ReadPreTokenizer(Member(object, "pre_tokenizer"), source));
  NIBBLE_ASSIGN_OR_RETURN(auto post_processor,
                          ReadPostProcessor(Member(object, "post_processor"), source));
  NIBBLE_ASSIGN_OR_RETURN(auto decoding, ReadDecoder(Member(object, "decoder"), source));
  NIBBLE_ASSIGN_OR_RETURN(const JsonObject model, object.Object("model"));
  Vocabulary vocabulary;
  NIBBLE_ASSIGN_OR_RETURN(BpeModel bpe, ReadModel(model, pre_tokenizer.byte_level, vocabulary));

  auto pipeline = std::make_unique<TokenizerPipeline>(TokenizerPipeline{
      .vocabulary = std::move(vocabulary),
      .normalizer = std::move(normalizer),
      .model = HfModel{std::move(pre_tokenizer.steps), pre_tokenizer.byte_level, std::move(bpe)},
      .prefix = std::move(post_processor.prefix),
      .suffix = std::move(post_processor.suffix),
      .decoding = std::move(decoding)});
  NIBBLE_RETURN_IF_ERROR(ReadAddedTokens(object, *pipeline));
  for (const std::vector<TokenId>* ids : {&pipeline->prefix, &pipeline->suffix}) {
    for (const TokenId id : *ids) {
      if (pipeline->vocabulary.Get(id) == nullptr) {
        return BadInput("{}: post_processor adds the token {}, which does not exist", source, id);
      }
    }
  }
  // What the configuration does not name is told by what is added to texts.
  if (!pipeline->prefix.empty()) pipeline->bos = pipeline->prefix.front();
  if (!pipeline->suffix.empty()) pipeline->eos = pipeline->suffix.back();
  if (const Json& unknown = Member(model, "unk_token"); unknown.is_string()) {
    pipeline->unknown = pipeline->vocabulary.Find(unknown.get_ref<const std::string&>());
  }
  NIBBLE_RETURN_IF_ERROR(ApplyConfig(config, config_source, *pipeline));
  FinishAddedTokens(*pipeline);
  return std::make_unique<Tokenizer>(std::move(pipeline));
}

}  // namespace nibble

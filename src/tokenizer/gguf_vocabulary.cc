#include "src/tokenizer/gguf_vocabulary.h"

#include <algorithm>
#include <cmath>
#include <tuple>

#include "src/tokenizer/bpe.h"
#include "src/tokenizer/sentencepiece.h"
#include "src/tokenizer/string_map.h"
#include "src/tokenizer/utf8.h"

namespace nibble {
namespace {

// Longer tokens have more ways to be split than are worth looking at.
constexpr size_t kMaxSplitBytes = 512;

constexpr std::string_view kLlama3Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*)"
    R"(|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kQwen2Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*)"
    R"(|\s*[\r\n]+|\s+(?!\S)|\s+)";

// What the name in `tokenizer.ggml.pre` stands for.
struct ByteLevelFamily {
  std::string_view name;
  std::string_view pattern;  // empty: GPT-2's, which ByteLevel brings along
  bool single_digits = false;
  bool nfc = false;
  bool ignore_merges = false;
  bool add_bos = false;
};
constexpr ByteLevelFamily kFamilies[] = {
    {.name = "", .pattern = ""},
    {.name = "default", .pattern = ""},
    {.name = "gpt-2", .pattern = ""},
    {.name = "smollm", .pattern = "", .single_digits = true},
    {.name = "llama-bpe", .pattern = kLlama3Pattern, .ignore_merges = true, .add_bos = true},
    {.name = "llama3", .pattern = kLlama3Pattern, .ignore_merges = true, .add_bos = true},
    {.name = "llama-v3", .pattern = kLlama3Pattern, .ignore_merges = true, .add_bos = true},
    {.name = "qwen2", .pattern = kQwen2Pattern, .nfc = true},
};

PieceType TypeOf(const GgufVocabulary& vocabulary, size_t id) {
  return vocabulary.types.empty() ? PieceType::kNormal
                                  : static_cast<PieceType>(vocabulary.types[id]);
}

Status CheckTokens(const GgufVocabulary& vocabulary, std::string_view source) {
  const size_t count = vocabulary.tokens.size();
  if (count == 0 || count > static_cast<size_t>(kMaxVocabularySize)) {
    return BadInput("{}: tokenizer.ggml.tokens: want 1 to {} tokens, got {}", source,
                    kMaxVocabularySize, count);
  }
  if (!vocabulary.types.empty() && vocabulary.types.size() != count) {
    return BadInput("{}: tokenizer.ggml.token_type: want {} types, got {}", source, count,
                    vocabulary.types.size());
  }
  StringMap<size_t> seen;
  seen.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    const std::string& text = vocabulary.tokens[i];
    if (!IsValidUtf8(text)) {
      return BadInput("{}: tokenizer.ggml.tokens[{}] is not UTF-8", source, i);
    }
    if (const auto [first, is_new] = seen.emplace(text, i); !is_new) {
      return BadInput("{}: tokenizer.ggml.tokens: {} and {} are both \"{}\"", source, first->second,
                      i, text);
    }
    const int type = static_cast<int>(TypeOf(vocabulary, i));
    if (type < 1 || type > 6) {
      return BadInput("{}: tokenizer.ggml.token_type[{}]: {} is not a known type", source, i, type);
    }
  }
  return {};
}

Result<std::optional<TokenId>> CheckId(std::optional<int64_t> id, std::string_view key,
                                       const GgufVocabulary& vocabulary, std::string_view source) {
  if (!id) return std::nullopt;
  if (*id < 0 || *id >= static_cast<int64_t>(vocabulary.tokens.size())) {
    return BadInput("{}: tokenizer.ggml.{}: token {} of {}", source, key, *id,
                    vocabulary.tokens.size());
  }
  return static_cast<TokenId>(*id);
}

struct SpecialIds {
  std::optional<TokenId> bos;
  std::optional<TokenId> eos;
  std::optional<TokenId> unknown;
  std::optional<TokenId> padding;
};

Result<SpecialIds> ReadSpecialIds(const GgufVocabulary& vocabulary, std::string_view source) {
  const auto read = [&](std::optional<int64_t> id, std::string_view key) {
    return CheckId(id, key, vocabulary, source);
  };
  SpecialIds ids;
  NIBBLE_ASSIGN_OR_RETURN(ids.bos, read(vocabulary.bos_token_id, "bos_token_id"));
  NIBBLE_ASSIGN_OR_RETURN(ids.eos, read(vocabulary.eos_token_id, "eos_token_id"));
  NIBBLE_ASSIGN_OR_RETURN(ids.unknown, read(vocabulary.unknown_token_id, "unknown_token_id"));
  NIBBLE_ASSIGN_OR_RETURN(ids.padding, read(vocabulary.padding_token_id, "padding_token_id"));
  return ids;
}

Json VocabularyJson(const GgufVocabulary& vocabulary) {
  Json json = Json::object();
  // Not json[key] = id, which would look for the key among all those before.
  auto& members = json.get_ref<Json::object_t&>();
  members.reserve(vocabulary.tokens.size());
  for (size_t i = 0; i < vocabulary.tokens.size(); ++i) {
    members.emplace_back(vocabulary.tokens[i], i);
  }
  return json;
}

Json AddedTokensJson(const GgufVocabulary& vocabulary, const SpecialIds& ids) {
  Json json = Json::array();
  for (size_t i = 0; i < vocabulary.tokens.size(); ++i) {
    const auto is = [&](std::optional<TokenId> id) { return id == static_cast<TokenId>(i); };
    const PieceType type = TypeOf(vocabulary, i);
    const bool special =
        type == PieceType::kControl || type == PieceType::kUnknown || is(ids.bos) || is(ids.eos);
    if ((!special && type != PieceType::kUserDefined) || vocabulary.tokens[i].empty()) continue;
    json.push_back({{"id", i},
                    {"content", vocabulary.tokens[i]},
                    {"single_word", false},
                    {"lstrip", false},
                    {"rstrip", false},
                    {"normalized", false},
                    {"special", special}});
  }
  return json;
}

// Puts the tokens that are added to every text around it.
Json TemplateJson(const std::vector<std::string>& before, const std::vector<std::string>& after,
                  const StringMap<TokenId>& ids) {
  const auto special = [](const std::string& text, int type_id) {
    return Json{{"SpecialToken", {{"id", text}, {"type_id", type_id}}}};
  };
  Json single = Json::array();
  Json pair = Json::array();
  for (const auto& [name, type_id] : {std::pair<std::string, int>("A", 0), {"B", 1}}) {
    Json part = Json::array();
    for (const std::string& text : before) part.push_back(special(text, type_id));
    part.push_back({{"Sequence", {{"id", name}, {"type_id", type_id}}}});
    for (const std::string& text : after) part.push_back(special(text, type_id));
    if (type_id == 0) single = part;
    pair.insert(pair.end(), part.begin(), part.end());
  }
  Json tokens = Json::object();
  for (const auto& [text, id] : ids) {
    tokens[text] = {{"id", text}, {"ids", {id}}, {"tokens", {text}}};
  }
  return {{"type", "TemplateProcessing"},
          {"single", single},
          {"pair", pair},
          {"special_tokens", tokens}};
}

// The merges that a SentencePiece vocabulary implies: every way to make a token of two others, the
// tokens with the highest score first.
std::vector<std::pair<std::string, std::string>> MergesFromScores(
    const GgufVocabulary& vocabulary) {
  StringMap<size_t> normal;
  normal.reserve(vocabulary.tokens.size());
  for (size_t i = 0; i < vocabulary.tokens.size(); ++i) {
    if (TypeOf(vocabulary, i) == PieceType::kNormal) normal.emplace(vocabulary.tokens[i], i);
  }
  struct Split {
    float score;
    size_t token;
    size_t left_bytes;
  };
  std::vector<Split> splits;
  for (const auto& [text, id] : normal) {
    for (size_t at = 1; at < std::min(text.size(), kMaxSplitBytes); ++at) {
      const std::string_view whole = text;
      if (normal.contains(whole.substr(0, at)) && normal.contains(whole.substr(at))) {
        splits.push_back({vocabulary.scores[id], id, at});
      }
    }
  }
  std::sort(splits.begin(), splits.end(), [](const Split& a, const Split& b) {
    return std::tuple(-a.score, a.token, a.left_bytes) <
           std::tuple(-b.score, b.token, b.left_bytes);
  });
  std::vector<std::pair<std::string, std::string>> merges;
  merges.reserve(splits.size());
  for (const Split& split : splits) {
    const std::string& text = vocabulary.tokens[split.token];
    merges.emplace_back(text.substr(0, split.left_bytes), text.substr(split.left_bytes));
  }
  return merges;
}

Result<Json> SentencePieceJson(const GgufVocabulary& vocabulary, const SpecialIds& ids,
                               std::string_view source) {
  if (vocabulary.scores.size() != vocabulary.tokens.size()) {
    return BadInput("{}: tokenizer.ggml.scores: want {} scores, got {}", source,
                    vocabulary.tokens.size(), vocabulary.scores.size());
  }
  for (size_t i = 0; i < vocabulary.scores.size(); ++i) {
    if (!std::isfinite(vocabulary.scores[i])) {
      return BadInput("{}: tokenizer.ggml.scores[{}] is not a finite number", source, i);
    }
    if (TypeOf(vocabulary, i) == PieceType::kNormal &&
        vocabulary.tokens[i].size() > kMaxSplitBytes) {
      return BadInput("{}: tokenizer.ggml.tokens[{}] has {} bytes; at most {} are supported",
                      source, i, vocabulary.tokens[i].size(), kMaxSplitBytes);
    }
  }
  Json normalizers = Json::array();
  Json decoders = {{{"type", "Replace"}, {"pattern", {{"String", kMetaspace}}}, {"content", " "}},
                   {{"type", "ByteFallback"}},
                   {{"type", "Fuse"}}};
  if (vocabulary.add_space_prefix.value_or(true)) {
    normalizers.push_back({{"type", "Prepend"}, {"prepend", kMetaspace}});
    decoders.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
  }
  normalizers.push_back(
      {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", kMetaspace}});

  Json merges = Json::array();
  for (const auto& [left, right] : MergesFromScores(vocabulary)) {
    // The newer spelling where the older one, which more programs read, would be ambiguous.
    const bool ambiguous = (left + right).find(' ') != std::string::npos;
    merges.push_back(ambiguous ? Json{left, right} : Json(left + " " + right));
  }
  Json unknown;
  for (size_t i = 0; i < vocabulary.tokens.size(); ++i) {
    if (TypeOf(vocabulary, i) == PieceType::kUnknown) unknown = vocabulary.tokens[i];
  }
  if (ids.unknown) unknown = vocabulary.tokens[static_cast<size_t>(*ids.unknown)];
  return Json{{"normalizer", {{"type", "Sequence"}, {"normalizers", normalizers}}},
              {"pre_tokenizer", nullptr},
              {"decoder", {{"type", "Sequence"}, {"decoders", decoders}}},
              {"model",
               {{"type", "BPE"},
                {"dropout", nullptr},
                {"unk_token", unknown},
                {"continuing_subword_prefix", nullptr},
                {"end_of_word_suffix", nullptr},
                {"fuse_unk", true},
                {"byte_fallback", true},
                {"ignore_merges", false},
                {"vocab", VocabularyJson(vocabulary)},
                {"merges", std::move(merges)}}}};
}

Json ByteLevelJson(const GgufVocabulary& vocabulary, const ByteLevelFamily& family) {
  const bool own_pattern = !family.pattern.empty();
  Json pre_tokenizers = Json::array();
  if (family.single_digits) {
    pre_tokenizers.push_back({{"type", "Digits"}, {"individual_digits", true}});
  }
  if (own_pattern) {
    pre_tokenizers.push_back({{"type", "Split"},
                              {"pattern", {{"Regex", family.pattern}}},
                              {"behavior", "Isolated"},
                              {"invert", false}});
  }
  const Json byte_level = {{"type", "ByteLevel"},
                           {"add_prefix_space", vocabulary.add_space_prefix.value_or(false)},
                           {"trim_offsets", true},
                           {"use_regex", !own_pattern}};
  pre_tokenizers.push_back(byte_level);
  return {{"normalizer", family.nfc ? Json{{"type", "NFC"}} : Json()},
          {"pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", pre_tokenizers}}},
          {"decoder", byte_level},
          {"model",
           {{"type", "BPE"},
            {"dropout", nullptr},
            {"unk_token", nullptr},
            {"continuing_subword_prefix", nullptr},
            {"end_of_word_suffix", nullptr},
            {"fuse_unk", false},
            {"byte_fallback", false},
            {"ignore_merges", family.ignore_merges},
            {"vocab", VocabularyJson(vocabulary)},
            {"merges", vocabulary.merges}}}};
}

}  // namespace

Result<HfTokenizerFiles> TokenizerFilesFromGguf(const GgufVocabulary& vocabulary,
                                                std::string_view source) {
  NIBBLE_RETURN_IF_ERROR(CheckTokens(vocabulary, source));
  NIBBLE_ASSIGN_OR_RETURN(const SpecialIds ids, ReadSpecialIds(vocabulary, source));

  Json made;
  bool add_bos = false;
  if (vocabulary.model == "llama") {
    NIBBLE_ASSIGN_OR_RETURN(made, SentencePieceJson(vocabulary, ids, source));
    add_bos = true;
  } else if (vocabulary.model == "gpt2") {
    const auto family =
        std::find_if(std::begin(kFamilies), std::end(kFamilies),
                     [&](const ByteLevelFamily& item) { return item.name == vocabulary.pre; });
    if (family == std::end(kFamilies)) {
      return BadInput("{}: tokenizer.ggml.pre: \"{}\" is not supported", source, vocabulary.pre);
    }
    for (size_t i = 0; i < vocabulary.merges.size(); ++i) {
      if (!IsValidUtf8(vocabulary.merges[i])) {
        return BadInput("{}: tokenizer.ggml.merges[{}] is not UTF-8", source, i);
      }
    }
    made = ByteLevelJson(vocabulary, *family);
    add_bos = family->add_bos;
  } else {
    return BadInput("{}: tokenizer.ggml.model: \"{}\" is not supported", source, vocabulary.model);
  }
  if (!IsValidUtf8(vocabulary.chat_template)) {
    return BadInput("{}: tokenizer.chat_template is not UTF-8", source);
  }
  add_bos = vocabulary.add_bos_token.value_or(add_bos) && ids.bos;
  const bool add_eos = vocabulary.add_eos_token.value_or(false) && ids.eos;

  const auto text = [&](std::optional<TokenId> id) {
    return id ? Json(vocabulary.tokens[static_cast<size_t>(*id)]) : Json();
  };
  std::vector<std::string> before;
  std::vector<std::string> after;
  StringMap<TokenId> added;
  if (add_bos) {
    before.push_back(text(ids.bos));
    added[text(ids.bos)] = *ids.bos;
  }
  if (add_eos) {
    after.push_back(text(ids.eos));
    added[text(ids.eos)] = *ids.eos;
  }
  HfTokenizerFiles files;
  files.tokenizer_json = {{"version", "1.0"},
                          {"truncation", nullptr},
                          {"padding", nullptr},
                          {"added_tokens", AddedTokensJson(vocabulary, ids)},
                          {"normalizer", std::move(made["normalizer"])},
                          {"pre_tokenizer", std::move(made["pre_tokenizer"])},
                          {"post_processor", TemplateJson(before, after, added)},
                          {"decoder", std::move(made["decoder"])},
                          {"model", std::move(made["model"])}};
  files.tokenizer_config = {{"tokenizer_class", "PreTrainedTokenizerFast"},
                            {"add_bos_token", add_bos},
                            {"add_eos_token", add_eos},
                            {"bos_token", text(ids.bos)},
                            {"eos_token", text(ids.eos)},
                            {"unk_token", text(ids.unknown)},
                            {"pad_token", text(ids.padding)},
                            {"clean_up_tokenization_spaces", false}};
  if (!vocabulary.chat_template.empty()) {
    files.tokenizer_config["chat_template"] = vocabulary.chat_template;
  }
  return files;
}

}  // namespace nibble

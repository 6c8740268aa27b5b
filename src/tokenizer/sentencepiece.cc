#include "src/tokenizer/sentencepiece.h"

#include <algorithm>
#include <cmath>
#include <queue>

#include "src/tokenizer/bpe.h"
#include "src/tokenizer/normalizer.h"
#include "src/tokenizer/utf8.h"
#include "src/tokenizer/word_cache.h"

namespace nibble {
namespace {

std::string_view ModelTypeName(SentencePieceFile::ModelType type) {
  switch (type) {
    case SentencePieceFile::ModelType::kUnigram:
      return "unigram";
    case SentencePieceFile::ModelType::kBpe:
      return "bpe";
    case SentencePieceFile::ModelType::kWord:
      return "word";
    case SentencePieceFile::ModelType::kChar:
      return "char";
  }
  return "?";
}

Status CheckSupported(const SentencePieceFile& file, std::string_view source) {
  if (file.model_type != SentencePieceFile::ModelType::kBpe) {
    return BadInput("{}: a SentencePiece model of type {}; only bpe is supported", source,
                    ModelTypeName(file.model_type));
  }
  if (file.normalization_rule_bytes != 0) {
    return BadInput("{}: SentencePiece normalization \"{}\" is not supported, only identity",
                    source, file.normalization);
  }
  if (file.denormalization_rule_bytes != 0) {
    return BadInput("{}: SentencePiece denormalization is not supported", source);
  }
  if (file.whitespace_as_suffix) {
    return BadInput("{}: SentencePiece's treat_whitespace_as_suffix is not supported", source);
  }
  return {};
}

// Whether a "▁" follows another character.
bool HasInnerMetaspace(std::string_view text) {
  for (size_t at = text.find(kMetaspace, 1); at != std::string_view::npos;
       at = text.find(kMetaspace, at + 1)) {
    if (!text.substr(0, at).ends_with(kMetaspace)) return true;
  }
  return false;
}

}  // namespace

Result<SentencePieceModel> SentencePieceModel::Create(SentencePieceFile file,
                                                      std::string_view source) {
  NIBBLE_RETURN_IF_ERROR(CheckSupported(file, source));
  SentencePieceModel model(std::move(file));
  model.cuts_at_metaspace_ = true;
  std::optional<TokenId> unknown;
  std::array<bool, 256> has_byte{};
  for (size_t i = 0; i < model.file_.pieces.size(); ++i) {
    const SentencePiece& piece = model.file_.pieces[i];
    const auto id = static_cast<TokenId>(i);
    if (piece.text.empty()) return BadInput("{}: piece {} is empty", source, id);
    if (!std::isfinite(piece.score)) {
      return BadInput("{}: piece {} (\"{}\") has no finite score", source, id, piece.text);
    }
    const bool ordinary = piece.type == PieceType::kNormal ||
                          piece.type == PieceType::kUserDefined || piece.type == PieceType::kUnused;
    if (!(ordinary ? model.ordinary_ : model.reserved_).emplace(piece.text, id).second) {
      return BadInput("{}: piece \"{}\" occurs twice", source, piece.text);
    }
    if (ordinary) {
      model.longest_ = std::max(model.longest_, piece.text.size());
      if (HasInnerMetaspace(piece.text)) model.cuts_at_metaspace_ = false;
    }
    if (piece.type == PieceType::kUserDefined) {
      if (piece.text.size() > kMaxAddedTokenBytes) {
        return BadInput("{}: user-defined piece {} has more than {} bytes", source, id,
                        kMaxAddedTokenBytes);
      }
      model.user_defined_.Add(piece.text, i);
    }
    if (piece.type == PieceType::kUnused) model.has_unused_ = true;
    if (piece.type == PieceType::kUnknown) {
      if (unknown)
        return BadInput("{}: two pieces of type unknown, {} and {}", source, *unknown, id);
      unknown = id;
    }
    if (piece.type == PieceType::kByte) {
      const std::optional<uint8_t> byte = ParseByteToken(piece.text);
      if (!byte) return BadInput("{}: byte piece {} is spelled \"{}\"", source, id, piece.text);
      has_byte[*byte] = true;
      model.byte_tokens_[*byte] = id;
    }
  }
  if (!unknown) return BadInput("{}: no piece of type unknown", source);
  model.unknown_ = *unknown;
  if (model.file_.byte_fallback) {
    const auto missing = std::find(has_byte.begin(), has_byte.end(), false);
    if (missing != has_byte.end()) {
      return BadInput("{}: byte_fallback without the piece {}", source,
                      ByteTokenText(static_cast<uint8_t>(missing - has_byte.begin())));
    }
  }
  // Unused pieces are cut up again by what was met anywhere in the text; and where "▁" itself is
  // unknown, runs of unknown characters join across it.
  if (model.has_unused_ || !model.FindOrdinary(kMetaspace)) model.cuts_at_metaspace_ = false;
  return model;
}

std::optional<TokenId> SentencePieceModel::FindOrdinary(std::string_view text) const {
  if (text.size() > longest_) return std::nullopt;
  const auto found = ordinary_.find(text);
  if (found == ordinary_.end()) return std::nullopt;
  return found->second;
}

std::optional<TokenId> SentencePieceModel::Find(std::string_view text) const {
  if (const auto found = reserved_.find(text); found != reserved_.end()) return found->second;
  return FindOrdinary(text);
}

std::optional<uint8_t> SentencePieceModel::Byte(TokenId token) const {
  const SentencePiece& piece = file_.pieces[static_cast<size_t>(token)];
  if (piece.type != PieceType::kByte) return std::nullopt;
  return ParseByteToken(piece.text);
}

// A user-defined piece, which stays whole, or one character.
std::string_view SentencePieceModel::NextUnit(std::string_view text) const {
  if (const auto match = user_defined_.Longest(text)) return text.substr(0, match->bytes);
  return text.substr(0, Utf8Length(text[0]));
}

std::string SentencePieceModel::Normalize(std::string_view text, DummyPrefix prefix) const {
  const std::string_view space = file_.escape_whitespaces ? kMetaspace : " ";
  const bool tidy = file_.remove_extra_whitespaces;
  if (tidy) {
    while (!text.empty() && NextUnit(text) == " ") text.remove_prefix(1);
  }
  if (text.empty()) return {};

  std::string normalized;
  if (file_.add_dummy_prefix && prefix == DummyPrefix::kAdd) normalized = space;
  if (!tidy) return normalized + (space == " " ? std::string(text) : ReplaceAll(text, " ", space));

  bool after_space = true;
  while (!text.empty()) {
    std::string_view unit = NextUnit(text);
    text.remove_prefix(unit.size());
    while (after_space && unit.starts_with(' ')) unit.remove_prefix(1);
    if (unit.empty()) continue;
    normalized += ReplaceAll(unit, " ", space);
    after_space = unit.ends_with(' ');
  }
  while (normalized.ends_with(space)) normalized.resize(normalized.size() - space.size());
  return normalized;
}

void SentencePieceModel::Encode(std::string_view text, DummyPrefix prefix,
                                std::vector<TokenId>& tokens) const {
  const std::string normalized = Normalize(text, prefix);
  if (!cuts_at_metaspace_) {
    EncodeChunk(normalized, tokens);
    return;
  }
  WordCache cache(tokens);
  CutAtMetaspace(normalized, [&](std::string_view chunk) {
    cache.Append(chunk,
                 [&](std::string_view word, std::vector<TokenId>& out) { EncodeChunk(word, out); });
  });
}

std::vector<SentencePieceModel::Symbol> SentencePieceModel::Split(std::string_view chunk) const {
  std::vector<Symbol> symbols;
  symbols.reserve(chunk.size());
  while (!chunk.empty()) {
    const bool user_defined = user_defined_.Longest(chunk).has_value();
    const std::string_view unit = NextUnit(chunk);
    chunk.remove_prefix(unit.size());
    const auto at = static_cast<int32_t>(symbols.size());
    symbols.push_back(
        {unit, at - 1, chunk.empty() ? -1 : at + 1, Find(unit).value_or(unknown_), user_defined});
  }
  return symbols;
}

void SentencePieceModel::EncodeChunk(std::string_view chunk, std::vector<TokenId>& tokens) const {
  struct Candidate {
    float score;
    int32_t left;
    int32_t right;
    size_t bytes;
    TokenId id;
    bool operator<(const Candidate& other) const {  // the best one last
      return score != other.score ? score < other.score : left > other.left;
    }
  };
  std::vector<Symbol> symbols = Split(chunk);
  if (symbols.empty()) return;
  const auto symbol = [&](int32_t at) -> Symbol& { return symbols[static_cast<size_t>(at)]; };
  std::priority_queue<Candidate> queue;
  // For unused pieces, the two symbols that each was last made of.
  std::unordered_map<std::string_view, std::pair<std::string_view, std::string_view>> made_of;
  const auto consider = [&](int32_t left, int32_t right) {
    if (left < 0 || right < 0 || symbol(left).user_defined || symbol(right).user_defined) return;
    const std::string_view joined(symbol(left).text.data(),
                                  symbol(left).text.size() + symbol(right).text.size());
    const std::optional<TokenId> id = FindOrdinary(joined);
    if (!id) return;
    const SentencePiece& piece = file_.pieces[static_cast<size_t>(*id)];
    queue.push({piece.score, left, right, joined.size(), *id});
    if (piece.type == PieceType::kUnused) {
      made_of[joined] = {symbol(left).text, symbol(right).text};
    }
  };

  for (size_t i = 1; i < symbols.size(); ++i) {
    consider(static_cast<int32_t>(i) - 1, static_cast<int32_t>(i));
  }
  while (!queue.empty()) {
    const Candidate best = queue.top();
    queue.pop();
    Symbol& left = symbol(best.left);
    Symbol& right = symbol(best.right);
    if (left.text.empty() || right.text.empty() ||
        left.text.size() + right.text.size() != best.bytes) {
      continue;  // one of them has changed since
    }
    left.text = std::string_view(left.text.data(), best.bytes);
    left.id = best.id;
    left.next = right.next;
    if (right.next >= 0) symbol(right.next).previous = best.left;
    right.text = {};
    consider(left.previous, best.left);
    consider(best.left, left.next);
  }

  bool after_unknown = false;
  std::vector<std::pair<std::string_view, TokenId>> stack;
  for (int32_t at = 0; at >= 0; at = symbol(at).next) {
    stack.push_back({symbol(at).text, symbol(at).id});
    while (!stack.empty()) {
      const auto [text, id] = stack.back();
      stack.pop_back();
      if (has_unused_ && file_.pieces[static_cast<size_t>(id)].type == PieceType::kUnused) {
        if (const auto parts = made_of.find(text); parts != made_of.end()) {
          const auto& [left, right] = parts->second;
          stack.push_back({right, Find(right).value_or(unknown_)});
          stack.push_back({left, Find(left).value_or(unknown_)});
          continue;
        }
      }
      const bool is_unknown = id == unknown_;
      if (is_unknown && file_.byte_fallback) {
        for (const char c : text) tokens.push_back(byte_tokens_[static_cast<unsigned char>(c)]);
      } else if (!is_unknown || !after_unknown) {
        tokens.push_back(id);  // a run of unknown pieces is one token
      }
      after_unknown = is_unknown;
    }
  }
}

}  // namespace nibble

#include "src/tokenizer/bpe.h"

#include <algorithm>
#include <queue>

#include "src/tokenizer/utf8.h"

namespace nibble {
namespace {

uint64_t Pair(TokenId left, TokenId right) {
  return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
}

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return -1;
}

}  // namespace

std::string ByteTokenText(uint8_t byte) { return fmt::format("<0x{:02X}>", byte); }

std::optional<uint8_t> ParseByteToken(std::string_view text) {
  if (text.size() != 6 || !text.starts_with("<0x") || text[5] != '>') return std::nullopt;
  const int high = HexDigit(text[3]);
  const int low = HexDigit(text[4]);
  if (high < 0 || low < 0) return std::nullopt;
  return static_cast<uint8_t>(high * 16 + low);
}

Result<BpeModel> BpeModel::Create(Settings settings, std::string_view source) {
  BpeModel model(std::move(settings));
  const auto& merges = model.settings_.merges;
  model.merges_.reserve(merges.size());
  model.cuts_at_metaspace_ = !model.settings_.ignore_merges && model.Find(kMetaspace).has_value();
  std::string joined;
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const auto& [left, right] = merges[rank];
    joined.assign(left).append(right);
    const std::optional<TokenId> left_id = model.Find(left);
    const std::optional<TokenId> right_id = model.Find(right);
    const std::optional<TokenId> result = model.Find(joined);
    if (!left_id || !right_id || !result) {
      return BadInput("{}: merge {} makes \"{}\" of \"{}\" and \"{}\": \"{}\" is not a token",
                      source, rank, joined, left, right,
                      !left_id    ? left
                      : !right_id ? right
                                  : joined);
    }
    // Of a pair that is listed twice the later rank counts.
    model.merges_[Pair(*left_id, *right_id)] = {static_cast<uint32_t>(rank), *result};
    if (right.starts_with(kMetaspace) && !left.ends_with(kMetaspace)) {
      model.cuts_at_metaspace_ = false;
    }
  }
  // Their text is not needed any more.
  model.settings_.merges = {};

  if (model.settings_.unknown) model.unknown_ = model.Find(*model.settings_.unknown);
  for (int byte = 0; byte < 256; ++byte) {
    const auto index = static_cast<size_t>(byte);
    model.byte_tokens_[index] = model.Find(ByteTokenText(static_cast<uint8_t>(byte)));
  }
  model.has_all_bytes_ = std::all_of(model.byte_tokens_.begin(), model.byte_tokens_.end(),
                                     [](const auto& id) { return id.has_value(); });
  return model;
}

std::optional<TokenId> BpeModel::Find(std::string_view text) const {
  const auto found = settings_.vocabulary.find(text);
  if (found == settings_.vocabulary.end()) return std::nullopt;
  return found->second;
}

const BpeModel::Merge* BpeModel::FindMerge(TokenId left, TokenId right) const {
  const auto found = merges_.find(Pair(left, right));
  return found == merges_.end() ? nullptr : &found->second;
}

void BpeModel::Encode(std::string_view piece, std::vector<TokenId>& tokens) const {
  if (settings_.ignore_merges) {
    if (const std::optional<TokenId> whole = Find(piece)) {
      tokens.push_back(*whole);
      return;
    }
  }
  std::vector<Symbol> symbols = Characters(piece);
  if (symbols.empty()) return;
  MergeAll(symbols);
  for (int32_t at = 0; at >= 0; at = symbols[static_cast<size_t>(at)].next) {
    tokens.push_back(symbols[static_cast<size_t>(at)].id);
  }
}

std::vector<BpeModel::Symbol> BpeModel::Characters(std::string_view piece) const {
  std::vector<Symbol> symbols;
  symbols.reserve(piece.size());
  const auto add = [&](TokenId id) {
    const auto at = static_cast<int32_t>(symbols.size());
    symbols.push_back({id, at - 1, at + 1});
  };
  // An unknown token waits, in case more of them fuse with it. As in the reference it waits while
  // bytes are added, too, and comes after them.
  bool unknown_waits = false;
  while (!piece.empty()) {
    const std::string_view character = piece.substr(0, Utf8Length(piece[0]));
    piece.remove_prefix(character.size());
    if (const std::optional<TokenId> id = Find(character)) {
      if (unknown_waits) add(*unknown_);
      unknown_waits = false;
      add(*id);
      continue;
    }
    const auto byte_token = [&](char c) { return byte_tokens_[static_cast<unsigned char>(c)]; };
    if (settings_.byte_fallback && std::all_of(character.begin(), character.end(), byte_token)) {
      for (const char c : character) add(*byte_token(c));
      continue;
    }
    if (!unknown_) continue;
    if (unknown_waits && !settings_.fuse_unknown) add(*unknown_);
    unknown_waits = true;
  }
  if (unknown_waits) add(*unknown_);
  if (!symbols.empty()) symbols.back().next = -1;
  return symbols;
}

void BpeModel::MergeAll(std::vector<Symbol>& symbols) const {
  struct Candidate {
    uint32_t rank;
    int32_t left;
    TokenId result;
    bool operator<(const Candidate& other) const {  // the best one last
      return rank != other.rank ? rank > other.rank : left > other.left;
    }
  };
  std::vector<Candidate> storage;
  storage.reserve(symbols.size());
  for (size_t i = 0; i + 1 < symbols.size(); ++i) {
    if (const Merge* merge = FindMerge(symbols[i].id, symbols[i + 1].id)) {
      storage.push_back({merge->rank, static_cast<int32_t>(i), merge->result});
    }
  }
  std::priority_queue<Candidate> queue(std::less<Candidate>(), std::move(storage));

  constexpr TokenId kMerged = -1;  // into the symbol before
  const auto symbol = [&](int32_t at) -> Symbol& { return symbols[static_cast<size_t>(at)]; };
  const auto consider = [&](int32_t left, int32_t right) {
    if (const Merge* merge = FindMerge(symbol(left).id, symbol(right).id)) {
      queue.push({merge->rank, left, merge->result});
    }
  };
  while (!queue.empty()) {
    const Candidate best = queue.top();
    queue.pop();
    Symbol& left = symbol(best.left);
    if (left.id == kMerged || left.next < 0) continue;
    Symbol& right = symbol(left.next);
    // Where the symbols have changed since, the candidate is stale; as in the reference it still
    // stands if what is there now happens to merge into the same token.
    const Merge* merge = FindMerge(left.id, right.id);
    if (merge == nullptr || merge->result != best.result) continue;

    left.id = best.result;
    left.next = right.next;
    right.id = kMerged;
    if (left.next >= 0) symbol(left.next).previous = best.left;
    if (left.previous >= 0) consider(left.previous, best.left);
    if (left.next >= 0) consider(best.left, left.next);
  }
}

}  // namespace nibble

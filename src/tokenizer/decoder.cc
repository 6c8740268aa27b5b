#include "src/tokenizer/decoder.h"

#include "src/tokenizer/bpe.h"
#include "src/tokenizer/byte_level.h"
#include "src/tokenizer/utf8.h"

namespace nibble {
namespace {

enum class AtEnd { kNo, kYes };
// What one U+FFFD stands for.
enum class Replace { kMaximalSubpart, kByte };

// Takes from the front of `bytes` what is settled, malformed parts replaced; an incomplete
// character stays unless the text ends.
std::string TakeSettled(std::string& bytes, Replace replace, AtEnd at_end) {
  std::string text;
  std::string_view rest = bytes;
  while (!rest.empty()) {
    const Utf8Step step = NextUtf8(rest);
    if (step.kind == Utf8Kind::kCharacter) {
      text.append(rest.substr(0, step.bytes));
      rest.remove_prefix(step.bytes);
      continue;
    }
    if (step.kind == Utf8Kind::kIncomplete && at_end == AtEnd::kNo) break;
    text.append(kReplacementCharacter);
    rest.remove_prefix(replace == Replace::kByte ? 1 : step.bytes);
  }
  bytes.erase(0, bytes.size() - rest.size());
  return text;
}

// Takes all of a run of byte tokens that has ended.
std::string TakeRun(std::string& bytes) {
  std::string text;
  if (IsValidUtf8(bytes)) {
    text = bytes;
  } else {
    for (size_t i = 0; i < bytes.size(); ++i) text.append(kReplacementCharacter);
  }
  bytes.clear();
  return text;
}

std::string ByteLevelBytes(std::string_view token) {
  return PrintableToBytes(token).value_or(std::string(token));
}

std::string Replaced(const TextDecoding& how, std::string_view token) {
  std::string text(token);
  for (const ReplaceStep& step : how.replace) text = ReplaceAll(text, step.from, step.to);
  return text;
}

}  // namespace

std::string DecodingState::Push(const DecodedToken& token) {
  return std::visit([&](const auto& how) { return Push(how, token); }, *decoding_);
}

std::string DecodingState::Push(const ByteLevelDecoding&, const DecodedToken& token) {
  bytes_ += ByteLevelBytes(token.text);
  return TakeSettled(bytes_, Replace::kMaximalSubpart, AtEnd::kNo);
}

std::string DecodingState::Push(const TextDecoding& how, const DecodedToken& token) {
  const bool first = first_;
  first_ = false;
  std::string text = Replaced(how, token.text);
  if (how.metaspace) {
    const bool drops = first && how.metaspace->prepend != PrependScheme::kNever;
    text = ReplaceAll(text, how.metaspace->replacement, drops ? "" : " ");
  }
  if (how.byte_fallback) {
    if (const std::optional<uint8_t> byte = ParseByteToken(text)) {
      bytes_.push_back(static_cast<char>(*byte));
      return {};
    }
    text.insert(0, TakeRun(bytes_));
  }
  if (!first) text.insert(0, how.separator);
  return Strip(how, std::move(text));
}

std::string DecodingState::Strip(const TextDecoding& how, std::string text) {
  if (how.strip_count == 0 || strip_done_) return text;
  size_t at = 0;
  while (stripped_ < how.strip_count && std::string_view(text).substr(at).starts_with(how.strip)) {
    at += how.strip.size();
    ++stripped_;
  }
  strip_done_ = stripped_ == how.strip_count || at < text.size();
  return text.substr(at);
}

std::string DecodingState::Push(const SentencePieceDecoding& how, const DecodedToken& token) {
  if (token.kind == TokenKind::kByte) {
    bytes_.push_back(static_cast<char>(*ParseByteToken(token.text)));
    std::string text = TakeSettled(bytes_, Replace::kByte, AtEnd::kNo);
    started_ |= !text.empty();
    return text;
  }
  std::string text = TakeSettled(bytes_, Replace::kByte, AtEnd::kYes);
  started_ |= !text.empty();
  // Whether a leading space may still be the dummy prefix.
  const bool at_start = !prefix_space_seen_ && !started_;
  std::string_view piece = token.text;
  if (token.kind == TokenKind::kUnknown) {
    text += how.unknown_surface;
  } else if (token.kind == TokenKind::kControl) {
    text += piece;
  } else {
    if (at_start && how.strips_leading_space && piece.starts_with(kMetaspace)) {
      piece.remove_prefix(kMetaspace.size());
      prefix_space_seen_ = !how.strips_every_leading_space;
    }
    text += ReplaceAll(piece, kMetaspace, " ");
  }
  started_ |= !text.empty();
  return text;
}

std::string DecodingState::Finish() {
  std::string text;
  if (const auto* how = std::get_if<TextDecoding>(decoding_)) {
    text = Strip(*how, TakeRun(bytes_));
  } else {
    const bool byte_level = std::holds_alternative<ByteLevelDecoding>(*decoding_);
    text = TakeSettled(bytes_, byte_level ? Replace::kMaximalSubpart : Replace::kByte, AtEnd::kYes);
  }
  *this = DecodingState(*decoding_);
  return text;
}

std::string MiddleBytes(const Decoding& decoding, const DecodedToken& token) {
  if (std::holds_alternative<ByteLevelDecoding>(decoding)) return ByteLevelBytes(token.text);
  const auto* how = std::get_if<TextDecoding>(&decoding);
  const bool may_be_byte = how != nullptr ? how->byte_fallback : token.kind == TokenKind::kByte;
  if (may_be_byte) {
    if (const std::optional<uint8_t> byte = ParseByteToken(token.text)) {
      return std::string(1, static_cast<char>(*byte));
    }
  }
  if (how == nullptr) return ReplaceAll(token.text, kMetaspace, " ");
  std::string text = Replaced(*how, token.text);
  if (how->metaspace) text = ReplaceAll(text, how->metaspace->replacement, " ");
  return text;
}

}  // namespace nibble

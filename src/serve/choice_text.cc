#include "src/serve/choice_text.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace nibble {
namespace {

int64_t Characters(std::string_view utf8) {
  return std::count_if(utf8.begin(), utf8.end(),
                       [](char byte) { return (static_cast<unsigned char>(byte) & 0xC0) != 0x80; });
}

}  // namespace

std::string DisplayBytes(const Tokenizer& tokenizer, TokenId token) {
  return tokenizer.IsSpecial(token) ? std::string(tokenizer.TokenText(token))
                                    : tokenizer.TokenBytes(token);
}

ChoiceText::ChoiceText(const Tokenizer& tokenizer, std::vector<std::string> stops, EchoPrompt echo)
    : stops_(std::move(stops)), echo_(echo), decoder_(tokenizer) {}

void ChoiceText::PushPrompt(TokenId token) {
  // What the decoder knows of the prompt decides on the space before the first new word.
  const std::string text = decoder_.Push(token);
  if (echo_ == EchoPrompt::kNo) return;
  text_ += text;
  new_begin_ = text_.size();
}

ChoiceText::Progress ChoiceText::Push(TokenId token) {
  ++generated_;
  return Append(decoder_.Push(token));
}

void ChoiceText::Score(ScoredToken score) {
  score.text_offset = taken_characters_ + Characters(text_);
  scores_.push_back(std::move(score));
}

ChoiceText::Progress ChoiceText::Finish() {
  const Progress progress = Append(decoder_.Finish());
  ended_ = true;
  return progress;
}

ChoiceText::Progress ChoiceText::Append(std::string_view text) {
  text_ += text;
  size_t at = std::string::npos;
  for (const std::string& stop : stops_) at = std::min(at, text_.find(stop, new_begin_));
  if (at == std::string::npos) return Progress::kGoesOn;
  text_.resize(at);
  const int64_t characters = taken_characters_ + Characters(text_);
  std::erase_if(scores_, [&](const ScoredToken& score) { return score.text_offset >= characters; });
  ended_ = true;
  return Progress::kStopped;
}

size_t ChoiceText::HeldBack() const {
  if (ended_) return 0;
  const std::string_view fresh = std::string_view(text_).substr(new_begin_);
  size_t held = 0;
  for (const std::string& stop : stops_) {
    for (size_t length = std::min(stop.size() - 1, fresh.size()); length > held; --length) {
      if (fresh.ends_with(std::string_view(stop).substr(0, length))) held = length;
    }
  }
  return held;
}

ChoicePart ChoiceText::Take() {
  ChoicePart part;
  const size_t length = text_.size() - HeldBack();
  part.text = text_.substr(0, length);
  text_.erase(0, length);
  new_begin_ -= std::min(new_begin_, length);
  taken_characters_ += Characters(part.text);
  const auto kept = std::find_if(scores_.begin(), scores_.end(), [&](const ScoredToken& score) {
    return !ended_ && score.text_offset >= taken_characters_;
  });
  part.tokens.assign(std::make_move_iterator(scores_.begin()), std::make_move_iterator(kept));
  scores_.erase(scores_.begin(), kept);
  part.generated = std::exchange(generated_, 0);
  return part;
}

}  // namespace nibble

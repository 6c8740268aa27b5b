#include "src/quantize/calibration.h"

#include <algorithm>
#include <numeric>

#include "src/base/file.h"
#include "src/base/json.h"
#include "src/base/random.h"

namespace nibble {
namespace {

// The documents of a JSON-lines file; chats rendered.
Result<std::vector<std::vector<int32_t>>> ParseLines(const std::string& path,
                                                     std::string_view content,
                                                     const Tokenizer& tokenizer,
                                                     const Result<ChatTemplate>& chat_template) {
  ChatTemplateOptions chat{.add_generation_prompt = false};
  if (tokenizer.bos()) chat.bos_token = std::string(tokenizer.TokenText(*tokenizer.bos()));
  if (tokenizer.eos()) chat.eos_token = std::string(tokenizer.TokenText(*tokenizer.eos()));
  std::vector<std::vector<int32_t>> documents;
  int64_t number = 0;
  while (!content.empty()) {
    const size_t end = std::min(content.find('\n'), content.size());
    const std::string_view line = content.substr(0, end);
    content.remove_prefix(std::min(end + 1, content.size()));
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const std::string where = fmt::format("{}: line {}", path, number);
    NIBBLE_ASSIGN_OR_RETURN(const Json record, ParseJson(line, where));
    if (record.is_object() && record.contains("text") && record["text"].is_string()) {
      documents.push_back(tokenizer.Encode(record["text"].get<std::string>(), SpecialTokens::kAdd,
                                           ParseSpecial::kNo));
      continue;
    }
    if (!record.is_object() || !record.contains("messages") || !record["messages"].is_array()) {
      return BadInput("{}: want an object with \"text\" or \"messages\"", where);
    }
    std::vector<ChatMessage> messages;
    for (const Json& message : record["messages"]) {
      if (!message.is_object() || !message.contains("role") || !message["role"].is_string() ||
          !message.contains("content") || !message["content"].is_string()) {
        return BadInput("{}: want each message as {{\"role\": …, \"content\": …}}", where);
      }
      messages.push_back(
          {message["role"].get<std::string>(), message["content"].get<std::string>()});
    }
    if (!chat_template) return tl::unexpected<Error>(chat_template.error().In(where));
    const Result<std::string> text = chat_template->Render(messages, chat);
    if (!text) return tl::unexpected<Error>(text.error().In(where));
    // The template writes the special tokens itself.
    documents.push_back(tokenizer.Encode(*text, SpecialTokens::kOmit));
  }
  return documents;
}

}  // namespace

CalibrationSet CalibrationSet::First(int64_t count) const {
  CalibrationSet first = *this;
  first.samples = std::min(count, samples);
  first.tokens.resize(static_cast<size_t>(first.token_count()));
  return first;
}

Result<CalibrationSet> MakeCalibrationSet(std::span<const std::vector<int32_t>> documents,
                                          const CalibrationOptions& options, int64_t max_context) {
  CalibrationSet set;
  set.source = LastPart(options.path);
  set.sequence_length = options.sequence_length;
  if (set.sequence_length > max_context) {
    set.sequence_length = max_context;
    set.notes.push_back(
        fmt::format("calibration sequences of {} tokens instead of {}: the model's "
                    "context is no longer",
                    max_context, options.sequence_length));
  }
  std::vector<int32_t> tokens;
  for (const auto& document : documents) {
    tokens.insert(tokens.end(), document.begin(), document.end());
  }
  const int64_t windows = static_cast<int64_t>(tokens.size()) / set.sequence_length;
  if (windows == 0) {
    return BadInput("{}: {} tokens, too few for one calibration sequence of {}", options.path,
                    tokens.size(), set.sequence_length);
  }
  set.samples = std::min(windows, options.samples);
  if (set.samples < options.samples) {
    set.notes.push_back(
        fmt::format("{} calibration sequences instead of {}: the text holds no more", set.samples,
                    options.samples));
  }
  std::vector<int64_t> order(static_cast<size_t>(windows));
  std::iota(order.begin(), order.end(), 0);
  Random random(options.seed);
  for (int64_t i = 0; i < set.samples; ++i) {
    const auto other = i + static_cast<int64_t>(random.Below(static_cast<uint64_t>(windows - i)));
    std::swap(order[static_cast<size_t>(i)], order[static_cast<size_t>(other)]);
    const auto first = tokens.begin() + order[static_cast<size_t>(i)] * set.sequence_length;
    set.tokens.insert(set.tokens.end(), first, first + set.sequence_length);
  }
  return set;
}

Result<CalibrationSet> LoadCalibrationSet(const CalibrationOptions& options,
                                          const Tokenizer& tokenizer,
                                          const Result<ChatTemplate>& chat_template,
                                          int64_t max_context) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string content, ReadFile(options.path));
  std::vector<std::vector<int32_t>> documents;
  if (options.path.ends_with(".jsonl")) {
    NIBBLE_ASSIGN_OR_RETURN(documents, ParseLines(options.path, content, tokenizer, chat_template));
  } else {
    documents.push_back(tokenizer.Encode(content, SpecialTokens::kAdd, ParseSpecial::kNo));
  }
  return MakeCalibrationSet(documents, options, max_context);
}

}  // namespace nibble

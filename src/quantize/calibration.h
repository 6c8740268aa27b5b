// The texts that a quantizer learns from, as token sequences of one length.
#ifndef NIBBLE_QUANTIZE_CALIBRATION_H_
#define NIBBLE_QUANTIZE_CALIBRATION_H_

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "src/base/error.h"
#include "src/tokenizer/chat_template.h"
#include "src/tokenizer/tokenizer.h"

namespace nibble {

struct CalibrationOptions {
  std::string path;  // text, or JSON lines: {"text": …} or {"messages": [{"role", "content"}, …]}
  int64_t samples = 128;
  int64_t sequence_length = 2048;
  uint64_t seed = 0;
  std::string chat_template;  // as for ChooseChatTemplate
};

struct CalibrationSet {
  int64_t samples = 0;
  int64_t sequence_length = 0;
  std::vector<int32_t> tokens;     // [samples][sequence_length]
  std::string source;              // for the record: the file's name
  std::vector<std::string> notes;  // for people: where it differs from what was asked for

  int64_t token_count() const { return samples * sequence_length; }
  std::span<const int32_t> Sample(int64_t i) const {
    return std::span(tokens).subspan(static_cast<size_t>(i * sequence_length),
                                     static_cast<size_t>(sequence_length));
  }
  // Its first samples, as many or all.
  CalibrationSet First(int64_t count) const;
};

// Cuts the documents, one after the other, each with the tokens that the tokenizer puts around a
// text, into windows of the sequence length, and draws as many as asked for, without repetition.
// Lengths above `max_context` are cut to it, and where the text is too short for all samples there
// are fewer; both are noted. kBadInput where it is too short for one.
Result<CalibrationSet> MakeCalibrationSet(std::span<const std::vector<int32_t>> documents,
                                          const CalibrationOptions& options, int64_t max_context);

// Reads and encodes options.path. Chats are rendered by `chat_template`; where the file holds none,
// it does not matter that there is an error instead.
Result<CalibrationSet> LoadCalibrationSet(const CalibrationOptions& options,
                                          const Tokenizer& tokenizer,
                                          const Result<ChatTemplate>& chat_template,
                                          int64_t max_context);

}  // namespace nibble

#endif  // NIBBLE_QUANTIZE_CALIBRATION_H_

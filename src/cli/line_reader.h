// Lines that a person types: with editing and a history (libedit) where standard input and output
// are a terminal, plain otherwise.
#ifndef NIBBLE_CLI_LINE_READER_H_
#define NIBBLE_CLI_LINE_READER_H_

#include <memory>
#include <string>

#include "src/cli/interrupts.h"

namespace nibble {

class LineReader {
 public:
  // `prompt` is shown before each line on a terminal. Borrows `interrupts`.
  LineReader(std::string prompt, Interrupts& interrupts);
  ~LineReader();
  LineReader(const LineReader&) = delete;
  LineReader& operator=(const LineReader&) = delete;

  // kInterrupted: an interrupt came while a line was awaited; what was typed is gone.
  enum class Outcome { kLine, kInterrupted, kEnd };
  Outcome Read(std::string& line);  // without its end

  bool on_terminal() const { return editor_ != nullptr; }

 private:
  struct Editor;
  Interrupts& interrupts_;
  std::unique_ptr<Editor> editor_;  // null where there is no terminal
};

}  // namespace nibble

#endif  // NIBBLE_CLI_LINE_READER_H_

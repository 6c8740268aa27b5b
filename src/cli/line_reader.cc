#include "src/cli/line_reader.h"

#include <histedit.h>
#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <clocale>
#include <cstdio>
#include <cwchar>
#include <utility>

namespace nibble {
namespace {

constexpr int kHistoryLines = 1000;

// Waits for standard input; false, with errno EINTR, where an interrupt comes first.
bool AwaitInput(const Interrupts& interrupts) {
  pollfd awaited[] = {{STDIN_FILENO, POLLIN, 0}, {interrupts.descriptor(), POLLIN, 0}};
  while (!interrupts.any()) {
    const int ready = poll(awaited, 2, -1);
    if (ready > 0 && awaited[0].revents != 0) return true;
    if (ready < 0 && errno != EINTR) return true;  // read will tell
  }
  errno = EINTR;
  return false;
}

}  // namespace

struct LineReader::Editor {
  Editor(std::string shown, const Interrupts& noted)
      : prompt(std::move(shown)), interrupts(noted) {}
  ~Editor() {
    if (history != nullptr) history_end(history);
    if (editor != nullptr) el_end(editor);
  }
  static Editor& Of(EditLine* editor) {
    void* self = nullptr;
    el_get(editor, EL_CLIENTDATA, &self);
    return *static_cast<Editor*>(self);
  }
  static char* Prompt(EditLine* editor) { return Of(editor).prompt.data(); }
  // One character of standard input; libedit's own reader starts again after a signal.
  static int ReadCharacter(EditLine* editor, wchar_t* character) {
    std::mbstate_t state{};
    while (true) {
      if (!AwaitInput(Of(editor).interrupts)) return -1;
      char byte = 0;
      const ssize_t count = read(STDIN_FILENO, &byte, 1);
      if (count <= 0) return static_cast<int>(count);
      const size_t used = std::mbrtowc(character, &byte, 1, &state);
      if (used == static_cast<size_t>(-2)) continue;
      if (used == static_cast<size_t>(-1)) *character = L'\ufffd';
      return 1;
    }
  }

  std::string prompt;
  const Interrupts& interrupts;
  EditLine* editor = nullptr;
  History* history = nullptr;
  HistEvent event{};
};

LineReader::LineReader(std::string prompt, Interrupts& interrupts) : interrupts_(interrupts) {
  if (isatty(STDIN_FILENO) == 0 || isatty(STDOUT_FILENO) == 0) return;
  std::setlocale(LC_CTYPE, "");  // what bytes are one character
  auto editor = std::make_unique<Editor>(std::move(prompt), interrupts);
  editor->editor = el_init("nibble", stdin, stdout, stderr);
  editor->history = history_init();
  if (editor->editor == nullptr || editor->history == nullptr) return;
  el_set(editor->editor, EL_CLIENTDATA, editor.get());
  el_set(editor->editor, EL_PROMPT, &Editor::Prompt);
  el_set(editor->editor, EL_EDITOR, "emacs");
  el_set(editor->editor, EL_GETCFN, &Editor::ReadCharacter);
  // Ctrl-C would throw away what was written and not yet shown, a prompt for example.
  for (const char* mode : {"-d", "-x"}) {  // while a line is edited, and else
    el_set(editor->editor, EL_SETTY, mode, "+noflsh", nullptr);
  }
  history(editor->history, &editor->event, H_SETSIZE, kHistoryLines);
  el_set(editor->editor, EL_HIST, history, editor->history);
  editor_ = std::move(editor);
}

LineReader::~LineReader() = default;

LineReader::Outcome LineReader::Read(std::string& line) {
  line.clear();
  interrupts_.Clear();
  if (editor_ == nullptr) {
    for (int c; (c = std::getchar()) != '\n';) {
      if (c == EOF) {
        const bool interrupted = std::ferror(stdin) != 0 && errno == EINTR;
        std::clearerr(stdin);
        if (interrupted) return Outcome::kInterrupted;
        return line.empty() ? Outcome::kEnd : Outcome::kLine;
      }
      line += static_cast<char>(c);
    }
    return Outcome::kLine;
  }
  int count = 0;
  errno = 0;
  const char* const typed = el_gets(editor_->editor, &count);
  if (typed == nullptr || count <= 0) {
    return count < 0 && errno == EINTR ? Outcome::kInterrupted : Outcome::kEnd;
  }
  line.assign(typed, static_cast<size_t>(count));
  while (line.ends_with('\n') || line.ends_with('\r')) line.pop_back();
  if (!line.empty()) history(editor_->history, &editor_->event, H_ENTER, line.c_str());
  return Outcome::kLine;
}

}  // namespace nibble

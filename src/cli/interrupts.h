// Ctrl-C as the wish to stop what is under way and not the program.
#ifndef NIBBLE_CLI_INTERRUPTS_H_
#define NIBBLE_CLI_INTERRUPTS_H_

#include <csignal>

namespace nibble {

// While it lives (one at a time), SIGINT is noted here, whichever thread gets it, and SIGTERM ends
// the process.
class Interrupts {
 public:
  Interrupts();
  ~Interrupts();
  Interrupts(const Interrupts&) = delete;
  Interrupts& operator=(const Interrupts&) = delete;

  bool any() const;  // since the last Clear
  void Clear();
  // Readable while there is one, so that a wait for input can wait for this too.
  int descriptor() const { return descriptor_; }

 private:
  int descriptor_;
  struct sigaction interrupt_ {};
  struct sigaction terminate_ {};
};

}  // namespace nibble

#endif  // NIBBLE_CLI_INTERRUPTS_H_

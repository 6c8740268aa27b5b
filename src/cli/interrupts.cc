#include "src/cli/interrupts.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>

namespace nibble {
namespace {

// The signal handler reaches nothing else.
volatile std::sig_atomic_t g_interrupted = 0;
volatile std::sig_atomic_t g_descriptor = -1;

void OnInterrupt(int) {
  const int error = errno;
  g_interrupted = 1;
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = write(g_descriptor, &one, sizeof(one));
  errno = error;
}

}  // namespace

Interrupts::Interrupts() : descriptor_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {
  g_descriptor = descriptor_;
  g_interrupted = 0;
  struct sigaction action {};
  action.sa_handler = OnInterrupt;
  sigaction(SIGINT, &action, &interrupt_);
  action.sa_handler = SIG_DFL;
  sigaction(SIGTERM, &action, &terminate_);
}

Interrupts::~Interrupts() {
  sigaction(SIGINT, &interrupt_, nullptr);
  sigaction(SIGTERM, &terminate_, nullptr);
  g_descriptor = -1;
  if (descriptor_ >= 0) close(descriptor_);
}

bool Interrupts::any() const { return g_interrupted != 0; }

void Interrupts::Clear() {
  uint64_t count = 0;
  [[maybe_unused]] const ssize_t taken = read(descriptor_, &count, sizeof(count));
  g_interrupted = 0;
}

}  // namespace nibble

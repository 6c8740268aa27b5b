// A file descriptor that is closed with its owner.
#ifndef NIBBLE_BASE_DESCRIPTOR_H_
#define NIBBLE_BASE_DESCRIPTOR_H_

#include <unistd.h>

#include <utility>

namespace nibble {

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}  // negative: none
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  int get() const { return fd_; }

 private:
  int fd_;
};

}  // namespace nibble

#endif  // NIBBLE_BASE_DESCRIPTOR_H_

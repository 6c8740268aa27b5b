// A 64-bit fingerprint (FNV-1a, http://www.isthe.com/chongo/tech/comp/fnv/) that tells whether a
// stage's inputs changed. Not for security.
#ifndef NIBBLE_BASE_FINGERPRINT_H_
#define NIBBLE_BASE_FINGERPRINT_H_

#include <cstdint>
#include <string>
#include <string_view>

namespace nibble {

class Fingerprint {
 public:
  Fingerprint& Add(std::string_view bytes) {
    for (const char c : bytes) Mix(static_cast<uint8_t>(c));
    // The length separates "ab","c" from "a","bc".
    for (int shift = 0; shift < 64; shift += 8) Mix(static_cast<uint8_t>(bytes.size() >> shift));
    return *this;
  }
  uint64_t value() const { return hash_; }
  std::string Hex() const;  // 16 digits

 private:
  void Mix(uint8_t byte) { hash_ = (hash_ ^ byte) * 0x100000001b3u; }
  uint64_t hash_ = 0xcbf29ce484222325u;
};

}  // namespace nibble

#endif  // NIBBLE_BASE_FINGERPRINT_H_

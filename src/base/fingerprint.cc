#include "src/base/fingerprint.h"

#include <fmt/format.h>

namespace nibble {

std::string Fingerprint::Hex() const { return fmt::format("{:016x}", hash_); }

}  // namespace nibble

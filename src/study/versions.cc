#include "src/study/versions.h"

#include <string_view>

namespace nibble {

Json Versions() {
  constexpr std::string_view commit = NIBBLE_COMMIT, cuda = NIBBLE_CUDA_VERSION;
  Json versions = {{"nibble", NIBBLE_VERSION},
                   {"commit", commit.empty() ? Json() : Json(commit)},
#ifdef __clang__
                   {"compiler", __VERSION__},
#else
                   {"compiler", "g++ " __VERSION__},
#endif
                   {"build", NIBBLE_BUILD_TYPE},
                   {"cuda", cuda.empty() ? Json() : Json(cuda)}};
  return versions;
}

}  // namespace nibble

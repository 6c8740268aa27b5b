#include "src/study/versions.h"

#include <string_view>

namespace nibble {

Json Versions() {
  constexpr std::string_view commit = NIBBLE_COMMIT;
  Json versions = {{"nibble", NIBBLE_VERSION},
                   {"commit", commit.empty() ? Json() : Json(commit)},
#ifdef __clang__
                   {"compiler", __VERSION__},
#else
                   {"compiler", "g++ " __VERSION__},
#endif
                   {"build", NIBBLE_BUILD_TYPE},
#ifdef NIBBLE_WITH_CUDA
                   {"cuda", NIBBLE_CUDA_VERSION}};
#else
                   {"cuda", nullptr}};
#endif
  return versions;
}

}  // namespace nibble

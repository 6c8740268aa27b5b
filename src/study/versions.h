// What this program was built from.
#ifndef NIBBLE_STUDY_VERSIONS_H_
#define NIBBLE_STUDY_VERSIONS_H_

#include "src/base/json.h"

namespace nibble {

// {"nibble", "commit" (null outside a git checkout), "compiler", "build", "cuda" (null without)}
Json Versions();

}  // namespace nibble

#endif  // NIBBLE_STUDY_VERSIONS_H_

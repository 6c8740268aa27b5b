#include "src/base/open_files.h"

#include <sys/resource.h>

#include <algorithm>

namespace nibble {

void AllowConnections(int64_t connections) {
  constexpr int64_t kOthers = 256;  // the model's files, logs, timers
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  const auto wanted = static_cast<rlim_t>(connections + kOthers);
  if (limit.rlim_cur >= wanted) return;
  limit.rlim_cur = std::min(wanted, limit.rlim_max);
  setrlimit(RLIMIT_NOFILE, &limit);
}

}  // namespace nibble

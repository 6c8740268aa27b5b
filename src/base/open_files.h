// The number of files and connections that this process may have open.
#ifndef NIBBLE_BASE_OPEN_FILES_H_
#define NIBBLE_BASE_OPEN_FILES_H_

#include <cstdint>

namespace nibble {

// Raises the limit to what `connections` need beside the process's other files, as far as the
// system allows.
void AllowConnections(int64_t connections);

}  // namespace nibble

#endif  // NIBBLE_BASE_OPEN_FILES_H_

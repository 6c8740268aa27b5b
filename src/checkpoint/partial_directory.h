// A directory under construction: DIR.partial-<pid>, which becomes DIR when it is complete.
//
// It is locked (flock) for as long as it is written. What a killed process left is known by two
// signs: no process of its number lives, and nobody holds the lock. The second matters where two
// containers write to one volume, for their process numbers say nothing to each other.
#ifndef NIBBLE_CHECKPOINT_PARTIAL_DIRECTORY_H_
#define NIBBLE_CHECKPOINT_PARTIAL_DIRECTORY_H_

#include <string>

#include "src/base/error.h"

namespace nibble {

// Removes the partial directories beside `directory` that killed processes left, and logs each.
void RemoveAbandonedPartials(const std::string& directory);

class PartialDirectory {
 public:
  PartialDirectory() = default;
  // Makes and locks `directory`.partial-<pid>; the parent must exist.
  static Result<PartialDirectory> Create(const std::string& directory);
  PartialDirectory(PartialDirectory&& other) noexcept;
  PartialDirectory& operator=(PartialDirectory&& other) noexcept;
  PartialDirectory(const PartialDirectory&) = delete;
  PartialDirectory& operator=(const PartialDirectory&) = delete;
  // Removes it with what is in it.
  ~PartialDirectory();

  const std::string& path() const { return path_; }
  // It has its final name now: nothing is removed any more.
  void Keep();

 private:
  std::string path_;  // empty: none
  int lock_ = -1;
};

}  // namespace nibble

#endif  // NIBBLE_CHECKPOINT_PARTIAL_DIRECTORY_H_

// A study's finished stages on disk, one file each, so that a rerun does only what is left or what
// changed.
#ifndef NIBBLE_STUDY_STAGE_H_
#define NIBBLE_STUDY_STAGE_H_

#include <optional>
#include <string>

#include "src/base/error.h"
#include "src/base/json.h"

namespace nibble {

class StageStore {
 public:
  // Creates `directory`/stages where it is not there yet.
  static Result<StageStore> Open(const std::string& directory);

  // The document that a finished stage left; none where it never finished, where `fingerprint` (of
  // everything that goes into it) is another now, or where the file is damaged.
  std::optional<Json> Load(const std::string& stage, const std::string& fingerprint) const;
  Status Save(const std::string& stage, const std::string& fingerprint, const Json& document) const;

 private:
  explicit StageStore(std::string directory) : directory_(std::move(directory)) {}
  std::string PathOf(const std::string& stage) const;
  std::string directory_;  // …/stages
};

// Names, sizes and times of change of a model's files (or of a preset), 16 hexadecimal digits.
Result<std::string> FingerprintOfFiles(const std::string& path);

}  // namespace nibble

#endif  // NIBBLE_STUDY_STAGE_H_

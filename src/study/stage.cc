#include "src/study/stage.h"

#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <vector>

#include "src/base/file.h"
#include "src/base/fingerprint.h"

namespace nibble {
namespace {

constexpr std::string_view kStageSchema = "nibble.stage/1";

}  // namespace

Result<StageStore> StageStore::Open(const std::string& directory) {
  const std::string stages = JoinPath(directory, "stages");
  NIBBLE_RETURN_IF_ERROR(MakeDirectories(stages));
  return StageStore(stages);
}

std::string StageStore::PathOf(const std::string& stage) const {
  return JoinPath(directory_, stage + ".json");
}

std::optional<Json> StageStore::Load(const std::string& stage,
                                     const std::string& fingerprint) const {
  if (!FileExists(PathOf(stage))) return std::nullopt;
  Result<Json> file = ReadJsonFile(PathOf(stage));
  if (!file || !file->is_object() || file->value("schema", "") != kStageSchema ||
      file->value("fingerprint", "") != fingerprint || !file->contains("document")) {
    return std::nullopt;
  }
  return std::move((*file)["document"]);
}

Status StageStore::Save(const std::string& stage, const std::string& fingerprint,
                        const Json& document) const {
  const Json file = {{"schema", kStageSchema},
                     {"stage", stage},
                     {"fingerprint", fingerprint},
                     {"document", document}};
  return WriteFileAtomic(PathOf(stage), file.dump(1) + "\n");
}

Result<std::string> FingerprintOfFiles(const std::string& path) {
  Fingerprint fingerprint;
  fingerprint.Add(path);
  std::vector<std::string> files;
  if (IsDirectory(path)) {
    std::error_code error;
    for (const auto& entry : std::filesystem::directory_iterator(path, error)) {
      if (entry.is_regular_file(error)) files.push_back(entry.path().string());
    }
    if (error) return BadInput("{}: {}", path, error.message());
    std::sort(files.begin(), files.end());
  } else if (FileExists(path)) {
    files.push_back(path);
  }
  for (const std::string& file : files) {
    struct stat info;
    if (::stat(file.c_str(), &info) != 0) return BadInput("{}: cannot be read", file);
    fingerprint.Add(fmt::format("{} {} {}.{}", file, info.st_size, info.st_mtim.tv_sec,
                                info.st_mtim.tv_nsec));
  }
  return fingerprint.Hex();
}

}  // namespace nibble

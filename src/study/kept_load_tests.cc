#include "src/study/kept_load_tests.h"

#include <utility>

#include "src/base/file.h"
#include "src/base/json.h"

namespace nibble {
namespace {

constexpr const char* kKeptSchema = "nibble.load-tests/1";

std::string PathOfKept(const std::string& directory) {
  return JoinPath(directory, "load_tests.json");
}

}  // namespace

Status KeepLoadTests(const std::string& directory, std::span<const std::string> paths) {
  Json documents = Json::array();
  for (const std::string& path : paths) {
    NIBBLE_ASSIGN_OR_RETURN(Json document, ReadJsonFile(path));
    NIBBLE_RETURN_IF_ERROR(LoadSeries::FromJson(document, path));
    documents.push_back(std::move(document));
  }
  const Json kept = {{"schema", kKeptSchema}, {"load_tests", std::move(documents)}};
  return WriteFileAtomic(PathOfKept(directory), kept.dump(1) + "\n");
}

Result<std::vector<LoadSeries>> ReadKeptLoadTests(const std::string& directory) {
  const std::string path = PathOfKept(directory);
  std::vector<LoadSeries> kept;
  if (!FileExists(path)) return kept;
  NIBBLE_ASSIGN_OR_RETURN(const Json json, ReadJsonFile(path));
  NIBBLE_ASSIGN_OR_RETURN(const JsonObject object, JsonObject::Of(json, path));
  NIBBLE_ASSIGN_OR_RETURN(const std::string schema, object.String("schema"));
  const Json* const documents = object.Find("load_tests");
  if (schema != kKeptSchema || documents == nullptr || !documents->is_array()) {
    return BadInput("{}: want a document {} with an array \"load_tests\"", path, kKeptSchema);
  }
  for (size_t i = 0; i < documents->size(); ++i) {
    NIBBLE_ASSIGN_OR_RETURN(
        LoadSeries series,
        LoadSeries::FromJson((*documents)[i], fmt::format("{}: load_tests[{}]", path, i)));
    kept.push_back(std::move(series));
  }
  return kept;
}

}  // namespace nibble

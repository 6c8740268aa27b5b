// A study's directory as a browser may see it: its regular files, and nothing around them.
#ifndef NIBBLE_SERVE_REPORT_DIRECTORY_H_
#define NIBBLE_SERVE_REPORT_DIRECTORY_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "src/base/descriptor.h"
#include "src/base/error.h"

namespace nibble {

inline constexpr uint64_t kMaxReportFileBytes = 32 << 20;

// Thread-safe.
class ReportDirectory {
 public:
  // Fails (kBadInput) where the directory cannot be read or has no report.html.
  static Result<ReportDirectory> Open(const std::string& path);

  struct File {
    std::string_view content_type;
    std::string content;
  };
  // The file at a URL's path below the directory ("report.html", "models/a/README.md"); the empty
  // path is report.html. Nothing where there is none that may be shown: links, names that begin
  // with a dot, what is larger than kMaxReportFileBytes, and kinds of files that a report does not
  // consist of. The path is decoded here.
  std::optional<File> Read(std::string_view url_path) const;

 private:
  explicit ReportDirectory(Descriptor directory) : directory_(std::move(directory)) {}
  Descriptor directory_;
};

}  // namespace nibble

#endif  // NIBBLE_SERVE_REPORT_DIRECTORY_H_

#include "src/serve/report_directory.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

namespace nibble {
namespace {

constexpr std::string_view kFirstFile = "report.html";

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

std::optional<std::string> PercentDecoded(std::string_view text) {
  std::string decoded;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') {
      decoded += text[i];
      continue;
    }
    if (i + 2 >= text.size()) return std::nullopt;
    const int high = HexDigit(text[i + 1]);
    const int low = HexDigit(text[i + 2]);
    if (high < 0 || low < 0) return std::nullopt;
    decoded += static_cast<char>(high * 16 + low);
    i += 2;
  }
  return decoded;
}

// The names between the slashes; nothing where one is not a plain name.
std::optional<std::vector<std::string>> PathNames(std::string_view url_path) {
  std::vector<std::string> names;
  while (true) {
    const size_t slash = url_path.find('/');
    // Decoded after it was divided: an encoded slash does not divide, it is refused.
    std::optional<std::string> name = PercentDecoded(url_path.substr(0, slash));
    if (!name || name->empty() || name->front() == '.' || name->find('/') != std::string::npos ||
        name->find('\0') != std::string::npos) {
      return std::nullopt;
    }
    names.push_back(*std::move(name));
    if (slash == std::string_view::npos) return names;
    url_path.remove_prefix(slash + 1);
  }
}

// Empty for a kind of file that is not shown.
std::string_view ContentType(std::string_view name) {
  constexpr std::pair<std::string_view, std::string_view> kTypes[] = {
      {".html", "text/html; charset=utf-8"},
      {".md", "text/markdown; charset=utf-8"},
      {".csv", "text/csv; charset=utf-8"},
      {".txt", "text/plain; charset=utf-8"},
      {".json", "application/json"},
      {".css", "text/css; charset=utf-8"},
      {".svg", "image/svg+xml"},
      {".png", "image/png"},
      {".pdf", "application/pdf"}};
  for (const auto& [ending, type] : kTypes) {
    if (name.ends_with(ending)) return type;
  }
  return {};
}

std::optional<std::string> ReadWhole(int descriptor, uint64_t size) {
  std::string content(size, '\0');
  size_t done = 0;
  while (done < content.size()) {
    const ssize_t count = read(descriptor, content.data() + done, content.size() - done);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return std::nullopt;
    if (count == 0) break;  // it became shorter meanwhile
    done += static_cast<size_t>(count);
  }
  content.resize(done);
  return content;
}

}  // namespace

Result<ReportDirectory> ReportDirectory::Open(const std::string& path) {
  Descriptor opened(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (opened.get() < 0) return BadInput("{}: {}", path, std::strerror(errno));
  ReportDirectory directory(std::move(opened));
  if (!directory.Read("")) {
    return BadInput("{}: want a study's directory, with {} in it", path, kFirstFile);
  }
  return directory;
}

std::optional<ReportDirectory::File> ReportDirectory::Read(std::string_view url_path) const {
  const std::optional<std::vector<std::string>> names =
      PathNames(url_path.empty() ? kFirstFile : url_path);
  if (!names) return std::nullopt;
  const std::string_view type = ContentType(names->back());
  if (type.empty()) return std::nullopt;
  // One name at a time, so that no link is followed on the way.
  int parent = directory_.get();
  std::optional<Descriptor> current;
  for (size_t i = 0; i < names->size(); ++i) {
    const bool last = i + 1 == names->size();
    // O_NONBLOCK: a pipe of that name would wait for a writer.
    const int opened =
        openat(parent, (*names)[i].c_str(),
               O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK | (last ? 0 : O_DIRECTORY));
    if (opened < 0) return std::nullopt;
    current.emplace(opened);
    parent = opened;
  }
  struct stat info {};
  if (fstat(current->get(), &info) != 0 || !S_ISREG(info.st_mode)) return std::nullopt;
  const auto size = static_cast<uint64_t>(info.st_size);
  if (size > kMaxReportFileBytes) return std::nullopt;
  std::optional<std::string> content = ReadWhole(current->get(), size);
  if (!content) return std::nullopt;
  return File{type, *std::move(content)};
}

}  // namespace nibble

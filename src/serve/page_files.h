// The files of src/serve/page, which the build puts into the program.
#ifndef NIBBLE_SERVE_PAGE_FILES_H_
#define NIBBLE_SERVE_PAGE_FILES_H_

#include <span>
#include <string_view>

namespace nibble {

struct PageFile {
  std::string_view name;  // without its folder
  std::string_view content;
};

std::span<const PageFile> PageFiles();

}  // namespace nibble

#endif  // NIBBLE_SERVE_PAGE_FILES_H_

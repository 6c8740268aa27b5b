// A report's content as GitHub-flavoured Markdown: the figures' data as tables.
#ifndef NIBBLE_REPORT_MARKDOWN_H_
#define NIBBLE_REPORT_MARKDOWN_H_

#include <string>

#include "src/report/content.h"

namespace nibble {

std::string RenderMarkdown(const Content& content);

}  // namespace nibble

#endif  // NIBBLE_REPORT_MARKDOWN_H_

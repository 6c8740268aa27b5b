// A report's content as one HTML file: nothing is fetched, no script is in it. The text is
// well-formed XML as well, so that any XML parser can check it.
#ifndef NIBBLE_REPORT_HTML_H_
#define NIBBLE_REPORT_HTML_H_

#include <string>
#include <string_view>

#include "src/report/content.h"

namespace nibble {

std::string RenderHtml(const Content& content);

// The style sheet that RenderHtml embeds: light and dark, screen, phone and paper.
std::string_view ReportStyle();

}  // namespace nibble

#endif  // NIBBLE_REPORT_HTML_H_

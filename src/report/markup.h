// Text from outside made safe for the places where a report puts it.
#ifndef NIBBLE_REPORT_MARKUP_H_
#define NIBBLE_REPORT_MARKUP_H_

#include <string>
#include <string_view>

namespace nibble {

// Valid UTF-8 on one line: control characters become spaces; bytes that are not UTF-8, characters
// that XML forbids and those that reorder text (bidirectional overrides) become U+FFFD.
std::string Printable(std::string_view text);

// Printable, and safe in the content and in the quoted attributes of HTML and XML.
std::string EscapeXml(std::string_view text);

// Printable, and without effect in GitHub-flavoured Markdown, table cells included.
std::string EscapeMarkdown(std::string_view text);

// Characters, for aligning columns of text on a terminal.
size_t DisplayWidth(std::string_view text);

}  // namespace nibble

#endif  // NIBBLE_REPORT_MARKUP_H_

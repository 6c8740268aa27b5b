// What a report says, before it is HTML or Markdown: text, tables and figures in reading order. All
// strings are plain text; a renderer escapes them.
#ifndef NIBBLE_REPORT_CONTENT_H_
#define NIBBLE_REPORT_CONTENT_H_

#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "src/report/study_record.h"

namespace nibble {

enum class Align { kLeft, kRight };

struct Column {
  std::string title;
  Align align = Align::kRight;
};

struct Table {
  std::string caption;
  std::vector<Column> columns;
  std::vector<std::vector<std::string>> rows;  // the first cell names the row
  std::optional<size_t> marked_row;            // the recommended method's
};

// An SVG for wide pages and one for narrow ones; where `narrow` is empty, `wide` serves both.
struct Drawing {
  std::string wide;
  std::string narrow;
};

struct LegendEntry {
  int series;
  std::string name;
};

enum class LegendParts { kNone, kMemoryClasses };

struct Figure {
  std::string title;
  std::string caption;  // what one sees, and under which conditions
  std::vector<LegendEntry> legend;
  LegendParts parts = LegendParts::kNone;
  std::vector<Drawing> drawings;  // beside each other where the page is wide enough
  Table data;
};

struct Section {
  std::string title;
  std::vector<std::string> paragraphs;
  std::vector<std::variant<Table, Figure>> blocks;
};

enum class VerdictKind { kFirm, kProvisional, kNone };

struct Verdict {
  VerdictKind kind = VerdictKind::kNone;
  std::string heading;  // "Deploy awq-g128-asym"
  std::string summary;
  std::vector<std::string> reasons;
  std::string uncertainty;
  std::vector<std::string> would_have_to_give;
  Table candidates;
};

struct Content {
  std::string kicker;  // above the title: what this is, and its date
  std::string title;
  std::string summary;
  Table glance;
  std::optional<Verdict> verdict;
  std::vector<std::string> cautions;
  std::vector<Section> sections;
};

Content BuildContent(const StudyRecord& record);

}  // namespace nibble

#endif  // NIBBLE_REPORT_CONTENT_H_

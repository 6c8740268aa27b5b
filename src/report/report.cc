#include "src/report/report.h"

#include <algorithm>

#include "src/base/file.h"
#include "src/report/content.h"
#include "src/report/content_parts.h"
#include "src/report/csv.h"
#include "src/report/html.h"
#include "src/report/markdown.h"
#include "src/report/markup.h"

namespace nibble {
namespace {

// Columns aligned by spaces, headers broken at their spaces so that 80 columns go a long way.
std::string AlignedTable(const Table& table) {
  std::vector<std::vector<std::string>> head;  // by column, a header's lines
  std::vector<size_t> widths;
  size_t head_lines = 1;
  for (size_t c = 0; c < table.columns.size(); ++c) {
    std::vector<std::string> lines;
    std::string rest = table.columns[c].title;
    for (size_t comma; (comma = rest.find(", ")) != std::string::npos;) {
      lines.push_back(rest.substr(0, comma));
      rest = rest.substr(comma + 2);
    }
    lines.push_back(rest);
    size_t width = 0;
    for (const std::string& line : lines) width = std::max(width, DisplayWidth(line));
    for (const auto& row : table.rows) width = std::max(width, DisplayWidth(row[c]));
    head_lines = std::max(head_lines, lines.size());
    head.push_back(std::move(lines));
    widths.push_back(width);
  }

  std::string out;
  const auto add_line = [&](const auto& cell_of) {
    std::string line;
    for (size_t c = 0; c < widths.size(); ++c) {
      const std::string cell = cell_of(c);
      const std::string space(widths[c] - DisplayWidth(cell), ' ');
      if (c > 0) line += "  ";
      line += table.columns[c].align == Align::kRight ? space + cell : cell + space;
    }
    line.erase(line.find_last_not_of(' ') + 1);
    out += line + "\n";
  };
  for (size_t i = 0; i < head_lines; ++i) {
    // Headers stand at the bottom of their lines.
    add_line([&](size_t c) {
      const size_t above = head_lines - head[c].size();
      return i < above ? std::string() : head[c][i - above];
    });
  }
  size_t total = 2 * (widths.size() - 1);
  for (const size_t width : widths) total += width;
  for (size_t i = 0; i < total; ++i) out += "─";
  out += "\n";
  for (const auto& row : table.rows) add_line([&](size_t c) { return row[c]; });
  return out;
}

}  // namespace

Status WriteReport(const StudyRecord& record, const std::string& directory) {
  const Content content = BuildContent(record);
  const std::pair<const char*, std::string> files[] = {
      {"accuracy.csv", AccuracyCsv(record)}, {"throughput.csv", ThroughputCsv(record)},
      {"memory.csv", MemoryCsv(record)},     {"report.md", RenderMarkdown(content)},
      {"report.html", RenderHtml(content)},
  };
  for (const auto& [name, text] : files) {
    NIBBLE_RETURN_IF_ERROR(WriteFileAtomic(JoinPath(directory, name), text));
  }
  return {};
}

std::string SummaryTable(const StudyRecord& record) {
  std::string out = record.model_name + "\n\n" + AlignedTable(GlanceTable(record));
  if (!record.recommendation) return out;
  const RecommendationRecord& recommendation = *record.recommendation;
  out += fmt::format("\n{}: {}\n",
                     recommendation.method.empty() ? "No recommendation"
                     : recommendation.provisional  ? "Provisional recommendation"
                                                   : "Recommendation",
                     recommendation.summary);
  return out;
}

}  // namespace nibble

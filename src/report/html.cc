#include "src/report/html.h"

#include <fmt/format.h>

#include <algorithm>

#include "src/report/markup.h"
#include "src/report/svg_canvas.h"

namespace nibble {
namespace {

class HtmlWriter {
 public:
  std::string Render(const Content& content);

 private:
  void Element(std::string_view tag, std::string_view text, std::string_view classes = "") {
    if (classes.empty()) {
      out_ += fmt::format("<{0}>{1}</{0}>\n", tag, EscapeXml(text));
    } else {
      out_ += fmt::format("<{0} class=\"{1}\">{2}</{0}>\n", tag, classes, EscapeXml(text));
    }
  }
  void List(const std::vector<std::string>& items) {
    out_ += "<ul>\n";
    for (const std::string& item : items) Element("li", item);
    out_ += "</ul>\n";
  }
  void WriteTable(const Table& table, std::string_view caption_prefix);
  void WriteFigure(const Figure& figure);
  void WriteLegend(const Figure& figure);
  void WriteVerdict(const Verdict& verdict);
  void WriteCautions(const std::vector<std::string>& cautions);
  void WriteSection(const Section& section);

  std::string out_;
  int figures_ = 0;
  int tables_ = 0;
};

// A table of properties, whose values are text.
bool IsFactTable(const Table& table) {
  return std::all_of(table.columns.begin(), table.columns.end(),
                     [](const Column& column) { return column.align == Align::kLeft; });
}

void HtmlWriter::WriteTable(const Table& table, std::string_view caption_prefix) {
  const bool facts = IsFactTable(table);
  // Wide tables scroll inside their box, which therefore takes the keyboard's focus.
  out_ += fmt::format("<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{}\">\n",
                      EscapeXml(table.caption));
  out_ += fmt::format("<table{}>\n<caption>{}{}</caption>\n", facts ? " class=\"facts\"" : "",
                      caption_prefix, EscapeXml(table.caption));
  const auto align = [&](size_t column) {
    return table.columns[column].align == Align::kRight ? " class=\"n\"" : "";
  };
  out_ += "<thead><tr>";
  for (size_t c = 0; c < table.columns.size(); ++c) {
    out_ += fmt::format("<th scope=\"col\"{}>{}</th>", align(c), EscapeXml(table.columns[c].title));
  }
  out_ += "</tr></thead>\n<tbody>\n";
  for (size_t r = 0; r < table.rows.size(); ++r) {
    out_ += table.marked_row == r ? "<tr class=\"marked\">" : "<tr>";
    for (size_t c = 0; c < table.rows[r].size(); ++c) {
      const char* tag = c == 0 ? "th scope=\"row\"" : "td";
      out_ += fmt::format("<{}{}>{}</{}>", tag, align(c), EscapeXml(table.rows[r][c]),
                          c == 0 ? "th" : "td");
    }
    out_ += "</tr>\n";
  }
  out_ += "</tbody>\n</table>\n</div>\n";
}

void HtmlWriter::WriteLegend(const Figure& figure) {
  out_ += "<ul class=\"legend\">\n";
  for (const LegendEntry& entry : figure.legend) {
    out_ += fmt::format("<li>{}{}</li>\n", SvgLegendMark(entry.series), EscapeXml(entry.name));
  }
  if (figure.parts == LegendParts::kMemoryClasses) {
    static constexpr const char* kParts[][2] = {
        {"solid", "weights"}, {"striped", "KV cache"}, {"pale", "workspace"}};
    bool first = true;
    for (const auto& [style, name] : kParts) {
      out_ += fmt::format("<li{}><span class=\"part {}\"></span>{}</li>\n",
                          first ? " class=\"apart\"" : "", style, name);
      first = false;
    }
  }
  out_ += "</ul>\n";
}

void HtmlWriter::WriteFigure(const Figure& figure) {
  out_ += "<figure>\n";
  out_ += fmt::format("<p class=\"figure-title\"><b>Figure {}.</b> {}</p>\n", ++figures_,
                      EscapeXml(figure.title));
  WriteLegend(figure);
  out_ += figure.drawings.size() > 1 ? "<div class=\"panels\">\n" : "<div class=\"panel\">\n";
  for (const Drawing& drawing : figure.drawings) {
    if (drawing.narrow.empty()) {
      out_ += fmt::format("<div class=\"drawing\">{}</div>\n", drawing.wide);
    } else {
      out_ += fmt::format("<div class=\"drawing wide\">{}</div>\n", drawing.wide);
      out_ += fmt::format("<div class=\"drawing narrow\">{}</div>\n", drawing.narrow);
    }
  }
  out_ += "</div>\n";
  Element("figcaption", figure.caption);
  out_ += "<details>\n<summary>The data as a table</summary>\n";
  WriteTable(figure.data, "");
  out_ += "</details>\n</figure>\n";
}

void HtmlWriter::WriteVerdict(const Verdict& verdict) {
  static constexpr const char* kClasses[] = {"firm", "provisional", "none"};
  static constexpr const char* kLabels[] = {"Recommendation", "Provisional recommendation",
                                            "No recommendation"};
  const auto kind = static_cast<size_t>(verdict.kind);
  out_ += fmt::format("<section class=\"verdict {}\">\n", kClasses[kind]);
  Element("p", kLabels[kind], "label");
  Element("h2", verdict.heading);
  if (!verdict.summary.empty()) Element("p", verdict.summary);
  if (!verdict.reasons.empty()) {
    Element("h3", "Why");
    List(verdict.reasons);
  }
  if (!verdict.uncertainty.empty()) {
    Element("h3", "How certain this is");
    Element("p", verdict.uncertainty);
  }
  if (!verdict.would_have_to_give.empty()) {
    Element("h3", "What would have to give");
    List(verdict.would_have_to_give);
  }
  if (!verdict.candidates.rows.empty()) WriteTable(verdict.candidates, "");
  out_ += "</section>\n";
}

void HtmlWriter::WriteCautions(const std::vector<std::string>& cautions) {
  out_ += "<section class=\"cautions\">\n<h2>What limits this evidence</h2>\n";
  List(cautions);
  out_ += "</section>\n";
}

void HtmlWriter::WriteSection(const Section& section) {
  out_ += "<section>\n";
  Element("h2", section.title);
  for (const std::string& paragraph : section.paragraphs) Element("p", paragraph);
  bool in_facts = false;  // tables of facts stand beside each other
  for (const auto& block : section.blocks) {
    const auto* table = std::get_if<Table>(&block);
    const bool facts = table != nullptr && IsFactTable(*table);
    if (facts != in_facts) out_ += facts ? "<div class=\"fact-tables\">\n" : "</div>\n";
    in_facts = facts;
    if (table != nullptr) {
      WriteTable(*table, fmt::format("<b>Table {}.</b> ", ++tables_));
    } else {
      WriteFigure(std::get<Figure>(block));
    }
  }
  if (in_facts) out_ += "</div>\n";
  out_ += "</section>\n";
}

std::string HtmlWriter::Render(const Content& content) {
  out_ =
      "<!DOCTYPE html>\n<html lang=\"en\" xmlns=\"http://www.w3.org/1999/xhtml\">\n<head>\n"
      "<meta charset=\"utf-8\"/>\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n"
      "<meta name=\"color-scheme\" content=\"light dark\"/>\n";
  Element("title", content.title + " – nibble");
  out_ += fmt::format("<style>{}</style>\n</head>\n<body>\n<main>\n<header>\n", ReportStyle());
  Element("p", content.kicker, "kicker");
  Element("h1", content.title);
  Element("p", content.summary, "summary");
  out_ += "</header>\n";
  if (content.verdict) WriteVerdict(*content.verdict);
  WriteTable(content.glance, fmt::format("<b>Table {}.</b> ", ++tables_));
  if (!content.cautions.empty()) WriteCautions(content.cautions);
  for (const Section& section : content.sections) WriteSection(section);
  out_ += "</main>\n</body>\n</html>\n";
  return std::move(out_);
}

}  // namespace

std::string RenderHtml(const Content& content) { return HtmlWriter().Render(content); }

}  // namespace nibble

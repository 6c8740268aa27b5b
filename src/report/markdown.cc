#include "src/report/markdown.h"

#include <fmt/format.h>

#include "src/report/markup.h"

namespace nibble {
namespace {

void AddParagraph(std::string& out, const std::string& text) {
  if (!text.empty()) out += EscapeMarkdown(text) + "\n\n";
}

void AddList(std::string& out, const std::vector<std::string>& items) {
  for (const std::string& item : items) out += "- " + EscapeMarkdown(item) + "\n";
  if (!items.empty()) out += "\n";
}

void AddTable(std::string& out, const Table& table) {
  out += "|";
  for (const Column& column : table.columns) out += " " + EscapeMarkdown(column.title) + " |";
  out += "\n|";
  for (const Column& column : table.columns) {
    out += column.align == Align::kRight ? " ---: |" : " :--- |";
  }
  out += "\n";
  for (size_t r = 0; r < table.rows.size(); ++r) {
    const char* mark = table.marked_row == r ? "**" : "";
    out += "|";
    for (const std::string& cell : table.rows[r]) {
      out += fmt::format(" {}{}{} |", mark, cell.empty() ? "–" : EscapeMarkdown(cell), mark);
    }
    out += "\n";
  }
  out += "\n";
}

void AddVerdict(std::string& out, const Verdict& verdict) {
  out += "## " + EscapeMarkdown(verdict.heading) + "\n\n";
  AddParagraph(out, verdict.summary);
  if (!verdict.reasons.empty()) out += "Why:\n\n";
  AddList(out, verdict.reasons);
  if (!verdict.uncertainty.empty()) {
    out += "How certain this is: " + EscapeMarkdown(verdict.uncertainty) + "\n\n";
  }
  if (!verdict.would_have_to_give.empty()) out += "What would have to give:\n\n";
  AddList(out, verdict.would_have_to_give);
  if (!verdict.candidates.rows.empty()) AddTable(out, verdict.candidates);
}

}  // namespace

std::string RenderMarkdown(const Content& content) {
  std::string out = "# " + EscapeMarkdown(content.title) + "\n\n";
  AddParagraph(out, content.kicker);
  AddParagraph(out, content.summary);
  if (content.verdict) AddVerdict(out, *content.verdict);
  AddTable(out, content.glance);
  if (!content.cautions.empty()) out += "## What limits this evidence\n\n";
  AddList(out, content.cautions);
  for (const Section& section : content.sections) {
    out += "## " + EscapeMarkdown(section.title) + "\n\n";
    for (const std::string& paragraph : section.paragraphs) AddParagraph(out, paragraph);
    for (const auto& block : section.blocks) {
      if (const auto* table = std::get_if<Table>(&block)) {
        out += "### " + EscapeMarkdown(table->caption) + "\n\n";
        AddTable(out, *table);
        continue;
      }
      const Figure& figure = std::get<Figure>(block);
      out += "### " + EscapeMarkdown(figure.title) + "\n\n";
      AddParagraph(out, figure.data.caption + ".");
      AddTable(out, figure.data);
    }
  }
  while (out.ends_with("\n\n")) out.pop_back();
  return out;
}

}  // namespace nibble

#include "src/report/svg_dots.h"

#include <algorithm>
#include <cmath>

#include "src/report/svg_canvas.h"

namespace nibble {
namespace {

constexpr double kTop = 40;  // the axis title and the ticks' labels
constexpr double kRowPadding = 9;

struct Layout {
  double width;
  double left;   // where the axis begins
  double right;  // and ends
  double dot_pitch;
  double head;  // height of the label above a row's dots
  RowLabels labels;

  double HeadingHeight(const DotRow& row) const { return row.heading.empty() ? 0 : 28; }
  double RowHeight(const DotRow& row) const {
    const auto dots = static_cast<double>(std::max<size_t>(row.dots.size(), 1));
    return head + std::max(dots * dot_pitch, labels == RowLabels::kLeft ? 14.0 : 0) + kRowPadding;
  }
};

const std::string& LabelOf(const Dot& dot, RowLabels labels) {
  return labels == RowLabels::kLeft ? dot.label : dot.short_label;
}

Layout Arrange(const DotPlot& plot, double width, RowLabels labels) {
  double names = 0, numbers = 0;
  for (const DotRow& row : plot.rows) {
    names = std::max(
        names, EstimateTextWidth(row.label, kFont) + EstimateTextWidth(row.note, kSmallFont) + 30);
    for (const Dot& dot : row.dots) {
      numbers = std::max(numbers, EstimateTextWidth(LabelOf(dot, labels), kSmallFont));
    }
  }
  const bool above = labels == RowLabels::kAbove;
  return {.width = width,
          .left = above ? 10 : std::min(names, 0.42 * width),
          .right = width - std::max(12.0, numbers + 12),
          .dot_pitch = numbers > 0 ? 15.0 : 9.0,
          .head = above ? 17.0 : 0.0,
          .labels = labels};
}

void DrawRow(SvgCanvas& canvas, const DotRow& row, const Layout& layout, double y,
             const Axis& axis) {
  const auto x_of = [&](double value) {
    return layout.left + axis.Position(value) * (layout.right - layout.left);
  };
  const double height = layout.RowHeight(row);
  canvas.Line({0, y + height}, {layout.width, y + height}, "rule");
  const double dots_height = static_cast<double>(row.dots.size()) * layout.dot_pitch;
  const double note_width = row.note.empty() ? 0 : EstimateTextWidth(row.note, kSmallFont) + 8;
  if (layout.labels == RowLabels::kAbove) {
    canvas.Text({0, y + 14}, Anchor::kStart, FitText(row.label, kFont, layout.width - note_width),
                "t halo");
    if (!row.note.empty()) {
      canvas.Text({layout.width, y + 14}, Anchor::kEnd, row.note, "t small muted halo");
    }
  } else {
    const double baseline = y + height / 2 + 4;
    canvas.Text({0, baseline}, Anchor::kStart,
                FitText(row.label, kFont, layout.left - note_width - 6), "t");
    if (!row.note.empty()) {
      canvas.Text({layout.left - 12, baseline}, Anchor::kEnd, row.note, "t small muted");
    }
  }
  double middle = y + layout.head + (height - layout.head - dots_height) / 2 + layout.dot_pitch / 2;
  for (const Dot& dot : row.dots) {
    if (std::isfinite(dot.value)) {
      if (dot.interval) {
        canvas.Line({x_of(dot.interval->low), middle}, {x_of(dot.interval->high), middle},
                    "interval " + SeriesClass(dot.series));
      }
      canvas.Mark({x_of(dot.value), middle}, 3.4, dot.series, dot.tooltip);
    }
    const std::string& label = LabelOf(dot, layout.labels);
    if (!label.empty()) {
      canvas.Text({layout.width, middle + 4}, Anchor::kEnd, label, "t small");
    }
    middle += layout.dot_pitch;
  }
}

}  // namespace

std::string DrawDots(const DotPlot& plot, double width, RowLabels labels) {
  const Layout layout = Arrange(plot, width, labels);
  double bottom = kTop;
  for (const DotRow& row : plot.rows) bottom += layout.HeadingHeight(row) + layout.RowHeight(row);

  SvgCanvas canvas(width, bottom + 4, plot.id, plot.title, plot.description);
  const auto x_of = [&](double value) {
    return layout.left + plot.axis.Position(value) * (layout.right - layout.left);
  };
  if (plot.band) {
    const double from = x_of(plot.band->low);
    canvas.Rectangle({from, kTop}, x_of(plot.band->high) - from, bottom - kTop, "band");
  }
  canvas.Text({0, 12}, Anchor::kStart, FitText(plot.axis_title, kFont, width), "t muted");
  for (const Tick& tick : plot.axis.ticks()) {
    const double x = x_of(tick.value);
    canvas.Line({x, kTop}, {x, bottom}, "grid");
    canvas.Text({x, kTop - 6}, Anchor::kMiddle, tick.label, "t muted");
  }
  if (plot.line) canvas.Line({x_of(*plot.line), kTop}, {x_of(*plot.line), bottom}, "level");

  double y = kTop;
  for (const DotRow& row : plot.rows) {
    if (!row.heading.empty()) {
      y += layout.HeadingHeight(row);
      canvas.Text({0, y - 7}, Anchor::kStart, FitText(row.heading, kFont, width), "t bold halo");
      canvas.Line({0, y}, {width, y}, "rule");
    }
    DrawRow(canvas, row, layout, y, plot.axis);
    y += layout.RowHeight(row);
  }
  return std::move(canvas).Finish();
}

}  // namespace nibble

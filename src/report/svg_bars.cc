#include "src/report/svg_bars.h"

#include <algorithm>
#include <sstream>

#include "src/report/svg_canvas.h"

namespace nibble {
namespace {

constexpr double kLineHeight = 14;

// Words on as many lines as they need, each line cut to the width if a single word is too long.
std::vector<std::string> Wrap(const std::string& text, double width) {
  std::vector<std::string> lines;
  std::istringstream words(text);
  for (std::string word; words >> word;) {
    const std::string longer = lines.empty() ? word : lines.back() + " " + word;
    if (!lines.empty() && EstimateTextWidth(longer, kFont) <= width) {
      lines.back() = longer;
    } else {
      lines.push_back(word);
    }
  }
  for (std::string& line : lines) line = FitText(line, kFont, width);
  return lines;
}

// Segments from `start` on, each `Extent` of the axis long.
template <typename Place>
void DrawSegments(SvgCanvas& canvas, const Bar& bar, const Axis& axis, const Place& place) {
  double from = 0;
  for (size_t i = 0; i < bar.segments.size(); ++i) {
    const double to = from + bar.segments[i];
    const auto [corner, width, height] = place(axis.Position(from), axis.Position(to));
    const char* style = i == 2 ? "tint " : "fill ";
    canvas.Rectangle(corner, width, height, style + SeriesClass(bar.series), bar.tooltip);
    if (i == 1) canvas.Hatch(corner, width, height);
    from = to;
  }
}

struct Box {
  Point corner;
  double width;
  double height;
};

double Reach(const Bar& bar) {
  double reach = 0;
  for (const double segment : bar.segments) reach += segment;
  return bar.interval ? std::max(reach, bar.interval->high) : reach;
}

}  // namespace

std::string DrawColumns(const BarChart& chart, double width) {
  constexpr double kTop = 30, kPlotHeight = 250, kLeft = 44, kMarkSpace = 14, kHalfWhisker = 3;
  const double right =
      chart.line ? width - EstimateTextWidth(chart.line_label, kSmallFont) - 8 : width;
  const double group_width = (right - kLeft) / static_cast<double>(chart.groups.size());
  size_t most_bars = 1, most_lines = 1;
  for (const BarGroup& group : chart.groups) {
    most_bars = std::max(most_bars, group.bars.size());
    const size_t note = group.note.empty() ? 0 : 1;
    most_lines = std::max(most_lines, Wrap(group.label, group_width - 6).size() + note);
  }
  const double pitch = std::min(46.0, 0.86 * group_width / static_cast<double>(most_bars));
  const double bar_width = pitch * 0.8;
  bool labels_fit = true, short_labels_fit = true;
  for (const BarGroup& group : chart.groups) {
    for (const Bar& bar : group.bars) {
      labels_fit &= EstimateTextWidth(bar.label, kSmallFont) <= pitch;
      short_labels_fit &= EstimateTextWidth(bar.short_label, kSmallFont) <= pitch;
    }
  }

  const double bottom = kTop + kPlotHeight;
  const double height = bottom + kMarkSpace + kLineHeight * static_cast<double>(most_lines) + 8;
  SvgCanvas canvas(width, height, chart.id, chart.title, chart.description);
  const auto y_of = [&](double position) { return bottom - position * kPlotHeight; };
  canvas.Text({0, 12}, Anchor::kStart, chart.axis_title, "t muted");
  for (const Tick& tick : chart.axis.ticks()) {
    const double y = y_of(chart.axis.Position(tick.value));
    canvas.Line({kLeft, y}, {right, y}, tick.value == 0 ? "axis" : "grid");
    canvas.Text({kLeft - 6, y + 4}, Anchor::kEnd, tick.label, "t muted");
  }

  for (size_t g = 0; g < chart.groups.size(); ++g) {
    const BarGroup& group = chart.groups[g];
    const double centre = kLeft + (static_cast<double>(g) + 0.5) * group_width;
    double x = centre - pitch * static_cast<double>(group.bars.size()) / 2 + pitch / 2;
    for (const Bar& bar : group.bars) {
      DrawSegments(canvas, bar, chart.axis, [&](double from, double to) {
        return Box{{x - bar_width / 2, y_of(to)}, bar_width, y_of(from) - y_of(to)};
      });
      if (bar.interval) {
        const double low = y_of(chart.axis.Position(bar.interval->low));
        const double high = y_of(chart.axis.Position(bar.interval->high));
        canvas.Line({x, low}, {x, high}, "whisker");
        canvas.Line({x - kHalfWhisker, low}, {x + kHalfWhisker, low}, "whisker");
        canvas.Line({x - kHalfWhisker, high}, {x + kHalfWhisker, high}, "whisker");
      }
      if (labels_fit || short_labels_fit) {
        canvas.Text({x, y_of(chart.axis.Position(Reach(bar))) - 5}, Anchor::kMiddle,
                    labels_fit ? bar.label : bar.short_label, "t small");
      }
      canvas.Mark({x, bottom + 9}, 3.4, bar.series);
      x += pitch;
    }
    double y = bottom + kMarkSpace + kLineHeight;
    for (const std::string& line : Wrap(group.label, group_width - 6)) {
      canvas.Text({centre, y}, Anchor::kMiddle, line);
      y += kLineHeight;
    }
    if (!group.note.empty()) canvas.Text({centre, y}, Anchor::kMiddle, group.note, "t small muted");
  }
  if (chart.line) {
    const double y = y_of(chart.axis.Position(*chart.line));
    canvas.Line({kLeft, y}, {right, y}, "level");
    canvas.Text({right + 6, y + 4}, Anchor::kStart, chart.line_label, "t small");
  }
  return std::move(canvas).Finish();
}

std::string DrawRows(const BarChart& chart, double width) {
  constexpr double kTop = 22, kLeft = 16, kPitch = 16, kBarHeight = 12, kHalfWhisker = 3;
  double label_width = 0;
  size_t bars = 0;
  for (const BarGroup& group : chart.groups) {
    bars += group.bars.size();
    for (const Bar& bar : group.bars) {
      label_width = std::max(label_width, EstimateTextWidth(bar.label, kSmallFont));
    }
  }
  constexpr double kGroupHead = 20, kGroupGap = 8;
  const double plot_bottom = kTop + kPitch * static_cast<double>(bars) +
                             (kGroupHead + kGroupGap) * static_cast<double>(chart.groups.size());
  const double plot_width = width - kLeft - label_width - 8;
  SvgCanvas canvas(width, plot_bottom + 24, chart.id, chart.title, chart.description);
  const auto x_of = [&](double position) { return kLeft + position * plot_width; };
  canvas.Text({0, 12}, Anchor::kStart, FitText(chart.axis_title, kFont, width), "t muted");
  for (const Tick& tick : chart.axis.ticks()) {
    const double x = x_of(chart.axis.Position(tick.value));
    canvas.Line({x, kTop}, {x, plot_bottom}, tick.value == 0 ? "axis" : "grid");
    canvas.Text({x, plot_bottom + 15}, Anchor::kMiddle, tick.label, "t muted");
  }
  if (chart.line) {
    const double x = x_of(chart.axis.Position(*chart.line));
    canvas.Line({x, kTop}, {x, plot_bottom}, "level");
  }

  double y = kTop;
  for (const BarGroup& group : chart.groups) {
    const std::string head = group.note.empty() ? group.label : group.label + " · " + group.note;
    canvas.Text({0, y + 15}, Anchor::kStart, FitText(head, kFont, width), "t bold halo");
    y += kGroupHead;
    for (const Bar& bar : group.bars) {
      const double middle = y + kPitch / 2;
      DrawSegments(canvas, bar, chart.axis, [&](double from, double to) {
        return Box{{x_of(from), middle - kBarHeight / 2}, x_of(to) - x_of(from), kBarHeight};
      });
      if (bar.interval) {
        const double low = x_of(chart.axis.Position(bar.interval->low));
        const double high = x_of(chart.axis.Position(bar.interval->high));
        canvas.Line({low, middle}, {high, middle}, "whisker");
        canvas.Line({low, middle - kHalfWhisker}, {low, middle + kHalfWhisker}, "whisker");
        canvas.Line({high, middle - kHalfWhisker}, {high, middle + kHalfWhisker}, "whisker");
      }
      canvas.Text({x_of(chart.axis.Position(Reach(bar))) + 6, middle + 4}, Anchor::kStart,
                  bar.label, "t small halo");
      canvas.Mark({6, middle}, 3.6, bar.series);
      y += kPitch;
    }
    y += kGroupGap;
  }
  return std::move(canvas).Finish();
}

}  // namespace nibble

#include "src/report/svg_lines.h"

#include <algorithm>

namespace nibble {
namespace {

constexpr double kPlotTop = 30;
constexpr double kPlotHeight = 250;
constexpr double kLabelPitch = 14;

struct EndLabel {
  const DataLine* line;
  double wanted;  // y of the line's end
  double y;
};

// Labels in the order of their lines' ends, moved apart as little as keeps them readable.
std::vector<EndLabel> PlaceLabels(std::vector<EndLabel> labels) {
  std::stable_sort(labels.begin(), labels.end(),
                   [](const EndLabel& a, const EndLabel& b) { return a.wanted < b.wanted; });
  // Clusters of touching labels share their mean: each label joins the last cluster while it
  // overlaps it.
  struct Cluster {
    size_t first, count;
    double sum;  // of wanted
    double Top() const {
      return sum / static_cast<double>(count) - kLabelPitch * (static_cast<double>(count) - 1) / 2;
    }
  };
  std::vector<Cluster> clusters;
  for (size_t i = 0; i < labels.size(); ++i) {
    clusters.push_back({i, 1, labels[i].wanted});
    while (clusters.size() > 1) {
      Cluster& last = clusters[clusters.size() - 1];
      Cluster& before = clusters[clusters.size() - 2];
      if (before.Top() + kLabelPitch * static_cast<double>(before.count) <= last.Top()) break;
      before.count += last.count;
      before.sum += last.sum;
      clusters.pop_back();
    }
  }
  for (const Cluster& cluster : clusters) {
    for (size_t i = 0; i < cluster.count; ++i) {
      labels[cluster.first + i].y = cluster.Top() + kLabelPitch * static_cast<double>(i);
    }
  }
  return labels;
}

}  // namespace

std::string DrawLines(const LineChart& chart, double width) {
  double left = 20, names = 0;
  for (const Tick& tick : chart.y.ticks()) {
    left = std::max(left, EstimateTextWidth(tick.label, kFont) + 10);
  }
  for (const DataLine& line : chart.lines) {
    names = std::max(names, EstimateTextWidth(line.name, kFont));
  }
  const double right = width - std::min(names, 0.36 * width) - 18;
  const double bottom = kPlotTop + kPlotHeight;
  const double inset = 10;  // so that the first and last marks keep clear of the frame
  SvgCanvas canvas(width, bottom + 40, chart.id, chart.title, chart.description);
  const auto x_of = [&](double value) {
    return left + inset + chart.x.Position(value) * (right - left - 2 * inset);
  };
  const auto y_of = [&](double value) { return bottom - chart.y.Position(value) * kPlotHeight; };

  canvas.Text({0, 12}, Anchor::kStart, FitText(chart.y_title, kFont, width), "t muted");
  for (const Tick& tick : chart.y.ticks()) {
    canvas.Line({left, y_of(tick.value)}, {right, y_of(tick.value)}, "grid");
    canvas.Text({left - 6, y_of(tick.value) + 4}, Anchor::kEnd, tick.label, "t muted");
  }
  canvas.Line({left, bottom}, {right, bottom}, "axis");
  double label_end = -1e9;
  for (const Tick& tick : chart.x.ticks()) {
    const double x = x_of(tick.value);
    canvas.Line({x, bottom}, {x, bottom + 4}, "axis");
    const double half = EstimateTextWidth(tick.label, kFont) / 2;
    if (x - half < label_end + 4) continue;
    canvas.Text({x, bottom + 17}, Anchor::kMiddle, tick.label, "t muted");
    label_end = x + half;
  }
  canvas.Text({(left + right) / 2, bottom + 34}, Anchor::kMiddle, chart.x_title, "t muted");

  std::vector<EndLabel> labels;
  for (const DataLine& line : chart.lines) {
    std::vector<Point> points;
    for (const Point& point : line.points) points.push_back({x_of(point.x), y_of(point.y)});
    if (line.style == LineStyle::kLimit) {
      canvas.Polyline(points, "stroke limit " + SeriesClass(line.series));
      continue;
    }
    canvas.Polyline(points, "stroke " + SeriesClass(line.series));
    for (size_t i = 0; i < points.size(); ++i) {
      canvas.Mark(points[i], 4, line.series, line.tooltips[i]);
    }
    labels.push_back({&line, points.back().y, points.back().y});
  }
  for (const EndLabel& label : PlaceLabels(std::move(labels))) {
    canvas.Mark({right + 8, label.y}, 3.6, label.line->series);
    canvas.Text({right + 16, label.y + 4}, Anchor::kStart,
                FitText(label.line->name, kFont, width - right - 16), "t");
  }
  return std::move(canvas).Finish();
}

}  // namespace nibble

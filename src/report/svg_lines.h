// Lines over an axis, each named at its right end.
#ifndef NIBBLE_REPORT_SVG_LINES_H_
#define NIBBLE_REPORT_SVG_LINES_H_

#include <optional>
#include <string>
#include <vector>

#include "src/report/svg_axis.h"
#include "src/report/svg_canvas.h"

namespace nibble {

// kLimit: what a measured line of the same series cannot pass; dashed, with neither marks nor a name.
enum class LineStyle { kMeasured, kLimit };

struct DataLine {
  int series = 0;
  std::string name;
  std::vector<Point> points;          // in the axes' numbers, x ascending, at least one
  std::vector<std::string> tooltips;  // one for each point; none of a limit
  LineStyle style = LineStyle::kMeasured;
};

struct LineChart {
  std::string id, title, description;
  std::string x_title, y_title;
  Axis x, y;
  std::vector<DataLine> lines;
};

std::string DrawLines(const LineChart& chart, double width);

}  // namespace nibble

#endif  // NIBBLE_REPORT_SVG_LINES_H_

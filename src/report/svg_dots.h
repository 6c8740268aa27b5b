// Rows of dots with their intervals: many groups and several methods in little room.
#ifndef NIBBLE_REPORT_SVG_DOTS_H_
#define NIBBLE_REPORT_SVG_DOTS_H_

#include <optional>
#include <string>
#include <vector>

#include "src/report/study_record.h"
#include "src/report/svg_axis.h"

namespace nibble {

struct Dot {
  int series = 0;
  double value = 0;
  std::optional<Interval> interval;
  std::string label;        // the number, written at the right of a wide picture
  std::string short_label;  // and of a narrow one
  std::string tooltip;
};

struct DotRow {
  std::string heading;  // where a part of the picture begins
  std::string label;
  std::string note;  // quieter, after the label
  std::vector<Dot> dots;
};

struct DotPlot {
  std::string id, title, description;
  std::string axis_title;
  Axis axis;
  std::vector<DotRow> rows;
  std::optional<double> line;    // a level to compare with
  std::optional<Interval> band;  // a shaded part of the axis
};

enum class RowLabels { kLeft, kAbove };

std::string DrawDots(const DotPlot& plot, double width, RowLabels labels);

}  // namespace nibble

#endif  // NIBBLE_REPORT_SVG_DOTS_H_

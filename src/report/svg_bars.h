// Bars in groups, each bar one or more segments stacked, with an interval where one is known.
#ifndef NIBBLE_REPORT_SVG_BARS_H_
#define NIBBLE_REPORT_SVG_BARS_H_

#include <optional>
#include <string>
#include <vector>

#include "src/report/study_record.h"
#include "src/report/svg_axis.h"

namespace nibble {

struct Bar {
  int series = 0;
  std::vector<double> segments;  // not negative; drawn solid, striped and pale, in this order
  std::optional<Interval> interval;
  std::string label;        // the number beside the bar
  std::string short_label;  // in fewer digits, where bars are too narrow for the other
  std::string tooltip;
};

struct BarGroup {
  std::string label;
  std::string note;  // a second, quieter line
  std::vector<Bar> bars;
};

struct BarChart {
  std::string id, title, description;
  std::string axis_title;
  Axis axis;  // from 0
  std::vector<BarGroup> groups;
  std::optional<double> line;  // a level to compare with
  std::string line_label;
};

// Upright, for a wide page: numbers are shortened, or left out, where bars are too narrow for them.
std::string DrawColumns(const BarChart& chart, double width);

// Lying, for a narrow page: every bar has its number.
std::string DrawRows(const BarChart& chart, double width);

}  // namespace nibble

#endif  // NIBBLE_REPORT_SVG_BARS_H_

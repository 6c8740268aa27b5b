#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "src/report/svg_axis.h"
#include "src/report/svg_bars.h"
#include "src/report/svg_canvas.h"
#include "src/report/svg_dots.h"
#include "src/report/svg_lines.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

std::vector<std::string> Labels(const Axis& axis) {
  std::vector<std::string> labels;
  for (const Tick& tick : axis.ticks()) labels.push_back(tick.label);
  return labels;
}

TEST(Axis, LinearTicksAreRoundAndCoverTheRange) {
  EXPECT_EQ(Labels(Axis::Linear(0, 57, 5)), (std::vector<std::string>{"0", "20", "40", "60"}));
  EXPECT_EQ(Labels(Axis::Linear(-1.3, 0.4, 5)),
            (std::vector<std::string>{"−1.5", "−1.0", "−0.5", "0.0", "0.5"}));
  const Axis axis = Axis::Linear(-1.3, 0.4, 5);
  EXPECT_LE(axis.low(), -1.3);
  EXPECT_GE(axis.high(), 0.4);
  EXPECT_DOUBLE_EQ(axis.Position(-1.5), 0);
  EXPECT_DOUBLE_EQ(axis.Position(100), 1);
}

TEST(Axis, EmptyAndExtremeRangesHaveFewTicks) {
  for (const auto& [low, high] : {std::pair{0.0, 0.0},
                                  {5.0, 5.0},
                                  {0.0, 1e18},
                                  {1e17, 1e17 + 16},
                                  {-1e18, 1e18},
                                  {0.0, 1e-12}}) {
    const Axis axis = Axis::Linear(low, high, 5);
    EXPECT_GE(axis.ticks().size(), 2) << low << " " << high;
    EXPECT_LE(axis.ticks().size(), 12) << low << " " << high;
    EXPECT_LT(axis.low(), axis.high());
  }
  for (const auto& [low, high] : {std::pair{1.0, 1.0}, {0.0, 0.0}, {1e-12, 1e18}, {0.3, 7.0}}) {
    const Axis axis = Axis::Logarithmic(low, high, 6);
    EXPECT_GE(axis.ticks().size(), 2) << low << " " << high;
    EXPECT_LE(axis.ticks().size(), 12) << low << " " << high;
  }
}

TEST(Axis, LogarithmicStepsAreEqualRatios) {
  const Axis axis = Axis::LogarithmicAt({1, 2, 4, 8, 16});
  EXPECT_NEAR(axis.Position(4), 0.5, 1e-12);
  EXPECT_EQ(Labels(axis), (std::vector<std::string>{"1", "2", "4", "8", "16"}));
}

TEST(SvgCanvas, TextIsFittedByWholeCharacters) {
  const std::string fitted = FitText("ééééééééééééééééééééé", 12, 60);
  EXPECT_TRUE(fitted.ends_with("é…")) << fitted;
  EXPECT_LE(EstimateTextWidth(fitted, 12), 61);
  EXPECT_EQ(FitText("short", 12, 200), "short");
}

TEST(SvgCanvas, ShapesDifferAmongTheFirstSeven) {
  std::set<std::string> shapes;
  for (int series = 0; series < 7; ++series) {
    const std::string mark = SvgLegendMark(series);
    shapes.insert(mark.substr(0, mark.find(" class=\"fill")));
  }
  EXPECT_EQ(shapes.size(), 7);
}

TEST(SvgCanvas, EscapesText) {
  SvgCanvas canvas(100, 50, "i\"d", "<b>title</b>", "d & d");
  canvas.Text({1, 2}, Anchor::kStart, "<script>");
  canvas.Mark({1, 2}, 3, 0, "a < b");
  const std::string svg = std::move(canvas).Finish();
  EXPECT_THAT(svg, Not(HasSubstr("<script>")));
  EXPECT_THAT(svg, Not(HasSubstr("<b>")));
  EXPECT_THAT(svg, HasSubstr("role=\"img\""));
}

TEST(SvgLines, LabelsOfLinesThatEndTogetherDoNotOverlap) {
  LineChart chart;
  chart.x = Axis::LogarithmicAt({1, 2});
  chart.y = Axis::Linear(0, 10, 5);
  for (int i = 0; i < 4; ++i) {
    chart.lines.push_back({i, fmt::format("method-{}", i), {{1, 5}, {2, 5}}, {"", ""}});
  }
  const std::string svg = DrawLines(chart, 400);
  std::vector<double> heights;
  for (int i = 0; i < 4; ++i) {
    const size_t at = svg.find(fmt::format(">method-{}<", i));
    ASSERT_NE(at, std::string::npos);
    const size_t y = svg.rfind(" y=\"", at);
    heights.push_back(std::stod(svg.substr(y + 4)));
  }
  std::sort(heights.begin(), heights.end());
  for (size_t i = 1; i < heights.size(); ++i) EXPECT_GE(heights[i] - heights[i - 1], 13.9);
}

TEST(SvgLines, LimitsHaveNeitherMarksNorNames) {
  LineChart chart;
  chart.x = Axis::LogarithmicAt({1, 2});
  chart.y = Axis::Linear(0, 10, 5);
  chart.lines = {
      {.series = 3, .name = "fastest", .points = {{1, 5}, {2, 5}}, .style = LineStyle::kLimit},
      {.series = 3, .name = "slow", .points = {{1, 8}, {2, 9}}, .tooltips = {"a", "b"}}};
  const std::string svg = DrawLines(chart, 400);
  EXPECT_THAT(svg, HasSubstr("stroke limit s3"));
  EXPECT_THAT(svg, Not(HasSubstr("fastest")));
  EXPECT_THAT(svg, HasSubstr(">slow<"));
}

TEST(SvgBars, StackEndsWhereItsSumIs) {
  BarChart chart;
  chart.axis = Axis::Linear(0, 10, 5);
  chart.groups = {{"g", "", {{0, {2, 3, 5}, std::nullopt, "10", ""}}}};
  // The plot is 250 units high: segments of 50, 75 and 125.
  const std::string svg = DrawColumns(chart, 400);
  EXPECT_THAT(svg, HasSubstr("height=\"50\""));
  EXPECT_THAT(svg, HasSubstr("height=\"75\""));
  EXPECT_THAT(svg, HasSubstr("height=\"125\""));
}

TEST(SvgDots, ValuesThatAreNotFiniteAreNotDrawn) {
  DotPlot plot;
  plot.axis = Axis::Linear(0, 1, 2);
  plot.rows = {{"", "row", "", {{0, NAN, std::nullopt, "?", "?", ""}}}};
  const std::string svg = DrawDots(plot, 400, RowLabels::kLeft);
  EXPECT_THAT(svg, Not(HasSubstr("nan")));
  EXPECT_THAT(svg, HasSubstr(">?<"));
}

}  // namespace
}  // namespace nibble

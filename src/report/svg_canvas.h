// A small SVG writer: shapes in user units (CSS pixels at scale 1), coloured by CSS classes of the
// page that holds the picture (html_style.cc), so that one picture serves light, dark and print.
//
// Classes: "s0" … "s7" set a series' colour, used by "fill", "tint" and "stroke"; "grid", "axis",
// "band" and "whisker" are what their names say; text takes "t", "t muted", "t bold", "t small".
#ifndef NIBBLE_REPORT_SVG_CANVAS_H_
#define NIBBLE_REPORT_SVG_CANVAS_H_

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace nibble {

inline constexpr double kFont = 12;         // the height of class "t"
inline constexpr double kSmallFont = 10.5;  // of "t small"

enum class Anchor { kStart, kMiddle, kEnd };

struct Point {
  double x = 0;
  double y = 0;
};

class SvgCanvas {
 public:
  // `id` is unique in the page; `title` and `description` are what a screen reader says.
  SvgCanvas(double width, double height, std::string_view id, std::string_view title,
            std::string_view description);

  void Rectangle(Point corner, double width, double height, std::string_view classes,
                 std::string_view tooltip = "");
  // Stripes of the page's background over a rectangle already drawn.
  void Hatch(Point corner, double width, double height);
  void Line(Point from, Point to, std::string_view classes);
  void Polyline(const std::vector<Point>& points, std::string_view classes);
  void Text(Point at, Anchor anchor, std::string_view text, std::string_view classes = "t");

  // The mark of a series: its colour and its shape, eight and seven of them, so that 56 series
  // differ and the first seven differ by shape alone.
  void Mark(Point centre, double radius, int series, std::string_view tooltip = "");

  double width() const { return width_; }
  std::string Finish() &&;

 private:
  double width_;
  std::string id_;
  std::string body_;
  bool hatched_ = false;
};

// A series' colour class.
std::string SeriesClass(int series);

// A legend's mark: a small picture without a title, for text that names the series beside it.
std::string SvgLegendMark(int series);

// The width text will need at a font size, generously: the reader's font is not known.
double EstimateTextWidth(std::string_view text, double font_px);

// Text cut with an ellipsis so that it fits.
std::string FitText(std::string_view text, double font_px, double width);

}  // namespace nibble

#endif  // NIBBLE_REPORT_SVG_CANVAS_H_

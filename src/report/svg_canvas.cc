#include "src/report/svg_canvas.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "src/report/markup.h"

namespace nibble {
namespace {

constexpr int kColours = 8;
constexpr int kShapes = 7;

// One decimal is finer than a screen shows; trailing zeros would be a third of the file.
std::string Number(double value) {
  std::string text = fmt::format("{:.1f}", std::isfinite(value) ? value : 0.0);
  if (text.ends_with(".0")) text.resize(text.size() - 2);
  return text == "-0" ? "0" : text;
}

std::string PointList(const std::vector<Point>& points) {
  std::string list;
  for (const Point& point : points) {
    list += fmt::format("{}{},{}", list.empty() ? "" : " ", Number(point.x), Number(point.y));
  }
  return list;
}

// Shapes of about equal area.
std::string ShapeOf(Point c, double r, int series) {
  const auto polygon = [](const std::vector<Point>& points) {
    return fmt::format("<polygon points=\"{}\"", PointList(points));
  };
  switch (series % kShapes) {
    case 0:
      return fmt::format("<circle cx=\"{}\" cy=\"{}\" r=\"{}\"", Number(c.x), Number(c.y),
                         Number(r));
    case 1: {
      const double h = 0.9 * r;
      return polygon(
          {{c.x - h, c.y - h}, {c.x + h, c.y - h}, {c.x + h, c.y + h}, {c.x - h, c.y + h}});
    }
    case 2:
      return polygon({{c.x, c.y - 1.2 * r},
                      {c.x + 1.15 * r, c.y + 0.85 * r},
                      {c.x - 1.15 * r, c.y + 0.85 * r}});
    case 3:
      return polygon(
          {{c.x, c.y - 1.3 * r}, {c.x + 1.3 * r, c.y}, {c.x, c.y + 1.3 * r}, {c.x - 1.3 * r, c.y}});
    case 4:
      return polygon({{c.x, c.y + 1.2 * r},
                      {c.x + 1.15 * r, c.y - 0.85 * r},
                      {c.x - 1.15 * r, c.y - 0.85 * r}});
    case 5: {  // plus
      const double a = 1.25 * r, b = 0.45 * r;
      return polygon({{c.x - b, c.y - a},
                      {c.x + b, c.y - a},
                      {c.x + b, c.y - b},
                      {c.x + a, c.y - b},
                      {c.x + a, c.y + b},
                      {c.x + b, c.y + b},
                      {c.x + b, c.y + a},
                      {c.x - b, c.y + a},
                      {c.x - b, c.y + b},
                      {c.x - a, c.y + b},
                      {c.x - a, c.y - b},
                      {c.x - b, c.y - b}});
    }
    default: {  // hourglass
      const double h = 1.1 * r;
      return polygon(
          {{c.x - h, c.y - h}, {c.x + h, c.y - h}, {c.x - h, c.y + h}, {c.x + h, c.y + h}});
    }
  }
}

std::string Close(std::string_view element, std::string_view tooltip) {
  if (tooltip.empty()) return "/>\n";
  return fmt::format("><title>{}</title></{}>\n", EscapeXml(tooltip), element);
}

}  // namespace

std::string SeriesClass(int series) { return fmt::format("s{}", series % kColours); }

std::string SvgLegendMark(int series) {
  return fmt::format(
      "<svg class=\"mark\" viewBox=\"0 0 14 14\" width=\"14\" height=\"14\" aria-hidden=\"true\">"
      "{} class=\"fill {}\"/></svg>",
      ShapeOf({7, 7}, 4.6, series), SeriesClass(series));
}

double EstimateTextWidth(std::string_view text, double font_px) {
  double ems = 0;
  for (const char c : text) {
    if ((static_cast<uint8_t>(c) & 0xC0) == 0x80) continue;
    const bool thin = std::string_view(" .,:;'|!ijlft()[]").find(c) != std::string_view::npos;
    const bool wide = (c >= 'A' && c <= 'Z') || c == 'm' || c == 'w' || c == '%';
    ems += thin ? 0.36 : wide ? 0.8 : 0.62;
  }
  return ems * font_px;
}

std::string FitText(std::string_view text, double font_px, double width) {
  if (EstimateTextWidth(text, font_px) <= width) return std::string(text);
  while (!text.empty() && EstimateTextWidth(text, font_px) + 0.8 * font_px > width) {
    // A whole character goes, however many bytes it has.
    while (!text.empty() && (static_cast<uint8_t>(text.back()) & 0xC0) == 0x80) {
      text.remove_suffix(1);
    }
    if (!text.empty()) text.remove_suffix(1);
  }
  return std::string(text) + "…";
}

SvgCanvas::SvgCanvas(double width, double height, std::string_view id, std::string_view title,
                     std::string_view description)
    : width_(width),
      id_(EscapeXml(id)),
      body_(fmt::format("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" "
                        "width=\"{0}\" height=\"{1}\" role=\"img\" "
                        "aria-labelledby=\"{2}-t {2}-d\">\n<title id=\"{2}-t\">{3}</title>\n"
                        "<desc id=\"{2}-d\">{4}</desc>\n",
                        Number(width), Number(height), id_, EscapeXml(title),
                        EscapeXml(description))) {}

void SvgCanvas::Rectangle(Point corner, double width, double height, std::string_view classes,
                          std::string_view tooltip) {
  body_ += fmt::format("<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" class=\"{}\"{}",
                       Number(corner.x), Number(corner.y), Number(std::max(width, 0.0)),
                       Number(std::max(height, 0.0)), classes, Close("rect", tooltip));
}

void SvgCanvas::Hatch(Point corner, double width, double height) {
  hatched_ = true;
  body_ += fmt::format(
      "<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" fill=\"url(#{}-hatch)\" "
      "pointer-events=\"none\"/>\n",
      Number(corner.x), Number(corner.y), Number(std::max(width, 0.0)),
      Number(std::max(height, 0.0)), id_);
}

void SvgCanvas::Line(Point from, Point to, std::string_view classes) {
  body_ += fmt::format("<line x1=\"{}\" y1=\"{}\" x2=\"{}\" y2=\"{}\" class=\"{}\"/>\n",
                       Number(from.x), Number(from.y), Number(to.x), Number(to.y), classes);
}

void SvgCanvas::Polyline(const std::vector<Point>& points, std::string_view classes) {
  body_ += fmt::format("<polyline points=\"{}\" class=\"{}\"/>\n", PointList(points), classes);
}

void SvgCanvas::Text(Point at, Anchor anchor, std::string_view text, std::string_view classes) {
  static constexpr const char* kAnchors[] = {"start", "middle", "end"};
  body_ += fmt::format("<text x=\"{}\" y=\"{}\" text-anchor=\"{}\" class=\"{}\">{}</text>\n",
                       Number(at.x), Number(at.y), kAnchors[static_cast<int>(anchor)], classes,
                       EscapeXml(text));
}

void SvgCanvas::Mark(Point centre, double radius, int series, std::string_view tooltip) {
  const std::string shape = ShapeOf(centre, radius, series);
  body_ += fmt::format("{} class=\"fill {}\"{}", shape, SeriesClass(series),
                       Close(std::string_view(shape).substr(1, shape.find(' ') - 1), tooltip));
}

std::string SvgCanvas::Finish() && {
  if (hatched_) {
    body_ += fmt::format(
        "<defs><pattern id=\"{}-hatch\" width=\"5\" height=\"5\" patternUnits=\"userSpaceOnUse\" "
        "patternTransform=\"rotate(45)\"><rect width=\"2\" height=\"5\" class=\"paper\"/>"
        "</pattern></defs>\n",
        id_);
  }
  return std::move(body_) + "</svg>\n";
}

}  // namespace nibble

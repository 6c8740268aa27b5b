// Axes: which part of the numbers a picture shows, and where it writes them.
#ifndef NIBBLE_REPORT_SVG_AXIS_H_
#define NIBBLE_REPORT_SVG_AXIS_H_

#include <string>
#include <vector>

namespace nibble {

struct Tick {
  double value;
  std::string label;
};

enum class AxisScale { kLinear, kLogarithmic };

class Axis {
 public:
  // Round numbers from at most `low` to at least `high`, about `intervals` apart. `low` ≤ `high`,
  // both finite.
  static Axis Linear(double low, double high, int intervals);
  // Positive numbers: ticks at 1, 2, 5 or at powers of ten, whichever gives about `ticks` of them.
  static Axis Logarithmic(double low, double high, int ticks);
  // Ticks at the given positive values, equally spaced by ratio.
  static Axis LogarithmicAt(const std::vector<double>& values);

  // 0 at the start of the axis, 1 at its end; clamped.
  double Position(double value) const;
  double low() const { return low_; }
  double high() const { return high_; }
  const std::vector<Tick>& ticks() const { return ticks_; }

 private:
  AxisScale scale_ = AxisScale::kLinear;
  double low_ = 0;
  double high_ = 1;
  std::vector<Tick> ticks_;
};

}  // namespace nibble

#endif  // NIBBLE_REPORT_SVG_AXIS_H_

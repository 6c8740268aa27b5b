#include "src/base/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "src/base/units.h"

namespace nibble {

ProgressStyle DetectProgressStyle() {
  return ::isatty(STDERR_FILENO) ? ProgressStyle::kBar : ProgressStyle::kLines;
}

Progress::Progress(ProgressStyle style, std::string stage, int64_t total)
    : style_(style),
      stage_(std::move(stage)),
      total_(std::max<int64_t>(total, 1)),
      start_(std::chrono::steady_clock::now()),
      last_draw_(start_) {}

Progress::~Progress() { Draw(/*final=*/true); }

double Progress::seconds() const {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
}

void Progress::Update(int64_t done, std::string_view detail) {
  done_ = std::min(done, total_);
  detail_ = detail;
  const auto now = std::chrono::steady_clock::now();
  if (style_ == ProgressStyle::kBar && now - last_draw_ > std::chrono::milliseconds(100)) {
    last_draw_ = now;
    Draw(/*final=*/false);
  }
}

void Progress::Update(int64_t done, int64_t total, std::string_view detail) {
  total_ = std::max<int64_t>(total, 1);
  Update(done, detail);
}

void Progress::Draw(bool final) {
  if (style_ == ProgressStyle::kQuiet || (style_ == ProgressStyle::kLines && !final)) return;
  const double elapsed = seconds();
  if (style_ == ProgressStyle::kLines) {
    fmt::print(stderr, "{}: {}/{} in {}\n", stage_, done_, total_, FormatSeconds(elapsed));
    return;
  }
  constexpr int kWidth = 24;
  const double share = static_cast<double>(done_) / static_cast<double>(total_);
  const int filled = static_cast<int>(share * kWidth);
  const std::string time =
      final ? FormatSeconds(elapsed)
            : (share > 0 ? FormatSeconds(elapsed / share - elapsed) + " left" : std::string());
  fmt::print(stderr, "\r\x1b[K{} [{}{}] {}/{} {} {}{}", stage_, std::string(filled, '#'),
             std::string(kWidth - filled, '.'), done_, total_, time, detail_, final ? "\n" : "");
  std::fflush(stderr);
}

}  // namespace nibble

// Progress of a long stage, on stderr: a bar with the time left on a terminal, one line when the
// stage ends otherwise; nothing under --quiet.
#ifndef NIBBLE_BASE_PROGRESS_H_
#define NIBBLE_BASE_PROGRESS_H_

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

namespace nibble {

enum class ProgressStyle { kQuiet, kLines, kBar };

// kBar where stderr is a terminal, kLines otherwise.
ProgressStyle DetectProgressStyle();

class Progress {
 public:
  // `total` counts units of work, for example questions.
  Progress(ProgressStyle style, std::string stage, int64_t total);
  ~Progress();  // ends the stage
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void Update(int64_t done, std::string_view detail = {});
  // The same, for a stage whose total became known or changed.
  void Update(int64_t done, int64_t total, std::string_view detail = {});
  double seconds() const;  // since the start

 private:
  void Draw(bool final);
  ProgressStyle style_;
  std::string stage_;
  std::string detail_;
  int64_t total_;
  int64_t done_ = 0;
  std::chrono::steady_clock::time_point start_, last_draw_;
};

}  // namespace nibble

#endif  // NIBBLE_BASE_PROGRESS_H_

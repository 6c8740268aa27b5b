// The clock that measurements are taken with.
#ifndef NIBBLE_BENCH_CLOCK_H_
#define NIBBLE_BENCH_CLOCK_H_

#include <chrono>

namespace nibble {

using Clock = std::chrono::steady_clock;

inline double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace nibble

#endif  // NIBBLE_BENCH_CLOCK_H_

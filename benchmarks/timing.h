// Timing two pieces of work side by side. The machine's speed drifts (other tenants, frequency), so
// a kernel and the limit that it is held against run alternately, and what is reported is their
// ratio.
#ifndef NIBBLE_BENCHMARKS_TIMING_H_
#define NIBBLE_BENCHMARKS_TIMING_H_

#include <benchmark/benchmark.h>
#include <time.h>

#include <algorithm>
#include <vector>

namespace nibble {

// Wall time; or, for work by the calling thread alone, its own time on the processor, which leaves
// out what other processes took.
enum class Clock { kWall, kThread };

inline double Now(Clock clock) {
  timespec time{};
  ::clock_gettime(clock == Clock::kWall ? CLOCK_MONOTONIC : CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

template <typename Work>
double Seconds(Clock clock, const Work& work) {
  const double begin = Now(clock);
  work();
  return Now(clock) - begin;
}

inline double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<long>(values.size() / 2),
                   values.end());
  return values[values.size() / 2];
}

// The benchmark's loop: times `work` (the benchmark's time), and `limit` after each. Counters:
// `share` is the median, `best_share` the ratio of the fastest of each, of limit_work / limit time
// to work_done / work time, both in units such as bytes or operations; `rate` is work_done per
// second.
template <typename Work, typename Limit>
void CompareWithLimit(benchmark::State& state, Clock clock, double work_done, const Work& work,
                      double limit_done, const Limit& limit) {
  std::vector<double> shares, times, limit_times;
  work();
  limit();
  for (auto _ : state) {
    times.push_back(Seconds(clock, work));
    state.SetIterationTime(times.back());
    limit_times.push_back(Seconds(clock, limit));
    shares.push_back(work_done / times.back() * limit_times.back() / limit_done);
  }
  const double fastest = *std::min_element(times.begin(), times.end());
  const double limit_fastest = *std::min_element(limit_times.begin(), limit_times.end());
  state.counters["share"] = Median(shares);
  state.counters["best_share"] = work_done / fastest * limit_fastest / limit_done;
  state.counters["rate"] =
      benchmark::Counter(work_done / Median(times), benchmark::Counter::kDefaults);
  state.counters["best_rate"] =
      benchmark::Counter(work_done / fastest, benchmark::Counter::kDefaults);
  state.counters["best_limit"] =
      benchmark::Counter(limit_done / limit_fastest, benchmark::Counter::kDefaults);
  state.counters["limit"] =
      benchmark::Counter(limit_done / Median(limit_times), benchmark::Counter::kDefaults);
}

}  // namespace nibble

#endif  // NIBBLE_BENCHMARKS_TIMING_H_

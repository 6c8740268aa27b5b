#include "src/bench/hardware.h"

#include <cblas.h>
#include <sys/utsname.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <fstream>
#include <set>
#include <string>
#include <vector>

#include "src/tensor/memory.h"

namespace nibble {
namespace {

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// 64 bytes that are read at once, whatever vectors the target has.
using Line = uint64_t __attribute__((vector_size(64)));

double MeasureReadBandwidth(ThreadPool& pool) {
  constexpr int64_t kLines = int64_t{8} << 20;  // 512 MiB
  constexpr int64_t kChunk = int64_t{1} << 14;
  // Allocated like the weights, in huge pages: with small ones the page walks would be measured.
  MemoryTracker tracker;
  const Result<Buffer> buffer =
      AllocateHost(tracker, MemoryClass::kWorkspace, kLines * sizeof(Line));
  if (!buffer) return 0;
  Line* const lines = buffer->as<Line>();
  pool.ParallelFor(kLines, kChunk, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) lines[i] = Line{} + uint64_t(i);
  });
  std::atomic<uint64_t> used{0};
  double best = 0;
  for (int attempt = 0; attempt < 7; ++attempt) {
    const auto start = Clock::now();
    pool.ParallelFor(kLines, kChunk, [&](int64_t begin, int64_t end, int) {
      Line even{}, odd{};
      for (int64_t i = begin; i < end; i += 2) {
        even ^= lines[i];
        odd ^= lines[i + 1];
      }
      even ^= odd;
      used += even[0] ^ even[3] ^ even[7];
    });
    best = std::max(best, static_cast<double>(kLines) * sizeof(Line) / SecondsSince(start));
  }
  // The sums are used, so that the reads cannot be left out.
  const volatile uint64_t sum = used.load();
  static_cast<void>(sum);
  return best;
}

double MeasureMatrixRate(int threads) {
  constexpr int kSize = 1536;
  const int previous = openblas_get_num_threads();
  openblas_set_num_threads(threads);
  const std::vector<float> a(size_t{kSize} * kSize, 0.5f), b(size_t{kSize} * kSize, 0.25f);
  std::vector<float> c(size_t{kSize} * kSize);
  double best = 0;
  for (int attempt = 0; attempt < 5; ++attempt) {
    const auto start = Clock::now();
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, kSize, kSize, kSize, 1, a.data(), kSize,
                b.data(), kSize, 0, c.data(), kSize);
    best = std::max(best, 2.0 * kSize * kSize * kSize / SecondsSince(start));
  }
  openblas_set_num_threads(previous);
  return best;
}

std::string Trimmed(std::string text) {
  const auto edge = [](char c) { return c == ' ' || c == '\t' || c == '"'; };
  while (!text.empty() && edge(text.back())) text.pop_back();
  text.erase(text.begin(), std::find_if_not(text.begin(), text.end(), edge));
  return text;
}

}  // namespace

DeviceLimits MeasureHostLimits(ThreadPool& pool) {
  return {.read_bytes_per_second = MeasureReadBandwidth(pool),
          .matrix_flops_per_second = MeasureMatrixRate(pool.threads())};
}

Json DescribeServer() {
  Json server = {{"cpu", nullptr},          {"sockets", nullptr}, {"cores", nullptr},
                 {"threads", UsableCores()}, {"memory_bytes", ReadHostMemory().total_bytes},
                 {"os", nullptr},           {"kernel", nullptr}};
  std::ifstream cpuinfo("/proc/cpuinfo");
  std::set<std::string> sockets;
  std::set<std::pair<std::string, std::string>> cores;
  std::string socket;
  for (std::string line; std::getline(cpuinfo, line);) {
    const size_t colon = line.find(':');
    if (colon == std::string::npos) continue;
    const std::string key = Trimmed(line.substr(0, colon)), value = Trimmed(line.substr(colon + 1));
    if (key == "model name") server["cpu"] = value;
    if (key == "physical id") sockets.insert(socket = value);
    if (key == "core id") cores.insert({socket, value});
  }
  if (!sockets.empty()) server["sockets"] = sockets.size();
  if (!cores.empty()) server["cores"] = cores.size();
  std::ifstream release("/etc/os-release");
  for (std::string line; std::getline(release, line);) {
    if (line.starts_with("PRETTY_NAME=")) server["os"] = Trimmed(line.substr(12));
  }
  struct utsname name;
  if (::uname(&name) == 0) server["kernel"] = fmt::format("{} {}", name.sysname, name.release);
  return server;
}

Json DescribeHostAccelerator(const std::string& instruction_set, int threads,
                             const DeviceLimits& limits) {
  return {{"kind", "cpu"},
          {"name", DescribeServer()["cpu"]},
          {"instruction_set", instruction_set},
          {"threads", threads},
          {"memory_bytes", ReadHostMemory().total_bytes},
          {"read_bandwidth_bytes_per_second", limits.read_bytes_per_second},
          {"matrix_flops_per_second", limits.matrix_flops_per_second}};
}

}  // namespace nibble

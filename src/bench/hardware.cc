#include "src/bench/hardware.h"

#include <cblas.h>
#include <sys/utsname.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <fstream>
#include <set>
#include <string>
#include <vector>

#include "src/bench/clock.h"
#include "src/ops/cuda/device.h"
#include "src/ops/cuda/measure_limits.h"
#include "src/tensor/memory.h"

namespace nibble {
namespace {

double MeasureReadBandwidth(ThreadPool& pool) {
  constexpr size_t kBytes = size_t{512} << 20;
  // Allocated like the weights, in huge pages: with small ones the page walks would be measured.
  MemoryTracker tracker;
  const Result<Buffer> buffer = AllocateHost(tracker, MemoryClass::kWorkspace, kBytes);
  if (!buffer) return 0;
  pool.ParallelFor(kBytes, kBytes >> 8, [&](int64_t begin, int64_t end, int) {
    std::memset(buffer->as<std::byte>() + begin, 1, static_cast<size_t>(end - begin));
  });
  double best = 0;
  for (int attempt = 0; attempt < 9; ++attempt) {
    const auto start = Clock::now();
    ReadMemory(pool, {buffer->as<const std::byte>(), kBytes});
    best = std::max(best, static_cast<double>(kBytes) / SecondsSince(start));
  }
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

void ReadMemory(ThreadPool& pool, std::span<const std::byte> bytes) {
  using Words = uint64_t __attribute__((vector_size(16)));  // in any target's registers
  constexpr int64_t kChunk = 1 << 16;
  constexpr int64_t kStreams = 4;  // one alone does not reach the memory's bandwidth
  const auto* words = reinterpret_cast<const Words*>(bytes.data());
  std::atomic<uint64_t> used{0};
  pool.ParallelFor(static_cast<int64_t>(bytes.size() / sizeof(Words)), kChunk,
                   [&](int64_t begin, int64_t end, int) {
                     const int64_t length = (end - begin) / kStreams;
                     const Words* from = words + begin;
                     Words a{}, b{}, c{}, d{};
                     for (int64_t i = 0; i < length; ++i) {
                       a ^= from[i];
                       b ^= from[i + length];
                       c ^= from[i + 2 * length];
                       d ^= from[i + 3 * length];
                     }
                     const Words all = a ^ b ^ c ^ d;
                     used += all[0] ^ all[1];
                   });
  // The sums are used, so that the reads cannot be left out.
  const volatile uint64_t sum = used.load();
  static_cast<void>(sum);
}

Result<DeviceLimits> MeasureLimits(const Backend& backend, ThreadPool& pool) {
  if (backend.name() == "cuda") {
    NIBBLE_ASSIGN_OR_RETURN(const CudaLimits limits, MeasureCudaLimits());
    return DeviceLimits{.read_bytes_per_second = limits.read_bytes_per_second,
                        .matrix_flops_per_second = limits.matrix_flops_per_second};
  }
  return DeviceLimits{.read_bytes_per_second = MeasureReadBandwidth(pool),
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

Json DescribeAccelerator(const Backend& backend, int threads, const DeviceLimits& limits) {
  Json accelerator = {{"kind", "cpu"},
                      {"name", DescribeServer()["cpu"]},
                      {"instruction_set", backend.description()},
                      {"threads", threads},
                      {"memory_bytes", ReadHostMemory().total_bytes}};
  if (backend.name() == "cuda") {
    const CudaDevice device = CurrentCudaDevice();
    accelerator = {{"kind", "cuda"},
                   {"name", device.name},
                   {"index", device.index},
                   {"compute_capability", device.compute_capability},
                   {"multiprocessors", device.multiprocessors},
                   {"driver", "CUDA " + device.driver},
                   {"memory_bytes", device.memory_bytes}};
  }
  accelerator["read_bandwidth_bytes_per_second"] = limits.read_bytes_per_second;
  accelerator["matrix_flops_per_second"] = limits.matrix_flops_per_second;
  return accelerator;
}

}  // namespace nibble

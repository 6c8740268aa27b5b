// What machine a measurement was made on, and its limits.
#ifndef NIBBLE_BENCH_HARDWARE_H_
#define NIBBLE_BENCH_HARDWARE_H_

#include <cstddef>
#include <span>
#include <string>

#include "src/base/json.h"
#include "src/base/thread_pool.h"

namespace nibble {

// Rates that bound any kernel on a device, measured, not taken from a data sheet.
struct DeviceLimits {
  double read_bytes_per_second = 0;    // reading memory far larger than the caches
  double matrix_flops_per_second = 0;  // a large float32 matrix product
};

// Reads `bytes` once by `pool`'s threads, as fast as plain loads do: the limit of any kernel that
// streams weights.
void ReadMemory(ThreadPool& pool, std::span<const std::byte> bytes);

// By `pool`'s threads: ReadMemory over 512 MiB, and OpenBLAS's sgemm at 1536³; the best of a few
// tries each, which takes about two seconds.
DeviceLimits MeasureHostLimits(ThreadPool& pool);

// {"cpu", "sockets", "cores", "threads", "memory_bytes", "os", "kernel"}; what cannot be found out is
// null.
Json DescribeServer();

// The host as the device that computes: {"kind": "cpu", "name", "instruction_set", "threads",
// "memory_bytes", "read_bandwidth_bytes_per_second", "matrix_flops_per_second"}.
Json DescribeHostAccelerator(const std::string& instruction_set, int threads,
                             const DeviceLimits& limits);

}  // namespace nibble

#endif  // NIBBLE_BENCH_HARDWARE_H_

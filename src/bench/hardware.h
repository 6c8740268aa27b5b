// What machine a measurement was made on, and its limits.
#ifndef NIBBLE_BENCH_HARDWARE_H_
#define NIBBLE_BENCH_HARDWARE_H_

#include <cstddef>
#include <span>
#include <string>

#include "src/base/json.h"
#include "src/base/thread_pool.h"
#include "src/ops/backend.h"

namespace nibble {

// Rates that bound any kernel on a device, measured, not taken from a data sheet.
struct DeviceLimits {
  double read_bytes_per_second = 0;    // reading memory far larger than the caches
  double matrix_flops_per_second = 0;  // a large matrix product: float32 on a CPU, float16 on a GPU
};

// Reads `bytes` once by `pool`'s threads, as fast as plain loads do: the limit of any kernel that
// streams weights.
void ReadMemory(ThreadPool& pool, std::span<const std::byte> bytes);

// Of the device that the backend computes on. A CPU, by `pool`'s threads: ReadMemory over 512 MiB, and
// OpenBLAS's sgemm at 1536³; the best of a few tries each, which takes about two seconds. A GPU: see
// ops/cuda/measure_limits.h.
Result<DeviceLimits> MeasureLimits(const Backend& backend, ThreadPool& pool);

// {"cpu", "sockets", "cores", "threads", "memory_bytes", "os", "kernel"}; what cannot be found out is
// null.
Json DescribeServer();

// The device that the backend computes on: {"kind": "cpu", "name", "instruction_set", "threads",
// "memory_bytes", "read_bandwidth_bytes_per_second", "matrix_flops_per_second"}, or {"kind": "cuda",
// "name", "index", "compute_capability", "multiprocessors", "driver", "memory_bytes", …} for a GPU.
Json DescribeAccelerator(const Backend& backend, int threads, const DeviceLimits& limits);

}  // namespace nibble

#endif  // NIBBLE_BENCH_HARDWARE_H_

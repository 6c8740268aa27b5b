// The operations of quantizing on a GPU, at Llama-2-7B's shapes: milliseconds, and the share of what
// bounds each, measured in the same run.
//
//   benchmark_quantize_cuda
//
// Bounds: float16 products and reading (MeasureCudaLimits), cuBLAS's products in float32 and float64,
// half of the float16 rate for TF32, and copies from page-locked memory.
#include <cublas_v2.h>
#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <numeric>
#include <vector>

#include "src/base/file.h"
#include "src/base/must.h"
#include "src/base/random.h"
#include "src/ops/cuda/cuda_backend.h"
#include "src/ops/cuda/measure_limits.h"

namespace nibble {
namespace {

void Must(cudaError_t error) { CHECK(error == cudaSuccess, "{}", cudaGetErrorString(error)); }
void Must(cublasStatus_t status) { CHECK(status == CUBLAS_STATUS_SUCCESS); }

constexpr int kAttempts = 5;

// Median seconds, the first attempt left out.
template <typename Work>
double Seconds(const Work& work) {
  std::vector<double> times;
  for (int i = 0; i <= kAttempts; ++i) {
    Must(cudaDeviceSynchronize());
    const auto begin = std::chrono::steady_clock::now();
    work();
    Must(cudaDeviceSynchronize());
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
    if (i > 0) times.push_back(taken.count());
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

// Of units per second: operations or bytes.
struct Limits {
  double half_products, float_products, double_products, reading, copying;
};

template <typename T, typename Product>
double ProductRate(cublasHandle_t blas, int64_t n, const Product& product) {
  void* memory = nullptr;
  const auto count = static_cast<size_t>(n * n);
  Must(cudaMalloc(&memory, 3 * count * sizeof(T)));
  std::vector<T> values(count);
  Random random(1);
  for (T& value : values) value = static_cast<T>(random.Uniform() - 0.5);
  T* const a = static_cast<T*>(memory);
  Must(cudaMemcpy(a, values.data(), count * sizeof(T), cudaMemcpyHostToDevice));
  Must(cudaMemcpy(a + count, values.data(), count * sizeof(T), cudaMemcpyHostToDevice));
  const double seconds = Seconds([&] { Must(product(blas, a, a + count, a + 2 * count)); });
  Must(cudaFree(memory));
  return 2.0 * static_cast<double>(n * n * n) / seconds;
}

Limits Measure() {
  const CudaLimits device = Must(MeasureCudaLimits());
  Limits limits{.half_products = device.matrix_flops_per_second,
                .reading = device.read_bytes_per_second};
  cublasHandle_t blas = nullptr;
  Must(cublasCreate(&blas));
  constexpr int n = 8192, m = 4096;
  limits.float_products =
      ProductRate<float>(blas, n, [](cublasHandle_t h, const float* a, const float* b, float* c) {
        const float one = 1, zero = 0;
        return cublasSgemm(h, CUBLAS_OP_N, CUBLAS_OP_N, n, n, n, &one, a, n, b, n, &zero, c, n);
      });
  limits.double_products = ProductRate<double>(
      blas, m, [](cublasHandle_t h, const double* a, const double* b, double* c) {
        const double one = 1, zero = 0;
        return cublasDgemm(h, CUBLAS_OP_N, CUBLAS_OP_N, m, m, m, &one, a, m, b, m, &zero, c, m);
      });
  Must(cublasDestroy(blas));
  constexpr size_t kBytes = size_t{256} << 20;
  void *host = nullptr, *there = nullptr;
  Must(cudaMallocHost(&host, kBytes));
  Must(cudaMalloc(&there, kBytes));
  limits.copying = static_cast<double>(kBytes) / Seconds([&] {
                     Must(cudaMemcpy(there, host, kBytes, cudaMemcpyHostToDevice));
                   });
  Must(cudaFree(there));
  Must(cudaFreeHost(host));
  return limits;
}

void Print(const std::string& what, int64_t rows, int64_t columns, double seconds, double done,
           double limit, const char* unit, const char* of) {
  fmt::print("{:<34} [{:>5}, {:>5}] {:>9.3f} ms {:>9.1f} {:<8} {:>5.1f} % of {}\n", what, rows,
             columns, 1e3 * seconds, done / seconds / (unit[0] == 'T' ? 1e12 : 1e9), unit,
             100 * done / seconds / limit, of);
  std::fflush(stdout);
}

class Bench {
 public:
  Bench() : backend_(Must(MakeCudaBackend({}))), ops_(Must(backend_->CreateQuantizeOps())) {
    fmt::print("{}\n", backend_->description());
    limits_ = Measure();
    fmt::print(
        "TFLOP/s: float16 {:.0f}, float32 {:.1f}, float64 {:.1f}; GB/s: reading {:.0f}, copying from "
        "page-locked memory {:.1f}\n",
        limits_.half_products / 1e12, limits_.float_products / 1e12,
        limits_.double_products / 1e12, limits_.reading / 1e9, limits_.copying / 1e9);
  }

  // A linear of `rows` outputs and n inputs.
  void Run(int64_t rows, int64_t n) {
    constexpr int64_t kTokens = 2048;
    const auto d = [](int64_t value) { return static_cast<double>(value); };
    const Matrix x = Values(DType::kF16, kTokens, n), before = Values(DType::kF16, kTokens, n);
    const Matrix w = Values(DType::kF32, rows, n), other = Values(DType::kF32, rows, n);
    const Matrix out = Values(DType::kF32, rows, n);
    const std::vector<float> scales(static_cast<size_t>(n), 1.25f);
    std::vector<int32_t> order(static_cast<size_t>(n));
    std::iota(order.begin(), order.end(), 0);
    const auto statistics = Must(ops_->CreateStatistics(n));
    const MatrixView weights[] = {w.view()};
    const auto drift = Must(ops_->CreateDrift(weights));
    const GridOptions grid{}, searched{.search = ScaleSearch::kMse};

    // Enough tokens for a Hessian of full rank.
    for (int i = 0; i < 8; ++i) ops_->Accumulate(x.view(), *statistics);
    constexpr int kCalls = 10;
    double seconds = Seconds([&] {
      for (int i = 0; i < kCalls; ++i) ops_->Accumulate(x.view(), *statistics);
    });
    Print("accumulate, as a full product", kTokens, n, seconds / kCalls, 2 * d(kTokens) * d(n * n),
          limits_.half_products, "TFLOP/s", "float16");
    seconds = Seconds([&] {
      for (int i = 0; i < kCalls; ++i) {
        ops_->AccumulateDrift(before.view(), scales, x.view(), *drift);
      }
    });
    Print("accumulate drift", kTokens, n, seconds / kCalls, 2 * d(kTokens) * d(n * n),
          limits_.half_products, "TFLOP/s", "float16");

    Matrix factor;
    seconds = Seconds([&] { factor = Must(ops_->Factorize(*statistics, order, 0.05)); });
    Print("factorize", n, n, seconds, 2.0 / 3 * d(n) * d(n) * d(n), limits_.double_products,
          "TFLOP/s", "float64");
    const double triangle = d(rows) * d(n) * d(n);
    seconds = Seconds([&] {
      const Matrix target = Must(ops_->Retarget(w.view(), *drift, factor, order, 0.5));
    });
    Print("retarget", rows, n, seconds, 4 * triangle, limits_.float_products, "TFLOP/s", "float32");
    for (const auto& [name, time, options] :
         {std::tuple{"sweep", GridTime::kUpdated, grid},
          {"sweep, static grids", GridTime::kStatic, grid},
          {"sweep, searched grids", GridTime::kUpdated, searched}}) {
      seconds = Seconds([&] {
        Must(ops_->Sweep(w.view(), *statistics, factor,
                         {.grid = options, .grid_time = time, .order = order}));
      });
      Print(name, rows, n, seconds, triangle, limits_.float_products, "TFLOP/s", "float32");
    }
    const double bytes = 4 * d(rows) * d(n);
    seconds = Seconds([&] { Must(ops_->Round(w.view(), grid, nullptr)); });
    Print("round, codes to the host", rows, n, seconds, bytes, limits_.reading, "GB/s", "reading");
    seconds = Seconds([&] { Must(ops_->Round(w.view(), searched, nullptr)); });
    Print("round, searched grids", rows, n, seconds, bytes, limits_.reading, "GB/s", "reading");
    seconds = Seconds([&] { ops_->PseudoQuantize(w.view(), grid, scales, out.view()); });
    Print("pseudo-quantize", rows, n, seconds, 2 * bytes, limits_.reading, "GB/s", "reading");
    seconds = Seconds([&] { ops_->Clip(w.view(), grid, scales, *statistics); });
    Print("clip", rows, n, seconds, 2 * 10 * 128 * d(rows) * d(n), limits_.float_products,
          "TFLOP/s", "float32");
    seconds = Seconds([&] { ops_->OutputError(w.view(), other.view(), *statistics); });
    Print("output error", rows, n, seconds, 2 * triangle, limits_.half_products / 2, "TFLOP/s",
          "TF32");
    seconds = Seconds([&] { ops_->SquaredDifference(w.view(), other.view()); });
    Print("squared difference", rows, n, seconds, 2 * bytes, limits_.reading, "GB/s", "reading");
    Load(rows, n);
  }

 private:
  // Uniform in ±1/2; the first 4 Mi of them again and again.
  Matrix Values(DType type, int64_t rows, int64_t columns) {
    const size_t size = BytesOf(type);
    const auto count = static_cast<size_t>(rows * columns);
    const size_t distinct = std::min(count, (size_t{4} << 20) + 4099);
    std::vector<float> floats(distinct);
    Random random(seed_++);
    for (float& value : floats) value = static_cast<float>(random.Uniform() - 0.5);
    std::vector<uint16_t> halves(distinct);
    for (size_t i = 0; i < distinct; ++i) halves[i] = F16FromFloat(floats[i]);
    const void* from = size == 4 ? static_cast<const void*>(floats.data()) : halves.data();
    Matrix matrix = Must(backend_->Allocate(MemoryClass::kWorkspace, type, rows, columns));
    for (size_t at = 0; at < count; at += distinct) {
      Must(cudaMemcpy(static_cast<std::byte*>(matrix.view().data) + at * size, from,
                      std::min(distinct, count - at) * size, cudaMemcpyHostToDevice));
    }
    Must(cudaDeviceSynchronize());
    return matrix;
  }

  // From a file that the system's cache holds.
  void Load(int64_t rows, int64_t n) {
    const std::string path = "/tmp/nibble_quantize_cuda_benchmark";
    {
      std::ofstream file(path, std::ios::binary);
      const std::vector<uint16_t> row(static_cast<size_t>(n), F16FromFloat(0.25f));
      for (int64_t r = 0; r < rows; ++r) {
        file.write(reinterpret_cast<const char*>(row.data()), static_cast<std::streamsize>(2 * n));
      }
    }
    const double seconds = Seconds([&] {
      const MappedFile file = Must(MappedFile::Open(path));  // its pages are not yet mapped
      Must(ops_->Load(
          {.dtype = DType::kF16, .rows = rows, .columns = n, .data = file.bytes().data()}));
    });
    std::remove(path.c_str());
    Print("load from a mapped file", rows, n, seconds, 2 * static_cast<double>(rows * n),
          limits_.copying, "GB/s", "copying");
  }

  std::unique_ptr<Backend> backend_;
  std::unique_ptr<QuantizeOps> ops_;
  Limits limits_{};
  uint64_t seed_ = 1;
};

void Run() {
  Bench bench;
  bench.Run(4096, 4096);
  bench.Run(11008, 4096);
  bench.Run(4096, 11008);
}

}  // namespace
}  // namespace nibble

int main() { nibble::Run(); }

// The CPU's linear layers against the machine's limits, at the shapes of TinyLlama-1.1B.
//
//   benchmark_linear_cpu [--threads=N] [--benchmark_filter=decode|prefill|rows]
//
// --threads must come first; by default there are as many as cores. One thread is timed by its own
// time on the processor.
//
// decode: one row of activations; `share` is of the bandwidth of a plain read loop by as many
// threads, counting the packed weights' bytes. prefill and rows: `share` is of OpenBLAS's sgemm on
// the same shape with as many threads, counting multiplications and additions.
#include <benchmark/benchmark.h>
#include <cblas.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "benchmarks/timing.h"
#include "src/base/random.h"
#include "src/base/thread_pool.h"
#include "src/bench/hardware.h"
#include "src/ops/cpu/cpu_backend.h"

namespace nibble {
namespace {

constexpr int64_t kMaxRows = 512;
constexpr uint64_t kBeyondCache = uint64_t{384} << 20;  // bytes that no cache holds

struct LinearShape {
  const char* name;
  int64_t out, in;
  Interleave interleave = Interleave::kNone;
  Epilogue epilogue = Epilogue::kNone;
};

constexpr LinearShape kShapes[] = {
    {"qkv", 2560, 2048},
    {"o", 2048, 2048, Interleave::kNone, Epilogue::kAdd},
    {"gate_up", 11264, 2048, Interleave::kGateUp, Epilogue::kSiluMul},
    {"down", 2048, 5632, Interleave::kNone, Epilogue::kAdd},
    {"output", 32000, 2048},
};

struct Form {
  const char* name;
  DType dtype;
  bool quantized = false;
  QuantSpec spec;
};

const Form kForms[] = {
    {"f16", DType::kF16},
    {"bf16", DType::kBF16},
    {"f32", DType::kF32},
    {"q4-g128-sym", DType::kF16, true, {.group_size = 128, .grid = Grid::kSymmetric}},
    {"q4-g128-asym", DType::kF16, true, {.group_size = 128, .grid = Grid::kAsymmetric}},
    {"q4-g32-asym", DType::kF16, true, {.group_size = 32, .grid = Grid::kAsymmetric}},
    {"q4-channel-sym", DType::kF16, true, {.group_size = kPerChannel, .grid = Grid::kSymmetric}},
};

Weight MakeWeight(const LinearShape& shape, const Form& form) {
  Random random(1);
  if (form.quantized) {
    QuantizedWeight weight = QuantizedWeight::Empty(form.spec, shape.out, shape.in);
    for (uint8_t& pair : weight.codes) pair = static_cast<uint8_t>(random.Next());
    std::fill(weight.scales.begin(), weight.scales.end(), F16FromFloat(0.01f));
    std::fill(weight.zeros.begin(), weight.zeros.end(), uint8_t{8});
    return weight;
  }
  const auto count = static_cast<size_t>(shape.out * shape.in);
  auto bytes = std::make_shared<std::vector<std::byte>>(count * BytesOf(form.dtype));
  auto* bits16 = reinterpret_cast<uint16_t*>(bytes->data());
  auto* floats = reinterpret_cast<float*>(bytes->data());
  for (size_t i = 0; i < count; ++i) {
    const float value = static_cast<float>(random.Uniform()) - 0.5f;
    if (form.dtype == DType::kF32) {
      floats[i] = value;
    } else {
      bits16[i] = form.dtype == DType::kF16 ? F16FromFloat(value) : BF16FromFloat(value);
    }
  }
  return DenseWeight{.dtype = form.dtype,
                     .rows = shape.out,
                     .columns = shape.in,
                     .data = bytes->data(),
                     .owner = bytes};
}

// The backend, and the two limits it is held against.
class Bench {
 public:
  explicit Bench(int threads)
      : backend_(*MakeCpuBackend({.threads = threads})),
        plan_(*backend_->CreatePlan({.rows = kMaxRows, .sequences = 1, .context = 16},
                                    {.hidden = 2048,
                                     .intermediate = 5632,
                                     .heads = 32,
                                     .kv_heads = 4,
                                     .head_dim = 64,
                                     .vocabulary = 32000})),
        pool_(threads),
        read_(*AllocateHost(backend_->memory(), MemoryClass::kWorkspace, kBeyondCache)) {
    openblas_set_num_threads(threads);
    std::memset(read_.data(), 1, read_.size());
  }

  Backend& backend() { return *backend_; }
  BatchPlan& plan() { return *plan_; }
  Clock clock() const { return pool_.threads() == 1 ? Clock::kThread : Clock::kWall; }

  void Read() { ReadMemory(pool_, {read_.as<const std::byte>(), read_.size()}); }

 private:
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<BatchPlan> plan_;
  ThreadPool pool_;
  Buffer read_;  // counted by the backend's tracker
};

std::unique_ptr<PreparedLinear> Prepare(Bench& bench, const Weight& weight,
                                        const LinearShape& shape) {
  const LinearSource source{.weight = &weight};
  return *bench.backend().Prepare({&source, 1}, shape.interleave);
}

int64_t Columns(const LinearShape& shape) {
  return shape.out / (shape.epilogue == Epilogue::kSiluMul ? 2 : 1);
}

Matrix RandomMatrix(Bench& bench, int64_t rows, int64_t columns) {
  Matrix matrix = *bench.backend().Allocate(MemoryClass::kWorkspace, DType::kF32, rows, columns);
  Random random(2);
  float* values = matrix.view().row<float>(0);
  for (int64_t i = 0; i < rows * columns; ++i) values[i] = static_cast<float>(random.Normal());
  return matrix;
}

void Decode(benchmark::State& state, Bench& bench, const LinearShape& shape, const Form& form) {
  const Weight weight = MakeWeight(shape, form);
  std::vector<std::unique_ptr<PreparedLinear>> copies;
  uint64_t bytes = 0;
  while (bytes < kBeyondCache) {
    copies.push_back(Prepare(bench, weight, shape));
    bytes += copies.back()->bytes();
  }
  const Matrix x = RandomMatrix(bench, 1, shape.in);
  const Matrix out = RandomMatrix(bench, 1, Columns(shape));
  CompareWithLimit(
      state, bench.clock(), static_cast<double>(bytes),
      [&] {
        for (const auto& copy : copies) {
          bench.backend().Linear(bench.plan(), *copy, x.view(), shape.epilogue, out.view());
        }
      },
      static_cast<double>(kBeyondCache), [&] { bench.Read(); });
}

void Rows(benchmark::State& state, Bench& bench, const LinearShape& shape, const Form& form,
          int64_t rows) {
  const auto linear = Prepare(bench, MakeWeight(shape, form), shape);
  const Matrix x = RandomMatrix(bench, rows, shape.in);
  const Matrix out = RandomMatrix(bench, rows, Columns(shape));
  const Matrix dense = RandomMatrix(bench, shape.out, shape.in);
  const Matrix product = RandomMatrix(bench, rows, shape.out);
  const double operations = 2.0 * static_cast<double>(rows) * static_cast<double>(shape.out) *
                            static_cast<double>(shape.in);
  CompareWithLimit(
      state, bench.clock(), operations,
      [&] { bench.backend().Linear(bench.plan(), *linear, x.view(), shape.epilogue, out.view()); },
      operations,
      [&] {
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, static_cast<int>(rows),
                    static_cast<int>(shape.out), static_cast<int>(shape.in), 1.0f,
                    x.view().row<float>(0), static_cast<int>(shape.in), dense.view().row<float>(0),
                    static_cast<int>(shape.in), 0.0f, product.view().row<float>(0),
                    static_cast<int>(shape.out));
      });
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  using namespace nibble;
  int threads = UsableCores();
  if (argc > 1 && std::sscanf(argv[1], "--threads=%d", &threads) == 1) {
    std::swap(argv[0], argv[1]);
    --argc;
    ++argv;
  }
  Bench bench(threads);
  for (const Form& form : kForms) {
    for (const LinearShape& shape : kShapes) {
      const std::string name = std::string(form.name) + "/" + shape.name;
      benchmark::RegisterBenchmark(
          ("decode/" + name).c_str(),
          [&](benchmark::State& state) { Decode(state, bench, shape, form); })
          ->UseManualTime()
          ->Unit(benchmark::kMillisecond);
      for (const int64_t rows : {1, 2, 3, 4, 6, 8, 16, 64, 512}) {
        benchmark::RegisterBenchmark(
            ((rows == 512 ? "prefill/" : "rows" + std::to_string(rows) + "/") + name).c_str(),
            [&, rows](benchmark::State& state) { Rows(state, bench, shape, form, rows); })
            ->UseManualTime()
            ->Unit(benchmark::kMillisecond);
      }
    }
  }
  fmt::print("{}\n", bench.backend().description());
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}

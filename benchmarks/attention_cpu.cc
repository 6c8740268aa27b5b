// The CPU's attention against sgemm, at the shapes of a few models.
//
//   benchmark_attention_cpu [--threads=N] [--benchmark_filter=decode|prefill]
//
// --threads must come first; by default there are as many as cores. One thread is timed by its own
// time on the processor. `share` is of OpenBLAS's sgemm (512³) with as many threads, counting the
// multiplications and additions of scores and sums; softmax is not counted, so 1 is out of reach.
// `cache_bytes_per_second` is how fast decode reads keys and values.
#include <benchmark/benchmark.h>
#include <cblas.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "benchmarks/timing.h"
#include "src/base/checked.h"
#include "src/base/random.h"
#include "src/base/thread_pool.h"
#include "src/ops/cpu/cpu_backend.h"

namespace nibble {
namespace {

struct HeadShape {
  const char* name;
  int64_t heads, kv_heads, head_dim;
};

constexpr HeadShape kShapes[] = {
    {"smollm2-135m", 9, 3, 64},
    {"tinyllama-1.1b", 32, 4, 64},
    {"llama-2-7b", 32, 32, 128},
    {"llama-3-8b", 32, 8, 128},
};

// One sequence of `context` tokens, of which the last `rows` are the step.
class Step {
 public:
  Step(Backend& backend, const HeadShape& shape, int64_t rows, int64_t context)
      : backend_(backend),
        spec_{.heads = shape.heads,
              .kv_heads = shape.kv_heads,
              .head_dim = shape.head_dim,
              .scale = 1 / std::sqrt(static_cast<float>(shape.head_dim))},
        frequencies_(static_cast<size_t>(shape.head_dim / 2), 0.01f) {
    const int64_t blocks = CeilDiv(context, backend.kv_block_tokens());
    cache_ = *backend.CreateKvCache({.layers = 1,
                                     .kv_heads = shape.kv_heads,
                                     .head_dim = shape.head_dim,
                                     .block_tokens = backend.kv_block_tokens(),
                                     .dtype = DType::kF16},
                                    blocks);
    plan_ = *backend.CreatePlan({.rows = context, .sequences = 1, .context = context},
                                {.hidden = 64,
                                 .intermediate = 64,
                                 .heads = shape.heads,
                                 .kv_heads = shape.kv_heads,
                                 .head_dim = shape.head_dim});
    const int64_t columns = (shape.heads + 2 * shape.kv_heads) * shape.head_dim;
    qkv_ = *backend.Allocate(MemoryClass::kWorkspace, DType::kF32, context, columns);
    out_ =
        *backend.Allocate(MemoryClass::kWorkspace, DType::kF32, rows, shape.heads * shape.head_dim);
    Random random(1);
    for (int64_t i = 0; i < context * columns; ++i) {
      qkv_.view().row<float>(0)[i] = static_cast<float>(random.Normal());
    }
    for (int64_t b = 0; b < blocks; ++b) table_.push_back(static_cast<int32_t>(b));
    SetBatch(0, context);
    backend_.RopeAndStoreKv(*plan_, {frequencies_}, spec_, 0, qkv_.view(), *cache_);
    SetBatch(context - rows, rows);
  }

  void Attend() {
    backend_.Attend(*plan_, spec_, 0,
                    qkv_.Rows(out_.rows()).Columns(0, spec_.heads * spec_.head_dim), *cache_,
                    out_.view());
  }

 private:
  void SetBatch(int64_t begin, int64_t rows) {
    std::vector<int32_t> tokens(static_cast<size_t>(rows)), positions;
    for (int64_t r = 0; r < rows; ++r) positions.push_back(static_cast<int32_t>(begin + r));
    const std::vector<int32_t> row_begin{0, static_cast<int32_t>(rows)};
    const std::vector<int32_t> lengths{static_cast<int32_t>(begin + rows)};
    backend_.SetBatch(*plan_, {.tokens = tokens,
                               .positions = positions,
                               .row_begin = row_begin,
                               .context_lengths = lengths,
                               .block_tables = table_,
                               .max_blocks = static_cast<int64_t>(table_.size())});
  }

  Backend& backend_;
  AttentionSpec spec_;
  std::vector<float> frequencies_;
  std::vector<int32_t> table_;
  std::unique_ptr<KvCache> cache_;
  std::unique_ptr<BatchPlan> plan_;
  Matrix qkv_, out_;
};

void Run(benchmark::State& state, Backend& backend, Clock clock, const HeadShape& shape,
         int64_t rows, int64_t context) {
  Step step(backend, shape, rows, context);
  constexpr int kSize = 512;
  const std::vector<float> a(kSize * kSize, 0.5f), b(kSize * kSize, 0.25f);
  std::vector<float> c(kSize * kSize);
  double pairs = 0;
  for (int64_t r = 0; r < rows; ++r) pairs += static_cast<double>(context - r);
  const double operations = 4 * pairs * static_cast<double>(shape.heads * shape.head_dim);
  CompareWithLimit(
      state, clock, operations, [&] { step.Attend(); }, 2.0 * kSize * kSize * kSize,
      [&] {
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, kSize, kSize, kSize, 1.0f, a.data(),
                    kSize, b.data(), kSize, 0.0f, c.data(), kSize);
      });
  const double cache_bytes = 2.0 * 2.0 * static_cast<double>(context * shape.kv_heads) *
                             static_cast<double>(shape.head_dim);
  state.counters["cache_bytes_per_second"] =
      state.counters["rate"].value / operations * cache_bytes;
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
  const auto backend = *MakeCpuBackend({.threads = threads});
  openblas_set_num_threads(threads);
  const Clock clock = threads == 1 ? Clock::kThread : Clock::kWall;
  for (const HeadShape& shape : kShapes) {
    for (const auto& [rows, context] :
         std::vector<std::pair<int64_t, int64_t>>{{512, 512}, {512, 2048}, {1, 700}, {1, 4096}}) {
      const std::string name = std::string(rows == 1 ? "decode/" : "prefill/") + shape.name + "/" +
                               std::to_string(context);
      benchmark::RegisterBenchmark(name.c_str(),
                                   [&, rows = rows, context = context](benchmark::State& state) {
                                     Run(state, *backend, clock, shape, rows, context);
                                   })
          ->UseManualTime()
          ->Unit(benchmark::kMicrosecond);
    }
  }
  fmt::print("{}\n", backend->description());
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}

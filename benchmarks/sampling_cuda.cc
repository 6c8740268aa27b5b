// Choosing tokens on a GPU: microseconds by vocabulary, rows and what is asked for.
//
//   benchmark_sampling_cuda
#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <numeric>
#include <vector>

#include "src/base/must.h"
#include "src/base/random.h"
#include "src/ops/cuda/cuda_backend.h"

namespace nibble {
namespace {

double Microseconds(Backend& backend, const SamplingOptions& options, int64_t rows,
                    int64_t vocabulary) {
  const auto plan = Must(backend.CreatePlan(
      {.rows = rows, .sequences = rows, .context = 32, .logit_rows = rows},
      {.hidden = 64, .intermediate = 64, .heads = 1, .kv_heads = 1, .head_dim = 64}));
  Random random(1);
  std::vector<float> values(static_cast<size_t>(rows * vocabulary));
  for (float& value : values) value = static_cast<float>(random.Normal() * 2.5);
  const Matrix logits =
      Must(backend.Allocate(MemoryClass::kWorkspace, DType::kF32, rows, vocabulary));
  cudaMemcpy(logits.view().data, values.data(), values.size() * sizeof(float),
             cudaMemcpyHostToDevice);
  cudaDeviceSynchronize();
  const std::vector<int32_t> zeros(static_cast<size_t>(rows)), ones(zeros.size(), 1);
  std::vector<int32_t> begin(zeros.size() + 1);
  std::iota(begin.begin(), begin.end(), 0);
  std::vector<TokenChoice> choices;
  for (int64_t r = 0; r < rows; ++r) choices.push_back(ChoiceAt(options, r));
  backend.SetBatch(*plan, {.tokens = zeros,
                           .positions = zeros,
                           .row_begin = begin,
                           .context_lengths = ones,
                           .block_tables = zeros,
                           .max_blocks = 1,
                           .logit_rows = std::span(begin).first(zeros.size()),
                           .choices = choices});
  std::vector<double> times;
  for (int attempt = 0; attempt < 7; ++attempt) {
    constexpr int kCalls = 100;
    backend.ChooseTokens(*plan, logits.view());
    Must(backend.ReceiveTokens(*plan));
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < kCalls; ++i) backend.ChooseTokens(*plan, logits.view());
    for (int i = 0; i < kCalls; ++i) Must(backend.ReceiveTokens(*plan));
    const std::chrono::duration<double, std::micro> taken =
        std::chrono::steady_clock::now() - start;
    times.push_back(taken.count() / kCalls);
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

void Run() {
  const auto backend = Must(MakeCudaBackend({}));
  fmt::print("{}\n{:>10} {:>6} {:>10} {:>12} {:>10} {:>10} {:>14}\n", backend->description(),
             "vocabulary", "rows", "greedy", "temperature", "top_k 50", "top_p 0.9",
             "top_k, top_p");
  for (const int64_t vocabulary : {32000, 128256}) {
    for (const int64_t rows : {1, 8, 16, 32, 128, 256}) {
      fmt::print("{:>10} {:>6}", vocabulary, rows);
      for (const SamplingOptions& options : {SamplingOptions{},
                                             {.temperature = 1},
                                             {.temperature = 1, .top_k = 50},
                                             {.temperature = 1, .top_p = 0.9},
                                             {.temperature = 1, .top_k = 50, .top_p = 0.9}}) {
        fmt::print(" {:>10.1f}", Microseconds(*backend, options, rows, vocabulary));
      }
      fmt::print("\n");
    }
  }
}

}  // namespace
}  // namespace nibble

int main() { nibble::Run(); }

// The study's speed measurement: a batch of sequences of the same length, prefilled, then decoded
// greedily; and what the hardware would allow.
#ifndef NIBBLE_BENCH_WORKLOAD_H_
#define NIBBLE_BENCH_WORKLOAD_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "src/base/cancel.h"
#include "src/base/json.h"
#include "src/bench/energy_meter.h"
#include "src/bench/hardware.h"
#include "src/engine/engine.h"

namespace nibble {

struct Workload {
  std::vector<int64_t> batch_sizes = {1, 2, 4, 8, 16, 32, 64, 128};
  int64_t input_length = 512;   // tokens
  int64_t output_length = 200;  // tokens, at least 2
  int repetitions = 3;
  uint64_t seed = 0;  // of the prompts' token ids
};

// One repetition at one batch size.
struct Measurement {
  double prefill_seconds = 0;  // until every sequence's first token
  double decode_seconds = 0;   // the output_length - 1 steps after that
  std::optional<double> decode_joules;
};

// A batch's engine: the KV cache holds exactly batch × (input + output) tokens.
EngineOptions BenchEngineOptions(const Workload& workload, int64_t batch_size,
                                 const Backend& backend, DType kv_dtype);

// The largest batch whose predicted memory, weights included, is within the budget; 0 where not even
// one sequence's is. Looked for up to 65536.
int64_t LargestBatch(const Workload& workload, const Checkpoint& checkpoint,
                     const ModelDescription& model, const Backend& backend, DType kv_dtype,
                     uint64_t budget_bytes);

// kUsage where the workload makes no sense, kBadInput where it exceeds the model's context,
// kResources where a batch's predicted memory exceeds `available_bytes` (naming what would fit: the
// largest batch, else the longest context of one sequence, else weights of 4 bits).
Status CheckWorkload(const Workload& workload, const Checkpoint& checkpoint,
                     const ModelDescription& model, const Backend& backend, DType kv_dtype,
                     uint64_t available_bytes);

// The least time that a step of `rows` rows over `context` cached tokens each can take: the sum over
// its operations of max(bytes ÷ read bandwidth, operations ÷ matrix rate).
double StepLimitSeconds(const ModelWeights& weights, const KvLayout& kv, int64_t rows,
                        double context, const DeviceLimits& limits);

// Called when a repetition is done, with how many are and how many there will be.
using BenchProgress = std::function<void(int64_t done, int64_t total, int64_t batch_size)>;

// The "runs" of a bench document (see the keys in docs/json.md): medians over the repetitions, with
// all of them. `energy` may be null.
Result<Json> RunWorkload(const Workload& workload, const ModelWeights& weights, Backend& backend,
                         DType kv_dtype, const DeviceLimits& limits, EnergyMeter* energy,
                         const BenchProgress& progress, const CancelToken& cancel);

}  // namespace nibble

#endif  // NIBBLE_BENCH_WORKLOAD_H_

#include "src/bench/workload.h"

#include <algorithm>

#include "src/base/random.h"
#include "src/base/units.h"
#include "src/bench/clock.h"

namespace nibble {
namespace {

template <typename T>
T Median(std::vector<T> values) {
  std::sort(values.begin(), values.end());
  const size_t n = values.size();
  return n % 2 == 1 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

std::vector<std::vector<int32_t>> RandomPrompts(const Workload& workload, int64_t batch_size,
                                                int64_t vocabulary) {
  Random random(workload.seed);
  std::vector<std::vector<int32_t>> prompts(static_cast<size_t>(batch_size));
  for (std::vector<int32_t>& prompt : prompts) {
    for (int64_t i = 0; i < workload.input_length; ++i) {
      prompt.push_back(static_cast<int32_t>(random.Below(static_cast<uint64_t>(vocabulary))));
    }
  }
  return prompts;
}

// Closes its sequences at the end of a scope.
class OpenSequences {
 public:
  OpenSequences(Engine& engine, size_t count) : engine_(engine) {
    for (size_t i = 0; i < count; ++i) ids_.push_back(engine_.Open());
  }
  ~OpenSequences() {
    for (const SequenceId id : ids_) engine_.Close(id);
  }
  OpenSequences(const OpenSequences&) = delete;
  OpenSequences& operator=(const OpenSequences&) = delete;
  SequenceId operator[](size_t i) const { return ids_[i]; }

 private:
  Engine& engine_;
  std::vector<SequenceId> ids_;
};

// Prefills the prompts and decodes `output_length` tokens for each.
Result<Measurement> RunOnce(Engine& engine, const std::vector<std::vector<int32_t>>& prompts,
                            int64_t output_length, EnergyMeter* energy, const CancelToken& cancel) {
  const OpenSequences sequences(engine, prompts.size());
  std::vector<int32_t> first(prompts.size());
  std::vector<Extension> extensions;
  for (size_t i = 0; i < prompts.size(); ++i) extensions.push_back({sequences[i], prompts[i]});

  Measurement measurement;
  auto start = Clock::now();
  NIBBLE_RETURN_IF_ERROR(engine.Issue(extensions, cancel));
  NIBBLE_RETURN_IF_ERROR(
      engine.Receive([&](size_t extension, int32_t token) { first[extension] = token; }));
  measurement.prefill_seconds = SecondsSince(start);
  for (size_t i = 0; i < prompts.size(); ++i) extensions[i].tokens = {&first[i], 1};
  const auto joules = [energy] { return energy ? energy->Joules() : std::nullopt; };
  const std::optional<double> joules_before = joules();
  start = Clock::now();
  // As when generating: a step is issued before the tokens of the last are seen.
  const TokenSink ignore = [](size_t, int32_t) {};
  for (int64_t step = 1; step < output_length; ++step) {
    NIBBLE_RETURN_IF_ERROR(engine.Issue(extensions, cancel));
    for (Extension& extension : extensions) extension.tokens = {};
    if (step > 1) NIBBLE_RETURN_IF_ERROR(engine.Receive(ignore));
  }
  NIBBLE_RETURN_IF_ERROR(engine.Receive(ignore));
  measurement.decode_seconds = SecondsSince(start);
  const std::optional<double> joules_after = joules();
  if (joules_before && joules_after) measurement.decode_joules = *joules_after - *joules_before;
  return measurement;
}

Json RunRecord(const Workload& workload, int64_t batch_size,
               const std::vector<Measurement>& repetitions, const MemoryUse& peak,
               uint64_t process_bytes, double step_limit_seconds, const std::string& kernels) {
  std::vector<double> prefill, decode;
  // Of all repetitions together: a device's own figure is some tenths of a second old.
  std::optional<double> joules = 0;
  double joules_seconds = 0;
  Json all = Json::array();
  for (const Measurement& m : repetitions) {
    prefill.push_back(m.prefill_seconds);
    decode.push_back(m.decode_seconds);
    all.push_back({{"prefill_seconds", m.prefill_seconds},
                   {"decode_seconds", m.decode_seconds},
                   {"decode_joules", m.decode_joules ? Json(*m.decode_joules) : Json()}});
    if (joules && m.decode_joules) {
      *joules += *m.decode_joules;
      joules_seconds += m.decode_seconds;
    } else {
      joules.reset();
    }
  }
  const double prefill_seconds = Median(prefill), decode_seconds = Median(decode);
  const double steps = static_cast<double>(workload.output_length - 1);
  const double batch = static_cast<double>(batch_size);
  // A counter that did not move was not looked at for long enough.
  if (joules && !(*joules > 0)) joules.reset();
  const double tokens = batch * steps * static_cast<double>(repetitions.size());
  return {{"batch_size", batch_size},
          {"input_length", workload.input_length},
          {"output_length", workload.output_length},
          {"prefill_seconds", prefill_seconds},
          {"decode_seconds", decode_seconds},
          {"output_tokens_per_second", batch * static_cast<double>(workload.output_length) /
                                           (prefill_seconds + decode_seconds)},
          {"decode_tokens_per_second", batch * steps / decode_seconds},
          {"prefill_tokens_per_second",
           batch * static_cast<double>(workload.input_length) / prefill_seconds},
          {"time_to_first_token_ms", prefill_seconds * 1e3},
          {"time_per_output_token_ms", decode_seconds / steps * 1e3},
          {"peak_memory_bytes",
           {{"weights", peak[MemoryClass::kWeights]},
            {"kv_cache", peak[MemoryClass::kKvCache]},
            {"workspace", peak[MemoryClass::kWorkspace]},
            {"total", peak.total()},
            {"process", process_bytes}}},
          {"roofline_fraction", step_limit_seconds / (decode_seconds / steps)},
          {"energy_joules_per_token", joules ? Json(*joules / tokens) : Json()},
          {"mean_power_watts", joules ? Json(*joules / joules_seconds) : Json()},
          {"kernels", kernels},
          {"repetitions", std::move(all)}};
}

// The largest number from 0 to `most` that fits, where all smaller ones do.
int64_t LargestWithin(int64_t most, const std::function<bool(int64_t)>& fits) {
  int64_t good = 0, bad = most + 1;
  while (bad - good > 1) {
    const int64_t middle = good + (bad - good) / 2;
    (fits(middle) ? good : bad) = middle;
  }
  return good;
}

MemoryUse PredictBench(const Workload& workload, int64_t batch_size, const Checkpoint& checkpoint,
                       const ModelDescription& model, const Backend& backend, DType kv_dtype) {
  return PredictMemory(checkpoint, model, backend,
                       BenchEngineOptions(workload, batch_size, backend, kv_dtype))
      .use;
}

}  // namespace

EngineOptions BenchEngineOptions(const Workload& workload, int64_t batch_size,
                                 const Backend& backend, DType kv_dtype) {
  const int64_t length = workload.input_length + workload.output_length;
  return {.kv_dtype = kv_dtype,
          .kv_tokens = KvTokensFor(backend, batch_size, length),
          .limits = {.rows = std::max(batch_size, std::min(backend.step_rows(),
                                                           batch_size * workload.input_length)),
                     .sequences = batch_size,
                     .context = length,
                     .logit_rows = batch_size}};
}

int64_t LargestBatch(const Workload& workload, const Checkpoint& checkpoint,
                     const ModelDescription& model, const Backend& backend, DType kv_dtype,
                     uint64_t budget_bytes) {
  constexpr int64_t kMost = 65536;
  return LargestWithin(kMost, [&](int64_t batch_size) {
    return PredictBench(workload, batch_size, checkpoint, model, backend, kv_dtype).total() <=
           budget_bytes;
  });
}

Status CheckWorkload(const Workload& workload, const Checkpoint& checkpoint,
                     const ModelDescription& model, const Backend& backend, DType kv_dtype,
                     uint64_t available_bytes) {
  if (workload.batch_sizes.empty() || workload.input_length < 1 || workload.output_length < 2 ||
      workload.repetitions < 1) {
    return WrongUsage(
        "a benchmark wants at least one batch size, 1 input token, 2 output tokens and 1 "
        "repetition");
  }
  for (const int64_t batch_size : workload.batch_sizes) {
    if (batch_size < 1) return WrongUsage("batch size {}: want at least 1", batch_size);
  }
  const int64_t length = workload.input_length + workload.output_length;
  if (length > model.config.max_context) {
    return BadInput("{} input and {} output tokens exceed the model's context of {}",
                    workload.input_length, workload.output_length, model.config.max_context);
  }
  const int64_t largest =
      *std::max_element(workload.batch_sizes.begin(), workload.batch_sizes.end());
  const auto predicted = [&](const Workload& of, int64_t batch_size) {
    return PredictBench(of, batch_size, checkpoint, model, backend, kv_dtype);
  };
  const MemoryUse needed = predicted(workload, largest);
  if (needed.total() <= available_bytes) return {};
  const auto refuse = [&](const std::string& what_fits) {
    return NotEnough("batch size {} needs {} of memory and {} is available; {}", largest,
                     FormatBytes(needed.total()), FormatBytes(available_bytes), what_fits);
  };
  const int64_t batch =
      LargestBatch(workload, checkpoint, model, backend, kv_dtype, available_bytes);
  if (batch > 0) return refuse(fmt::format("the largest batch that fits is {}", batch));
  // One sequence, of all lengths that are shorter.
  const int64_t tokens = LargestWithin(length, [&](int64_t n) {
    const Workload shorter{.input_length = std::max<int64_t>(n - 2, 1), .output_length = 2};
    return predicted(shorter, 1).total() <= available_bytes;
  });
  const std::string not_one = fmt::format("not even one sequence of {} tokens fits ({})", length,
                                          FormatBytes(predicted(workload, 1).total()));
  if (tokens >= 3) return refuse(fmt::format("{}; one of {} would", not_one, tokens));
  return refuse(fmt::format("{}; {}", not_one, DescribeSmallerWeights(checkpoint, model, backend)));
}

double StepLimitSeconds(const ModelWeights& weights, const KvLayout& kv, int64_t rows,
                        double context, const DeviceLimits& limits) {
  const auto r = static_cast<double>(rows);
  const auto seconds = [&](double bytes, double operations) {
    return std::max(bytes / limits.read_bytes_per_second,
                    operations / limits.matrix_flops_per_second);
  };
  const auto linear = [&](const PreparedLinear& w) {
    return seconds(static_cast<double>(w.bytes()),
                   2 * r * static_cast<double>(w.out_features() * w.in_features()));
  };
  const ModelConfig& c = weights.config;
  const auto token_kv_bytes = static_cast<double>(kv.TokenBytes());
  double total = linear(weights.logits_weight());
  for (size_t i = 0; i < weights.layers.size(); ++i) {
    const LayerWeights& layer = weights.layers[i];
    const double seen =
        c.windows[i] ? std::min(context, static_cast<double>(*c.windows[i])) : context;
    total += linear(*layer.qkv) + linear(*layer.output) + linear(*layer.gate_up) +
             linear(*layer.down) +
             seconds(r * seen * token_kv_bytes, 4 * r * seen * static_cast<double>(c.q_features()));
  }
  return total;
}

Result<Json> RunWorkload(const Workload& workload, const ModelWeights& weights, Backend& backend,
                         DType kv_dtype, const DeviceLimits& limits, EnergyMeter* energy,
                         const BenchProgress& progress, const CancelToken& cancel) {
  Json runs = Json::array();
  const int64_t total = static_cast<int64_t>(workload.batch_sizes.size()) * workload.repetitions;
  int64_t done = 0;
  for (const int64_t batch_size : workload.batch_sizes) {
    backend.memory().ResetPeak();
    ResetPeakResident();
    NIBBLE_ASSIGN_OR_RETURN(
        const std::unique_ptr<Engine> engine,
        Engine::Create(weights, backend,
                       BenchEngineOptions(workload, batch_size, backend, kv_dtype)));
    const auto prompts = RandomPrompts(workload, batch_size, weights.config.vocabulary);
    // Touch weights and workspace once before the clock runs. A device with a queue also loads kernels,
    // chooses algorithms and captures graphs when a shape of step first comes.
    if (backend.queues_steps()) {
      NIBBLE_RETURN_IF_ERROR(RunOnce(*engine, prompts, std::min<int64_t>(workload.output_length, 4),
                                     nullptr, cancel));
    } else {
      NIBBLE_RETURN_IF_ERROR(RunOnce(*engine, {{prompts[0].front()}}, 2, nullptr, cancel));
    }
    std::vector<Measurement> repetitions;
    for (int i = 0; i < workload.repetitions; ++i) {
      NIBBLE_ASSIGN_OR_RETURN(const Measurement measurement,
                              RunOnce(*engine, prompts, workload.output_length, energy, cancel));
      repetitions.push_back(measurement);
      progress(++done, total, batch_size);
    }
    const double mean_context = static_cast<double>(workload.input_length) +
                                static_cast<double>(workload.output_length) / 2;
    const double step_limit = StepLimitSeconds(
        weights, KvLayoutFor(weights.config, backend, kv_dtype), batch_size, mean_context, limits);
    runs.push_back(RunRecord(workload, batch_size, repetitions, backend.memory().peak(),
                             backend.SystemBytes(), step_limit, backend.description()));
  }
  return runs;
}

}  // namespace nibble

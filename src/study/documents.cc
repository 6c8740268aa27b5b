#include "src/study/documents.h"

#include "src/base/file.h"
#include "src/base/units.h"

namespace nibble {
namespace {

// A label for people: the path's last part and the weights' kind.
std::string ModelLabel(const Checkpoint& checkpoint) {
  return fmt::format("{} {}", LastPart(checkpoint.path()), checkpoint.label());
}

// `reference`'s vocabulary must be the candidate's, id by id.
Status CheckSameVocabulary(const Tokenizer& a, const Tokenizer& b) {
  const auto size = static_cast<TokenId>(std::min(a.vocabulary_size(), b.vocabulary_size()));
  for (TokenId id = 0; id < size; ++id) {
    if (a.TokenText(id) != b.TokenText(id)) {
      return BadInput(
          "the reference's tokenizer differs: token {} is \"{}\", not \"{}\"; divergence compares "
          "models of one vocabulary",
          id, b.TokenText(id), a.TokenText(id));
    }
  }
  return {};
}

}  // namespace

Result<std::unique_ptr<LoadedModel>> LoadModelOn(const std::string& path,
                                                 const DeviceOptions& device,
                                                 RandomWeights random_weights,
                                                 ProgressStyle progress,
                                                 const CancelToken& cancel) {
  auto model = std::make_unique<LoadedModel>();
  NIBBLE_ASSIGN_OR_RETURN(model->opened, OpenModel(path, random_weights));
  NIBBLE_ASSIGN_OR_RETURN(model->backend, MakeBackend(device, model->opened.description.config));
  NIBBLE_ASSIGN_OR_RETURN(model->kv_dtype,
                          KvTypeFor(device, *model->backend, model->opened.description.config));
  const uint64_t weight_bytes =
      PredictWeightBytes(*model->opened.checkpoint, model->opened.description, *model->backend)
          .total();
  if (const uint64_t available = model->backend->AvailableBytes(); weight_bytes > available) {
    return NotEnough("{}: the weights need {} of memory and {} is available; {}", path,
                     FormatBytes(weight_bytes), FormatBytes(available),
                     DescribeSmallerWeights(*model->opened.checkpoint, model->opened.description,
                                            *model->backend));
  }
  if (auto tokenizer = model->checkpoint().LoadTokenizer()) {
    model->tokenizer = *std::move(tokenizer);
  } else {
    model->tokenizer_status = tl::unexpected<Error>(std::move(tokenizer).error());
  }
  TrimHeap();
  model->idle_bytes = model->backend->SystemBytes();
  NIBBLE_ASSIGN_OR_RETURN(model->weights,
                          LoadWeights(model->opened, *model->backend, progress, cancel));
  return model;
}

Result<EvalResult> Evaluate(LoadedModel& model, const MmluDataset& data, const MmluFormat& format,
                            int64_t max_batch, ProgressStyle style, const CancelToken& cancel) {
  NIBBLE_RETURN_IF_ERROR(model.tokenizer_status);
  if (max_batch < 1) return WrongUsage("--max-batch {}: want at least 1", max_batch);
  const ModelConfig& config = model.weights.config;
  const EngineOptions wanted = MmluEngineOptions(config, *model.backend, model.kv_dtype,
                                                 model.backend->step_rows(), max_batch);
  NIBBLE_ASSIGN_OR_RETURN(const EngineOptions options,
                          FitKvCache(wanted, LeastMmluKvTokens(wanted, *model.backend), config,
                                     *model.backend, model.backend->AvailableBytes()));
  NIBBLE_ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine,
                          Engine::Create(model.weights, *model.backend, options));
  Progress progress(style, fmt::format("MMLU, {}", Name(format.scoring)), data.question_count());
  ThreadPool pool(UsableCores());
  NIBBLE_ASSIGN_OR_RETURN(MmluAnswers answers,
                          RunMmlu(
                              *engine, *model.tokenizer, data, format, pool,
                              [&](int64_t done) { progress.Update(done); }, cancel));
  return EvalResult::Make({.model = ModelLabel(model.checkpoint()),
                           .origin = model.checkpoint().synthetic() ? WeightsOrigin::kSynthetic
                                                                    : WeightsOrigin::kTrained,
                           .format = format,
                           .options = data.options(),
                           .data = DescribeData(data),
                           .prompt_tokens = answers.prompt_tokens,
                           .computed_tokens = answers.computed_tokens},
                          std::move(answers.questions));
}

Result<Json> MeasurePerplexity(LoadedModel& model, LoadedModel* reference,
                               const PerplexityRequest& request, ProgressStyle style,
                               const CancelToken& cancel) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string file, ReadFile(request.text_path));
  const std::string text = JoinText(file, request.join);
  NIBBLE_RETURN_IF_ERROR(model.tokenizer_status);
  const Tokenizer& tokenizer = *model.tokenizer;
  const std::vector<TokenId> tokens =
      tokenizer.Encode(text, SpecialTokens::kAdd, ParseSpecial::kNo);
  if (text.empty()) return BadInput("{}: the text is empty", request.text_path);
  NIBBLE_RETURN_IF_ERROR(
      CheckPerplexity(request.options, model.weights.config, static_cast<int64_t>(tokens.size())));
  std::unique_ptr<Engine> reference_engine;
  if (reference != nullptr) {
    NIBBLE_RETURN_IF_ERROR(reference->tokenizer_status);
    NIBBLE_RETURN_IF_ERROR(CheckSameVocabulary(tokenizer, *reference->tokenizer));
    NIBBLE_ASSIGN_OR_RETURN(
        reference_engine,
        Engine::Create(
            reference->weights, *reference->backend,
            PerplexityEngineOptions(request.options, *reference->backend, reference->kv_dtype)));
  }
  NIBBLE_ASSIGN_OR_RETURN(
      const std::unique_ptr<Engine> engine,
      Engine::Create(model.weights, *model.backend,
                     PerplexityEngineOptions(request.options, *model.backend, model.kv_dtype)));

  Progress progress(style, "perplexity", 1);
  ThreadPool pool(UsableCores());
  NIBBLE_ASSIGN_OR_RETURN(
      Json figures,
      RunPerplexity(
          *engine, reference_engine.get(), tokens, request.options, pool,
          [&](int64_t done, int64_t total) { progress.Update(done, total); }, cancel));
  Json document = {
      {"schema", "nibble.perplexity/1"},
      {"model", ModelLabel(model.checkpoint())},
      {"reference", reference == nullptr ? Json() : Json(ModelLabel(reference->checkpoint()))},
      {"synthetic", model.checkpoint().synthetic()},
      {"text", LastPart(request.text_path)},
      {"text_tokens", tokens.size()},
      {"join", Name(request.join)},
      {"context", request.options.context}};
  document.update(figures);
  return document;
}

Result<Json> Bench(LoadedModel& model, const Workload& workload, const DeviceLimits& limits,
                   std::optional<uint64_t> memory_budget_bytes, ProgressStyle style,
                   const CancelToken& cancel) {
  // What is allocated now, the weights, is part of the budget.
  const uint64_t budget = memory_budget_bytes.value_or(model.backend->AvailableBytes() +
                                                       model.backend->memory().current().total());
  const int64_t largest = LargestBatch(workload, model.checkpoint(), model.opened.description,
                                       *model.backend, model.kv_dtype, budget);
  Progress progress(style, "bench", 1);
  const std::unique_ptr<EnergyMeter> energy = OpenEnergyMeter(*model.backend);
  NIBBLE_ASSIGN_OR_RETURN(
      Json runs, RunWorkload(
                     workload, model.weights, *model.backend, model.kv_dtype, limits, energy.get(),
                     [&](int64_t done, int64_t total, int64_t batch_size) {
                       progress.Update(done, total, fmt::format("batch {}", batch_size));
                     },
                     cancel));
  return Json{{"schema", "nibble.bench/1"},
              {"model", ModelLabel(model.checkpoint())},
              {"synthetic", model.checkpoint().synthetic()},
              {"device", model.backend->description()},
              {"kv_dtype", Name(model.kv_dtype)},
              {"limits",
               {{"read_bandwidth_bytes_per_second", limits.read_bytes_per_second},
                {"matrix_flops_per_second", limits.matrix_flops_per_second}}},
              {"idle_memory_bytes", model.idle_bytes},
              {"largest_batch", {{"memory_bytes", budget}, {"batch_size", largest}}},
              {"runs", std::move(runs)}};
}

std::string FormatPerplexity(const Json& d) {
  std::string out = fmt::format(
      "{}\n  text {} ({} tokens in {} windows of {}, join {})\n  perplexity {:.4f} ± {:.4f}\n",
      d["model"].get<std::string>(), d["text"].get<std::string>(), d["tokens"].get<int64_t>(),
      d["windows"].get<int64_t>(), d["context"].get<int64_t>(), d["join"].get<std::string>(),
      d["perplexity"].get<double>(), d["perplexity_se"].get<double>());
  if (d["reference"].is_null()) return out;
  const Json& kl = d["kl_divergence"];
  const Json& delta = d["delta_p"];
  out += fmt::format(
      "against {}: perplexity {:.4f}, ratio {:.5f}\n"
      "  KL divergence  mean {:.6f}  median {:.6f}  99 % {:.5f}  99.9 % {:.5f}  max {:.4f} nats\n"
      "  Δp of the true token  mean {:+.4f}  1 % {:+.4f}  5 % {:+.4f}  95 % {:+.4f}  99 % {:+.4f}\n"
      "  the same most probable token at {:.2f} % of positions\n",
      d["reference"].get<std::string>(), d["perplexity_reference"].get<double>(),
      d["perplexity_ratio"].get<double>(), kl["mean"].get<double>(), kl["median"].get<double>(),
      kl["p99"].get<double>(), kl["p999"].get<double>(), kl["max"].get<double>(),
      delta["mean"].get<double>(), delta["p1"].get<double>(), delta["p5"].get<double>(),
      delta["p95"].get<double>(), delta["p99"].get<double>(),
      100 * d["top1_agreement"].get<double>());
  return out;
}

std::string FormatBench(const Json& d) {
  std::string out = fmt::format(
      "{} on {}\n{:>6} {:>10} {:>12} {:>12} {:>9} {:>9} {:>10} {:>10} {:>10} {:>10}\n",
      d["model"].get<std::string>(), d["device"].get<std::string>(), "batch", "output/s",
      "prefill/s", "decode/s", "TTFT ms", "TPOT ms", "of limit", "weights", "KV cache", "peak");
  std::string energy;
  for (const Json& run : d["runs"]) {
    const Json& memory = run["peak_memory_bytes"];
    out += fmt::format(
        "{:>6} {:>10.1f} {:>12.1f} {:>12.1f} {:>9.0f} {:>9.2f} {:>9.1f}% {:>10} {:>10} {:>10}\n",
        run["batch_size"].get<int64_t>(), run["output_tokens_per_second"].get<double>(),
        run["prefill_tokens_per_second"].get<double>(),
        run["decode_tokens_per_second"].get<double>(), run["time_to_first_token_ms"].get<double>(),
        run["time_per_output_token_ms"].get<double>(), 100 * run["roofline_fraction"].get<double>(),
        FormatBytes(memory["weights"].get<uint64_t>()),
        FormatBytes(memory["kv_cache"].get<uint64_t>()),
        FormatBytes(memory["total"].get<uint64_t>()));
    if (run["mean_power_watts"].is_null()) continue;
    energy += fmt::format("{:>6} {:>14.3f} {:>8.0f}\n", run["batch_size"].get<int64_t>(),
                          run["energy_joules_per_token"].get<double>(),
                          run["mean_power_watts"].get<double>());
  }
  if (!energy.empty()) {
    out += fmt::format("{:>6} {:>14} {:>8}\n{}", "batch", "decode J/token", "W", energy);
  }
  const Json& largest = d["largest_batch"];
  out += fmt::format("the largest batch that fits {} is {}\n",
                     FormatBytes(largest["memory_bytes"].get<uint64_t>()),
                     largest["batch_size"].get<int64_t>());
  return out;
}

}  // namespace nibble

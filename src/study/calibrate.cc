#include "src/study/calibrate.h"

#include <algorithm>
#include <map>

#include "src/base/file.h"
#include "src/engine/scheduler.h"

namespace nibble {
namespace {

constexpr int64_t kSamplesAtOnce = 16;

Result<CalibrationSet> SampleFromModel(const CalibrationOptions& options, const OpenedModel& model,
                                       const DeviceOptions& device, ProgressStyle style,
                                       const CancelToken& cancel) {
  const ModelConfig& config = model.description.config;
  NIBBLE_ASSIGN_OR_RETURN(const std::unique_ptr<Backend> backend, MakeBackend(device, config));
  NIBBLE_ASSIGN_OR_RETURN(const DType kv_dtype, KvTypeFor(device, *backend, config));
  const int64_t length = std::min(options.sequence_length, config.max_context);
  const int64_t at_once = std::min(kSamplesAtOnce, options.samples);
  const EngineOptions engine_options{
      .kv_dtype = kv_dtype,
      .kv_tokens = KvTokensFor(*backend, at_once, length),
      .limits = {.rows = at_once, .sequences = at_once, .context = length, .logit_rows = at_once}};
  NIBBLE_RETURN_IF_ERROR(CheckMemory(model, *backend, engine_options));
  NIBBLE_ASSIGN_OR_RETURN(const ModelWeights weights, LoadWeights(model, *backend, style, cancel));
  NIBBLE_ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine,
                          Engine::Create(weights, *backend, engine_options));

  const int32_t first = config.bos.value_or(config.eos.empty() ? 0 : config.eos.front());
  std::map<Scheduler::RequestId, std::vector<int32_t>> texts;
  int64_t done = 0;
  Progress progress(style, "writing calibration text", options.samples * (length - 1));
  Scheduler scheduler(
      *engine,
      [&](Scheduler::RequestId id, int32_t token) {
        texts[id].push_back(token);
        progress.Update(++done, options.samples * (length - 1), "");
      },
      [](Scheduler::RequestId, FinishReason) {});
  for (int64_t i = 0; i < options.samples; ++i) {
    GenerationRequest request{.prompt = {first}, .max_tokens = length - 1};
    request.sampling.temperature = 1;
    request.sampling.seed = options.seed + static_cast<uint64_t>(i);
    NIBBLE_ASSIGN_OR_RETURN(const Scheduler::RequestId id, scheduler.Add(std::move(request)));
    texts[id] = {first};
  }
  while (true) {
    NIBBLE_ASSIGN_OR_RETURN(const bool more, scheduler.Step(cancel));
    if (!more) break;
  }
  std::vector<std::vector<int32_t>> documents;
  for (auto& [id, tokens] : texts) documents.push_back(std::move(tokens));
  CalibrationOptions windows = options;
  windows.path = "the model's own text";
  NIBBLE_ASSIGN_OR_RETURN(CalibrationSet set,
                          MakeCalibrationSet(documents, windows, config.max_context));
  set.notes.push_back("calibrated on text that the model wrote itself: no --calibration was given");
  return set;
}

}  // namespace

Result<CalibrationSet> Calibrate(const CalibrationOptions& options, const OpenedModel& model,
                                 const DeviceOptions& device, ProgressStyle progress,
                                 const CancelToken& cancel) {
  if (options.path.empty()) return SampleFromModel(options, model, device, progress, cancel);
  NIBBLE_ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer,
                          model.checkpoint->LoadTokenizer());
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<NamedChatTemplate> of_model,
                          model.checkpoint->ChatTemplates());
  const Result<ChatTemplate> chat_template =
      ChooseChatTemplate(options.chat_template, of_model, model.checkpoint->path());
  // What was asked for must be there; what only came with the model need not be of use.
  if (!chat_template && !options.chat_template.empty()) {
    return tl::unexpected<Error>(chat_template.error());
  }
  NIBBLE_ASSIGN_OR_RETURN(
      CalibrationSet set,
      LoadCalibrationSet(options, *tokenizer, chat_template, model.description.config.max_context));
  if (!options.chat_template.empty()) {
    set.notes.push_back(fmt::format("chat template: {}", LastPart(options.chat_template)));
  }
  return set;
}

}  // namespace nibble

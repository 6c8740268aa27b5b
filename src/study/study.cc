#include "src/study/study.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <ctime>
#include <filesystem>
#include <new>
#include <set>
#include <system_error>

#include "src/base/file.h"
#include "src/base/fingerprint.h"
#include "src/eval/mmlu_subjects.h"
#include "src/quantize/quantize.h"
#include "src/report/report.h"
#include "src/study/calibrate.h"
#include "src/study/kept_load_tests.h"
#include "src/study/model_card.h"
#include "src/study/versions.h"

namespace nibble {
namespace {

constexpr std::string_view kStudySchema = "nibble.study/1";

std::string UtcNow() {
  const std::time_t now = std::time(nullptr);
  std::tm utc;
  ::gmtime_r(&now, &utc);
  char text[32];
  std::strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &utc);
  return text;
}

std::string FingerprintOf(const Json& inputs) { return Fingerprint().Add(inputs.dump()).Hex(); }

template <typename T>
Json OrNull(const std::optional<T>& value) {
  return value ? Json(*value) : Json();
}

Json WorkloadRecord(const Workload& workload) {
  return {{"batch_sizes", workload.batch_sizes},
          {"input_length", workload.input_length},
          {"output_length", workload.output_length},
          {"repetitions", workload.repetitions}};
}

Status CheckOutput(const std::string& directory) {
  if (!FileExists(directory)) return {};
  if (!IsDirectory(directory)) return WrongUsage("{} exists and is not a directory", directory);
  const bool study = IsDirectory(JoinPath(directory, "stages"));
  if (!study && !std::filesystem::is_empty(directory)) {
    return WrongUsage("{} exists and is not a study that could be resumed", directory);
  }
  return {};
}

Status CheckMethods(const std::vector<std::string>& methods) {
  if (methods.empty() || !IsBaseline(methods.front())) {
    return WrongUsage("--methods: the first must be the baseline, fp16");
  }
  std::set<std::string> seen;
  for (size_t i = 0; i < methods.size(); ++i) {
    if (!seen.insert(methods[i]).second) {
      return WrongUsage("--methods: {} is named twice", methods[i]);
    }
    if (i == 0) continue;
    if (IsBaseline(methods[i])) return WrongUsage("--methods: {} is a second baseline", methods[i]);
    NIBBLE_RETURN_IF_ERROR(ParseMethod(methods[i]));
  }
  return {};
}

}  // namespace

bool IsBaseline(std::string_view method) {
  return method == "fp16" || method == "bf16" || method == "fp32" || method == "baseline";
}

Result<std::unique_ptr<Study>> Study::Create(const StudyOptions& options,
                                             const CancelToken& cancel) {
  NIBBLE_RETURN_IF_ERROR(CheckMethods(options.methods));
  NIBBLE_RETURN_IF_ERROR(CheckOutput(options.output));
  NIBBLE_ASSIGN_OR_RETURN(OpenedModel original, OpenModel(options.model, options.random_weights));
  NIBBLE_ASSIGN_OR_RETURN(MmluDataset data, MmluDataset::Load(options.data, options.questions));
  NIBBLE_ASSIGN_OR_RETURN(const uint64_t text_bytes, FileSize(options.perplexity.text_path));
  if (text_bytes == 0) return BadInput("{}: the text is empty", options.perplexity.text_path);
  NIBBLE_ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer,
                          original.checkpoint->LoadTokenizer());
  for (size_t i = 1; i < options.methods.size(); ++i) {
    NIBBLE_ASSIGN_OR_RETURN(const MethodSpec method, ParseMethod(options.methods[i]));
    NIBBLE_RETURN_IF_ERROR(PlanQuantization(original.description, method.quant));
  }
  NIBBLE_ASSIGN_OR_RETURN(const std::unique_ptr<Backend> backend,
                          MakeBackend(options.device, original.description.config));
  NIBBLE_ASSIGN_OR_RETURN(const DType kv_dtype,
                          KvTypeFor(options.device, *backend, original.description.config));
  NIBBLE_RETURN_IF_ERROR(CheckWorkload(options.workload, *original.checkpoint,
                                       original.description, *backend, kv_dtype,
                                       backend->AvailableBytes()));
  NIBBLE_ASSIGN_OR_RETURN(std::string fingerprint, FingerprintOfFiles(options.model));
  NIBBLE_ASSIGN_OR_RETURN(StageStore stages, StageStore::Open(options.output));

  std::vector<MmluScoring> scorings = options.scorings;
  if (const Status letters = CheckLetters(*tokenizer); !letters) {
    std::erase(scorings, MmluScoring::kLetters);
    if (scorings.empty()) return tl::unexpected<Error>(letters.error());
    spdlog::warn("{}: only the answers' texts are scored", letters.error().message());
  }
  std::unique_ptr<Study> study(new Study(options, std::move(stages), cancel));
  study->model_fingerprint_ = std::move(fingerprint);
  study->original_ = std::move(original);
  study->data_ = std::move(data);
  study->options_.scorings = std::move(scorings);
  PerplexityOptions& windows = study->options_.perplexity.options;
  windows.context = std::min(windows.context, study->original_.description.config.max_context);
  return study;
}

template <typename Compute>
Result<Json> Study::Stage(const std::string& name, const Json& inputs, const Compute& compute) {
  const std::string fingerprint =
      FingerprintOf({{"nibble", NIBBLE_VERSION}, {"model", model_fingerprint_}, {"in", inputs}});
  if (std::optional<Json> done = stages_.Load(name, fingerprint)) {
    spdlog::info("{}: done before", name);
    return *std::move(done);
  }
  NIBBLE_RETURN_IF_ERROR(cancel_.Check());
  NIBBLE_ASSIGN_OR_RETURN(Json document, compute());
  NIBBLE_RETURN_IF_ERROR(stages_.Save(name, fingerprint, document));
  return document;
}

std::string Study::PathOfMethod(const std::string& method) const {
  return IsBaseline(method) ? options_.model
                            : JoinPath(JoinPath(options_.output, "models"), method);
}

Result<Json> Study::HardwareStage() {
  const int threads = ThreadsFor(options_.device);
  return Stage("hardware", {{"device", options_.device.device}, {"threads", threads}},
               [&]() -> Result<Json> {
                 NIBBLE_ASSIGN_OR_RETURN(const std::unique_ptr<Backend> backend,
                                         MakeBackend(options_.device,
                                                     original_.description.config));
                 ThreadPool pool(threads);
                 NIBBLE_ASSIGN_OR_RETURN(const DeviceLimits limits, MeasureLimits(*backend, pool));
                 return Json{{"server", DescribeServer()},
                             {"accelerator", DescribeAccelerator(*backend, threads, limits)}};
               });
}

Json Study::CheckpointInputs(const std::string& method) const {
  Json inputs = {{"method", method}};
  if (IsBaseline(method) || ParseMethod(method)->method == QuantMethod::kRtn) return inputs;
  const CalibrationOptions& calibration = options_.calibration;
  inputs["calibration"] = {{"path", calibration.path},
                           {"samples", calibration.samples},
                           {"sequence_length", calibration.sequence_length},
                           {"seed", calibration.seed}};
  if (!calibration.chat_template.empty()) {
    inputs["calibration"]["chat_template"] = calibration.chat_template;
  }
  inputs["solver"] = SolverRecord(options_.solver);
  return inputs;
}

Result<Json> Study::QuantizeStage(const std::string& method) {
  if (IsBaseline(method)) return Json();
  const std::string directory = PathOfMethod(method);
  if (!IsDirectory(directory)) {
    // The stage's record without its checkpoint is worth nothing.
    std::error_code ignored;
    std::filesystem::remove(JoinPath(JoinPath(options_.output, "stages"), method + ".quantize.json"),
                            ignored);
  }
  return Stage(method + ".quantize", CheckpointInputs(method), [&]() -> Result<Json> {
    std::error_code error;
    std::filesystem::remove_all(directory, error);  // of other options, or left by a kill
    if (error) return BadInput("{}: cannot be replaced: {}", directory, error.message());
    NIBBLE_RETURN_IF_ERROR(MakeDirectories(JoinPath(options_.output, "models")));
    NIBBLE_ASSIGN_OR_RETURN(const MethodSpec spec, ParseMethod(method));
    NIBBLE_ASSIGN_OR_RETURN(const CalibrationSet* const set, CalibrationFor(spec));
    NIBBLE_ASSIGN_OR_RETURN(const std::unique_ptr<Backend> backend,
                            MakeBackend(options_.device, original_.description.config));
    Progress progress(options_.progress, "quantizing " + method, 1);
    ResetPeakResident();
    return QuantizeCheckpoint(
        *original_.checkpoint, original_.description,
        {.method = spec,
         .layout = DefaultLayout(spec.quant.grid),
         .solver = options_.solver,
         .calibration = set,
         .source_fingerprint = model_fingerprint_,
         .output = directory},
        *backend,
        [&](int64_t done, int64_t total, std::string_view name, const Json&) {
          progress.Update(done, total, name);
        },
        cancel_);
  });
}

Result<const CalibrationSet*> Study::CalibrationFor(const MethodSpec& method) {
  if (method.method == QuantMethod::kRtn) return nullptr;
  if (!calibration_) {
    NIBBLE_ASSIGN_OR_RETURN(calibration_, Calibrate(options_.calibration, original_,
                                                    options_.device, options_.progress, cancel_));
  }
  return &*calibration_;
}

Status Study::RunMethod(const std::string& method, const Json& hardware, const Json& baseline,
                        Json& record) {
  const std::string path = PathOfMethod(method);
  NIBBLE_ASSIGN_OR_RETURN(record["quantize"], QuantizeStage(method));

  // A model is loaded when the first stage that is left needs it.
  std::unique_ptr<LoadedModel> model;
  const auto load = [&]() -> Status {
    if (model) return {};
    spdlog::info("{}: loading {}", method, path);
    NIBBLE_ASSIGN_OR_RETURN(model, LoadModelOn(path, options_.device, options_.random_weights,
                                               options_.progress, cancel_));
    return {};
  };
  const Json device = {{"device", options_.device.device},
                       {"dtype", options_.device.dtype},
                       {"kv_cache", options_.device.kv_cache},
                       {"kernels", options_.device.kernels}};
  const Json& accelerator = hardware["accelerator"];
  const Json checkpoint = CheckpointInputs(method);

  for (const MmluScoring scoring : options_.scorings) {
    const MmluFormat format{options_.prompt_template, scoring};
    const std::string name = scoring == MmluScoring::kLetters ? "evaluate" : "evaluate_cloze";
    const Json inputs = {{"checkpoint", checkpoint},
                         {"questions", data_->FingerprintHex()},
                         {"shots", options_.questions.shots},
                         {"template", Name(format.prompt_template)},
                         {"device", device}};
    NIBBLE_ASSIGN_OR_RETURN(
        record[name], Stage(method + "." + name, inputs, [&]() -> Result<Json> {
          NIBBLE_RETURN_IF_ERROR(load());
          NIBBLE_ASSIGN_OR_RETURN(
              EvalResult result, Evaluate(*model, *data_, format, options_.max_batch,
                                          options_.progress, cancel_));
          if (baseline.is_null()) return result.ToJson();
          NIBBLE_ASSIGN_OR_RETURN(const EvalResult reference,
                                  EvalResult::FromJson(baseline[name], "the baseline's " + name));
          NIBBLE_ASSIGN_OR_RETURN(const EvalResult compared, Compare(reference, std::move(result)));
          return compared.ToJson();
        }));
  }

  const PerplexityRequest& request = options_.perplexity;
  NIBBLE_ASSIGN_OR_RETURN(const std::string text, FingerprintOfFiles(request.text_path));
  NIBBLE_ASSIGN_OR_RETURN(
      record["perplexity"],
      Stage(method + ".perplexity",
            {{"checkpoint", checkpoint},
             {"text", text},
             {"join", Name(request.join)},
             {"context", request.options.context},
             {"max_windows", OrNull(request.options.max_windows)},
             {"device", device}},
            [&]() -> Result<Json> {
              NIBBLE_RETURN_IF_ERROR(load());
              std::unique_ptr<LoadedModel> reference;
              if (!baseline.is_null()) {
                NIBBLE_ASSIGN_OR_RETURN(
                    reference, LoadModelOn(options_.model, options_.device, options_.random_weights,
                                           options_.progress, cancel_));
              }
              return MeasurePerplexity(*model, reference.get(), request, options_.progress,
                                       cancel_);
            }));

  const DeviceLimits limits{
      .read_bytes_per_second = accelerator.value("read_bandwidth_bytes_per_second", 0.0),
      .matrix_flops_per_second = accelerator.value("matrix_flops_per_second", 0.0)};
  NIBBLE_ASSIGN_OR_RETURN(
      record["bench"], Stage(method + ".bench",
                             {{"checkpoint", checkpoint},
                              {"workload", WorkloadRecord(options_.workload)},
                              {"hardware", hardware},
                              {"memory_budget", OrNull(options_.limits.memory_budget_bytes)},
                              {"device", device}},
                             [&]() -> Result<Json> {
                               NIBBLE_RETURN_IF_ERROR(load());
                               return Bench(*model, options_.workload, limits,
                                            options_.limits.memory_budget_bytes, options_.progress,
                                            cancel_);
                             }));
  return baseline.is_null() ? Status() : AddMeasurementsToCard(path, record, baseline);
}

Json Study::OptionsRecord() const {
  Json scorings = Json::array();
  for (const MmluScoring scoring : options_.scorings) scorings.push_back(Name(scoring));
  Json options = {
      {"methods", options_.methods},
      {"device", options_.device.device},
      {"threads", ThreadsFor(options_.device)},
      {"dtype", options_.device.dtype},
      {"kv_cache", options_.device.kv_cache},
      {"batch_invariant", options_.device.batch_invariant},
      {"kernels", options_.device.kernels},
      {"memory_fraction", options_.device.memory_fraction},
      {"data",
       {{"name", data_->directory_name()},
        {"questions", data_->question_count()},
        {"is_sample", data_->question_count() < kMmluTestQuestions}}},
      {"shots", options_.questions.shots},
      {"questions_per_subject", OrNull(options_.questions.questions_per_subject)},
      {"template", Name(options_.prompt_template)},
      {"scorings", std::move(scorings)},
      {"text", LastPart(options_.perplexity.text_path)},
      {"join", Name(options_.perplexity.join)},
      {"context", options_.perplexity.options.context},
      {"max_windows", OrNull(options_.perplexity.options.max_windows)},
      {"max_accuracy_drop", OrNull(options_.limits.max_accuracy_drop_points)},
      {"memory_budget_bytes", OrNull(options_.limits.memory_budget_bytes)},
      {"seed", options_.workload.seed}};
  if (calibration_) {
    options["calibration"] = {{"name", calibration_->source},
                              {"samples", calibration_->samples},
                              {"sequence_length", calibration_->sequence_length}};
  }
  options.update(WorkloadRecord(options_.workload));
  return options;
}

Json Study::ModelRecord() const {
  const ModelConfig& c = original_.description.config;
  return {{"name", LastPart(options_.model)},
          {"architecture", c.architecture},
          {"parameters", c.ParameterCount()},
          {"layers", c.layers},
          {"hidden_size", c.hidden},
          {"intermediate_size", c.intermediate},
          {"heads", c.heads},
          {"kv_heads", c.kv_heads},
          {"vocabulary", c.vocabulary},
          {"context", c.max_context},
          {"baseline", original_.checkpoint->label()},
          {"synthetic", original_.checkpoint->synthetic()}};
}

Result<StudyRecord> Study::Run() {
  NIBBLE_ASSIGN_OR_RETURN(const Json hardware, HardwareStage());
  Json methods = Json::object();
  for (const std::string& method : options_.methods) {
    const Json baseline = methods.empty() ? Json() : methods.front();
    Json& record = methods[method] = Json::object();
    Status status;
    try {
      status = RunMethod(method, hardware, baseline, record);
    } catch (const std::bad_alloc&) {  // of a small allocation; large ones are asked for by Result
      status = NotEnough("out of memory");
    }
    if (!status) {
      const Error& error = status.error();
      // Nothing can be compared without the baseline; another method's failure is its own.
      if (IsBaseline(method) || error.code() == ErrorCode::kInterrupted) {
        return tl::unexpected<Error>(error.In(method));
      }
      spdlog::error("{}: {}", method, error.message());
      record["error"] = error.message();
      failures_.push_back(error.In(method));
    }
  }
  NIBBLE_ASSIGN_OR_RETURN(Json recommendation, Recommend(methods, options_.limits));
  const Json study = {{"schema", kStudySchema},
                      {"created", UtcNow()},
                      {"hardware", hardware},
                      {"versions", Versions()},
                      {"options", OptionsRecord()},
                      {"model", ModelRecord()},
                      {"methods", std::move(methods)},
                      {"recommendation", std::move(recommendation)}};
  NIBBLE_RETURN_IF_ERROR(
      WriteFileAtomic(JoinPath(options_.output, "study.json"), study.dump(1) + "\n"));
  NIBBLE_ASSIGN_OR_RETURN(StudyRecord record, ReadStudy(options_.output));
  NIBBLE_RETURN_IF_ERROR(WriteReport(record, options_.output));
  return record;
}

Result<StudyRecord> ReadStudy(const std::string& directory) {
  const std::string path = JoinPath(directory, "study.json");
  if (!FileExists(path)) {
    return BadInput("{}: no study.json there; `nibble study` makes one", directory);
  }
  NIBBLE_ASSIGN_OR_RETURN(const Json json, ReadJsonFile(path));
  NIBBLE_ASSIGN_OR_RETURN(StudyRecord record, StudyRecord::FromJson(json, path));
  NIBBLE_ASSIGN_OR_RETURN(record.load_series, ReadKeptLoadTests(directory));
  return record;
}

}  // namespace nibble

#include "src/report/study_record.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "src/report/markup.h"

namespace nibble {
namespace {

// Far beyond any study, and small enough that no picture or sum can overflow.
constexpr size_t kMaxMethods = 24;
constexpr size_t kMaxGroups = 1000;
constexpr size_t kMaxRuns = 200;
constexpr size_t kMaxModules = 100'000;
constexpr int64_t kMaxCount = 1'000'000'000'000;
constexpr int64_t kMaxBytes = int64_t{1} << 60;
constexpr double kMaxQuantity = 1e18;

// Reads the members of one object and keeps the first error, so that a document is read as a list
// of its fields and checked once at the end.
class Fields {
 public:
  Fields(const Json& json, const std::string& source, Status& status) : status_(status) {
    Result<JsonObject> object = JsonObject::Of(json, source);
    if (object) {
      object_ = *std::move(object);
    } else {
      Keep(object.error());
    }
  }

  bool ok() const { return status_.has_value() && object_.has_value(); }
  const Json* Find(const char* key) const { return ok() ? object_->Find(key) : nullptr; }
  std::string Where(const std::string& key) const {
    return fmt::format("{}: \"{}\"", object_ ? object_->source() : "", Printable(key));
  }

  std::string Text(const char* key) {
    return Printable(Take(ok() ? object_->StringOr(key, "") : Result<std::string>("")));
  }
  bool Flag(const char* key) { return ok() && Take(object_->BooleanOr(key, false)); }
  int64_t Count(const char* key, int64_t min = 0) {
    return ok() ? Take(object_->Integer(key, min, kMaxCount)) : 0;
  }
  int64_t CountOr(const char* key, int64_t fallback, int64_t min = 0) {
    return ok() ? Take(object_->IntegerOr(key, min, kMaxCount, fallback)) : 0;
  }
  uint64_t Bytes(const char* key) {
    return ok() ? static_cast<uint64_t>(Take(object_->Integer(key, 0, kMaxBytes))) : 0;
  }
  std::optional<uint64_t> OptionalBytes(const char* key) {
    return Find(key) != nullptr ? std::optional(Bytes(key)) : std::nullopt;
  }

  double Number(const char* key, double min, double max) {
    if (!ok()) return 0;
    const double value = Take(object_->Number(key));
    if (ok() && (value < min || value > max)) {
      Keep(
          BadInput("{}: want a number from {} to {}, got {}", Where(key), min, max, value).value());
    }
    return value;
  }
  double Quantity(const char* key) { return Number(key, 0, kMaxQuantity); }
  std::optional<double> Optional(const char* key, double min, double max) {
    return Find(key) != nullptr ? std::optional(Number(key, min, max)) : std::nullopt;
  }
  // JSON has no infinity: a measurement that overflowed is written as null and read as NaN.
  double Unbounded(const char* key) {
    return Optional(key, -kMaxQuantity, kMaxQuantity)
        .value_or(std::numeric_limits<double>::quiet_NaN());
  }

  Interval Range(const char* key, double min, double max) {
    const Json* json = Find(key);
    if (!ok()) return {};
    const bool pair = json != nullptr && json->is_array() && json->size() == 2 &&
                      (*json)[0].is_number() && (*json)[1].is_number();
    const Interval range =
        pair ? Interval{(*json)[0].get<double>(), (*json)[1].get<double>()} : Interval{1, 0};
    // A bound may miss the range by rounding alone.
    const double slack = 1e-6;
    if (!(range.low >= min - slack && range.high <= max + slack && range.low <= range.high)) {
      Keep(BadInput("{}: want two ascending numbers from {} to {}", Where(key), min, max).value());
    }
    return range;
  }

  std::vector<std::string> Texts(const char* key) {
    std::vector<std::string> texts;
    const Json* json = Find(key);
    if (json == nullptr) return texts;
    if (!json->is_array() || json->size() > kMaxModules ||
        !std::all_of(json->begin(), json->end(), [](const Json& j) { return j.is_string(); })) {
      Keep(BadInput("{}: want an array of strings", Where(key)).value());
      return texts;
    }
    for (const Json& text : *json) texts.push_back(Printable(text.get<std::string>()));
    return texts;
  }

  // The elements of an array member; none where it is absent.
  const Json::array_t& Elements(const char* key, size_t max) {
    static const Json::array_t kNone;
    const Json* json = Find(key);
    if (json == nullptr) return kNone;
    if (!json->is_array() || json->size() > max) {
      Keep(BadInput("{}: want an array of at most {} elements", Where(key), max).value());
      return kNone;
    }
    return json->get_ref<const Json::array_t&>();
  }

  void Keep(const Error& error) {
    if (status_) status_ = tl::unexpected<Error>(error);
  }

 private:
  template <typename T>
  T Take(Result<T> result) {
    if (result) return *std::move(result);
    Keep(result.error());
    return T{};
  }

  Status& status_;
  std::optional<JsonObject> object_;
};

ScoreComparison ReadComparison(const Json& json, const std::string& source, Status& status) {
  Fields fields(json, source, status);
  ScoreComparison comparison;
  comparison.difference = fields.Number("difference", -1, 1);
  comparison.ci95 = fields.Range("ci95", -1, 1);
  comparison.reference_only_correct = fields.Count("reference_only_correct");
  comparison.candidate_only_correct = fields.Count("candidate_only_correct");
  comparison.flipped = fields.Optional("flipped", 0, 1);
  comparison.mcnemar_p = fields.Optional("mcnemar_p", 0, 1 + 1e-6);
  comparison.holm_p = fields.Optional("holm_p", 0, 1 + 1e-6);
  return comparison;
}

Score ReadScore(const Json& json, const std::string& source, Status& status) {
  Fields fields(json, source, status);
  Score score;
  score.total = fields.Count("total", 1);
  score.correct = fields.Count("correct");
  score.accuracy = fields.Number("accuracy", 0, 1);
  score.ci95 = fields.Range("ci95", 0, 1);
  if (score.correct > score.total) {
    fields.Keep(BadInput("{}: {} correct of {}", source, score.correct, score.total).value());
  }
  if (const Json* comparison = fields.Find("comparison")) {
    score.comparison = ReadComparison(*comparison, fields.Where("comparison"), status);
  }
  return score;
}

NamedScores ReadScores(Fields& fields, const char* key, Status& status) {
  NamedScores scores;
  const Json* json = fields.Find(key);
  if (json == nullptr) return scores;
  if (!json->is_object() || json->size() > kMaxGroups) {
    fields.Keep(
        BadInput("{}: want an object of at most {} groups", fields.Where(key), kMaxGroups).value());
    return scores;
  }
  for (const auto& [name, score] : json->items()) {
    scores.emplace_back(Printable(name),
                        ReadScore(score, fields.Where(key) + " " + Printable(name), status));
  }
  return scores;
}

Evaluation ReadEvaluation(const Json& json, const std::string& source, Status& status) {
  Fields fields(json, source, status);
  Evaluation evaluation;
  evaluation.scoring = fields.Text("scoring");
  evaluation.prompt_template = fields.Text("template");
  evaluation.shots = fields.CountOr("shots", 0);
  evaluation.questions_with_dropped_shots = fields.CountOr("questions_with_dropped_shots", 0);
  if (const Json* overall = fields.Find("overall")) {
    evaluation.overall = ReadScore(*overall, fields.Where("overall"), status);
  } else if (fields.ok()) {
    fields.Keep(BadInput("{}: \"overall\" is missing", source).value());
  }
  evaluation.subjects = ReadScores(fields, "subjects", status);
  evaluation.subcategories = ReadScores(fields, "subcategories", status);
  evaluation.categories = ReadScores(fields, "categories", status);
  return evaluation;
}

PerplexityResult ReadPerplexity(const Json& json, const std::string& source, Status& status) {
  Fields fields(json, source, status);
  PerplexityResult result;
  result.perplexity = fields.Unbounded("perplexity");
  result.standard_error = fields.Unbounded("perplexity_se");
  result.tokens = fields.Count("tokens");
  result.text = fields.Text("text");
  result.join = fields.Text("join");
  result.context = fields.CountOr("context", 0);
  result.windows = fields.CountOr("windows", 0);
  result.windows_in_text = fields.CountOr("windows_in_text", 0);
  result.top1_agreement = fields.Optional("top1_agreement", 0, 1);
  result.perplexity_ratio = fields.Optional("perplexity_ratio", 0, kMaxQuantity);
  if (const Json* kl = fields.Find("kl_divergence")) {
    Fields of(*kl, fields.Where("kl_divergence"), status);
    result.kl_divergence =
        Divergence{of.Unbounded("mean"), of.Unbounded("median"), of.Unbounded("p99"),
                   of.Unbounded("p999"), of.Unbounded("max")};
  }
  if (const Json* delta = fields.Find("delta_p")) {
    Fields of(*delta, fields.Where("delta_p"), status);
    result.delta_p =
        TokenProbabilityChange{of.Unbounded("mean"), of.Unbounded("p1"), of.Unbounded("p5"),
                               of.Unbounded("p95"), of.Unbounded("p99")};
  }
  return result;
}

BenchRun ReadRun(const Json& json, const std::string& source, Status& status) {
  Fields fields(json, source, status);
  BenchRun run;
  run.batch_size = fields.Count("batch_size", 1);
  run.input_length = fields.Count("input_length");
  run.output_length = fields.Count("output_length");
  run.output_tokens_per_second = fields.Quantity("output_tokens_per_second");
  run.decode_tokens_per_second = fields.Quantity("decode_tokens_per_second");
  run.prefill_seconds = fields.Quantity("prefill_seconds");
  run.decode_seconds = fields.Quantity("decode_seconds");
  run.time_to_first_token_ms = fields.Optional("time_to_first_token_ms", 0, kMaxQuantity);
  run.time_per_output_token_ms = fields.Optional("time_per_output_token_ms", 0, kMaxQuantity);
  run.roofline_fraction = fields.Optional("roofline_fraction", 0, kMaxQuantity);
  run.energy_joules_per_token = fields.Optional("energy_joules_per_token", 0, kMaxQuantity);
  if (const Json* memory = fields.Find("peak_memory_bytes")) {
    Fields peak(*memory, fields.Where("peak_memory_bytes"), status);
    run.weights_bytes = peak.Bytes("weights");
    run.kv_cache_bytes = peak.Bytes("kv_cache");
    run.workspace_bytes = peak.Bytes("workspace");
    run.total_bytes = peak.Bytes("total");
    run.process_bytes = peak.OptionalBytes("process");
  } else if (fields.ok()) {
    fields.Keep(BadInput("{}: \"peak_memory_bytes\" is missing", source).value());
  }
  return run;
}

std::vector<BenchRun> ReadBench(const Json& json, const std::string& source, Status& status) {
  Fields fields(json, source, status);
  std::vector<BenchRun> runs;
  std::set<int64_t> seen;
  for (const Json& element : fields.Elements("runs", kMaxRuns)) {
    const std::string where = fmt::format("{}: run {}", source, runs.size());
    runs.push_back(ReadRun(element, where, status));
    if (!seen.insert(runs.back().batch_size).second) {
      fields.Keep(BadInput("{}: batch size {} twice", where, runs.back().batch_size).value());
    }
  }
  std::sort(runs.begin(), runs.end(),
            [](const BenchRun& a, const BenchRun& b) { return a.batch_size < b.batch_size; });
  return runs;
}

std::optional<BatchThatFits> ReadLargestBatch(const Json& json, const std::string& source,
                                              Status& status) {
  const Fields fields(json, source, status);
  const Json* found = fields.Find("largest_batch");
  if (found == nullptr) return std::nullopt;
  Fields of(*found, fields.Where("largest_batch"), status);
  return BatchThatFits{.memory_bytes = of.Bytes("memory_bytes"),
                       .batch_size = of.Count("batch_size")};
}

QuantizeResult ReadQuantize(const Json& json, const std::string& source, Status& status) {
  Fields fields(json, source, status);
  QuantizeResult result;
  result.method = fields.Text("method");
  result.grid = fields.Text("grid");
  result.format = fields.Text("format");
  result.group_size = fields.CountOr("group_size", 0, -1);
  result.error_measure = fields.Text("error_measure");
  result.bits_per_weight = fields.Optional("bits_per_weight", 0, 1024);
  result.seconds = fields.Quantity("seconds");
  result.peak_memory_bytes = fields.Bytes("peak_memory_bytes");
  result.peak_device_bytes = fields.OptionalBytes("peak_device_memory_bytes");
  result.checkpoint_bytes = fields.Bytes("checkpoint_bytes");
  result.notes = fields.Texts("notes");
  for (const Json& element : fields.Elements("modules", kMaxModules)) {
    Fields module(element, fields.Where("modules"), status);
    result.modules.push_back({module.Text("name"), module.Unbounded("error"),
                              module.Optional("error_rtn", -kMaxQuantity, kMaxQuantity)});
  }
  for (const Json& element : fields.Elements("skipped", kMaxModules)) {
    Fields skipped(element, fields.Where("skipped"), status);
    result.skipped.emplace_back(skipped.Text("name"), skipped.Text("reason"));
  }
  return result;
}

RecommendationRecord ReadRecommendation(const Json& json, const std::string& source,
                                        Status& status) {
  Fields fields(json, source, status);
  RecommendationRecord record;
  record.method = fields.Text("method");
  record.provisional = fields.Flag("provisional");
  record.summary = fields.Text("summary");
  record.uncertainty = fields.Text("uncertainty");
  record.reasons = fields.Texts("reasons");
  record.would_have_to_give = fields.Texts("would_have_to_give");
  if (const Json* limits = fields.Find("limits")) {
    Fields of(*limits, fields.Where("limits"), status);
    record.max_accuracy_drop_points = of.Optional("max_accuracy_drop_points", 0, 100);
  }
  for (const Json& element : fields.Elements("candidates", kMaxMethods)) {
    Fields of(element, fields.Where("candidates"), status);
    RecommendationCandidate candidate;
    candidate.method = of.Text("method");
    candidate.accuracy_drop_points = of.Optional("accuracy_drop_points", -100, 100);
    if (of.Find("ci95") != nullptr) candidate.ci95 = of.Range("ci95", -100, 100);
    candidate.fits_accuracy = of.Text("fits_accuracy");
    candidate.peak_memory_bytes = of.OptionalBytes("peak_memory_bytes");
    if (of.Find("fits_memory") != nullptr) candidate.fits_memory = of.Flag("fits_memory");
    candidate.output_tokens_per_second = of.Optional("output_tokens_per_second", 0, kMaxQuantity);
    candidate.speedup = of.Optional("speedup", 0, kMaxQuantity);
    record.candidates.push_back(std::move(candidate));
  }
  return record;
}

MethodRecord ReadMethod(const std::string& name, const Json& json, const std::string& source,
                        Status& status) {
  Fields fields(json, source, status);
  MethodRecord method;
  method.name = name;
  method.error = fields.Text("error");
  if (const Json* document = fields.Find("quantize")) {
    method.quantize = ReadQuantize(*document, fields.Where("quantize"), status);
  }
  if (const Json* document = fields.Find("evaluate")) {
    method.evaluate = ReadEvaluation(*document, fields.Where("evaluate"), status);
  }
  if (const Json* document = fields.Find("evaluate_cloze")) {
    method.evaluate_cloze = ReadEvaluation(*document, fields.Where("evaluate_cloze"), status);
  }
  if (const Json* document = fields.Find("perplexity")) {
    method.perplexity = ReadPerplexity(*document, fields.Where("perplexity"), status);
  }
  if (const Json* document = fields.Find("bench")) {
    method.bench = ReadBench(*document, fields.Where("bench"), status);
    method.largest_batch = ReadLargestBatch(*document, fields.Where("bench"), status);
  }
  return method;
}

// A member that is shown as it is; an empty object where absent.
Json ReadShown(Fields& fields, const char* key) {
  const Json* json = fields.Find(key);
  if (json == nullptr) return Json::object();
  if (json->is_object()) return *json;
  fields.Keep(BadInput("{}: want an object", fields.Where(key)).value());
  return Json::object();
}

void ReadOptions(const Json& options, const std::string& source, Status& status,
                 StudyRecord& record) {
  Fields fields(options, source, status);
  record.repetitions = fields.CountOr("repetitions", 0);
  if (const Json* data = fields.Find("data"); data != nullptr && data->is_object()) {
    Fields of(*data, fields.Where("data"), status);
    record.question_source = of.Text("name");
    record.sample_questions = of.Flag("is_sample");
  }
}

}  // namespace

const Score* FindScore(const NamedScores& scores, const std::string& name) {
  for (const auto& [other, score] : scores) {
    if (other == name) return &score;
  }
  return nullptr;
}

Result<StudyRecord> StudyRecord::FromJson(const Json& json, const std::string& source) {
  Status status;
  StudyRecord record;
  Fields fields(json, source, status);
  const std::string schema = fields.Text("schema");
  if (status && schema != "nibble.study/1") {
    return BadInput("{}: \"schema\": want \"nibble.study/1\", got \"{}\"", source, schema);
  }
  record.created = fields.Text("created");
  if (const Json* hardware = fields.Find("hardware")) {
    Fields of(*hardware, fields.Where("hardware"), status);
    record.server = ReadShown(of, "server");
    record.accelerator = ReadShown(of, "accelerator");
  } else {
    record.server = record.accelerator = Json::object();
  }
  record.versions = ReadShown(fields, "versions");
  record.options = ReadShown(fields, "options");
  record.model = ReadShown(fields, "model");
  ReadOptions(record.options, fields.Where("options"), status, record);

  Fields model(record.model, fields.Where("model"), status);
  record.model_name = model.Text("name");
  record.baseline_note = model.Text("baseline");
  record.synthetic = model.Flag("synthetic");
  if (record.model_name.empty()) record.model_name = "unnamed model";

  const Json* methods = fields.Find("methods");
  if (status && (methods == nullptr || !methods->is_object() || methods->empty() ||
                 methods->size() > kMaxMethods)) {
    return BadInput("{}: \"methods\": want an object of 1 to {} methods", source, kMaxMethods);
  }
  NIBBLE_RETURN_IF_ERROR(status);
  for (const auto& [name, method] : methods->items()) {
    record.methods.push_back(ReadMethod(Printable(name), method,
                                        fields.Where("methods") + " " + Printable(name), status));
  }
  if (const Json* recommendation = fields.Find("recommendation")) {
    record.recommendation =
        ReadRecommendation(*recommendation, fields.Where("recommendation"), status);
  }
  NIBBLE_RETURN_IF_ERROR(status);
  return record;
}

}  // namespace nibble

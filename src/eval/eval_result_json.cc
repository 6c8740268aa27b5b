// EvalResult as JSON, schema "nibble.evaluate/1".
#include <algorithm>
#include <cstddef>
#include <utility>

#include "src/eval/eval_result.h"
#include "src/eval/mmlu_subjects.h"

namespace nibble {
namespace {

constexpr size_t kMaxQuestions = 1'000'000;
constexpr int64_t kMaxShots = 1000;
constexpr std::string_view kLetters = "ABCD";

std::string_view Name(MmluSelection selection) {
  return selection == MmluSelection::kFirst ? "first" : "sample";
}

Json ToJson(const Interval& interval) { return Json::array({interval.low, interval.high}); }

Json ToJson(const PairedComparison& comparison) {
  return {{"difference", comparison.difference},
          {"ci95", ToJson(comparison.ci95)},
          {"flipped", comparison.flipped},
          {"reference_only_correct", comparison.counts.reference_only_correct},
          {"candidate_only_correct", comparison.counts.candidate_only_correct},
          {"mcnemar_p", comparison.mcnemar_p},
          {"holm_p", comparison.holm_p}};
}

Json GroupJson(const GroupResult& group) {
  Json json = {{"correct", group.correct},
               {"total", group.total},
               {"accuracy", group.accuracy()},
               {"ci95", ToJson(group.ci95)}};
  if (group.comparison) json["comparison"] = ToJson(*group.comparison);
  return json;
}

Json GroupsJson(const std::vector<GroupResult>& groups) {
  Json json = Json::object();
  for (const GroupResult& group : groups) json[std::string(group.name)] = GroupJson(group);
  return json;
}

Json QuestionJson(const QuestionResult& question) {
  return {{"subject", kMmluSubjects[static_cast<size_t>(question.subject)].name},
          {"index", question.index},
          {"logprobs", question.logprobs},
          {"choice", kLetters.substr(static_cast<size_t>(question.choice), 1)},
          {"answer", kLetters.substr(static_cast<size_t>(question.answer), 1)},
          {"shots", question.shots}};
}

template <typename T>
Result<T> In(std::string_view source, Result<T> result) {
  if (!result) return tl::unexpected<Error>(result.error().In(source));
  return result;
}

Result<int> ReadLetter(const JsonObject& json, std::string_view key) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string text, json.String(key));
  const size_t letter = text.size() == 1 ? kLetters.find(text[0]) : std::string::npos;
  if (letter == std::string::npos) {
    return BadInput("{}: \"{}\": want A, B, C or D", json.source(), key);
  }
  return static_cast<int>(letter);
}

Result<std::array<double, 4>> ReadLogprobs(const JsonObject& json) {
  const Json* array = json.Find("logprobs");
  std::array<double, 4> logprobs{};
  bool good = array != nullptr && array->is_array() && array->size() == logprobs.size();
  for (size_t i = 0; good && i < logprobs.size(); ++i) {
    good = (*array)[i].is_number();
    if (good) logprobs[i] = (*array)[i].get<double>();
  }
  if (!good) return BadInput("{}: \"logprobs\": want four numbers", json.source());
  return logprobs;
}

Result<QuestionResult> ReadQuestion(const Json& entry, const std::string& source) {
  NIBBLE_ASSIGN_OR_RETURN(const JsonObject json, JsonObject::Of(entry, source));
  NIBBLE_ASSIGN_OR_RETURN(const std::string name, json.String("subject"));
  const auto subject = FindMmluSubject(name);
  if (!subject) return BadInput("{}: \"subject\": not one of MMLU's subjects", source);
  QuestionResult question;
  question.subject = *subject;
  NIBBLE_ASSIGN_OR_RETURN(question.index, json.Integer("index", 0, INT64_MAX));
  NIBBLE_ASSIGN_OR_RETURN(question.logprobs, ReadLogprobs(json));
  NIBBLE_ASSIGN_OR_RETURN(question.choice, ReadLetter(json, "choice"));
  NIBBLE_ASSIGN_OR_RETURN(question.answer, ReadLetter(json, "answer"));
  NIBBLE_ASSIGN_OR_RETURN(const int64_t shots, json.Integer("shots", 0, kMaxShots));
  question.shots = static_cast<int>(shots);
  if (question.logprobs[static_cast<size_t>(question.choice)] <
      *std::max_element(question.logprobs.begin(), question.logprobs.end())) {
    return BadInput("{}: \"choice\" is not the largest of \"logprobs\"", source);
  }
  return question;
}

Result<std::vector<QuestionResult>> ReadQuestions(const JsonObject& json) {
  const Json* array = json.Find("questions");
  if (array == nullptr || !array->is_array() || array->size() > kMaxQuestions) {
    return BadInput("{}: \"questions\": want an array of at most {} entries", json.source(),
                    kMaxQuestions);
  }
  std::vector<QuestionResult> questions;
  questions.reserve(array->size());
  for (size_t i = 0; i < array->size(); ++i) {
    NIBBLE_ASSIGN_OR_RETURN(
        const QuestionResult question,
        ReadQuestion((*array)[i], fmt::format("{}: questions[{}]", json.source(), i)));
    questions.push_back(question);
  }
  return questions;
}

Result<EvalData> ReadData(const JsonObject& json) {
  NIBBLE_ASSIGN_OR_RETURN(const JsonObject data, json.Object("data"));
  EvalData result;
  NIBBLE_ASSIGN_OR_RETURN(result.directory, data.String("directory"));
  NIBBLE_ASSIGN_OR_RETURN(result.form.header, data.String("header"));
  NIBBLE_ASSIGN_OR_RETURN(result.form.answers, data.String("answers"));
  NIBBLE_ASSIGN_OR_RETURN(result.fingerprint, data.String("fingerprint"));
  return result;
}

Result<MmluDataOptions> ReadOptions(const JsonObject& json) {
  MmluDataOptions options;
  NIBBLE_ASSIGN_OR_RETURN(const int64_t shots, json.Integer("shots", 0, kMaxShots));
  options.shots = static_cast<int>(shots);
  if (json.Has("questions_per_subject")) {
    NIBBLE_ASSIGN_OR_RETURN(options.questions_per_subject,
                            json.Integer("questions_per_subject", 1, INT64_MAX));
  }
  NIBBLE_ASSIGN_OR_RETURN(const std::string selection, json.String("selection"));
  if (selection != Name(MmluSelection::kFirst) && selection != Name(MmluSelection::kSample)) {
    return BadInput("{}: \"selection\": want first or sample", json.source());
  }
  options.selection =
      selection == Name(MmluSelection::kFirst) ? MmluSelection::kFirst : MmluSelection::kSample;
  const Json* seed = json.Find("seed");
  if (seed == nullptr || !seed->is_number_unsigned()) {
    return BadInput("{}: \"seed\": want an integer of at least 0", json.source());
  }
  options.seed = seed->get<uint64_t>();
  return options;
}

Result<EvalSettings> ReadSettings(const JsonObject& json) {
  EvalSettings settings;
  NIBBLE_ASSIGN_OR_RETURN(settings.task, json.String("task"));
  NIBBLE_ASSIGN_OR_RETURN(settings.model, json.String("model"));
  NIBBLE_ASSIGN_OR_RETURN(const bool synthetic, json.BooleanOr("synthetic", false));
  if (json.Has("prompt_tokens")) {
    NIBBLE_ASSIGN_OR_RETURN(settings.prompt_tokens, json.Integer("prompt_tokens", 1, INT64_MAX));
    NIBBLE_ASSIGN_OR_RETURN(settings.computed_tokens,
                            json.Integer("computed_tokens", 1, settings.prompt_tokens));
  }
  settings.origin = synthetic ? WeightsOrigin::kSynthetic : WeightsOrigin::kTrained;
  NIBBLE_ASSIGN_OR_RETURN(const std::string prompt_template, json.String("template"));
  NIBBLE_ASSIGN_OR_RETURN(const std::string scoring, json.String("scoring"));
  const auto known_template = ParseMmluTemplate(prompt_template);
  const auto known_scoring = ParseMmluScoring(scoring);
  // Not the parser's own error: here it is the file that is wrong, not the command line.
  if (!known_template) return BadInput("{}: \"template\": unknown", json.source());
  if (!known_scoring) return BadInput("{}: \"scoring\": unknown", json.source());
  settings.format = {*known_template, *known_scoring};
  NIBBLE_ASSIGN_OR_RETURN(settings.options, ReadOptions(json));
  NIBBLE_ASSIGN_OR_RETURN(settings.data, ReadData(json));
  return settings;
}

// The two counts decide all the rest.
Result<PairedComparison> ReadComparison(const JsonObject& json, const GroupResult& group) {
  NIBBLE_ASSIGN_OR_RETURN(const JsonObject comparison, json.Object("comparison"));
  PairedCounts counts;
  counts.total = group.total;
  // What only the candidate got right is part of what it got right; likewise for the wrong ones.
  NIBBLE_ASSIGN_OR_RETURN(counts.candidate_only_correct,
                          comparison.Integer("candidate_only_correct", 0, group.correct));
  NIBBLE_ASSIGN_OR_RETURN(
      counts.reference_only_correct,
      comparison.Integer("reference_only_correct", 0, group.total - group.correct));
  return MakeComparison(counts);
}

Status ReadFamily(const JsonObject& json, std::string_view kind, std::vector<GroupResult>& groups) {
  NIBBLE_ASSIGN_OR_RETURN(const JsonObject family, json.Object(kind));
  for (GroupResult& group : groups) {
    NIBBLE_ASSIGN_OR_RETURN(const JsonObject member, family.Object(group.name));
    NIBBLE_ASSIGN_OR_RETURN(group.comparison, ReadComparison(member, group));
  }
  return {};
}

}  // namespace

Json EvalResult::ToJson() const {
  Json json;
  json["schema"] = kEvalSchema;
  json["task"] = settings_.task;
  json["model"] = settings_.model;
  if (settings_.origin == WeightsOrigin::kSynthetic) json["synthetic"] = true;
  json["template"] = nibble::Name(settings_.format.prompt_template);
  json["scoring"] = nibble::Name(settings_.format.scoring);
  json["logprobs_unit"] =
      settings_.format.scoring == MmluScoring::kLetters ? "nats" : "nats per byte";
  json["shots"] = settings_.options.shots;
  json["dropped_shots"] = dropped_shots();
  json["questions_with_dropped_shots"] = questions_with_dropped_shots();
  if (settings_.prompt_tokens > 0) {
    json["prompt_tokens"] = settings_.prompt_tokens;
    json["computed_tokens"] = settings_.computed_tokens;
  }
  json["questions_per_subject"] = settings_.options.questions_per_subject
                                      ? Json(*settings_.options.questions_per_subject)
                                      : Json(nullptr);
  json["selection"] = Name(settings_.options.selection);
  json["seed"] = settings_.options.seed;
  json["data"] = {{"directory", settings_.data.directory},
                  {"header", settings_.data.form.header},
                  {"answers", settings_.data.form.answers},
                  {"fingerprint", settings_.data.fingerprint}};
  json["detectable_difference"] = DetectableDifference(overall_.total);
  if (reference_model_) json["reference"] = {{"model", *reference_model_}};
  json["overall"] = GroupJson(overall_);
  json["categories"] = GroupsJson(categories_);
  json["subcategories"] = GroupsJson(subcategories_);
  json["subjects"] = GroupsJson(subjects_);
  Json questions = Json::array();
  for (const QuestionResult& question : questions_) questions.push_back(QuestionJson(question));
  json["questions"] = std::move(questions);
  return json;
}

Result<EvalResult> EvalResult::FromJson(const Json& json, std::string_view source) {
  NIBBLE_ASSIGN_OR_RETURN(const JsonObject object, JsonObject::Of(json, source));
  NIBBLE_ASSIGN_OR_RETURN(const std::string schema, object.String("schema"));
  if (schema != kEvalSchema) {
    return BadInput("{}: want a result of evaluate (schema {}), got another schema", source,
                    kEvalSchema);
  }
  NIBBLE_ASSIGN_OR_RETURN(EvalSettings settings, ReadSettings(object));
  NIBBLE_ASSIGN_OR_RETURN(std::vector<QuestionResult> questions, ReadQuestions(object));
  NIBBLE_ASSIGN_OR_RETURN(EvalResult result,
                          In(source, Make(std::move(settings), std::move(questions))));
  NIBBLE_ASSIGN_OR_RETURN(const JsonObject overall, object.Object("overall"));
  NIBBLE_ASSIGN_OR_RETURN(const int64_t correct, overall.Integer("correct", 0, INT64_MAX));
  NIBBLE_ASSIGN_OR_RETURN(const int64_t total, overall.Integer("total", 0, INT64_MAX));
  if (correct != result.overall_.correct || total != result.overall_.total) {
    return BadInput("{}: \"overall\" says {} of {} correct, its questions say {} of {}", source,
                    correct, total, result.overall_.correct, result.overall_.total);
  }
  if (object.Has("reference")) NIBBLE_RETURN_IF_ERROR(result.ReadComparisons(object));
  return result;
}

Status EvalResult::ReadComparisons(const JsonObject& json) {
  NIBBLE_ASSIGN_OR_RETURN(const JsonObject reference, json.Object("reference"));
  NIBBLE_ASSIGN_OR_RETURN(reference_model_, reference.String("model"));
  NIBBLE_ASSIGN_OR_RETURN(const JsonObject overall, json.Object("overall"));
  NIBBLE_ASSIGN_OR_RETURN(overall_.comparison, ReadComparison(overall, overall_));
  NIBBLE_RETURN_IF_ERROR(ReadFamily(json, "subjects", subjects_));
  NIBBLE_RETURN_IF_ERROR(ReadFamily(json, "subcategories", subcategories_));
  NIBBLE_RETURN_IF_ERROR(ReadFamily(json, "categories", categories_));
  CorrectComparisons();
  return {};
}

}  // namespace nibble

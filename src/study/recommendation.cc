#include "src/study/recommendation.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "src/base/units.h"
#include "src/report/numbers.h"
#include "src/report/study_record.h"
#include "src/study/candidate.h"

namespace nibble {
namespace {

constexpr double kEquallyFast = 1.02;
constexpr double kMaxProvisionalPerplexityRatio = 1.05;
constexpr int64_t kMmluQuestions = 14'042;

struct Choice {
  const Candidate* method = nullptr;  // null: none
  bool provisional = false;
};

class Recommender {
 public:
  Recommender(Assessment assessment, double tolerance, const RecommendationLimits& limits)
      : assessment_(std::move(assessment)),
        tolerance_(tolerance),
        limits_(limits),
        baseline_(assessment_.candidates.front()) {}

  Json Decide();

 private:
  bool Usable(const Candidate& candidate) const {
    return candidate.fits_memory == true && candidate.speed.has_value();
  }
  bool Faster(const Candidate& a, const Candidate& b) const;
  const Candidate* FastestSure() const;
  const Candidate* BestUndecided(const Candidate* sure) const;
  Choice Choose() const;

  std::string Summary(const Choice& choice) const;
  std::vector<std::string> Reasons(const Choice& choice) const;
  std::string Uncertainty(const Choice& choice) const;
  std::vector<std::string> WouldHaveToGive(const Choice& choice) const;
  std::string SpeedText(const Candidate& candidate) const;
  std::string DropText(const Candidate& candidate) const;
  std::string BatchText() const;
  std::string BaselinesLargestBatch(const Candidate& method) const;
  std::string EnoughQuestions(const Candidate& candidate) const;
  Json CandidatesJson() const;

  Assessment assessment_;
  double tolerance_;
  RecommendationLimits limits_;
  const Candidate& baseline_;
};

std::string Points(double points) { return FormatFixed(points, 2); }

// The faster one; of those equally fast, the one that changes the model's output less.
bool Recommender::Faster(const Candidate& a, const Candidate& b) const {
  const double ratio = *a.speed / *b.speed;
  if (ratio > kEquallyFast) return true;
  if (ratio < 1 / kEquallyFast) return false;
  if (a.is_baseline != b.is_baseline) {
    // Equally fast: fewer bytes are what quantization is for.
    return a.peak_bytes < b.peak_bytes;
  }
  if (a.kl_mean && b.kl_mean && *a.kl_mean != *b.kl_mean) return *a.kl_mean < *b.kl_mean;
  return a.peak_bytes < b.peak_bytes;
}

const Candidate* Recommender::FastestSure() const {
  const Candidate* best = nullptr;
  for (const Candidate& candidate : assessment_.candidates) {
    if (!Usable(candidate) || candidate.accuracy != AccuracyFit::kYes) continue;
    if (best == nullptr || Faster(candidate, *best)) best = &candidate;
  }
  return best;
}

// Of the methods that the questions could not decide about, the one that diverges least.
const Candidate* Recommender::BestUndecided(const Candidate* sure) const {
  const Candidate* best = nullptr;
  for (const Candidate& candidate : assessment_.candidates) {
    if (!Usable(candidate) || candidate.accuracy != AccuracyFit::kUndecided) continue;
    // A measured drop beyond the tolerance counts where the measurement is fine enough to mean it.
    if (!candidate.IsCoarse(tolerance_) && *candidate.drop_points > tolerance_) continue;
    if (sure != nullptr) {
      const bool harmless = candidate.perplexity_ratio &&
                            *candidate.perplexity_ratio <= kMaxProvisionalPerplexityRatio;
      if (!harmless || !Faster(candidate, *sure)) continue;
    }
    const auto divergence = [](const Candidate& c) {
      return c.kl_mean ? *c.kl_mean : c.perplexity_ratio ? *c.perplexity_ratio : INFINITY;
    };
    const bool comparable =
        best != nullptr && candidate.kl_mean.has_value() == best->kl_mean.has_value();
    if (best == nullptr ||
        (comparable ? divergence(candidate) < divergence(*best) : candidate.kl_mean.has_value())) {
      best = &candidate;
    }
  }
  return best;
}

Choice Recommender::Choose() const {
  const Candidate* sure = FastestSure();
  if (sure != nullptr && !sure->is_baseline) return {sure, false};
  if (const Candidate* undecided = BestUndecided(sure)) return {undecided, true};
  if (sure == nullptr) return {};
  // The baseline, provisionally while a faster method may yet prove to be within tolerance.
  const bool open = std::any_of(
      assessment_.candidates.begin(), assessment_.candidates.end(), [&](const Candidate& c) {
        return Usable(c) && c.accuracy == AccuracyFit::kUndecided && Faster(c, *sure);
      });
  return {sure, open};
}

std::string Recommender::BatchText() const {
  const std::vector<int64_t>& batches = assessment_.batch_sizes;
  if (batches.empty()) return "";
  if (batches.size() == 1) return fmt::format("at batch size {}", batches[0]);
  return fmt::format("as a geometric mean over batch sizes {} to {}", batches.front(),
                     batches.back());
}

std::string Recommender::SpeedText(const Candidate& candidate) const {
  std::string text = fmt::format("{} output tokens/s", FormatSignificant(*candidate.speed));
  if (!candidate.is_baseline && baseline_.speed) {
    text +=
        fmt::format(", {} {}’s", FormatRatio(*candidate.speed / *baseline_.speed), baseline_.name);
  }
  return text + ", " + BatchText();
}

std::string Recommender::DropText(const Candidate& candidate) const {
  return fmt::format("{} points (95 % interval {} to {})", Points(*candidate.drop_points),
                     Points(candidate.drop_interval.low), Points(candidate.drop_interval.high));
}

std::string Recommender::EnoughQuestions(const Candidate& candidate) const {
  if (!(tolerance_ > 0)) return "no number of questions can prove a loss of exactly nothing";
  const int64_t enough = QuestionsToDecide(candidate.flipped, tolerance_);
  return fmt::format("about {} questions would decide if {} in truth loses nothing{}",
                     FormatSignificant(static_cast<double>(enough), 2), candidate.name,
                     enough > kMmluQuestions
                         ? fmt::format(", more than MMLU’s {}", FormatCount(kMmluQuestions))
                         : "");
}

std::string Recommender::Summary(const Choice& choice) const {
  const std::string limits =
      fmt::format("an accuracy drop of at most {} point{}{}", FormatShort(tolerance_),
                  tolerance_ == 1 ? "" : "s",
                  limits_.memory_budget_bytes
                      ? " and " + FormatBytes(*limits_.memory_budget_bytes) + " of memory"
                      : "");
  if (choice.method == nullptr) {
    return fmt::format("No measured method satisfies {}.", limits);
  }
  const std::string& name = choice.method->name;
  if (choice.method->is_baseline) {
    if (assessment_.candidates.size() == 1) {
      return fmt::format("{} is the only method that was measured.", name);
    }
    return fmt::format("Keep {}: no faster method {} to stay within {}.", name,
                       choice.provisional ? "is proven yet" : "was found", limits);
  }
  if (choice.provisional) {
    return fmt::format(
        "{} is the best guess for {}, but the questions answered are too few to be sure.", name,
        limits);
  }
  return fmt::format("{} is the fastest method within {}.", name, limits);
}

std::vector<std::string> Recommender::Reasons(const Choice& choice) const {
  std::vector<std::string> reasons;
  if (!limits_.max_accuracy_drop_points) {
    reasons.push_back(fmt::format(
        "No tolerance was given, so {} of accuracy is assumed; --max-accuracy-drop sets it.",
        FormatTolerance(tolerance_)));
  }
  if (assessment_.evidence == AccuracyEvidence::kCloze) {
    reasons.push_back(fmt::format(
        "Accuracy is judged by answer text, because by answer letter {} is no better than chance.",
        baseline_.name));
  }
  if (choice.method == nullptr) return reasons;
  const Candidate& method = *choice.method;
  reasons.push_back("Speed: " + SpeedText(method) + ".");
  if (method.is_baseline) {
    for (const Candidate& candidate : assessment_.candidates) {
      if (!Usable(candidate) || candidate.is_baseline || Faster(candidate, method)) continue;
      reasons.push_back(fmt::format("{} is no faster: {}.", candidate.name, SpeedText(candidate)));
    }
  } else if (!choice.provisional) {
    reasons.push_back(
        fmt::format("Accuracy: the drop is {}; the whole interval lies within the tolerance of {}.",
                    DropText(method), FormatTolerance(tolerance_)));
  } else if (method.kl_mean || method.perplexity_ratio) {
    reasons.push_back(fmt::format(
        "Of the methods that the questions could not decide about, it changes the model’s output "
        "least:{}{}.",
        method.kl_mean ? " mean KL divergence " + FormatSignificant(*method.kl_mean) : "",
        method.perplexity_ratio ? fmt::format("{} perplexity {} {}’s", method.kl_mean ? "," : "",
                                              FormatRatio(*method.perplexity_ratio), baseline_.name)
                                : ""));
  }
  if (method.peak_bytes) {
    const int64_t batch = assessment_.batch_sizes.back();
    reasons.push_back(
        !method.is_baseline && baseline_.peak_bytes && *baseline_.peak_bytes > 0
            ? fmt::format("Memory: {} at batch size {}, {} of {}’s.",
                          FormatBytes(*method.peak_bytes), batch,
                          FormatPercent(static_cast<double>(*method.peak_bytes) /
                                        static_cast<double>(*baseline_.peak_bytes)),
                          baseline_.name)
            : fmt::format("Memory: {} at batch size {}.", FormatBytes(*method.peak_bytes), batch));
  }
  if (method.largest_batch && method.largest_batch->batch_size > 0) {
    reasons.push_back(fmt::format("The largest batch that fits {} is {}{}.",
                                  FormatBytes(method.largest_batch->memory_bytes),
                                  method.largest_batch->batch_size, BaselinesLargestBatch(method)));
  }
  return reasons;
}

std::string Recommender::BaselinesLargestBatch(const Candidate& method) const {
  if (method.is_baseline || !baseline_.largest_batch) return "";
  if (baseline_.largest_batch->batch_size == 0)
    return fmt::format("; {} does not fit", baseline_.name);
  return fmt::format(", {}’s is {}", baseline_.name, baseline_.largest_batch->batch_size);
}

std::string Recommender::Uncertainty(const Choice& choice) const {
  std::string text;
  const auto add = [&](const std::string& sentence) {
    if (!text.empty()) text += " ";
    text += sentence;
  };
  if (assessment_.evidence == AccuracyEvidence::kNone) {
    add("Accuracy was not measured.");
  } else if (assessment_.evidence == AccuracyEvidence::kAtChance) {
    add(
        fmt::format("{} itself answers no better than chance, so no drop can show and accuracy "
                    "decides nothing.",
                    baseline_.name));
  }
  for (const Candidate& candidate : assessment_.candidates) {
    if (candidate.is_baseline || !candidate.drop_points) continue;
    if (candidate.accuracy == AccuracyFit::kUndecided &&
        assessment_.evidence != AccuracyEvidence::kAtChance) {
      add(fmt::format(
          "{}: the drop over {} questions is {}, which neither shows nor excludes a loss "
          "beyond {}; {}.",
          candidate.name, FormatCount(candidate.questions), DropText(candidate),
          FormatShort(tolerance_), EnoughQuestions(candidate)));
    }
  }
  if (choice.method == nullptr) return text;
  const Candidate& method = *choice.method;
  if (!choice.provisional && !method.is_baseline) {
    const bool shown = method.drop_interval.low > 0 || method.drop_interval.high < 0;
    add(fmt::format("{} was compared over {} questions; {}.", method.name,
                    FormatCount(method.questions),
                    shown ? "the change in accuracy is real, and small enough"
                          : "its drop is not distinguishable from none"));
  }
  const Candidate* fastest_at_largest = nullptr;
  for (const Candidate& candidate : assessment_.candidates) {
    if (!Usable(candidate) || candidate.accuracy == AccuracyFit::kNo) continue;
    if (fastest_at_largest == nullptr ||
        *candidate.tokens_per_second > *fastest_at_largest->tokens_per_second) {
      fastest_at_largest = &candidate;
    }
  }
  if (fastest_at_largest != nullptr && fastest_at_largest != &method &&
      *fastest_at_largest->tokens_per_second > kEquallyFast * *method.tokens_per_second) {
    add(fmt::format("At batch size {} alone {} is faster: {} tokens/s against {}.",
                    assessment_.batch_sizes.back(), fastest_at_largest->name,
                    FormatSignificant(*fastest_at_largest->tokens_per_second),
                    FormatSignificant(*method.tokens_per_second)));
  }
  if (limits_.memory_budget_bytes && method.process_bytes &&
      *method.process_bytes > *limits_.memory_budget_bytes) {
    add(
        fmt::format("The whole process, with its libraries, held {}, more than the budget; the "
                    "budget is compared with what nibble allocated.",
                    FormatBytes(*method.process_bytes)));
  }
  return text;
}

std::vector<std::string> Recommender::WouldHaveToGive(const Choice& choice) const {
  std::vector<std::string> given;
  for (const Candidate& candidate : assessment_.candidates) {
    if (choice.method == &candidate) continue;
    const bool too_large = candidate.fits_memory == false;
    const bool not_sure = candidate.accuracy != AccuracyFit::kYes;
    if (!too_large && !not_sure) continue;
    const bool known_faster = candidate.speed && choice.method != nullptr && choice.method->speed &&
                              Faster(candidate, *choice.method);
    // What is slower than the choice is of no interest, unless there is no choice.
    if (choice.method != nullptr && !too_large && !known_faster) continue;
    if (choice.method != nullptr && too_large && candidate.is_baseline) continue;
    std::string condition;
    if (too_large) {
      condition = fmt::format("a memory budget of {}", FormatBytes(*candidate.least_peak_bytes));
    }
    if (not_sure && candidate.drop_points) {
      // Rounded up, so that the tolerance named does admit the method.
      const double needed = std::max(0.0, std::ceil(candidate.drop_interval.high * 100) / 100);
      condition +=
          fmt::format("{}a tolerance of {} points", too_large ? " and " : "", Points(needed));
    } else if (not_sure) {
      condition += fmt::format("{}a measurement of its accuracy", too_large ? " and " : "");
    }
    given.push_back(
        fmt::format("{} would need {}{}.", candidate.name, condition,
                    candidate.speed ? fmt::format(" (it reaches {})", SpeedText(candidate)) : ""));
  }
  return given;
}

Json Recommender::CandidatesJson() const {
  static constexpr const char* kFits[] = {"yes", "no", "undecided"};
  const auto or_null = [](const auto& value) { return value ? Json(*value) : Json(nullptr); };
  Json list = Json::array();
  for (const Candidate& candidate : assessment_.candidates) {
    const bool compared = candidate.drop_points && !candidate.is_baseline;
    Json json;
    json["method"] = candidate.name;
    json["accuracy_drop_points"] = or_null(candidate.drop_points);
    json["ci95"] = compared
                       ? Json::array({candidate.drop_interval.low, candidate.drop_interval.high})
                       : Json(nullptr);
    json["fits_accuracy"] = kFits[static_cast<int>(candidate.accuracy)];
    json["peak_memory_bytes"] = or_null(candidate.peak_bytes);
    json["fits_memory"] = or_null(candidate.fits_memory);
    json["largest_batch"] =
        candidate.largest_batch ? Json(candidate.largest_batch->batch_size) : Json(nullptr);
    json["output_tokens_per_second"] = or_null(candidate.tokens_per_second);
    json["speedup"] = candidate.speed && baseline_.speed ? Json(*candidate.speed / *baseline_.speed)
                                                         : Json(nullptr);
    list.push_back(std::move(json));
  }
  return list;
}

Json Recommender::Decide() {
  const Choice choice = Choose();
  Json json;
  json["method"] = choice.method != nullptr ? Json(choice.method->name) : Json(nullptr);
  json["provisional"] = choice.provisional;
  json["summary"] = Summary(choice);
  json["reasons"] = Reasons(choice);
  json["uncertainty"] = Uncertainty(choice);
  json["limits"] = {
      {"max_accuracy_drop_points", tolerance_},
      {"is_default_tolerance", !limits_.max_accuracy_drop_points.has_value()},
      {"memory_budget_bytes",
       limits_.memory_budget_bytes ? Json(*limits_.memory_budget_bytes) : Json(nullptr)}};
  json["batch_sizes"] = assessment_.batch_sizes;
  json["scoring"] = assessment_.evidence == AccuracyEvidence::kLetters ? Json("letters")
                    : assessment_.evidence == AccuracyEvidence::kCloze ? Json("cloze")
                                                                       : Json(nullptr);
  json["candidates"] = CandidatesJson();
  json["would_have_to_give"] = WouldHaveToGive(choice);
  return json;
}

}  // namespace

int64_t QuestionsToDecide(double flipped, double tolerance_points) {
  // DetectableDifference(n) = DetectableDifference(1) / √n.
  const double root = DetectableDifference(1, flipped) / (tolerance_points / 100);
  return static_cast<int64_t>(std::ceil(std::min(root * root, 1e15)));
}

Result<Json> Recommend(const Json& methods, const RecommendationLimits& limits) {
  const Json study = {{"schema", "nibble.study/1"}, {"methods", methods}};
  NIBBLE_ASSIGN_OR_RETURN(const StudyRecord record, StudyRecord::FromJson(study, "study"));
  const double tolerance = limits.max_accuracy_drop_points.value_or(kDefaultMaxAccuracyDropPoints);
  return Recommender(Assess(record.methods, tolerance, limits.memory_budget_bytes), tolerance,
                     limits)
      .Decide();
}

}  // namespace nibble

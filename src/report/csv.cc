#include "src/report/csv.h"

#include <fmt/format.h>

#include <cmath>
#include <initializer_list>

namespace nibble {
namespace {

std::string Field(const std::string& text) {
  if (text.find_first_of(",\"\r\n") == std::string::npos) return text;
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"') quoted += '"';
    quoted += c;
  }
  return quoted + "\"";
}
std::string Field(double value) { return std::isfinite(value) ? fmt::format("{}", value) : ""; }
std::string Field(int64_t value) { return fmt::format("{}", value); }
std::string Field(uint64_t value) { return fmt::format("{}", value); }
template <typename T>
std::string Field(const std::optional<T>& value) {
  return value ? Field(*value) : "";
}

void AddRow(std::string& out, std::initializer_list<std::string> fields) {
  bool first = true;
  for (const std::string& field : fields) {
    if (!first) out += ',';
    out += field;
    first = false;
  }
  out += "\r\n";
}

void AddScore(std::string& out, const MethodRecord& method, const char* scoring, const char* level,
              const std::string& group, const Score& score) {
  const bool compared = score.comparison.has_value();
  const ScoreComparison comparison = score.comparison.value_or(ScoreComparison{});
  const auto if_compared = [&](const std::string& field) {
    return compared ? field : std::string();
  };
  AddRow(out, {Field(method.name), scoring, level, Field(group), Field(score.correct),
               Field(score.total), Field(score.accuracy), Field(score.ci95.low),
               Field(score.ci95.high), if_compared(Field(comparison.difference)),
               if_compared(Field(comparison.ci95.low)), if_compared(Field(comparison.ci95.high)),
               if_compared(Field(comparison.reference_only_correct)),
               if_compared(Field(comparison.candidate_only_correct)), Field(comparison.flipped),
               Field(comparison.mcnemar_p), Field(comparison.holm_p)});
}

void AddEvaluation(std::string& out, const MethodRecord& method, const char* scoring,
                   const std::optional<Evaluation>& evaluation) {
  if (!evaluation) return;
  AddScore(out, method, scoring, "overall", "all", evaluation->overall);
  const auto add_level = [&](const char* level, const NamedScores& scores) {
    for (const auto& [name, score] : scores) AddScore(out, method, scoring, level, name, score);
  };
  add_level("category", evaluation->categories);
  add_level("subcategory", evaluation->subcategories);
  add_level("subject", evaluation->subjects);
}

}  // namespace

std::string AccuracyCsv(const StudyRecord& record) {
  std::string out;
  AddRow(out,
         {"method", "scoring", "level", "group", "correct", "total", "accuracy", "ci_low",
          "ci_high", "difference", "difference_ci_low", "difference_ci_high",
          "reference_only_correct", "candidate_only_correct", "flipped", "mcnemar_p", "holm_p"});
  for (const MethodRecord& method : record.methods) {
    AddEvaluation(out, method, "letters", method.evaluate);
    AddEvaluation(out, method, "cloze", method.evaluate_cloze);
  }
  return out;
}

std::string ThroughputCsv(const StudyRecord& record) {
  std::string out;
  AddRow(out, {"method", "batch_size", "input_length", "output_length", "prefill_seconds",
               "decode_seconds", "output_tokens_per_second", "decode_tokens_per_second",
               "time_to_first_token_ms", "time_per_output_token_ms", "roofline_fraction",
               "energy_joules_per_token"});
  for (const MethodRecord& method : record.methods) {
    for (const BenchRun& run : method.bench) {
      AddRow(out, {Field(method.name), Field(run.batch_size), Field(run.input_length),
                   Field(run.output_length), Field(run.prefill_seconds), Field(run.decode_seconds),
                   Field(run.output_tokens_per_second), Field(run.decode_tokens_per_second),
                   Field(run.time_to_first_token_ms), Field(run.time_per_output_token_ms),
                   Field(run.roofline_fraction), Field(run.energy_joules_per_token)});
    }
  }
  return out;
}

std::string MemoryCsv(const StudyRecord& record) {
  std::string out;
  AddRow(out, {"method", "batch_size", "weights_bytes", "kv_cache_bytes", "workspace_bytes",
               "total_bytes", "process_bytes"});
  for (const MethodRecord& method : record.methods) {
    for (const BenchRun& run : method.bench) {
      AddRow(out, {Field(method.name), Field(run.batch_size), Field(run.weights_bytes),
                   Field(run.kv_cache_bytes), Field(run.workspace_bytes), Field(run.total_bytes),
                   Field(run.process_bytes)});
    }
  }
  return out;
}

}  // namespace nibble

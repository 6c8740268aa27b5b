// What a study measured, as the report reads it: study.json checked and typed.
//
// study.json is `{"schema": "nibble.study/1", "created": TEXT, "hardware": {"server": {…},
// "accelerator": {…}}, "versions": {…}, "options": {…}, "model": {…}, "methods": {NAME: {…}},
// "recommendation": {…}}`. The first method is the baseline. A method holds the documents of the
// stages that finished, any of which may be absent or null:
//   quantize        nibble.quantize/1 (null for the baseline)
//   evaluate        nibble.evaluate/1, answers scored by their letters
//   evaluate_cloze  nibble.evaluate/1, answers scored by their text
//   perplexity      nibble.perplexity/1
//   bench           nibble.bench/1
//   error           text: why the method could not be finished
// Shares (accuracies, differences, intervals) are fractions in [-1, 1]; a difference is the
// method's accuracy minus the baseline's.
//
// The file is input like any other: wrong types, impossible counts and absurd sizes are errors that
// name the field. Text is made printable (markup.h) on the way in; it is not escaped here.
#ifndef NIBBLE_REPORT_STUDY_RECORD_H_
#define NIBBLE_REPORT_STUDY_RECORD_H_

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "src/base/error.h"
#include "src/base/json.h"
#include "src/eval/statistics.h"
#include "src/report/load_series.h"

namespace nibble {

// Paired with the baseline's answers to the same questions.
struct ScoreComparison {
  double difference = 0;
  Interval ci95;
  int64_t reference_only_correct = 0;
  int64_t candidate_only_correct = 0;
  std::optional<double> flipped;    // share of the questions that went from right to wrong or back
  std::optional<double> mcnemar_p;  // null where there is nothing to test
  std::optional<double> holm_p;     // corrected for the number of subjects
};

struct Score {
  int64_t correct = 0;
  int64_t total = 0;
  double accuracy = 0;
  Interval ci95;  // Wilson
  std::optional<ScoreComparison> comparison;
};

using NamedScores = std::vector<std::pair<std::string, Score>>;
const Score* FindScore(const NamedScores& scores, const std::string& name);  // null where absent

struct Evaluation {
  std::string scoring;
  std::string prompt_template;
  int64_t shots = 0;
  int64_t questions_with_dropped_shots = 0;  // whose prompts had no room for all shots
  Score overall;
  NamedScores subjects;
  NamedScores subcategories;
  NamedScores categories;
};

struct Divergence {
  double mean = 0, median = 0, p99 = 0, p999 = 0, max = 0;  // of KL(baseline ‖ method), nats
};

struct TokenProbabilityChange {
  double mean = 0, p1 = 0, p5 = 0, p95 = 0, p99 = 0;  // of the true token's probability
};

struct PerplexityResult {
  double perplexity = 0;
  double standard_error = 0;
  int64_t tokens = 0;   // scored
  std::string text;     // the file's name
  std::string join;     // how its lines became one text
  int64_t context = 0;  // tokens of a window
  int64_t windows = 0;  // scored
  int64_t windows_in_text = 0;
  std::optional<Divergence> kl_divergence;
  std::optional<TokenProbabilityChange> delta_p;
  std::optional<double> top1_agreement;
  std::optional<double> perplexity_ratio;
};

struct BenchRun {
  int64_t batch_size = 0;
  int64_t input_length = 0;
  int64_t output_length = 0;
  double output_tokens_per_second = 0;
  double decode_tokens_per_second = 0;
  double prefill_seconds = 0;
  double decode_seconds = 0;
  std::optional<double> time_to_first_token_ms;
  std::optional<double> time_per_output_token_ms;
  std::optional<double> roofline_fraction;
  std::optional<double> energy_joules_per_token;
  uint64_t weights_bytes = 0;
  uint64_t kv_cache_bytes = 0;
  uint64_t workspace_bytes = 0;
  uint64_t total_bytes = 0;
  std::optional<uint64_t> process_bytes;
};

// The largest batch of the workload that the memory holds; 0 where it holds not one sequence.
struct BatchThatFits {
  uint64_t memory_bytes = 0;
  int64_t batch_size = 0;
};

struct QuantizedModule {
  std::string name;
  double error = 0;  // by QuantizeResult::error_measure
  std::optional<double> error_rtn;
};

struct QuantizeResult {
  std::string method;
  std::string grid;
  std::string format;
  int64_t group_size = 0;  // -1: one group a row
  std::optional<double> bits_per_weight;
  std::string error_measure;  // what the modules' errors are
  double seconds = 0;
  uint64_t peak_memory_bytes = 0;
  std::optional<uint64_t> peak_device_bytes;  // of the GPU that quantized
  uint64_t checkpoint_bytes = 0;
  std::vector<QuantizedModule> modules;
  std::vector<std::pair<std::string, std::string>> skipped;  // name, reason
  std::vector<std::string> notes;
};

struct MethodRecord {
  std::string name;
  std::optional<QuantizeResult> quantize;
  std::optional<Evaluation> evaluate;
  std::optional<Evaluation> evaluate_cloze;
  std::optional<PerplexityResult> perplexity;
  std::vector<BenchRun> bench;  // by batch size, ascending
  std::optional<BatchThatFits> largest_batch;
  std::string error;
};

struct RecommendationCandidate {
  std::string method;
  std::optional<double> accuracy_drop_points;
  std::optional<Interval> ci95;  // of the drop, points
  std::string fits_accuracy;     // yes, no, undecided
  std::optional<uint64_t> peak_memory_bytes;
  std::optional<bool> fits_memory;
  std::optional<double> output_tokens_per_second;
  std::optional<double> speedup;
};

struct RecommendationRecord {
  std::string method;  // empty: none
  bool provisional = false;
  std::string summary;
  std::string uncertainty;
  std::vector<std::string> reasons;
  std::vector<std::string> would_have_to_give;
  std::optional<double> max_accuracy_drop_points;
  std::vector<RecommendationCandidate> candidates;
};

struct StudyRecord {
  std::string created;
  Json server, accelerator, versions, options, model;  // objects, shown as tables

  std::string model_name;
  std::string baseline_note;  // "fp16 (from Q4_1)"
  bool synthetic = false;     // random weights
  bool sample_questions = false;
  std::string question_source;  // name of the question set
  int64_t repetitions = 0;      // of the throughput measurement; 0 where unknown

  std::vector<MethodRecord> methods;  // the baseline first
  std::optional<RecommendationRecord> recommendation;
  // Load tests of its models, which a report may show beside the study.
  std::vector<LoadSeries> load_series;

  // `source` names the record in errors.
  static Result<StudyRecord> FromJson(const Json& json, const std::string& source);
};

}  // namespace nibble

#endif  // NIBBLE_REPORT_STUDY_RECORD_H_

// Test only: a study.json as a study would write it, with invented measurements of four methods.
#ifndef NIBBLE_REPORT_MOCK_STUDY_H_
#define NIBBLE_REPORT_MOCK_STUDY_H_

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "src/base/json.h"
#include "src/base/random.h"
#include "src/eval/mmlu_subjects.h"
#include "src/eval/statistics.h"

namespace nibble {

struct MockMethod {
  std::string name;
  double lost = 0;    // share of right answers that turn wrong
  double gained = 0;  // share of wrong answers that turn right
  double kl = 0;
  double bits = 16;
  double decode_speedup = 1;
};

inline std::vector<MockMethod> MockMethods() {
  return {{"fp16"},
          {"rtn-g128-asym", 0.085, 0.040, 0.0411, 4.25, 2.9},
          {"awq-g128-asym", 0.045, 0.030, 0.0187, 4.25, 2.9},
          {"gptq-g128-sym", 0.042, 0.034, 0.0162, 4.13, 3.0}};
}

struct MockCounts {
  int64_t correct = 0, total = 0, lost = 0, gained = 0;
  void Add(const MockCounts& other) {
    correct += other.correct;
    total += other.total;
    lost += other.lost;
    gained += other.gained;
  }
};

inline Json MockScore(const MockCounts& counts, bool compared, double holm_p) {
  const Interval ci = WilsonInterval(counts.correct, counts.total);
  Json json = {
      {"correct", counts.correct},
      {"total", counts.total},
      {"accuracy", static_cast<double>(counts.correct) / static_cast<double>(counts.total)},
      {"ci95", {ci.low, ci.high}}};
  if (compared) {
    const PairedCounts paired{counts.total, counts.lost, counts.gained};
    const Interval difference = PairedDifferenceInterval(paired);
    json["comparison"] = {{"difference", paired.Difference()},
                          {"ci95", {difference.low, difference.high}},
                          {"flipped", paired.FlippedShare()},
                          {"reference_only_correct", counts.lost},
                          {"candidate_only_correct", counts.gained},
                          {"mcnemar_p", McNemarExactP(paired)},
                          {"holm_p", holm_p}};
  }
  return json;
}

inline Json MockScores(const std::map<std::string, MockCounts>& groups, bool compared) {
  std::vector<double> p_values;
  for (const auto& [name, counts] : groups) {
    p_values.push_back(McNemarExactP({counts.total, counts.lost, counts.gained}));
  }
  const std::vector<double> holm = HolmAdjusted(p_values);
  Json json = Json::object();
  size_t i = 0;
  for (const auto& [name, counts] : groups) json[name] = MockScore(counts, compared, holm[i++]);
  return json;
}

// `accuracy` is the baseline's, about which subjects vary.
inline Json MockEvaluation(const MockMethod& method, bool compared, int64_t questions_per_subject,
                           const std::string& scoring, double accuracy) {
  Random random(7);
  std::map<std::string, MockCounts> subjects, subcategories, categories;
  MockCounts overall;
  for (const MmluSubject& subject : kMmluSubjects) {
    const double p = std::clamp(accuracy + 0.35 * (random.Uniform() - 0.5), 0.05, 0.95);
    const auto total = static_cast<int64_t>(questions_per_subject <= 5
                                                ? static_cast<double>(questions_per_subject)
                                                : static_cast<double>(questions_per_subject) *
                                                      (0.45 + 1.1 * random.Uniform()));
    MockCounts counts;
    for (int64_t q = 0; q < total; ++q) {
      const bool right = random.Uniform() < p;
      const double change = random.Uniform();
      const bool lost = right && change < method.lost;
      const bool gained = !right && change < method.gained;
      counts.Add({(right && !lost) || gained, 1, lost, gained});
    }
    const MmluSubcategory& subcategory = kMmluSubcategories[subject.subcategory];
    subjects[std::string(subject.name)].Add(counts);
    subcategories[std::string(subcategory.name)].Add(counts);
    categories[std::string(kMmluCategories[subcategory.category])].Add(counts);
    overall.Add(counts);
  }
  return {{"schema", "nibble.evaluate/1"},
          {"template", "original"},
          {"scoring", scoring},
          {"shots", 5},
          {"overall", MockScore(overall, compared,
                                McNemarExactP({overall.total, overall.lost, overall.gained}))},
          {"subjects", MockScores(subjects, compared)},
          {"subcategories", MockScores(subcategories, compared)},
          {"categories", MockScores(categories, compared)},
          {"questions", Json::array()}};
}

inline Json MockPerplexity(const MockMethod& method, bool compared) {
  const double ratio = std::exp(0.9 * method.kl);
  Json json = {{"schema", "nibble.perplexity/1"},
               {"perplexity", 5.472 * ratio},
               {"perplexity_se", 0.031},
               {"tokens", 331'614},
               {"text", "wiki.test.raw"},
               {"join", "raw"},
               {"context", 2048},
               {"windows", 162},
               {"windows_in_text", 162}};
  if (compared) {
    json["kl_divergence"] = {{"mean", method.kl},
                             {"median", method.kl * 0.31},
                             {"p99", method.kl * 7.4},
                             {"p999", method.kl * 21},
                             {"max", method.kl * 160}};
    json["delta_p"] = {
        {"mean", -method.kl / 9}, {"p1", -0.14}, {"p5", -0.06}, {"p95", 0.05}, {"p99", 0.12}};
    json["top1_agreement"] = 1 - 1.1 * std::sqrt(method.kl) / 3;
    json["perplexity_reference"] = 5.472;
    json["perplexity_ratio"] = ratio;
  }
  return json;
}

inline Json MockBench(const MockMethod& method, const std::vector<int64_t>& batch_sizes) {
  Json runs = Json::array();
  const double weights = 6.74e9 * method.bits / 8;
  for (const int64_t batch : batch_sizes) {
    const auto b = static_cast<double>(batch);
    const double prefill = b * 512 / (method.bits < 16 ? 8900 : 9400);
    const double step = 0.016 / method.decode_speedup + 0.00021 * b;
    const double decode = 199 * step;
    const double kv = b * 712 * 524'288;
    const double workspace = 1.6e8 + 9e6 * b;
    runs.push_back({{"batch_size", batch},
                    {"input_length", 512},
                    {"output_length", 200},
                    {"prefill_seconds", prefill},
                    {"decode_seconds", decode},
                    {"output_tokens_per_second", b * 200 / (prefill + decode)},
                    {"decode_tokens_per_second", b * 199 / decode},
                    {"time_to_first_token_ms", 1000 * prefill},
                    {"time_per_output_token_ms", 1000 * step},
                    {"peak_memory_bytes",
                     {{"weights", static_cast<uint64_t>(weights)},
                      {"kv_cache", static_cast<uint64_t>(kv)},
                      {"workspace", static_cast<uint64_t>(workspace)},
                      {"total", static_cast<uint64_t>(weights) + static_cast<uint64_t>(kv) +
                                    static_cast<uint64_t>(workspace)},
                      {"process", static_cast<uint64_t>(weights + kv + workspace + 6.1e8)}}},
                    {"roofline_fraction", 0.78 - 0.002 * b},
                    {"energy_joules_per_token", nullptr}});
  }
  return {{"schema", "nibble.bench/1"}, {"runs", std::move(runs)}};
}

inline Json MockQuantize(const MockMethod& method) {
  Json modules = Json::array();
  for (int layer = 0; layer < 32; ++layer) {
    for (const char* name : {"self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj"}) {
      const double error = method.kl * (0.02 + 0.001 * layer);
      modules.push_back({{"name", fmt::format("model.layers.{}.{}", layer, name)},
                         {"error", error},
                         {"error_rtn", 0.0411 * (0.02 + 0.001 * layer)}});
    }
  }
  return {{"schema", "nibble.quantize/1"},
          {"method", method.name.substr(0, method.name.find('-'))},
          {"group_size", 128},
          {"grid", method.name.substr(method.name.rfind('-') + 1)},
          {"format", method.name.starts_with("gptq") ? "gptq" : "awq"},
          {"bits_per_weight", method.bits},
          {"error_measure", "squared error of the weights, relative to their squares"},
          {"seconds", method.name.starts_with("rtn") ? 34.2 : 1312.0},
          {"peak_memory_bytes", 9'300'000'000},
          {"checkpoint_bytes", 3'890'000'000},
          {"modules", std::move(modules)},
          {"skipped", Json::array({{{"name", "lm_head"}, {"reason", "kept in 16 bits"}}})},
          {"notes", Json::array()}};
}

struct MockStudyOptions {
  int64_t questions_per_subject = 246;
  std::vector<int64_t> batch_sizes = {1, 2, 4, 8, 16, 32, 64, 128};
  double accuracy = 0.46;
  bool cloze = false;
};

inline Json MockStudy(const MockStudyOptions& options = {}) {
  Json methods = Json::object();
  for (const MockMethod& method : MockMethods()) {
    const bool compared = method.name != "fp16";
    Json json;
    json["quantize"] = compared ? MockQuantize(method) : Json(nullptr);
    json["evaluate"] = MockEvaluation(method, compared, options.questions_per_subject, "letters",
                                      options.accuracy);
    if (options.cloze) {
      json["evaluate_cloze"] = MockEvaluation(method, compared, options.questions_per_subject,
                                              "cloze", options.accuracy + 0.08);
    }
    json["perplexity"] = MockPerplexity(method, compared);
    json["bench"] = MockBench(method, options.batch_sizes);
    methods[method.name] = std::move(json);
  }
  const bool sample = options.questions_per_subject <= 5;
  return {{"schema", "nibble.study/1"},
          {"created", "2026-02-03T10:11:12Z"},
          {"hardware",
           {{"server",
             {{"cpu", "Intel(R) Xeon(R) Gold 6430"},
              {"sockets", 2},
              {"cores", 64},
              {"threads", 128},
              {"memory_bytes", 549'755'813'888},
              {"os", "Ubuntu 24.04 LTS"},
              {"kernel", "6.8.0-41-generic"}}},
            {"accelerator",
             {{"kind", "gpu"},
              {"name", "NVIDIA L40"},
              {"compute_capability", "8.9"},
              {"memory_bytes", 51'539'607'552},
              {"driver", "580.65.06"},
              {"read_bandwidth_bytes_per_second", 7.81e11},
              {"matrix_flops_per_second", 1.64e14}}}}},
          {"versions", {{"nibble", "0.1.0"}, {"compiler", "gcc 12.2.0"}, {"commit", "7b5bbbb"}}},
          {"options",
           {{"methods", {"fp16", "rtn", "awq", "gptq"}},
            {"shots", 5},
            {"template", "original"},
            {"scoring", Json::array({"letters"})},
            {"batch_sizes", options.batch_sizes},
            {"input_length", 512},
            {"output_length", 200},
            {"repetitions", sample ? 1 : 3},
            {"data",
             {{"name", sample ? "mmlu-sample" : "mmlu"},
              {"is_sample", sample},
              {"questions", 57 * options.questions_per_subject}}},
            {"text", "wiki.test.raw"},
            {"context", 2048},
            {"max_accuracy_drop", 1.0},
            {"memory_budget_bytes", nullptr},
            {"seed", 0},
            {"device", "cuda:0"},
            {"dtype", "f16"}}},
          {"model",
           {{"name", "Llama-2-7b-chat-hf"},
            {"architecture", "LlamaForCausalLM"},
            {"parameters", 6'738'415'616},
            {"layers", 32},
            {"hidden_size", 4096},
            {"heads", 32},
            {"kv_heads", 32},
            {"vocabulary", 32'000},
            {"context", 4096},
            {"baseline", "fp16"},
            {"synthetic", false}}},
          {"methods", std::move(methods)}};
}

}  // namespace nibble

#endif  // NIBBLE_REPORT_MOCK_STUDY_H_

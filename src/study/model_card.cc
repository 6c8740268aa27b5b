#include "src/study/model_card.h"

#include <fmt/format.h>

#include <algorithm>

#include "src/base/file.h"

namespace nibble {
namespace {

constexpr std::string_view kHeading = "\n## Measured\n";

std::string AccuracyRow(std::string_view scored_by, const Json& model, const Json& baseline) {
  return fmt::format("| MMLU, {} questions, {} shots, scored by {} | {:.2f} % | {:.2f} % |\n",
                     model["overall"]["total"].get<int64_t>(), model["shots"].get<int>(), scored_by,
                     100 * model["overall"]["accuracy"].get<double>(),
                     100 * baseline["overall"]["accuracy"].get<double>());
}

}  // namespace

std::string CardWithMeasurements(std::string card, const Json& record, const Json& baseline) {
  card.resize(std::min(card.size(), card.find(kHeading)));
  card += fmt::format(
      "{}\nBy nibble {}, with 4-bit weights and unquantized:\n\n"
      "| | 4-bit | unquantized |\n| --- | --- | --- |\n",
      kHeading, NIBBLE_VERSION);
  if (record.contains("evaluate")) {
    card += AccuracyRow("letters", record["evaluate"], baseline["evaluate"]);
  }
  if (record.contains("evaluate_cloze")) {
    card += AccuracyRow("the answers' texts", record["evaluate_cloze"], baseline["evaluate_cloze"]);
  }
  const Json& perplexity = record["perplexity"];
  card += fmt::format("| Perplexity of {}, {} tokens in windows of {} | {:.3f} | {:.3f} |\n",
                      perplexity["text"].get<std::string>(), perplexity["tokens"].get<int64_t>(),
                      perplexity["context"].get<int64_t>(), perplexity["perplexity"].get<double>(),
                      perplexity["perplexity_reference"].get<double>());
  card += fmt::format("| Mean KL divergence there | {:.4f} | |\n",
                      perplexity["kl_divergence"]["mean"].get<double>());
  card += fmt::format("| Same most probable token | {:.2f} % | |\n",
                      100 * perplexity["top1_agreement"].get<double>());
  if (perplexity.value("synthetic", false)) {
    card += "\nThe weights are synthetic: these figures say nothing about any model.\n";
  }
  return card;
}

Status AddMeasurementsToCard(const std::string& directory, const Json& record,
                             const Json& baseline) {
  const std::string path = JoinPath(directory, "README.md");
  NIBBLE_ASSIGN_OR_RETURN(const std::string card, ReadFile(path));
  const std::string measured = CardWithMeasurements(card, record, baseline);
  return measured == card ? Status() : WriteFileAtomic(path, measured);
}

}  // namespace nibble

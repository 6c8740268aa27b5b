#include "src/study/model_card.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace nibble {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

Json Evaluation(double accuracy) {
  return {{"overall", {{"total", 171}, {"accuracy", accuracy}}}, {"shots", 5}};
}

TEST(ModelCard, TellsWhatWasMeasuredOnce) {
  const Json baseline = {{"evaluate", Evaluation(0.5)}, {"evaluate_cloze", Evaluation(0.25)}};
  Json record = {{"evaluate", Evaluation(0.4567)},
                 {"evaluate_cloze", Evaluation(0.24)},
                 {"perplexity",
                  {{"text", "wiki.txt"},
                   {"tokens", 4094},
                   {"context", 2048},
                   {"perplexity", 9.5},
                   {"perplexity_reference", 9.25},
                   {"kl_divergence", {{"mean", 0.0321}}},
                   {"top1_agreement", 0.9}}}};
  const std::string card = CardWithMeasurements("# A model\n", record, baseline);
  EXPECT_THAT(card, HasSubstr("# A model\n\n## Measured\n"));
  EXPECT_THAT(card, HasSubstr("171 questions, 5 shots, scored by letters | 45.67 % | 50.00 % |"));
  EXPECT_THAT(card, HasSubstr("the answers' texts | 24.00 % | 25.00 % |"));
  EXPECT_THAT(card, HasSubstr("wiki.txt, 4094 tokens in windows of 2048 | 9.500 | 9.250 |"));
  EXPECT_THAT(card, HasSubstr("| 0.0321 |"));
  EXPECT_THAT(card, Not(HasSubstr("synthetic")));
  EXPECT_EQ(CardWithMeasurements(card, record, baseline), card);

  // Letters cannot be scored with every tokenizer.
  record.erase("evaluate");
  record["perplexity"]["synthetic"] = true;
  const std::string other = CardWithMeasurements(card, record, baseline);
  EXPECT_THAT(other, Not(HasSubstr("letters")));
  EXPECT_THAT(other, HasSubstr("say nothing about any model"));
}

}  // namespace
}  // namespace nibble

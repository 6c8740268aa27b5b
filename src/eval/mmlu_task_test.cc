#include "src/eval/mmlu_task.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "src/base/file.h"
#include "src/eval/divergence.h"
#include "src/eval/perplexity.h"
#include "src/ops/cpu/cpu_backend.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

const CancelToken kNever;

// stories260K: a real, tiny model with a tokenizer of 512 tokens.
class TaskTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::string directory = std::string(NIBBLE_SHARED_DATA) + "/models/stories260K";
    if (!IsDirectory(directory)) GTEST_SKIP() << directory << " is absent";
    checkpoint_ = OpenCheckpoint(directory).value();
    description_ = DescribeModel(*checkpoint_).value();
    backend_ = MakeCpuBackend({.threads = 2}).value();
    weights_ = LoadModel(
                   *checkpoint_, description_, *backend_, [](int64_t, int64_t) {}, kNever)
                   .value();
    tokenizer_ = checkpoint_->LoadTokenizer().value();
  }

  std::unique_ptr<Engine> MakeEngine(const EngineOptions& options) {
    return Engine::Create(weights_, *backend_, options).value();
  }

  // log p(token | the tokens before it) for tokens from `begin` on, in one sequence of its own.
  double LogLikelihood(Engine& engine, const std::vector<int32_t>& tokens, size_t begin) {
    double sum = 0;
    const SequenceId sequence = engine.Open();
    const Extension all{sequence, tokens, WantLogits::kAll};
    const Status status = engine.Extend(
        {{all}},
        [&](std::span<const LogitRun> runs) {
          const auto& [extension, first, logits] = runs.front();
          for (int64_t r = 0; r < logits.rows; ++r) {
            const auto next = static_cast<size_t>(first + r + 1);
            if (next < begin || next == tokens.size()) continue;
            const float* row = logits.row<float>(r);
            double total = 0;
            for (int64_t v = 0; v < logits.columns; ++v) total += std::exp(double{row[v]});
            sum += row[tokens[next]] - std::log(total);
          }
        },
        kNever);
    EXPECT_TRUE(status);
    engine.Close(sequence);
    return sum;
  }

  std::unique_ptr<Checkpoint> checkpoint_;
  ModelDescription description_;
  std::unique_ptr<Backend> backend_;
  ModelWeights weights_;
  std::unique_ptr<Tokenizer> tokenizer_;
  ThreadPool pool_{2};
};

// Shared prefixes, batches and forks give what each prompt gives alone.
TEST_F(TaskTest, MmluAgreesWithScoringEachPromptAlone) {
  const MmluDataset data =
      MmluDataset::Load(std::string(NIBBLE_SOURCE_DIR) + "/examples/mmlu-sample",
                        {.shots = 1, .questions_per_subject = 2})
          .value();
  {
    const MmluFormat format{MmluTemplate::kOriginal, MmluScoring::kCloze};
    const auto engine = MakeEngine(MmluEngineOptions(weights_.config, *backend_, DType::kF32, 64));
    const int64_t free_tokens = engine->free_kv_tokens();
    int64_t last = 0;
    const auto answers = RunMmlu(
        *engine, *tokenizer_, data, format, pool_, [&](int64_t done) { last = done; }, kNever);
    ASSERT_TRUE(answers) << answers.error().message();
    EXPECT_EQ(last, 114);
    EXPECT_EQ(engine->free_kv_tokens(), free_tokens);
    EXPECT_LT(answers->computed_tokens, answers->prompt_tokens);
    ASSERT_EQ(answers->questions.size(), 114u);

    for (size_t q = 0; q < answers->questions.size(); q += 11) {
      const QuestionResult& result = answers->questions[q];
      const MmluSubjectData& subject = data.subjects()[static_cast<size_t>(result.subject)];
      const MmluQuestion& question = subject.questions[q % 2];
      ASSERT_EQ(question.index, result.index);
      const std::string text =
          MmluPrefix(subject, result.shots, format) + MmluQuestionPart(question, format);
      const auto encode = [&](const std::string& t) {
        return tokenizer_->Encode(t, SpecialTokens::kAdd, ParseSpecial::kNo);
      };
      std::array<double, 4> likelihoods{};
      for (size_t i = 0; i < 4; ++i) {
        const std::vector<int32_t> all = encode(text + MmluContinuations(question, format)[i]);
        if (all.size() > 512) GTEST_SKIP() << "a prompt beyond the context";
        likelihoods[i] = LogLikelihood(*engine, all, encode(text).size());
      }
      const std::array<double, 4> want = MmluScores(question, format, likelihoods);
      for (size_t i = 0; i < 4; ++i) EXPECT_NEAR(result.logprobs[i], want[i], 1e-5) << q;
    }
  }
}

// Its vocabulary spells " A" with two tokens and " B" with one.
TEST_F(TaskTest, LettersWithoutATokenOfTheirOwnAreRefused) {
  const Status status = CheckLetters(*tokenizer_);
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code(), ErrorCode::kBadInput);
  EXPECT_THAT(status.error().message(), HasSubstr("cloze"));
}

TEST_F(TaskTest, LongPromptsLoseShots) {
  const MmluDataset data =
      MmluDataset::Load(std::string(NIBBLE_SOURCE_DIR) + "/examples/mmlu-sample",
                        {.shots = 5, .questions_per_subject = 1})
          .value();
  const auto engine = MakeEngine(MmluEngineOptions(weights_.config, *backend_, DType::kF32, 64));
  const auto answers = RunMmlu(
                           *engine, *tokenizer_, data, {.scoring = MmluScoring::kCloze}, pool_,
                           [](int64_t) {}, kNever)
                           .value();
  // The context of 512 is too short for five shots of some subjects in this small vocabulary.
  int dropped = 0;
  for (const QuestionResult& question : answers.questions) dropped += question.shots < 5;
  EXPECT_GT(dropped, 0);
}

TEST_F(TaskTest, PerplexityIsThatOfItsDefinition) {
  const std::string text =
      "Once upon a time, there was a little girl named Lily. She loved to play outside in the "
      "park. One day, she saw a big, red ball. She wanted to play with it, but it was too high.";
  const std::vector<int32_t> tokens =
      tokenizer_->Encode(text, SpecialTokens::kAdd, ParseSpecial::kNo);
  const PerplexityOptions options{.context = 20};
  const auto engine = MakeEngine(PerplexityEngineOptions(options, *backend_, DType::kF32));
  ThreadPool pool(2);
  const Json figures = RunPerplexity(
                           *engine, nullptr, tokens, options, pool, [](int64_t, int64_t) {}, kNever)
                           .value();
  const auto windows = static_cast<int64_t>(tokens.size()) / 20;
  ASSERT_GT(windows, 1);
  double sum = 0;
  for (int64_t w = 0; w < windows; ++w) {
    sum += LogLikelihood(*engine, {tokens.begin() + w * 20, tokens.begin() + (w + 1) * 20}, 1);
  }
  EXPECT_EQ(figures["windows"], windows);
  EXPECT_EQ(figures["tokens"], windows * 19);
  EXPECT_NEAR(figures["perplexity"].get<double>(),
              std::exp(-sum / static_cast<double>(windows * 19)), 1e-4);
}

TEST_F(TaskTest, AModelDoesNotDivergeFromItself) {
  const std::vector<int32_t> tokens = tokenizer_->Encode(std::string(400, 'a') + " dog and a cat",
                                                         SpecialTokens::kAdd, ParseSpecial::kNo);
  const PerplexityOptions options{.context = 64, .max_windows = 2};
  const auto a = MakeEngine(PerplexityEngineOptions(options, *backend_, DType::kF32));
  const auto b = MakeEngine(PerplexityEngineOptions(options, *backend_, DType::kF32));
  ThreadPool pool(1);
  const Json figures = RunPerplexity(
                           *a, b.get(), tokens, options, pool, [](int64_t, int64_t) {}, kNever)
                           .value();
  EXPECT_EQ(figures["windows"], 2);
  EXPECT_NEAR(figures["kl_divergence"]["max"].get<double>(), 0, 1e-12);
  EXPECT_EQ(figures["top1_agreement"], 1.0);
  EXPECT_EQ(figures["perplexity_ratio"], 1.0);
}

TEST_F(TaskTest, PerplexityRefusesWhatDoesNotFit) {
  const auto check = [&](const PerplexityOptions& options, int64_t tokens) {
    return CheckPerplexity(options, weights_.config, tokens).error().message();
  };
  EXPECT_THAT(check({.context = 1024}, 5000), HasSubstr("context of 512"));
  EXPECT_THAT(check({.context = 100}, 99), HasSubstr("99 tokens"));
  EXPECT_THAT(check({.context = 1}, 99), HasSubstr("at least 2"));
}

// The rows of the data set: white lines are empty rows, other rows keep their line break.
TEST(JoinTextTest, PaperJoinsRowsByBlankLines) {
  EXPECT_EQ(JoinText(" \n = A = \n \nText\n", TextJoin::kPaper), "\n\n = A = \n\n\n\n\nText\n");
  EXPECT_EQ(JoinText("a\nb", TextJoin::kPaper), "a\n\n\nb");
  EXPECT_EQ(JoinText("a\n \nb", TextJoin::kRaw), "a\n \nb");
}

}  // namespace
}  // namespace nibble

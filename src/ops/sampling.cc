#include "src/ops/sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "src/base/error.h"
#include "src/base/random.h"
#include "src/ops/token_weight.h"

namespace nibble {
namespace {

// By probability, then by id.
using Candidate = std::pair<uint32_t, int32_t>;

uint64_t TotalWeight(std::span<const Candidate> candidates) {
  uint64_t total = 0;
  for (const auto& [distance, token] : candidates) total += TokenWeight(distance);
  return total;
}

}  // namespace

TokenChoice ChoiceAt(const SamplingOptions& options, int64_t position) {
  TokenChoice choice{.top_p = options.top_p};
  // A temperature so high, or so low, that float32 does not hold its inverse is the nearest that it
  // holds.
  if (options.temperature > 0) {
    const double scale = 1.4426950408889634 / options.temperature;
    choice.scale = static_cast<float>(std::clamp<double>(scale, std::numeric_limits<float>::min(),
                                                         std::numeric_limits<float>::max()));
  }
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  choice.top_k = static_cast<int32_t>(std::clamp<int64_t>(options.top_k, 0, kMost));
  // Number `position` of the stream that the mixed seed begins: seeds that lie close together would
  // give overlapping streams if they were not mixed.
  choice.random = Random(Random::Mix(options.seed), static_cast<uint64_t>(position)).Next();
  return choice;
}

int32_t MostProbable(std::span<const float> logits) {
  size_t best = 0;
  float highest = -std::numeric_limits<float>::infinity();
  for (size_t i = 0; i < logits.size(); ++i) {
    if (!(logits[i] > highest)) continue;
    best = i;
    highest = logits[i];
  }
  return static_cast<int32_t>(best);
}

int32_t ChooseToken(std::span<const float> logits, const TokenChoice& choice) {
  CHECK(!logits.empty());
  const int32_t best = MostProbable(logits);
  if (choice.scale == 0) return best;

  const float highest = logits[static_cast<size_t>(best)];
  std::vector<Candidate> kept;
  kept.reserve(logits.size());
  for (size_t i = 0; i < logits.size(); ++i) {
    const uint32_t distance = TokenDistance(highest, logits[i], choice.scale);
    if (distance != kNeverDrawn) kept.emplace_back(distance, static_cast<int32_t>(i));
  }
  if (kept.empty()) return best;  // infinite logits, or NaN alone
  const auto top_k = static_cast<size_t>(choice.top_k);
  if (top_k > 0 && top_k < kept.size()) {
    std::nth_element(kept.begin(), kept.begin() + choice.top_k - 1, kept.end());
    kept.resize(top_k);
  }
  uint64_t total = TotalWeight(kept);
  const auto target = static_cast<uint64_t>(std::ceil(static_cast<double>(total) * choice.top_p));
  if (choice.top_p < 1 && target < total) {
    std::sort(kept.begin(), kept.end());
    size_t count = 0;
    for (total = 0; count == 0 || total < target; ++count) total += TokenWeight(kept[count].first);
    kept.resize(count);
  }
  // Drawn in the order of ids.
  std::sort(kept.begin(), kept.end(),
            [](const Candidate& a, const Candidate& b) { return a.second < b.second; });
  auto left = static_cast<uint64_t>((static_cast<unsigned __int128>(choice.random) * total) >> 64);
  for (const auto& [distance, token] : kept) {
    const uint64_t weight = TokenWeight(distance);
    if (left < weight) return token;
    left -= weight;
  }
  CHECK(false, "a draw beyond the total weight of {}", total);
  return best;
}

void HostTokens::SetBatch(std::span<const TokenChoice> choices,
                          std::span<const int32_t> chosen_rows, std::span<int32_t> tokens) {
  choices_.assign(choices.begin(), choices.end());
  for (size_t r = 0; r < chosen_rows.size(); ++r) {
    if (chosen_rows[r] >= 0) tokens[r] = last_.at(static_cast<size_t>(chosen_rows[r]));
  }
}

void HostTokens::Choose(MatrixView logits) {
  last_.clear();
  for (int64_t r = 0; r < logits.rows; ++r) {
    const std::span<const float> row(logits.row<float>(r), static_cast<size_t>(logits.columns));
    last_.push_back(choices_.empty() ? MostProbable(row)
                                     : ChooseToken(row, choices_[static_cast<size_t>(r)]));
  }
  waiting_.push_back(last_);
}

std::span<const int32_t> HostTokens::Receive() {
  CHECK(!waiting_.empty(), "no tokens were chosen that were not received");
  received_ = std::move(waiting_.front());
  waiting_.pop_front();
  return received_;
}

}  // namespace nibble

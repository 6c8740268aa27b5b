#include <gtest/gtest.h>

#include <numeric>
#include <string>

#include "src/ops/cpu/test_util.h"
#include "src/ops/ref/ref_backend.h"

namespace nibble::cpu {
namespace {

constexpr int64_t kBlock = 16;
constexpr int64_t kLayers = 2;

struct Setting {
  AttentionSpec spec;
  DType kv_type = DType::kF16;
  std::vector<int64_t> lengths;  // of the sequences

  int64_t rows() const { return std::accumulate(lengths.begin(), lengths.end(), int64_t{0}); }
  int64_t qkv_columns() const { return (spec.heads + 2 * spec.kv_heads) * spec.head_dim; }
  std::string ToString() const {
    return fmt::format("{} heads, {} kv heads of {}, {}, window {}", spec.heads, spec.kv_heads,
                       spec.head_dim, Name(kv_type), spec.window.value_or(0));
  }
};

AttentionSpec Spec(int64_t heads, int64_t kv_heads, int64_t head_dim,
                   std::optional<int64_t> window = std::nullopt) {
  return {.heads = heads,
          .kv_heads = kv_heads,
          .head_dim = head_dim,
          .scale = 1 / std::sqrt(static_cast<float>(head_dim)),
          .window = window};
}

// Runs rope, store and attend over sequences given piece by piece.
class Session {
 public:
  Session(std::unique_ptr<Backend> backend, const Setting& setting, int64_t max_context = 0)
      : backend_(std::move(backend)), setting_(setting) {
    const int64_t context =
        std::max(max_context, *std::max_element(setting.lengths.begin(), setting.lengths.end()));
    max_blocks_ = (context + kBlock - 1) / kBlock;
    const auto sequences = static_cast<int64_t>(setting.lengths.size());
    const int64_t blocks = sequences * max_blocks_;
    cache_ = Must(backend_->CreateKvCache({.layers = kLayers,
                                           .kv_heads = setting.spec.kv_heads,
                                           .head_dim = setting.spec.head_dim,
                                           .block_tokens = kBlock,
                                           .dtype = setting.kv_type},
                                          blocks));
    plan_ = Must(backend_->CreatePlan({.rows = setting.rows(),
                                       .sequences = sequences,
                                       .context = max_blocks_ * kBlock,
                                       .logit_rows = sequences},
                                      {.hidden = 8,
                                       .intermediate = 8,
                                       .heads = setting.spec.heads,
                                       .kv_heads = setting.spec.kv_heads,
                                       .head_dim = setting.spec.head_dim,
                                       .vocabulary = 8}));
    // Blocks in a scattered order.
    for (int64_t i = 0; i < blocks; ++i) {
      table_.push_back(static_cast<int32_t>((i * 7 + 3) % blocks));
    }
    if (blocks % 7 == 0) std::iota(table_.rbegin(), table_.rend(), 0);
    for (int64_t i = 0; i < setting.spec.head_dim / 2; ++i) {
      frequencies_.push_back(static_cast<float>(std::pow(
          10000.0, -2.0 * static_cast<double>(i) / static_cast<double>(setting.spec.head_dim))));
    }
  }

  struct Piece {
    int64_t sequence, begin, end;  // tokens
  };

  // One step over these pieces. `qkv` and `out` hold the rows of all sequences,
  // one after another; those of the pieces are read, turned and written.
  void Step(const std::vector<Piece>& pieces, GuardedMatrix& qkv, GuardedMatrix& out) {
    std::vector<int32_t> tokens, positions, row_begin{0}, lengths, table;
    std::vector<int64_t> at;
    for (const Piece& piece : pieces) {
      for (int64_t t = piece.begin; t < piece.end; ++t) {
        positions.push_back(static_cast<int32_t>(t));
        at.push_back(RowOf(piece.sequence, t));
      }
      row_begin.push_back(static_cast<int32_t>(positions.size()));
      lengths.push_back(static_cast<int32_t>(piece.end));
      const auto row = table_.begin() + piece.sequence * max_blocks_;
      table.insert(table.end(), row, row + max_blocks_);
    }
    tokens.resize(positions.size());
    backend_->SetBatch(*plan_, {.tokens = tokens,
                                .positions = positions,
                                .row_begin = row_begin,
                                .context_lengths = lengths,
                                .block_tables = table,
                                .max_blocks = max_blocks_});
    const auto rows = static_cast<int64_t>(at.size());
    const int64_t q_columns = setting_.spec.heads * setting_.spec.head_dim;
    GuardedMatrix step_qkv(rows, qkv.columns()), step_out(rows, q_columns);
    for (const int64_t layer : {0, 1}) {
      for (int64_t r = 0; r < rows; ++r) {
        std::copy_n(qkv.row(at[static_cast<size_t>(r)]), qkv.columns(), step_qkv.row(r));
        if (layer == 0) {  // what layer 0 stores and gives must not touch layer 1
          for (int64_t c = 0; c < qkv.columns(); ++c) step_qkv.row(r)[c] *= 3;
        }
      }
      backend_->RopeAndStoreKv(*plan_, {frequencies_}, setting_.spec, layer, step_qkv.view(),
                               *cache_);
      backend_->Attend(*plan_, setting_.spec, layer, step_qkv.view().Columns(0, q_columns), *cache_,
                       step_out.view());
    }
    EXPECT_TRUE(step_qkv.Intact());
    EXPECT_TRUE(step_out.Intact());
    for (int64_t r = 0; r < rows; ++r) {
      std::copy_n(step_out.row(r), q_columns, out.row(at[static_cast<size_t>(r)]));
      std::copy_n(step_qkv.row(r), qkv.columns(), turned_.row(at[static_cast<size_t>(r)]));
    }
  }

  std::vector<Piece> Whole() const {
    std::vector<Piece> pieces;
    for (size_t s = 0; s < setting_.lengths.size(); ++s) {
      pieces.push_back({static_cast<int64_t>(s), 0, setting_.lengths[s]});
    }
    return pieces;
  }
  int64_t RowOf(int64_t sequence, int64_t token) const {
    return std::accumulate(setting_.lengths.begin(), setting_.lengths.begin() + sequence, token);
  }
  GuardedMatrix& turned() { return turned_; }
  Backend& backend() { return *backend_; }
  KvCache& cache() { return *cache_; }
  std::vector<int32_t>& table() { return table_; }

 private:
  std::unique_ptr<Backend> backend_;
  Setting setting_;
  int64_t max_blocks_ = 0;
  std::unique_ptr<KvCache> cache_;
  std::unique_ptr<BatchPlan> plan_;
  std::vector<int32_t> table_;
  std::vector<float> frequencies_;
  GuardedMatrix turned_{setting_.rows(), setting_.qkv_columns()};
};

GuardedMatrix Outputs(const Setting& setting) {
  return GuardedMatrix(setting.rows(), setting.spec.heads * setting.spec.head_dim);
}

void ExpectSameBits(const GuardedMatrix& got, const GuardedMatrix& want) {
  for (int64_t r = 0; r < want.rows(); ++r) {
    ASSERT_TRUE(SameBits(got.row(r), want.row(r), want.columns())) << "row " << r;
  }
}

std::vector<Setting> Settings() {
  const std::vector<int64_t> lengths = {1, 70, 15, 131, 16, 64};
  std::vector<Setting> settings;
  for (const DType type : {DType::kF32, DType::kF16, DType::kBF16}) {
    settings.push_back({Spec(9, 3, 64), type, lengths});
  }
  for (const int64_t head_dim : {8, 16, 24, 80, 128, 256}) {
    settings.push_back({Spec(4, 2, head_dim), DType::kF16, lengths});
  }
  settings.push_back({Spec(2, 2, 10), DType::kF32, lengths});
  settings.push_back({Spec(3, 3, 32), DType::kF16, lengths});
  settings.push_back({Spec(32, 4, 16), DType::kBF16, lengths});
  settings.push_back({Spec(71, 1, 8), DType::kF16, {20, 5}});
  for (const int64_t window : {1, 5, 16, 63, 100}) {
    settings.push_back({Spec(8, 2, 24, window), DType::kF16, lengths});
  }
  return settings;
}

TEST(AttentionTest, AgreesWithRefAndWithItselfHoweverItIsCut) {
  for (const Setting& setting : Settings()) {
    SCOPED_TRACE(setting.ToString());
    Random random(1);
    GuardedMatrix qkv = GuardedMatrix::Normal(setting.rows(), setting.qkv_columns(), random);
    GuardedMatrix want = Outputs(setting), got = Outputs(setting);
    Session ref(MakeRefBackend(1), setting);
    ref.Step(ref.Whole(), qkv, want);
    Session cpu(MakeCpu(2), setting);
    cpu.Step(cpu.Whole(), qkv, got);

    // A turned value is two products and a sum, each rounded once.
    for (int64_t r = 0; r < setting.rows(); ++r) {
      for (int64_t c = 0; c < setting.qkv_columns(); ++c) {
        ASSERT_NEAR(cpu.turned().row(r)[c], ref.turned().row(r)[c], 0x1p-20) << r << ", " << c;
      }
    }
    // An output is a mean of values of magnitude up to about 4.5, its weights'
    // relative error that of a score (head_dim roundings of up to |q||k| /
    // sqrt(head_dim)) and a few more. Where the cache is rounded, a key that
    // the turn left an ulp apart may round to its neighbour, half of 2 · step
    // of it away: that moves a score by up to |q_i k_i| scale · 2 step ≤ 8 step
    // at head_dim 16, and an output by at most a quarter of that times the
    // spread of the values; rare, so that the mean square error stays small.
    const double step = setting.kv_type == DType::kBF16  ? 0x1p-9
                        : setting.kv_type == DType::kF16 ? 0x1p-12
                                                         : 0;
    for (int64_t r = 0; r < setting.rows(); ++r) {
      for (int64_t c = 0; c < want.columns(); ++c) {
        ASSERT_NEAR(got.row(r)[c], want.row(r)[c], 1e-5 + 4 * step) << r << ", " << c;
      }
    }
    EXPECT_LT(NormalizedSquareError(got, want), setting.kv_type == DType::kF32 ? 1e-12 : 1e-7);

    // Token by token; and in ragged pieces with another number of threads.
    GuardedMatrix again = Outputs(setting);
    Session decode(MakeCpu(1), setting);
    const int64_t longest = *std::max_element(setting.lengths.begin(), setting.lengths.end());
    for (int64_t t = 0; t < longest; ++t) {
      std::vector<Session::Piece> pieces;
      for (size_t s = 0; s < setting.lengths.size(); ++s) {
        if (t < setting.lengths[s]) pieces.push_back({static_cast<int64_t>(s), t, t + 1});
      }
      decode.Step(pieces, qkv, again);
    }
    ExpectSameBits(again, got);
    again = Outputs(setting);
    Session chunked(MakeCpu(3), setting, 1024);
    for (size_t s = setting.lengths.size(); s-- > 0;) {
      for (int64_t begin = 0; begin < setting.lengths[s];) {
        const int64_t end =
            std::min(setting.lengths[s], begin + 1 + static_cast<int64_t>(random.Below(40)));
        chunked.Step({{static_cast<int64_t>(s), begin, end}}, qkv, again);
        begin = end;
      }
    }
    ExpectSameBits(again, got);
  }
}

// A token that is not a number must not reach the tokens before it, which share
// its tile and block.
TEST(AttentionTest, NaNReachesOnlyTheTokensThatSeeIt) {
  const Setting setting{Spec(4, 2, 16, 8), DType::kF16, {40, 20}};
  Random random(2);
  GuardedMatrix qkv = GuardedMatrix::Normal(setting.rows(), setting.qkv_columns(), random);
  GuardedMatrix clean = Outputs(setting), got = Outputs(setting);
  Session first(MakeCpu(1), setting);
  first.Step(first.Whole(), qkv, clean);
  constexpr int64_t kPoisoned = 21;
  for (int64_t c = 0; c < setting.qkv_columns(); ++c) qkv.row(kPoisoned)[c] = kNaN;
  Session second(MakeCpu(1), setting);
  second.Step(second.Whole(), qkv, got);
  for (int64_t r = 0; r < setting.rows(); ++r) {
    const bool sees = r >= kPoisoned && r < kPoisoned + 8;
    for (int64_t c = 0; c < clean.columns(); ++c) {
      if (sees) {
        ASSERT_TRUE(std::isnan(got.row(r)[c])) << r;
      } else {
        ASSERT_EQ(got.row(r)[c], clean.row(r)[c]) << r;
      }
    }
  }
}

TEST(AttentionTest, HugeScoresDoNotOverflow) {
  const Setting setting{Spec(2, 2, 16), DType::kF32, {100}};
  Random random(3);
  GuardedMatrix qkv = GuardedMatrix::Normal(100, setting.qkv_columns(), random);
  for (int64_t r = 0; r < 100; ++r) {
    for (int64_t c = 0; c < 64; ++c) qkv.row(r)[c] *= 300;  // queries and keys: scores to ±1e6
  }
  GuardedMatrix want = Outputs(setting), got = Outputs(setting);
  Session ref(MakeRefBackend(1), setting), cpu(MakeCpu(1), setting);
  ref.Step(ref.Whole(), qkv, want);
  cpu.Step(cpu.Whole(), qkv, got);
  for (int64_t r = 0; r < 100; ++r) {
    for (int64_t c = 0; c < want.columns(); ++c) {
      // Scores of 1e6 carry an error of about 0.5 in float32; nearly all weigh
      // on one token.
      ASSERT_TRUE(std::isfinite(got.row(r)[c]));
      ASSERT_LE(std::abs(got.row(r)[c]), 6);
    }
  }
  EXPECT_LT(NormalizedSquareError(got, want), 1e-3);
}

TEST(AttentionTest, ACopiedBlockServesAsWell) {
  const Setting setting{Spec(4, 2, 24), DType::kBF16, {17}};
  Random random(4);
  GuardedMatrix qkv = GuardedMatrix::Normal(17, setting.qkv_columns(), random);
  GuardedMatrix want = Outputs(setting), got = Outputs(setting);
  Session cpu(MakeCpu(1), setting, 48);
  cpu.Step({{0, 0, 16}}, qkv, want);
  cpu.Step({{0, 16, 17}}, qkv, want);
  cpu.backend().CopyKvBlock(cpu.cache(), cpu.table()[0], cpu.table()[2]);
  std::swap(cpu.table()[0], cpu.table()[2]);
  cpu.Step({{0, 16, 17}}, qkv, got);
  EXPECT_TRUE(SameBits(got.row(16), want.row(16), want.columns()));
}

}  // namespace
}  // namespace nibble::cpu

#include "src/ops/ref/ref_backend.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "src/base/checked.h"
#include "src/ops/host_backend.h"
#include "src/ops/ref/ref_quantize.h"
#include "src/tensor/host_floats.h"

namespace nibble {
namespace {

constexpr int64_t kBlockTokens = 16;

// Weights as float32, [out, in].
class RefLinear final : public PreparedLinear {
 public:
  RefLinear(int64_t out, int64_t in, Buffer weights, std::vector<float> bias)
      : PreparedLinear(out, in, weights.size()),
        weights_(std::move(weights)),
        bias_(std::move(bias)) {}
  const float* row(int64_t n) const { return weights_.as<float>() + n * in_features(); }
  double bias(int64_t n) const { return bias_.empty() ? 0.0 : bias_[static_cast<size_t>(n)]; }

 private:
  Buffer weights_;
  std::vector<float> bias_;
};

// Keys and values of a token in a layer: [layer][block][key or value][slot][kv_head][head_dim].
class RefKvCache final : public KvCache {
 public:
  RefKvCache(const KvLayout& layout, int64_t blocks, Buffer memory)
      : layout_(layout), blocks_(blocks), memory_(std::move(memory)) {}
  const KvLayout& layout() const override { return layout_; }
  int64_t blocks() const override { return blocks_; }

  std::byte* token(int64_t layer, int64_t block, int which, int64_t slot) const {
    const int64_t row = ((layer * blocks_ + block) * 2 + which) * layout_.block_tokens + slot;
    return memory_.as<std::byte>() + static_cast<size_t>(row) * token_bytes();
  }
  size_t token_bytes() const {
    return static_cast<size_t>(layout_.kv_heads * layout_.head_dim) * BytesOf(layout_.dtype);
  }

 private:
  KvLayout layout_;
  int64_t blocks_;
  Buffer memory_;
};

class RefPlan final : public BatchPlan {
 public:
  Batch batch;
  std::vector<int32_t> tokens, positions, row_begin, context_lengths, block_tables, logit_rows;
  std::vector<int32_t> row_sequence;  // [rows]
  HostTokens chosen;
};

const RefPlan& Ref(const BatchPlan& plan) { return static_cast<const RefPlan&>(plan); }
const RefKvCache& Ref(const KvCache& cache) { return static_cast<const RefKvCache&>(cache); }
const RefLinear& Ref(const PreparedLinear& linear) { return static_cast<const RefLinear&>(linear); }

double Silu(double x) { return x / (1.0 + std::exp(-x)); }

class RefBackend final : public HostBackend {
 public:
  RefBackend(int threads, DType activations) : HostBackend(threads), activations_(activations) {}

  std::string name() const override { return "ref"; }
  std::string description() const override {
    return fmt::format("ref (scalar, double accumulation, {}, {} threads)", Name(activations_),
                       pool_.threads());
  }
  DType activation_type() const override { return activations_; }
  int64_t kv_block_tokens() const override { return kBlockTokens; }

  Result<std::unique_ptr<PreparedLinear>> Prepare(std::span<const LinearSource> sources,
                                                  Interleave) override {
    int64_t out = 0;
    const int64_t in = ColumnsOf(*sources[0].weight);
    bool has_bias = false;
    for (const LinearSource& source : sources) {
      CHECK(ColumnsOf(*source.weight) == in);
      out += RowsOf(*source.weight);
      has_bias |= !source.bias.empty();
    }
    NIBBLE_ASSIGN_OR_RETURN(Buffer weights,
                            AllocateHost(memory_, MemoryClass::kWeights,
                                         static_cast<size_t>(out * in) * sizeof(float)));
    std::vector<float> bias(has_bias ? static_cast<size_t>(out) : 0);
    int64_t first = 0;
    for (const LinearSource& source : sources) {
      const int64_t rows = RowsOf(*source.weight);
      pool_.ParallelFor(rows, 16, [&](int64_t begin, int64_t end, int) {
        std::visit(
            [&](const auto& weight) {
              for (int64_t n = begin; n < end; ++n) {
                for (int64_t k = 0; k < in; ++k) {
                  weights.as<float>()[(first + n) * in + k] =
                      static_cast<float>(AsFactor(weight.At(n, k)));
                }
              }
            },
            *source.weight);
      });
      std::copy(source.bias.begin(), source.bias.end(), bias.begin() + (has_bias ? first : 0));
      first += rows;
    }
    return std::make_unique<RefLinear>(out, in, std::move(weights), std::move(bias));
  }

  uint64_t PreparedBytes(int64_t out_features, int64_t in_features, DType, const QuantSpec*,
                         bool) const override {
    return RoundUp<uint64_t>(static_cast<uint64_t>(out_features * in_features) * sizeof(float), 64);
  }

  Result<std::unique_ptr<KvCache>> CreateKvCache(const KvLayout& layout,
                                                 int64_t blocks) override {
    NIBBLE_ASSIGN_OR_RETURN(
        Buffer memory, AllocateHost(memory_, MemoryClass::kKvCache,
                                    static_cast<size_t>(blocks) * layout.BlockBytes()));
    return std::make_unique<RefKvCache>(layout, blocks, std::move(memory));
  }

  void CopyKvBlock(KvCache& cache, int64_t from, int64_t to) override {
    const RefKvCache& kv = Ref(cache);
    const size_t bytes =
        2 * static_cast<size_t>(kv.layout().block_tokens) * kv.token_bytes();
    for (int64_t layer = 0; layer < kv.layout().layers; ++layer) {
      std::memcpy(kv.token(layer, to, 0, 0), kv.token(layer, from, 0, 0), bytes);
    }
  }

  Result<std::unique_ptr<BatchPlan>> CreatePlan(const StepLimits&, const ModelExtents&) override {
    return std::make_unique<RefPlan>();
  }
  uint64_t PlanBytes(const StepLimits&, const ModelExtents&) const override { return 0; }

  void SetBatch(BatchPlan& plan, const Batch& batch) override {
    RefPlan& p = static_cast<RefPlan&>(plan);
    const auto copy = [](std::vector<int32_t>& to, std::span<const int32_t>& from) {
      to.assign(from.begin(), from.end());
      from = to;
    };
    p.batch = batch;
    p.batch.chosen_rows = {};  // dealt with here
    p.batch.choices = {};
    copy(p.tokens, p.batch.tokens);
    p.chosen.SetBatch(batch.choices, batch.chosen_rows, p.tokens);
    copy(p.positions, p.batch.positions);
    copy(p.row_begin, p.batch.row_begin);
    copy(p.context_lengths, p.batch.context_lengths);
    copy(p.block_tables, p.batch.block_tables);
    copy(p.logit_rows, p.batch.logit_rows);
    p.row_sequence.clear();
    for (int64_t s = 0; s < batch.sequences(); ++s) {
      const auto i = static_cast<size_t>(s);
      p.row_sequence.insert(p.row_sequence.end(),
                            static_cast<size_t>(p.row_begin[i + 1] - p.row_begin[i]),
                            static_cast<int32_t>(s));
    }
  }

  void Embed(const BatchPlan& plan, const PreparedLinear& table, MatrixView out) override {
    for (int64_t r = 0; r < out.rows; ++r) {
      const float* row = Ref(table).row(Ref(plan).tokens[static_cast<size_t>(r)]);
      for (int64_t c = 0; c < out.columns; ++c) SetFloat(out, r, c, row[c]);
    }
  }

  void RmsNorm(MatrixView x, MatrixView gain, float epsilon, MatrixView out) override {
    for (int64_t r = 0; r < x.rows; ++r) {
      double squares = 0;
      for (int64_t c = 0; c < x.columns; ++c) {
        squares += static_cast<double>(FloatAt(x, r, c)) * FloatAt(x, r, c);
      }
      const double factor = 1.0 / std::sqrt(squares / static_cast<double>(x.columns) + epsilon);
      for (int64_t c = 0; c < x.columns; ++c) {
        SetFloat(out, r, c, static_cast<float>(FloatAt(x, r, c) * factor * gain.row<float>(0)[c]));
      }
    }
  }

  void Linear(BatchPlan&, const PreparedLinear& weight, MatrixView x, Epilogue epilogue,
              MatrixView out) override {
    const RefLinear& linear = Ref(weight);
    const std::vector<float> inputs = FloatsOf(x);
    const auto dot = [&](int64_t r, int64_t n) {
      const float* const row = &inputs[static_cast<size_t>(r * x.columns)];
      double sum = 0;
      for (int64_t k = 0; k < x.columns; ++k) sum += static_cast<double>(row[k]) * linear.row(n)[k];
      return sum + linear.bias(n);
    };
    CHECK(x.columns == linear.in_features());
    CHECK(out.columns == linear.out_features() / (epilogue == Epilogue::kSiluMul ? 2 : 1));
    pool_.ParallelFor(out.columns, 8, [&](int64_t begin, int64_t end, int) {
      for (int64_t r = 0; r < x.rows; ++r) {
        for (int64_t n = begin; n < end; ++n) {
          double y = 0;
          switch (epilogue) {
            case Epilogue::kNone:
              y = dot(r, n);
              break;
            case Epilogue::kAdd:
              y = FloatAt(out, r, n) + dot(r, n);
              break;
            case Epilogue::kSiluMul:
              y = Silu(AsFactor(dot(r, n))) * AsFactor(dot(r, n + out.columns));
              break;
          }
          SetFloat(out, r, n, static_cast<float>(y));
        }
      }
    });
  }

  void RopeAndStoreKv(const BatchPlan& plan, const RopeSpec& rope, const AttentionSpec& attention,
                      int64_t layer, MatrixView qkv, KvCache& cache) override {
    const RefPlan& p = Ref(plan);
    const RefKvCache& kv = Ref(cache);
    const int64_t d = attention.head_dim;
    const int64_t half = d / 2;
    const int64_t keys_at = attention.heads * d;
    const int64_t values_at = keys_at + attention.kv_heads * d;
    for (int64_t r = 0; r < qkv.rows; ++r) {
      const int64_t position = p.positions[static_cast<size_t>(r)];
      for (int64_t head = 0; head < attention.heads + attention.kv_heads; ++head) {
        for (int64_t i = 0; i < half; ++i) {
          // Hugging Face forms the angle in float32; so do we, to turn by the same angle.
          const float angle =
              static_cast<float>(position) * rope.frequencies[static_cast<size_t>(i)];
          const double cosine = std::cos(static_cast<double>(angle));
          const double sine = std::sin(static_cast<double>(angle));
          const int64_t low = head * d + i, high = low + half;
          const double a = FloatAt(qkv, r, low), b = FloatAt(qkv, r, high);
          SetFloat(qkv, r, low, static_cast<float>(a * cosine - b * sine));
          SetFloat(qkv, r, high, static_cast<float>(b * cosine + a * sine));
        }
      }
      const auto [block, slot] = Locate(p, p.row_sequence[static_cast<size_t>(r)], position);
      for (int64_t i = 0; i < attention.kv_heads * d; ++i) {
        const DType type = kv.layout().dtype;
        StoreFloat(type, kv.token(layer, block, 0, slot), i, FloatAt(qkv, r, keys_at + i));
        StoreFloat(type, kv.token(layer, block, 1, slot), i, FloatAt(qkv, r, values_at + i));
      }
    }
  }

  void Attend(BatchPlan& plan, const AttentionSpec& attention, int64_t layer, MatrixView q,
              const KvCache& cache, MatrixView out) override {
    const RefPlan& p = Ref(plan);
    const RefKvCache& kv = Ref(cache);
    const DType type = kv.layout().dtype;
    const int64_t d = attention.head_dim;
    const int64_t queries_per_kv = attention.heads / attention.kv_heads;
    pool_.ParallelFor(q.rows, 1, [&](int64_t begin, int64_t end, int) {
      std::vector<double> scores;
      for (int64_t r = begin; r < end; ++r) {
        const int32_t sequence = p.row_sequence[static_cast<size_t>(r)];
        const int64_t position = p.positions[static_cast<size_t>(r)];
        const int64_t first =
            attention.window ? std::max<int64_t>(0, position - *attention.window + 1) : 0;
        for (int64_t head = 0; head < attention.heads; ++head) {
          const int64_t at = head / queries_per_kv * d;
          scores.clear();
          for (int64_t t = first; t <= position; ++t) {
            const auto [block, slot] = Locate(p, sequence, t);
            const std::byte* key = kv.token(layer, block, 0, slot);
            double dot = 0;
            for (int64_t i = 0; i < d; ++i) {
              const double query = FloatAt(q, r, head * d + i);
              dot += query * LoadFloat(type, key, at + i);
            }
            scores.push_back(dot * attention.scale);
          }
          const double highest = *std::max_element(scores.begin(), scores.end());
          double total = 0;
          for (double& score : scores) {
            score = std::exp(score - highest);
            total += score;
            score = AsFactor(score);
          }
          for (int64_t i = 0; i < d; ++i) {
            double sum = 0;
            for (int64_t t = first; t <= position; ++t) {
              const auto [block, slot] = Locate(p, sequence, t);
              sum += scores[static_cast<size_t>(t - first)] *
                     LoadFloat(type, kv.token(layer, block, 1, slot), at + i);
            }
            SetFloat(out, r, head * d + i, static_cast<float>(sum / total));
          }
        }
      }
    });
  }

  void NormLogitRows(const BatchPlan& plan, MatrixView x, MatrixView gain, float epsilon,
                     MatrixView out) override {
    for (int64_t i = 0; i < out.rows; ++i) {
      const int64_t r = Ref(plan).logit_rows[static_cast<size_t>(i)];
      for (int64_t c = 0; c < x.columns; ++c) SetFloat(out, i, c, FloatAt(x, r, c));
    }
    RmsNorm(out, gain, epsilon, out);
  }

  void ChooseTokens(BatchPlan& plan, MatrixView logits) override {
    static_cast<RefPlan&>(plan).chosen.Choose(logits);
  }
  Result<std::span<const int32_t>> ReceiveTokens(BatchPlan& plan) override {
    return static_cast<RefPlan&>(plan).chosen.Receive();
  }

  Result<std::unique_ptr<QuantizeOps>> CreateQuantizeOps() override {
    return MakeRefQuantizeOps(pool_, memory_);
  }

 private:
  // A factor within an operation: a weight, a gate's or an up projection's output, a weight of
  // softmax. Of the activations' type where that has 16 bits.
  double AsFactor(double value) const {
    return activations_ == DType::kF32 ? value : RoundTo(activations_, static_cast<float>(value));
  }

  static std::pair<int64_t, int64_t> Locate(const RefPlan& p, int64_t sequence, int64_t position) {
    return {p.block_tables[static_cast<size_t>(sequence * p.batch.max_blocks +
                                               position / kBlockTokens)],
            position % kBlockTokens};
  }

  DType activations_;
};

}  // namespace

std::unique_ptr<Backend> MakeRefBackend(int threads, DType activations) {
  CHECK(IsFloat(activations), "activations of type {}", Name(activations));
  return std::make_unique<RefBackend>(threads, activations);
}

}  // namespace nibble

// NormLinear and RopeAndAttend against the reference, whichever kernels they take.
#include <gtest/gtest.h>

#include <numeric>
#include <string>

#include "src/ops/cuda/backend_test_util.h"

namespace nibble {
namespace {

class FusedOperationsTest : public CudaBackendTest {
 protected:
  void SetUp() override {
    CudaBackendTest::SetUp();
    if (IsSkipped()) return;
    plan_ = Must(cuda_->CreatePlan({.rows = 300, .sequences = 1, .context = 300, .logit_rows = 1},
                                   {.hidden = 4096,
                                    .intermediate = 11008,
                                    .heads = 8,
                                    .kv_heads = 8,
                                    .head_dim = 64,
                                    .vocabulary = 64}));
  }

  struct Problem {
    int64_t rows, out, in;  // out: of all sources together
    bool is_gate_up = false, has_bias = false;
    Epilogue epilogue = Epilogue::kNone;
    DType out_type = DType::kF16;
  };

  // weight: makes a source's weight of so many rows. scale: of the outputs.
  template <typename MakeWeight>
  void Compare(const Problem& p, const MakeWeight& make_weight, double scale, Random& random) {
    SCOPED_TRACE(fmt::format("{} rows, [{}, {}], epilogue {}, gate and up {}, bias {}", p.rows,
                             p.out, p.in, static_cast<int>(p.epilogue), p.is_gate_up, p.has_bias));
    const size_t count = p.is_gate_up ? 2 : 1;
    std::vector<Weight> weights;
    std::vector<HostMatrix> biases;
    for (size_t i = 0; i < count; ++i) {
      weights.push_back(make_weight(p.out / static_cast<int64_t>(count), p.in));
      biases.push_back(HostMatrix::Normal(1, p.out / static_cast<int64_t>(count), random));
    }
    std::vector<LinearSource> sources;
    for (size_t i = 0; i < count; ++i) {
      sources.push_back({&weights[i], {}});
      if (p.has_bias) sources.back().bias = biases[i].values;
    }
    const Interleave interleave = p.is_gate_up ? Interleave::kGateUp : Interleave::kNone;
    const auto on_cuda = Must(cuda_->Prepare(sources, interleave));
    const auto on_ref = Must(ref_->Prepare(sources, interleave));

    // Rows of very different sizes, as a residual stream has them, and one of zeros.
    HostMatrix x = HostMatrix::Normal(p.rows, p.in, random);
    HostMatrix gain = HostMatrix::Normal(1, p.in, random);
    for (int64_t r = 0; r < p.rows; ++r) {
      const auto size = static_cast<float>(std::pow(10.0, r % 4 - 2.0));
      for (int64_t k = 0; k < p.in; ++k) x.row(r)[k] *= r == 2 ? 0 : size;
    }
    Round(x);
    HostMatrix normed(p.rows, p.in);
    HostMatrix want = HostMatrix::Normal(p.rows, p.is_gate_up ? p.out / 2 : p.out, random);
    Round(want);
    const DeviceMatrix from = ToDevice(x), scratch = ToDevice(normed), to = ToDevice(want);
    const Matrix device_gain = Must(cuda_->Upload(gain.values));
    constexpr float kEpsilon = 1e-5f;
    ref_->NormLinear(*plan_, {gain.view(), kEpsilon}, *on_ref, x.view(), normed.view(), p.epilogue,
                     want.view());
    // The normalized input is rounded where it is not multiplied in float32.
    const double roundings = p.epilogue == Epilogue::kNone ? 3 : 6;
    if (p.out_type == DType::kF32) {
      const Matrix logits =
          Must(cuda_->Allocate(MemoryClass::kWorkspace, DType::kF32, p.rows, p.out));
      cuda_->NormLinear(*plan_, {device_gain.view(), kEpsilon}, *on_cuda, from.view, from.view,
                        p.epilogue, logits.view());
      const MatrixView got = Must(cuda_->ToHost(logits.view()));
      HostMatrix values(p.rows, p.out);
      std::copy_n(got.row<float>(0), values.values.size(), values.values.begin());
      ExpectNear(values, want, scale, roundings);
    } else {
      cuda_->NormLinear(*plan_, {device_gain.view(), kEpsilon}, *on_cuda, from.view, scratch.view,
                        p.epilogue, to.view);
      HostMatrix got = ToHost(to);
      ExpectNear(got, want, scale, roundings);
    }
  }

  // Of random codes, scales and zeros; outputs of normalized inputs are around 0.1 sqrt(in).
  static Weight Quantized(const QuantSpec& spec, int64_t rows, int64_t columns, Random& random) {
    QuantizedWeight weight = QuantizedWeight::Empty(spec, rows, columns);
    for (uint8_t& pair : weight.codes) pair = static_cast<uint8_t>(random.Below(256));
    for (uint16_t& scale : weight.scales) {
      scale = F16FromFloat(static_cast<float>(0.01 + 0.02 * random.Uniform()));
    }
    for (uint8_t& zero : weight.zeros) {
      zero = static_cast<uint8_t>(spec.grid == Grid::kAsymmetric ? random.Below(16) : 8);
    }
    if (spec.order == GroupOrder::kIndexed) {
      weight.column_of_input.resize(static_cast<size_t>(columns));
      std::iota(weight.column_of_input.begin(), weight.column_of_input.end(), 0);
      for (size_t i = weight.column_of_input.size(); i > 1; --i) {
        std::swap(weight.column_of_input[i - 1], weight.column_of_input[random.Below(i)]);
      }
    }
    return weight;
  }

  std::unique_ptr<BatchPlan> plan_;
};

INSTANTIATE_TEST_SUITE_P(Types, FusedOperationsTest, testing::Values(DType::kF16, DType::kBF16),
                         [](const auto& info) { return std::string(Name(info.param)); });

TEST_P(FusedOperationsTest, NormalizesBeforeDenseWeights) {
  Random random(1);
  const auto dense = [&](int64_t rows, int64_t columns) {
    HostMatrix w = HostMatrix::Normal(rows, columns, random, 1 / std::sqrt(columns));
    Round(w);
    return Dense(w, type_);
  };
  for (const int64_t rows : {1, 2, 3, 17}) {
    for (const int64_t in : {8, 24, 111, 172, 576, 1000, 1536, 4096, 11008, 20000}) {
      for (const bool has_bias : {false, true}) {
        for (const Epilogue epilogue : {Epilogue::kNone, Epilogue::kAdd}) {
          const Problem p{
              .rows = rows, .out = 29, .in = in, .has_bias = has_bias, .epilogue = epilogue};
          Compare(p, dense, 4, random);
        }
        const Problem gate_up{.rows = rows,
                              .out = 38,
                              .in = in,
                              .is_gate_up = true,
                              .has_bias = has_bias,
                              .epilogue = Epilogue::kSiluMul};
        Compare(gate_up, dense, 6, random);
        if (HasFatalFailure()) return;
      }
      Compare({.rows = rows, .out = 33, .in = in, .out_type = DType::kF32}, dense, 4, random);
    }
  }
}

TEST_P(FusedOperationsTest, NormalizesBefore4BitWeights) {
  Random random(2);
  struct Form {
    int64_t in, group;
    GroupOrder order = GroupOrder::kConsecutive;
  };
  // Idle warps, one round of inputs and several, groups that are spread out, columns out of order.
  const Form forms[] = {{4096, 128},
                        {4096, 64},
                        {4096, 32},
                        {11008, 128},
                        {576, 64},
                        {128, 32},
                        {1536, 96},
                        {172, kPerChannel},
                        {1000, 125},
                        {8, kPerChannel},
                        {1024, 128, GroupOrder::kIndexed},
                        {8192, 128},
                        {8192, 32},
                        {1112, kPerChannel},
                        {2080, 32}};
  for (const auto& [in, group, order] : forms) {
    for (const Grid grid : {Grid::kSymmetric, Grid::kAsymmetric}) {
      const QuantSpec spec{.group_size = group, .grid = grid, .order = order};
      const auto quantized = [&](int64_t rows, int64_t columns) {
        return Quantized(spec, rows, columns, random);
      };
      const double scale = 0.6 * std::sqrt(static_cast<double>(in));
      for (const int64_t rows : {1, 2, 7, 8, 9, 16, 17, 150}) {
        Compare({.rows = rows, .out = 40, .in = in}, quantized, scale, random);
        Compare({.rows = rows, .out = 22, .in = in, .has_bias = true, .epilogue = Epilogue::kAdd},
                quantized, scale, random);
        // A product of two outputs.
        Compare(
            {.rows = rows, .out = 48, .in = in, .is_gate_up = true, .epilogue = Epilogue::kSiluMul},
            quantized, scale * scale, random);
        if (HasFatalFailure()) return;
      }
    }
  }
}

// As many tiles as a model's largest weight has.
TEST_P(FusedOperationsTest, NormalizesBeforeTallWeights) {
  Random random(3);
  const auto quantized = [&](int64_t rows, int64_t columns) {
    return Quantized({.grid = Grid::kSymmetric}, rows, columns, random);
  };
  for (const int64_t rows : {1, 8, 16}) {
    Compare(
        {.rows = rows, .out = 22016, .in = 512, .is_gate_up = true, .epilogue = Epilogue::kSiluMul},
        quantized, 200, random);
  }
}

// Whole prompts, then steps that only decode, then one that does both.
TEST_P(FusedOperationsTest, RopeAndAttendStepAfterStep) {
  Random random(6);
  const std::vector<std::vector<int32_t>> steps = {{30, 1, 64, 200}, {1, 1, 1, 1}, {1, 1, 1, 1},
                                                   {1, 1, 1, 1},     {1, 5, 1, 3}, {1, 1, 1, 1}};
  constexpr int32_t kContext = 256;
  for (const int64_t dim : {40, 64, 128, 256}) {
    const AttentionSpec attention{.heads = 4,
                                  .kv_heads = 2,
                                  .head_dim = dim,
                                  .scale = 1 / std::sqrt(static_cast<float>(dim))};
    const int64_t columns = 8 * dim;
    std::vector<float> frequencies;
    for (int64_t i = 0; i < dim / 2; ++i) {
      frequencies.push_back(
          static_cast<float>(std::pow(10000.0, -2.0 * static_cast<double>(i) / dim)));
    }
    const RopeSpec rope{frequencies};
    Backend* const backends[2] = {ref_.get(), cuda_.get()};
    std::unique_ptr<BatchPlan> plans[2];
    std::unique_ptr<KvCache> caches[2];
    for (int b = 0; b < 2; ++b) {
      plans[b] = Must(backends[b]->CreatePlan(
          {.rows = 300, .sequences = 4, .context = kContext, .logit_rows = 1}, {.hidden = 64,
                                                                                .intermediate = 64,
                                                                                .heads = 4,
                                                                                .kv_heads = 2,
                                                                                .head_dim = dim,
                                                                                .vocabulary = 64}));
      caches[b] = Must(backends[b]->CreateKvCache({.layers = 2,
                                                   .kv_heads = 2,
                                                   .head_dim = dim,
                                                   .block_tokens = backends[b]->kv_block_tokens(),
                                                   .dtype = type_},
                                                  4 * kContext / backends[b]->kv_block_tokens()));
    }
    std::vector<int32_t> contexts(4, 0);
    for (const std::vector<int32_t>& step : steps) {
      std::vector<int32_t> positions, row_begin{0};
      for (size_t s = 0; s < step.size(); ++s) {
        for (int32_t i = 0; i < step[s]; ++i) positions.push_back(contexts[s]++);
        row_begin.push_back(static_cast<int32_t>(positions.size()));
      }
      const auto rows = static_cast<int64_t>(positions.size());
      HostMatrix qkv = HostMatrix::Normal(rows, columns, random);
      Round(qkv);
      const DeviceMatrix device_qkv = ToDevice(qkv);
      HostMatrix want(rows, 4 * dim), got(rows, 4 * dim);
      const DeviceMatrix device_out = ToDevice(got);
      for (int b = 0; b < 2; ++b) {
        const auto blocks = static_cast<int32_t>(kContext / backends[b]->kv_block_tokens());
        std::vector<int32_t> tables(static_cast<size_t>(4 * blocks));
        for (size_t i = 0; i < tables.size(); ++i) {  // backwards
          tables[i] = static_cast<int32_t>(tables.size() - 1 - i);
        }
        backends[b]->SetBatch(*plans[b], {.tokens = positions,
                                          .positions = positions,
                                          .row_begin = row_begin,
                                          .context_lengths = contexts,
                                          .block_tables = tables,
                                          .max_blocks = blocks});
        backends[b]->RopeAndAttend(*plans[b], rope, attention, 1,
                                   b == 0 ? qkv.view() : device_qkv.view, *caches[b],
                                   b == 0 ? want.view() : device_out.view);
      }
      got = ToHost(device_out);
      ExpectNear(got, want, 1, 6);  // queries, keys, weights and outputs are rounded
      if (HasFatalFailure()) return;
    }
  }
}

}  // namespace
}  // namespace nibble

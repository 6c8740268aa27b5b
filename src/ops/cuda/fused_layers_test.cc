// Backend::RunLayers against the same layers operation by operation: on the reference in double,
// and on the GPU, whose rounding it may not exceed by much.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "src/base/checked.h"
#include "src/base/must.h"
#include "src/base/random.h"
#include "src/ops/cuda/cuda_backend.h"
#include "src/ops/cuda/device.h"
#include "src/ops/cuda/linear_q4.h"
#include "src/ops/layers_test_util.h"
#include "src/ops/ref/ref_backend.h"

namespace nibble {
namespace {

struct Shape {
  int64_t hidden = 512, intermediate = 1408, heads = 4, kv_heads = 4, head_dim = 128, layers = 3;
  int64_t group = 128;
  Grid grid = Grid::kSymmetric;
  bool qkv_bias = false;
  std::optional<int64_t> window;
  DType type = DType::kF16;
  int64_t rows = 1;        // of a step, each of a sequence
  bool fp8_cache = false;  // on the GPU

  int64_t q_features() const { return heads * head_dim; }
  int64_t qkv_features() const { return (heads + 2 * kv_heads) * head_dim; }
};

struct LayerOnDevice {
  Matrix input_norm, post_norm;
  float largest_input_gain, largest_post_gain;
  std::unique_ptr<PreparedLinear> qkv, output, gate_up, down;
};

// A model's layers on one backend, with a cache and a step's activations. `context`: of the longest
// sequence.
class Decoder {
 public:
  Decoder(Backend& backend, const Shape& shape, int64_t context)
      : backend_(backend), shape_(shape), blocks_(CeilDiv(context, backend.kv_block_tokens())) {
    const int64_t all_blocks = blocks_ * shape.rows + 3;
    Random random(1);
    for (int64_t i = 0; i < shape.layers; ++i) {
      LayerOnDevice layer;
      layer.input_norm = Gain(random, layer.largest_input_gain);
      layer.post_norm = Gain(random, layer.largest_post_gain);
      layer.qkv = Linear(random, {shape.qkv_features()}, shape.hidden, shape.qkv_bias);
      layer.output = Linear(random, {shape.hidden}, shape.q_features(), false);
      layer.gate_up = Linear(random, {shape.intermediate, shape.intermediate}, shape.hidden, false);
      layer.down = Linear(random, {shape.hidden}, shape.intermediate, false);
      layers_.push_back(std::move(layer));
    }
    const DType type = backend.activation_type();
    const bool is_fp8 = shape.fp8_cache && type != DType::kF32;
    cache_ = Must(backend.CreateKvCache({.layers = shape.layers,
                                         .kv_heads = shape.kv_heads,
                                         .head_dim = shape.head_dim,
                                         .block_tokens = backend.kv_block_tokens(),
                                         .dtype = is_fp8 ? DType::kF8E4M3 : type},
                                        all_blocks));
    plan_ = Must(backend.CreatePlan(
        {.rows = 512, .sequences = shape.rows, .context = context, .logit_rows = 1},
        {.hidden = shape.hidden,
         .intermediate = shape.intermediate,
         .heads = shape.heads,
         .kv_heads = shape.kv_heads,
         .head_dim = shape.head_dim,
         .vocabulary = 32,
         .window = shape.window}));
    const auto allocate = [&](int64_t rows, int64_t columns) {
      return Must(backend.Allocate(MemoryClass::kWorkspace, type, rows, columns));
    };
    residual_ = allocate(shape.rows, shape.hidden);
    normed_ = allocate(shape.rows, shape.hidden);
    qkv_ = allocate(512, shape.qkv_features());
    attention_ = allocate(shape.rows, shape.q_features());
    gated_ = allocate(shape.rows, shape.intermediate);
    // Not in order, so that a block's number is not its place.
    for (int64_t i = 0; i < blocks_ * shape.rows; ++i) {
      table_.push_back(static_cast<int32_t>((i * 7 + 3) % all_blocks));
    }
    if (all_blocks % 7 == 0) std::iota(table_.begin(), table_.end(), 2);
    for (int64_t i = 0; i < shape.head_dim / 2; ++i) {
      frequencies_.push_back(
          static_cast<float>(std::pow(10000.0, -2.0 * static_cast<double>(i) / shape.head_dim)));
    }
  }

  // Fills the cache with keys and values of so many tokens of the longest sequence.
  void Fill(int64_t tokens) {
    Random random(2);
    for (int64_t sequence = 0; sequence < shape_.rows; ++sequence) {
      const int64_t end = PositionOf(sequence, tokens);
      for (int64_t first = 0; first < end; first += 512) {
        const int64_t rows = std::min<int64_t>(512, end - first);
        for (int64_t layer = 0; layer < shape_.layers; ++layer) {
          SetBatch({{sequence, first, rows}});
          std::vector<float> values(static_cast<size_t>(rows * shape_.qkv_features()));
          for (float& value : values) value = static_cast<float>(random.Normal());
          Put(qkv_, values);
          backend_.RopeAndStoreKv(*plan_, {frequencies_}, Attention(), layer,
                                  qkv_.view().Rows(0, rows), *cache_);
          Must(backend_.ToHost(residual_.view()));
        }
      }
    }
  }

  // One step, whose residual is random, of the token at `position` of the longest sequence; what
  // comes out. `at_once`: by RunLayers.
  std::vector<float> Step(int64_t position, bool at_once) {
    Random random(static_cast<uint64_t>(position) + 3);
    std::vector<float> values(static_cast<size_t>(shape_.rows * shape_.hidden));
    for (float& value : values) value = static_cast<float>(random.Normal());
    Put(residual_, values);
    std::vector<Piece> pieces;
    for (int64_t i = 0; i < shape_.rows; ++i) pieces.push_back({i, PositionOf(i, position), 1});
    SetBatch(pieces);
    const RopeSpec rope{frequencies_};
    const LayerActivations activations{.residual = residual_.view(),
                                       .normed = normed_.view(),
                                       .qkv = qkv_.view().Rows(0, shape_.rows),
                                       .attention = attention_.view(),
                                       .gated = gated_.view()};
    std::vector<DecoderLayer> layers;
    for (const LayerOnDevice& layer : layers_) {
      layers.push_back({.input_norm = layer.input_norm.view(),
                        .post_attention_norm = layer.post_norm.view(),
                        .largest_input_gain = layer.largest_input_gain,
                        .largest_post_attention_gain = layer.largest_post_gain,
                        .qkv = layer.qkv.get(),
                        .output = layer.output.get(),
                        .gate_up = layer.gate_up.get(),
                        .down = layer.down.get(),
                        .attention = Attention()});
    }
    if (at_once) {
      EXPECT_TRUE(backend_.RunLayers(*plan_, layers, rope, 1e-5f, *cache_, activations));
    } else {
      RunLayersApart(backend_, *plan_, layers, rope, 1e-5f, *cache_, activations);
    }
    return Floats(Must(backend_.ToHost(residual_.view())));
  }

 private:
  // Of a sequence, when the longest one's is `longest`.
  static int64_t PositionOf(int64_t sequence, int64_t longest) {
    return std::max<int64_t>(0, longest - 9 * sequence);
  }
  AttentionSpec Attention() const {
    return {.heads = shape_.heads,
            .kv_heads = shape_.kv_heads,
            .head_dim = shape_.head_dim,
            .scale = 1 / std::sqrt(static_cast<float>(shape_.head_dim)),
            .window = shape_.window};
  }
  Matrix Gain(Random& random, float& largest) {
    std::vector<float> gain(static_cast<size_t>(shape_.hidden));
    for (float& value : gain) value = static_cast<float>(0.5 + random.Uniform());
    largest = *std::max_element(gain.begin(), gain.end());
    return Must(backend_.Upload(gain));
  }
  // One weight, or gate and up.
  std::unique_ptr<PreparedLinear> Linear(Random& random, const std::vector<int64_t>& outputs,
                                         int64_t inputs, bool has_bias) {
    std::vector<Weight> weights;
    std::vector<float> bias;
    for (const int64_t rows : outputs) {
      QuantizedWeight weight =
          QuantizedWeight::Empty({.group_size = shape_.group, .grid = shape_.grid}, rows, inputs);
      for (uint8_t& pair : weight.codes) pair = static_cast<uint8_t>(random.Below(256));
      for (uint16_t& scale : weight.scales) {
        scale =
            F16FromFloat(static_cast<float>((0.5 + random.Uniform()) * 0.2 / std::sqrt(inputs)));
      }
      for (uint8_t& zero : weight.zeros) {
        zero = shape_.grid == Grid::kAsymmetric ? static_cast<uint8_t>(6 + random.Below(5))
                                                : uint8_t{8};
      }
      weights.emplace_back(std::move(weight));
      for (int64_t i = 0; has_bias && i < rows; ++i) {
        bias.push_back(static_cast<float>(random.Normal()));
      }
    }
    std::vector<LinearSource> sources;
    for (const Weight& weight : weights) sources.push_back({&weight, bias});
    return Must(
        backend_.Prepare(sources, outputs.size() == 2 ? Interleave::kGateUp : Interleave::kNone));
  }
  // Rows of a sequence.
  struct Piece {
    int64_t sequence, position, rows;
  };
  void SetBatch(const std::vector<Piece>& pieces) {
    std::vector<int32_t> positions, row_begin = {0}, contexts, tables;
    for (const auto& [sequence, position, rows] : pieces) {
      for (int64_t i = 0; i < rows; ++i) positions.push_back(static_cast<int32_t>(position + i));
      row_begin.push_back(static_cast<int32_t>(positions.size()));
      contexts.push_back(static_cast<int32_t>(position + rows));
      const auto table = table_.begin() + sequence * blocks_;
      tables.insert(tables.end(), table, table + blocks_);
    }
    const std::vector<int32_t> tokens(positions.size());
    backend_.SetBatch(*plan_, {.tokens = tokens,
                               .positions = positions,
                               .row_begin = row_begin,
                               .context_lengths = contexts,
                               .block_tables = tables,
                               .max_blocks = blocks_});
  }
  // Rounded to float16 on every backend, so that all begin with the same numbers.
  void Put(Matrix& matrix, const std::vector<float>& values) {
    std::vector<float> rounded = values;
    for (float& value : rounded) {
      value = shape_.type == DType::kF16 ? FloatFromF16(F16FromFloat(value))
                                         : FloatFromBF16(BF16FromFloat(value));
    }
    const MatrixView view = matrix.view();
    if (view.dtype == DType::kF32) {
      std::copy(rounded.begin(), rounded.end(), view.row<float>(0));
      return;
    }
    std::vector<uint16_t> bits;
    for (const float value : rounded) {
      bits.push_back(shape_.type == DType::kF16 ? F16FromFloat(value) : BF16FromFloat(value));
    }
    EXPECT_EQ(cudaMemcpy(view.data, bits.data(), bits.size() * 2, cudaMemcpyHostToDevice),
              cudaSuccess);
    cudaDeviceSynchronize();  // the copy may return before it is done, and our stream does not wait
  }
  std::vector<float> Floats(MatrixView view) const {
    std::vector<float> values;
    for (int64_t r = 0; r < view.rows; ++r) {
      for (int64_t c = 0; c < view.columns; ++c) {
        values.push_back(view.dtype == DType::kF32   ? view.row<float>(r)[c]
                         : view.dtype == DType::kF16 ? FloatFromF16(view.row<uint16_t>(r)[c])
                                                     : FloatFromBF16(view.row<uint16_t>(r)[c]));
      }
    }
    return values;
  }

  Backend& backend_;
  Shape shape_;
  int64_t blocks_;
  std::vector<LayerOnDevice> layers_;
  std::unique_ptr<KvCache> cache_;
  std::unique_ptr<BatchPlan> plan_;
  Matrix residual_, normed_, qkv_, attention_, gated_;
  std::vector<int32_t> table_;  // [rows, blocks_]
  std::vector<float> frequencies_;
};

double Difference(const std::vector<float>& got, const std::vector<float>& want) {
  double squares = 0, all = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    const double difference = static_cast<double>(got[i]) - want[i];
    squares += difference * difference;
    all += static_cast<double>(want[i]) * want[i];
  }
  return std::sqrt(squares / all);
}

class RunLayersTest : public testing::Test {
 protected:
  void SetUp() override {
    if (ListCudaDevices().empty()) GTEST_SKIP() << "there is no NVIDIA GPU here";
  }
  // Rounding grows by very different factors from one random step to the next, for the operations
  // one by one as well: so no step may be far off, and half of them must be as near as those.
  void TearDown() override {
    if (at_once_.empty()) return;
    EXPECT_LT(Median(at_once_), 1.25 * Median(apart_)) << at_once_.size() << " steps";
  }

  // Steps from `context` tokens on: all of them by RunLayers, all operation by operation, and on
  // the reference.
  void Compare(const Shape& shape, int64_t context, int steps) {
    SCOPED_TRACE(fmt::format("{} rows, hidden {}, heads {} of {}, context {}", shape.rows,
                             shape.hidden, shape.heads, shape.kv_heads, context));
    const auto cuda = Must(MakeCudaBackend({.activations = shape.type}));
    const auto ref = MakeRefBackend(4);
    Decoder at_once(*cuda, shape, context + steps), apart(*cuda, shape, context + steps);
    Decoder reference(*ref, shape, context + steps);
    for (Decoder* decoder : {&at_once, &apart, &reference}) decoder->Fill(context);
    for (int i = 0; i < steps; ++i) {
      const std::vector<float> want = reference.Step(context + i, false);
      at_once_.push_back(Difference(at_once.Step(context + i, true), want));
      apart_.push_back(Difference(apart.Step(context + i, false), want));
      // With a cache of 8 bits a step may be far off one by one, too.
      const double limit = shape.type == DType::kF16 && !shape.fp8_cache ? 0.02 : 0.1;
      EXPECT_LT(at_once_.back(), std::max(limit, 1.5 * apart_.back()))
          << "step " << i << ", one by one " << apart_.back();
    }
  }

 private:
  static double Median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
  }

  std::vector<double> at_once_, apart_;
};

// All layers of one row in one kernel.
using FusedLayersTest = RunLayersTest;

TEST_F(FusedLayersTest, ContextsOfManyLengths) {
  for (const int64_t context : {0, 1, 30, 63, 127, 609, 2000}) Compare({}, context, 4);
}

TEST_F(FusedLayersTest, GroupedQueries) {
  Compare({.hidden = 1024, .heads = 8, .kv_heads = 2}, 100, 6);
  Compare({.hidden = 256, .heads = 7, .kv_heads = 1}, 300, 6);
}

TEST_F(FusedLayersTest, AsymmetricWeights) { Compare({.grid = Grid::kAsymmetric}, 70, 9); }

TEST_F(FusedLayersTest, ShortGroups) {
  Compare({.group = 64}, 70, 5);
  Compare({.group = 32, .grid = Grid::kAsymmetric}, 70, 5);
}

TEST_F(FusedLayersTest, SmallHeads) {
  Compare({.hidden = 640, .heads = 9, .kv_heads = 3, .head_dim = 64, .group = 64}, 100, 6);
  Compare({.heads = 8, .kv_heads = 8, .head_dim = 64}, 700, 4);
}

TEST_F(FusedLayersTest, BFloat16) {
  Compare({.type = DType::kBF16}, 100, 5);
  Compare({.heads = 8, .kv_heads = 4, .head_dim = 64, .group = 32, .type = DType::kBF16}, 33, 5);
}

TEST_F(FusedLayersTest, Biases) { Compare({.qkv_bias = true}, 70, 9); }

TEST_F(FusedLayersTest, Windows) {
  Compare({.window = 40}, 100, 6);
  Compare({.window = 1}, 5, 6);
}

TEST_F(FusedLayersTest, ManyInputs) {
  Compare({.hidden = 4096, .intermediate = 11008, .heads = 32, .kv_heads = 32, .layers = 1}, 40, 3);
  Compare({.hidden = 8192, .intermediate = 28672, .heads = 64, .kv_heads = 8, .layers = 1}, 40, 2);
}

// Layers of a few rows without kernels for their norms.
using LinkedLayersTest = RunLayersTest;

TEST_F(LinkedLayersTest, EveryRowCount) {
  for (int64_t rows = 2; rows <= cuda::kMostLinkedRows; ++rows) Compare({.rows = rows}, 100, 4);
}

TEST_F(LinkedLayersTest, BFloat16) {
  for (const int64_t rows : {4, 7}) {
    Compare({.group = 32, .type = DType::kBF16, .rows = rows}, 33, 12);
  }
}

TEST_F(LinkedLayersTest, SmallModels) {
  for (const int64_t rows : {2, 8}) {
    Compare({.hidden = 576,
             .intermediate = 1536,
             .heads = 9,
             .kv_heads = 3,
             .head_dim = 64,
             .group = 64,
             .rows = rows},
            150, 12);
  }
}

TEST_F(LinkedLayersTest, AsymmetricWeightsWithBiases) {
  for (const int64_t rows : {5, 8}) {
    Compare({.hidden = 1024,
             .heads = 8,
             .kv_heads = 2,
             .group = 32,
             .grid = Grid::kAsymmetric,
             .qkv_bias = true,
             .rows = rows},
            300, 12);
  }
}

TEST_F(LinkedLayersTest, CachesOfEightBits) {
  for (const int64_t rows : {2, 8}) Compare({.rows = rows, .fp8_cache = true}, 200, 12);
}

TEST_F(LinkedLayersTest, Windows) {
  for (const int64_t rows : {3, 8}) Compare({.window = 40, .rows = rows}, 100, 12);
}

// With more rows x does not fit beside the sums.
TEST_F(LinkedLayersTest, ManyInputs) {
  for (const int64_t rows : {2, 8}) {
    Compare({.hidden = 8192,
             .intermediate = 28672,
             .heads = 64,
             .kv_heads = 8,
             .layers = 1,
             .rows = rows},
            40, 2);
  }
}

// Heads that turn and attend in operations of their own.
TEST_F(LinkedLayersTest, UncommonHeads) {
  for (const int64_t rows : {4, 7}) Compare({.head_dim = 80, .group = 64, .rows = rows}, 90, 12);
}

}  // namespace
}  // namespace nibble

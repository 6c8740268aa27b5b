// A decode step of Llama-2-7B's shape on a GPU, and what each kind of operation adds to it: a step is
// captured whole, then without one kind at a time.
//
//   benchmark_step_cuda [fp16|q4] [LARGEST_BATCH] [CONTEXT] [kv8]
//
// All layers share one layer's weights, which are far larger than the caches.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "src/base/must.h"
#include "src/base/random.h"
#include "src/ops/cuda/cuda_backend.h"

namespace nibble {
namespace {

constexpr int64_t kHidden = 4096, kIntermediate = 11008, kHeads = 32, kDim = 128, kLayers = 32;

// kApart: rope and attention as operations of their own. kAtOnce: all layers, where the device can.
enum Part : unsigned {
  kNorms = 1,
  kLinears = 2,
  kRope = 4,
  kAttention = 8,
  kAll = 15,
  kApart = 16,
  kAtOnce = 32
};

class Step {
 public:
  Step(Backend& backend, bool quantized, int64_t batch, int64_t context, DType kv_type)
      : backend_(backend), batch_(batch) {
    const auto linear = [&](int64_t out, int64_t in, Interleave interleave) {
      const int64_t rows = interleave == Interleave::kGateUp ? out / 2 : out;
      const Weight weight = quantized ? Quantized(rows, in) : Dense(rows, in);
      std::vector<LinearSource> sources(interleave == Interleave::kGateUp ? 2 : 1, {&weight, {}});
      return Must(backend_.Prepare(sources, interleave));
    };
    qkv_ = linear(3 * kHidden, kHidden, Interleave::kNone);
    output_ = linear(kHidden, kHidden, Interleave::kNone);
    gate_up_ = linear(2 * kIntermediate, kHidden, Interleave::kGateUp);
    down_ = linear(kHidden, kIntermediate, Interleave::kNone);
    gain_ = Must(backend_.Upload(std::vector<float>(kHidden, 1.0f)));
    const int64_t block = backend_.kv_block_tokens(), blocks = (context + block - 1) / block;
    cache_ = Must(backend_.CreateKvCache({.layers = kLayers,
                                          .kv_heads = kHeads,
                                          .head_dim = kDim,
                                          .block_tokens = block,
                                          .dtype = kv_type},
                                         batch * blocks));
    const auto allocate = [&](int64_t columns) {
      return Must(backend_.Allocate(MemoryClass::kWorkspace, backend_.activation_type(), batch,
                                    columns));
    };
    residual_ = allocate(kHidden);
    normed_ = allocate(kHidden);
    attended_ = allocate(kHidden);
    wide_ = allocate(3 * kHidden);
    gated_ = allocate(kIntermediate);
    for (int64_t i = 0; i < batch; ++i) {
      tokens_.push_back(0);
      positions_.push_back(static_cast<int32_t>(context - 1));
      row_begin_.push_back(static_cast<int32_t>(i));
      contexts_.push_back(static_cast<int32_t>(context));
    }
    row_begin_.push_back(static_cast<int32_t>(batch));
    for (int64_t i = 0; i < batch * blocks; ++i) table_.push_back(static_cast<int32_t>(i));
    for (int64_t i = 0; i < kDim / 2; ++i) {
      frequencies_.push_back(static_cast<float>(std::pow(10000.0, -2.0 * i / kDim)));
    }
  }

  // Microseconds of a step of these parts: the median of several, each of several steps.
  double Time(unsigned parts) {
    const auto plan = Must(backend_.CreatePlan(
        {.rows = batch_, .sequences = batch_, .context = contexts_[0], .logit_rows = batch_},
        {.hidden = kHidden,
         .intermediate = kIntermediate,
         .heads = kHeads,
         .kv_heads = kHeads,
         .head_dim = kDim,
         .vocabulary = 32000}));
    backend_.SetBatch(*plan, {.tokens = tokens_,
                              .positions = positions_,
                              .row_begin = row_begin_,
                              .context_lengths = contexts_,
                              .block_tables = table_,
                              .max_blocks = static_cast<int64_t>(table_.size()) / batch_});
    const auto steps = [&](int count) {
      const auto begin = std::chrono::steady_clock::now();
      for (int i = 0; i < count; ++i) {
        backend_.Issue(*plan, [&] { Operations(*plan, parts); });
      }
      Must(backend_.ToHost(residual_.view().Columns(0, 1)));
      return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count() * 1e6;
    };
    steps(3);
    std::vector<double> times;
    for (int i = 0; i < 5; ++i) times.push_back(steps(20) / 20);
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
  }

 private:
  void Operations(BatchPlan& plan, unsigned parts) {
    const AttentionSpec attention{
        .heads = kHeads, .kv_heads = kHeads, .head_dim = kDim, .scale = 0.088f};
    const RopeSpec rope{frequencies_};
    const LayerActivations activations{.residual = residual_.view(),
                                       .normed = normed_.view(),
                                       .qkv = wide_.view(),
                                       .attention = attended_.view(),
                                       .gated = gated_.view()};
    const auto& [residual, normed, wide, attended, gated] = activations;
    if (parts & kAtOnce) {
      const DecoderLayer layer{.input_norm = gain_.view(),
                               .post_attention_norm = gain_.view(),
                               .largest_input_gain = 1,
                               .largest_post_attention_gain = 1,
                               .qkv = qkv_.get(),
                               .output = output_.get(),
                               .gate_up = gate_up_.get(),
                               .down = down_.get(),
                               .attention = attention};
      const std::vector<DecoderLayer> layers(kLayers, layer);
      if (backend_.RunLayers(plan, layers, rope, 1e-5f, *cache_, activations)) return;
    }
    for (int64_t layer = 0; layer < kLayers; ++layer) {
      if (parts & kNorms) backend_.RmsNorm(residual, gain_.view(), 1e-5f, normed);
      if (parts & kLinears) backend_.Linear(plan, *qkv_, normed, Epilogue::kNone, wide);
      switch (parts & (kRope | kAttention | kApart)) {
        case kRope | kAttention:
          backend_.RopeAndAttend(plan, rope, attention, layer, wide, *cache_, attended);
          break;
        case kRope | kAttention | kApart:
          backend_.Backend::RopeAndAttend(plan, rope, attention, layer, wide, *cache_, attended);
          break;
        case kRope:
          backend_.RopeAndStoreKv(plan, rope, attention, layer, wide, *cache_);
          break;
        case kAttention:
          backend_.Attend(plan, attention, layer, wide.Columns(0, kHidden), *cache_, attended);
          break;
      }
      if (parts & kLinears) backend_.Linear(plan, *output_, attended, Epilogue::kAdd, residual);
      if (parts & kNorms) backend_.RmsNorm(residual, gain_.view(), 1e-5f, normed);
      if (parts & kLinears) {
        backend_.Linear(plan, *gate_up_, normed, Epilogue::kSiluMul, gated);
        backend_.Linear(plan, *down_, gated, Epilogue::kAdd, residual);
      }
    }
  }

  static Weight Dense(int64_t rows, int64_t columns) {
    Random random(1);
    auto bytes = std::make_shared<std::vector<std::byte>>(static_cast<size_t>(rows * columns) * 2);
    for (size_t i = 0; i < bytes->size(); i += 2) {
      const uint16_t bits = F16FromFloat(static_cast<float>(random.Uniform() * 0.04 - 0.02));
      std::memcpy(bytes->data() + i, &bits, 2);
    }
    return DenseWeight{.dtype = DType::kF16,
                       .rows = rows,
                       .columns = columns,
                       .data = bytes->data(),
                       .owner = bytes};
  }
  static Weight Quantized(int64_t rows, int64_t columns) {
    Random random(1);
    QuantizedWeight weight = QuantizedWeight::Empty({.grid = Grid::kSymmetric}, rows, columns);
    for (uint8_t& pair : weight.codes) pair = static_cast<uint8_t>(random.Below(256));
    std::fill(weight.scales.begin(), weight.scales.end(), F16FromFloat(0.005f));
    std::fill(weight.zeros.begin(), weight.zeros.end(), uint8_t{8});
    return weight;
  }

  Backend& backend_;
  int64_t batch_;
  std::unique_ptr<PreparedLinear> qkv_, output_, gate_up_, down_;
  Matrix gain_, residual_, normed_, attended_, wide_, gated_;
  std::unique_ptr<KvCache> cache_;
  std::vector<int32_t> tokens_, positions_, row_begin_, contexts_, table_;
  std::vector<float> frequencies_;
};

int Main(int argc, char** argv) {
  const bool quantized = argc > 1 && std::string(argv[1]) == "q4";
  const int64_t largest = argc > 2 ? std::stoll(argv[2]) : 128;
  const int64_t context = argc > 3 ? std::stoll(argv[3]) : 612;
  const auto backend = Must(MakeCudaBackend({}));
  const bool kv8 = argc > 4 && std::string(argv[4]) == "kv8";
  const DType kv_type = kv8 ? DType::kF8E4M3 : backend->activation_type();
  fmt::print("{}, {}, context {} of {}: microseconds of a step's {} layers\n",
             backend->description(), quantized ? "4-bit, groups of 128" : "float16", context,
             Name(kv_type), kLayers);
  fmt::print("{:>6} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10}\n", "batch", "at once",
             "all", "rope apart", "linears", "-norms", "-rope", "-attend", "-linears");
  for (int64_t batch = 1; batch <= largest; batch *= 2) {
    Step step(*backend, quantized, batch, context, kv_type);
    const double all = step.Time(kAll);
    fmt::print("{:>6}", batch);
    for (const double us :
         {step.Time(kAll | kAtOnce), all, step.Time(kAll | kApart), step.Time(kLinears),
          all - step.Time(kAll & ~kNorms), all - step.Time(kAll & ~kRope),
          all - step.Time(kAll & ~kAttention), all - step.Time(kAll & ~kLinears)}) {
      fmt::print(" {:>10.0f}", us);
    }
    fmt::print("\n");
  }
  return 0;
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) { return nibble::Main(argc, argv); }

// Every operation of the backend against the reference; of attention only a few steps, of 4-bit
// products those of so many rows that the weight is dequantized first.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <span>
#include <tuple>
#include <utility>
#include <vector>

#include "src/base/must.h"
#include "src/base/random.h"
#include "src/ops/cuda/cuda_backend.h"
#include "src/ops/cuda/device.h"
#include "src/ops/ref/ref_backend.h"

namespace nibble {
namespace {

// A float32 matrix on the host; the device's copy is strided, and guarded by NaN after each row.
struct HostMatrix {
  int64_t rows = 0, columns = 0;
  std::vector<float> values;

  HostMatrix(int64_t r, int64_t c) : rows(r), columns(c), values(static_cast<size_t>(r * c)) {}
  static HostMatrix Normal(int64_t rows, int64_t columns, Random& random, double spread = 1) {
    HostMatrix matrix(rows, columns);
    for (float& value : matrix.values) value = static_cast<float>(random.Normal() * spread);
    return matrix;
  }
  float* row(int64_t r) { return values.data() + r * columns; }
  MatrixView view() { return {values.data(), DType::kF32, rows, columns, columns}; }
};

uint16_t ToBits(float value, DType type) {
  return type == DType::kF16 ? F16FromFloat(value) : BF16FromFloat(value);
}
float FromBits(uint16_t bits, DType type) {
  return type == DType::kF16 ? FloatFromF16(bits) : FloatFromBF16(bits);
}

class CudaBackendTest : public testing::TestWithParam<DType> {
 protected:
  void SetUp() override {
    if (ListCudaDevices().empty()) GTEST_SKIP() << "there is no NVIDIA GPU here";
    type_ = GetParam();
    cuda_ = Must(MakeCudaBackend({.activations = type_}));
    ref_ = MakeRefBackend(4);
  }

  // Rounds the host's values to the type, so that both sides begin with the same numbers.
  void Round(HostMatrix& matrix) const {
    for (float& value : matrix.values) value = FromBits(ToBits(value, type_), type_);
  }

  struct DeviceMatrix {
    Matrix memory;
    MatrixView view;
  };
  static constexpr int64_t kGap = 8;  // elements after each row, NaN

  DeviceMatrix ToDevice(HostMatrix& host) {
    const int64_t stride = (host.columns + kGap + 7) / 8 * 8;
    std::vector<uint16_t> bits(static_cast<size_t>(host.rows * stride),
                               ToBits(std::numeric_limits<float>::quiet_NaN(), type_));
    for (int64_t r = 0; r < host.rows; ++r) {
      for (int64_t c = 0; c < host.columns; ++c) {
        bits[static_cast<size_t>(r * stride + c)] = ToBits(host.row(r)[c], type_);
      }
    }
    DeviceMatrix device;
    device.memory = Must(cuda_->Allocate(MemoryClass::kWorkspace, type_, host.rows, stride));
    EXPECT_EQ(cudaMemcpy(device.memory.view().data, bits.data(), bits.size() * 2,
                         cudaMemcpyHostToDevice),
              cudaSuccess);
    cudaDeviceSynchronize();  // the copy may return before it is done, and our stream does not wait
    device.view = device.memory.view().Columns(0, host.columns);
    device.view.stride = stride;
    return device;
  }

  HostMatrix ToHost(const DeviceMatrix& device) {
    const MatrixView whole = Must(cuda_->ToHost(device.memory.view()));
    HostMatrix host(device.view.rows, device.view.columns);
    for (int64_t r = 0; r < host.rows; ++r) {
      const uint16_t* row = whole.row<uint16_t>(r);
      for (int64_t c = 0; c < host.columns; ++c) host.row(r)[c] = FromBits(row[c], type_);
      for (int64_t c = host.columns; c < whole.columns; ++c) {
        EXPECT_TRUE(std::isnan(FromBits(row[c], type_))) << "written after row " << r;
      }
    }
    return host;
  }

  // Elementwise within `roundings` of the type's, of the larger of the value and `scale`.
  void ExpectNear(HostMatrix& got, HostMatrix& want, double scale, double roundings) const {
    const double unit = type_ == DType::kF16 ? 0x1p-11 : 0x1p-8;
    for (int64_t r = 0; r < want.rows; ++r) {
      for (int64_t c = 0; c < want.columns; ++c) {
        const double bound =
            unit * roundings * std::max(std::abs(static_cast<double>(want.row(r)[c])), scale);
        ASSERT_NEAR(got.row(r)[c], want.row(r)[c], bound) << "row " << r << ", column " << c;
      }
    }
  }

  static constexpr ModelExtents kExtents{.hidden = 4096,
                                         .intermediate = 4096,
                                         .heads = 8,
                                         .kv_heads = 8,
                                         .head_dim = 64,
                                         .vocabulary = 64};

  DType type_ = DType::kF16;
  std::unique_ptr<Backend> cuda_, ref_;
};

INSTANTIATE_TEST_SUITE_P(Types, CudaBackendTest, testing::Values(DType::kF16, DType::kBF16),
                         [](const auto& info) { return std::string(Name(info.param)); });

// A dense weight that owns its bytes.
Weight Dense(HostMatrix& values, DType type) {
  auto bytes = std::make_shared<std::vector<std::byte>>(values.values.size() * BytesOf(type));
  for (size_t i = 0; i < values.values.size(); ++i) {
    if (type == DType::kF32) {
      std::memcpy(bytes->data() + 4 * i, &values.values[i], 4);
    } else {
      const uint16_t bits = ToBits(values.values[i], type);
      std::memcpy(bytes->data() + 2 * i, &bits, 2);
    }
  }
  return DenseWeight{.dtype = type,
                     .rows = values.rows,
                     .columns = values.columns,
                     .data = bytes->data(),
                     .owner = bytes};
}

TEST_P(CudaBackendTest, Normalizes) {
  Random random(1);
  for (const int64_t n : {1, 8, 31, 111, 172, 576, 4096, 5000}) {
    HostMatrix x = HostMatrix::Normal(9, n, random), gain = HostMatrix::Normal(1, n, random);
    Round(x);
    std::fill_n(x.row(3), n, 0.0f);
    HostMatrix want(9, n);
    ref_->RmsNorm(x.view(), gain.view(), 1e-5f, want.view());
    const Matrix uploaded = Must(cuda_->Upload(gain.values));
    const DeviceMatrix from = ToDevice(x);
    cuda_->RmsNorm(from.view, uploaded.view(), 1e-5f, from.view);  // in place
    HostMatrix got = ToHost(from);
    ExpectNear(got, want, 1e-3, 1.1);  // below, float16 has fewer bits
  }
}

TEST_P(CudaBackendTest, MultipliesDenseWeights) {
  Random random(2);
  const auto plan = Must(cuda_->CreatePlan(
      {.rows = 300, .sequences = 1, .context = 300, .logit_rows = 1}, kExtents));
  for (const int64_t rows : {1, 2, 3, 4, 5, 17, 128, 300}) {
    for (const auto& [out, in] : {std::pair<int64_t, int64_t>{8, 8}, {111, 172}, {576, 1536},
                                  {1000, 4096}, {64, 24}}) {
      for (const DType stored : {DType::kF32, DType::kF16, DType::kBF16}) {
        for (const bool has_bias : {false, true}) {
          HostMatrix w = HostMatrix::Normal(out, in, random, 1 / std::sqrt(in));
          Round(w);
          if (stored != DType::kF32 && stored != type_) continue;  // would round once more
          HostMatrix bias = HostMatrix::Normal(1, out, random);
          const Weight weight = Dense(w, stored);
          const LinearSource source{
              &weight, has_bias ? std::span<const float>(bias.values) : std::span<const float>()};
          const auto on_cuda = Must(cuda_->Prepare({&source, 1}, Interleave::kNone));
          const auto on_ref = Must(ref_->Prepare({&source, 1}, Interleave::kNone));
          EXPECT_EQ(on_cuda->bytes(),
                    cuda_->PreparedBytes(out, in, stored, nullptr, has_bias));
          HostMatrix x = HostMatrix::Normal(rows, in, random);
          Round(x);
          const DeviceMatrix from = ToDevice(x);
          for (const Epilogue epilogue : {Epilogue::kNone, Epilogue::kAdd}) {
            HostMatrix want = HostMatrix::Normal(rows, out, random);
            Round(want);
            const DeviceMatrix to = ToDevice(want);
            ref_->Linear(*plan, *on_ref, x.view(), epilogue, want.view());
            cuda_->Linear(*plan, *on_cuda, from.view, epilogue, to.view);
            HostMatrix got = ToHost(to);
            // A product may be rounded before a bias or the old value is added to it, and may be
            // larger than the sum.
            const bool twice = has_bias || epilogue == Epilogue::kAdd;
            ExpectNear(got, want, twice ? 4 : 1, twice ? 2.1 : 1.1);
          }
        }
      }
    }
  }
}

TEST_P(CudaBackendTest, GatesAndConcatenates) {
  Random random(3);
  const auto plan = Must(cuda_->CreatePlan(
      {.rows = 200, .sequences = 1, .context = 200, .logit_rows = 1}, kExtents));
  for (const int64_t rows : {1, 4, 33, 200}) {
    for (const auto& [out, in] : {std::pair<int64_t, int64_t>{8, 8}, {111, 176}, {1536, 576}}) {
      for (const bool has_bias : {false, true}) {
        HostMatrix w[2] = {HostMatrix::Normal(out, in, random, 1 / std::sqrt(in)),
                           HostMatrix::Normal(out, in, random, 1 / std::sqrt(in))};
        HostMatrix bias[2] = {HostMatrix::Normal(1, out, random),
                              HostMatrix::Normal(1, out, random)};
        for (HostMatrix& matrix : w) Round(matrix);
        const Weight weights[2] = {Dense(w[0], type_), Dense(w[1], type_)};
        LinearSource sources[2] = {{&weights[0], {}}, {&weights[1], {}}};
        for (int i = 0; has_bias && i < 2; ++i) sources[i].bias = bias[i].values;
        HostMatrix x = HostMatrix::Normal(rows, in, random);
        Round(x);
        const DeviceMatrix from = ToDevice(x);
        for (const bool gate_up : {true, false}) {
          const Interleave interleave = gate_up ? Interleave::kGateUp : Interleave::kNone;
          const auto on_cuda = Must(cuda_->Prepare(sources, interleave));
          const auto on_ref = Must(ref_->Prepare(sources, interleave));
          const Epilogue epilogue = gate_up ? Epilogue::kSiluMul : Epilogue::kNone;
          HostMatrix want(rows, gate_up ? out : 2 * out);
          const DeviceMatrix to = ToDevice(want);
          ref_->Linear(*plan, *on_ref, x.view(), epilogue, want.view());
          cuda_->Linear(*plan, *on_cuda, from.view, epilogue, to.view);
          HostMatrix got = ToHost(to);
          // Wide products round the gate and up first: each moves the outcome by a few roundings.
          ExpectNear(got, want, 4, gate_up ? 6 : 2.1);
        }
      }
    }
  }
}

// More than tens of rows of weights whose groups are no multiple of 32, on any device; gate and up
// where there are two.
TEST_P(CudaBackendTest, MultipliesDequantizedWeights) {
  Random random(7);
  const auto plan = Must(cuda_->CreatePlan(
      {.rows = 300, .sequences = 1, .context = 300, .logit_rows = 1}, kExtents));
  for (const auto& [out, in, group] : {std::tuple<int64_t, int64_t, int64_t>{111, 960, 48},
                                       {200, 2000, 16},
                                       {64, 222, kPerChannel}}) {
    for (const bool has_bias : {false, true}) {
      Weight weights[2];
      HostMatrix bias[2] = {HostMatrix::Normal(1, out, random), HostMatrix::Normal(1, out, random)};
      for (Weight& weight : weights) {
        QuantizedWeight w = QuantizedWeight::Empty({.group_size = group}, out, in);
        const auto step = static_cast<float>(0.2 / std::sqrt(in));  // so that outputs are near 1
        for (uint8_t& pair : w.codes) pair = static_cast<uint8_t>(random.Below(256));
        for (uint16_t& scale : w.scales) {
          scale = F16FromFloat(step * static_cast<float>(0.5 + random.Uniform()));
        }
        for (uint8_t& zero : w.zeros) zero = static_cast<uint8_t>(random.Below(16));
        weight = std::move(w);
      }
      LinearSource sources[2] = {{&weights[0], {}}, {&weights[1], {}}};
      for (int i = 0; has_bias && i < 2; ++i) sources[i].bias = bias[i].values;
      HostMatrix x = HostMatrix::Normal(200, in, random);
      Round(x);
      const DeviceMatrix from = ToDevice(x);
      for (const Epilogue epilogue : {Epilogue::kNone, Epilogue::kAdd, Epilogue::kSiluMul}) {
        const bool gate_up = epilogue == Epilogue::kSiluMul;
        const Interleave interleave = gate_up ? Interleave::kGateUp : Interleave::kNone;
        const std::span<const LinearSource> used(sources, gate_up ? 2 : 1);
        const auto on_cuda = Must(cuda_->Prepare(used, interleave));
        const auto on_ref = Must(ref_->Prepare(used, interleave));
        HostMatrix want = HostMatrix::Normal(200, out, random);
        Round(want);
        const DeviceMatrix to = ToDevice(want);
        ref_->Linear(*plan, *on_ref, x.view(), epilogue, want.view());
        cuda_->Linear(*plan, *on_cuda, from.view, epilogue, to.view);
        HostMatrix got = ToHost(to);
        ExpectNear(got, want, 4, gate_up ? 6 : 2.1);  // as of dense weights
      }
    }
  }
}

TEST_P(CudaBackendTest, EmbedsTurnsAndNormalizesLogitRows) {
  Random random(4);
  constexpr int64_t kHeads = 4, kKvHeads = 2, kDim = 24, kVocabulary = 50, kHidden = 72;
  constexpr int64_t kColumns = (kHeads + 2 * kKvHeads) * kDim;
  const AttentionSpec attention{.heads = kHeads,
                                .kv_heads = kKvHeads,
                                .head_dim = kDim,
                                .scale = 1 / std::sqrt(static_cast<float>(kDim))};
  const ModelExtents extents{.hidden = kHidden,
                             .intermediate = 64,
                             .heads = kHeads,
                             .kv_heads = kKvHeads,
                             .head_dim = kDim,
                             .vocabulary = kVocabulary};
  // Two sequences: rows at positions 0 … 39 and 100000 … 100002 (a long context's angles).
  std::vector<int32_t> tokens, positions, row_begin{0, 40, 43}, contexts{40, 100003}, logit_rows;
  for (int32_t r = 0; r < 43; ++r) {
    tokens.push_back(r * 7 % kVocabulary);
    positions.push_back(r < 40 ? r : 100000 + r - 40);
  }
  logit_rows = {0, 39, 42};
  std::vector<float> frequencies;
  for (int i = 0; i < kDim / 2; ++i) {
    frequencies.push_back(static_cast<float>(std::pow(10000.0, -2.0 * i / kDim)));
  }
  HostMatrix table = HostMatrix::Normal(kVocabulary, kHidden, random);
  HostMatrix qkv = HostMatrix::Normal(43, kColumns, random);
  Round(table);
  Round(qkv);
  const Weight weight = Dense(table, type_);
  const LinearSource source{&weight, {}};

  HostMatrix embedded[2] = {{43, kHidden}, {43, kHidden}};
  HostMatrix normed[2] = {{3, kHidden}, {3, kHidden}};
  HostMatrix gain = HostMatrix::Normal(1, kHidden, random);
  const Matrix uploaded_gain = Must(cuda_->Upload(gain.values));
  HostMatrix turned[2] = {qkv, qkv};
  Backend* const backends[2] = {ref_.get(), cuda_.get()};
  for (int i = 0; i < 2; ++i) {
    Backend& backend = *backends[i];
    const int64_t block = backend.kv_block_tokens();
    const int64_t max_blocks = 100003 / block + 1;
    // Every block of the long sequence's table is block 2 but those that are written.
    std::vector<int32_t> blocks(static_cast<size_t>(2 * max_blocks), 2);
    std::iota(blocks.begin(), blocks.begin() + 40 / block + 1, 3);
    const StepLimits limits{.rows = 43, .sequences = 2, .context = 100003 + 1, .logit_rows = 3};
    const auto plan = Must(backend.CreatePlan(limits, extents));
    const auto cache = Must(backend.CreateKvCache({.layers = 2,
                                                   .kv_heads = kKvHeads,
                                                   .head_dim = kDim,
                                                   .block_tokens = block,
                                                   .dtype = type_},
                                                  8));
    backend.SetBatch(*plan, {.tokens = tokens,
                             .positions = positions,
                             .row_begin = row_begin,
                             .context_lengths = contexts,
                             .block_tables = blocks,
                             .max_blocks = max_blocks,
                             .logit_rows = logit_rows});
    const auto prepared = Must(backend.Prepare({&source, 1}, Interleave::kNone));
    if (i == 0) {
      backend.Embed(*plan, *prepared, embedded[0].view());
      backend.NormLogitRows(*plan, embedded[0].view(), gain.view(), 1e-5f, normed[0].view());
      backend.RopeAndStoreKv(*plan, {frequencies}, attention, 1, turned[0].view(), *cache);
    } else {
      const DeviceMatrix out = ToDevice(embedded[1]), rows = ToDevice(normed[1]),
                         turn = ToDevice(turned[1]);
      backend.Embed(*plan, *prepared, out.view);
      backend.NormLogitRows(*plan, out.view, uploaded_gain.view(), 1e-5f, rows.view);
      backend.RopeAndStoreKv(*plan, {frequencies}, attention, 1, turn.view, *cache);
      embedded[1] = ToHost(out);
      normed[1] = ToHost(rows);
      turned[1] = ToHost(turn);
    }
  }
  EXPECT_EQ(embedded[1].values, embedded[0].values);
  ExpectNear(normed[1], normed[0], 1e-3, 1.1);
  // Queries alone: keys and values are only in the cache, where attention's tests find them.
  HostMatrix want(43, kHeads * kDim), got(43, kHeads * kDim);
  for (int64_t r = 0; r < 43; ++r) {
    std::copy_n(turned[0].row(r), want.columns, want.row(r));
    std::copy_n(turned[1].row(r), got.columns, got.row(r));
  }
  ExpectNear(got, want, 1, 1.1);
}

// Whole prompts, then steps that only decode, then one that does both; in a layer without and in one
// with a window.
TEST_P(CudaBackendTest, TurnsAndAttendsStepAfterStep) {
  Random random(6);
  const std::vector<std::vector<int32_t>> steps = {{30, 1, 64, 200}, {1, 1, 1, 1}, {1, 1, 1, 1},
                                                   {1, 1, 1, 1},     {1, 5, 1, 3}, {1, 1, 1, 1}};
  constexpr int32_t kContext = 256;
  constexpr int64_t kWindow = 50;
  for (const int64_t dim : {40, 64, 128, 256}) {
    AttentionSpec attention{.heads = 4,
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
                                                                                .vocabulary = 64,
                                                                                .window = kWindow}));
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
      }
      for (const int64_t layer : {0, 1}) {
        attention.window.reset();
        if (layer == 1) attention.window = kWindow;
        HostMatrix qkv = HostMatrix::Normal(rows, columns, random);
        Round(qkv);
        const DeviceMatrix device_qkv = ToDevice(qkv);
        HostMatrix want(rows, 4 * dim), got(rows, 4 * dim);
        const DeviceMatrix device_out = ToDevice(got);
        for (int b = 0; b < 2; ++b) {
          backends[b]->RopeAndAttend(*plans[b], rope, attention, layer,
                                     b == 0 ? qkv.view() : device_qkv.view, *caches[b],
                                     b == 0 ? want.view() : device_out.view);
        }
        got = ToHost(device_out);
        ExpectNear(got, want, 1, 6);  // queries, keys, weights and outputs are rounded
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(CudaBackendTest, CountsItsMemory) {
  const MemoryUse before = cuda_->memory().current();
  {
    const StepLimits limits{.rows = 64, .sequences = 8, .context = 512, .logit_rows = 8};
    const auto plan = Must(cuda_->CreatePlan(limits, kExtents));
    EXPECT_EQ(cuda_->memory().current()[MemoryClass::kWorkspace] - before[MemoryClass::kWorkspace],
              cuda_->PlanBytes(limits, kExtents));
  }
  EXPECT_EQ(cuda_->memory().current().total(), before.total());
  const auto too_much = cuda_->Allocate(MemoryClass::kKvCache, DType::kF32, 1 << 20, 1 << 20);
  ASSERT_FALSE(too_much.has_value());
  EXPECT_EQ(too_much.error().code(), ErrorCode::kResources);
}

TEST(CudaDeviceTest, RefusesWhatItCannotDo) {
  if (ListCudaDevices().empty()) GTEST_SKIP() << "there is no NVIDIA GPU here";
  EXPECT_EQ(MakeCudaBackend({.device = 99}).error().code(), ErrorCode::kBadInput);
  EXPECT_EQ(MakeCudaBackend({.activations = DType::kF32}).error().code(), ErrorCode::kUsage);
}

}  // namespace
}  // namespace nibble

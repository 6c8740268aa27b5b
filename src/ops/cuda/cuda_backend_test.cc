// Every operation of the backend but attention and 4-bit products, which have tests of their own,
// against the reference.
#include <gtest/gtest.h>

#include <numeric>

#include "src/ops/cuda/backend_test_util.h"

namespace nibble {
namespace {

INSTANTIATE_TEST_SUITE_P(Types, CudaBackendTest, testing::Values(DType::kF16, DType::kBF16),
                         [](const auto& info) { return std::string(Name(info.param)); });

TEST_P(CudaBackendTest, Normalizes) {
  Random random(1);
  for (const int64_t n : {1, 8, 31, 111, 172, 576, 4096, 5000}) {
    HostMatrix x = HostMatrix::Normal(9, n, random), gain = HostMatrix::Normal(1, n, random);
    Round(x);
    std::fill_n(x.row(3), n, 0.0f);
    HostMatrix want(9, n);
    ref_->RmsNorm({gain.view(), 1e-5f}, x.view(), want.view());
    const Matrix uploaded = Must(cuda_->Upload(gain.values));
    const DeviceMatrix from = ToDevice(x);
    cuda_->RmsNorm({uploaded.view(), 1e-5f}, from.view, from.view);  // in place
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

TEST_P(CudaBackendTest, EmbedsTurnsAndGathers) {
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
  HostMatrix gathered[2] = {{3, kHidden}, {3, kHidden}};
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
      backend.GatherLogitRows(*plan, embedded[0].view(), gathered[0].view());
      backend.RopeAndStoreKv(*plan, {frequencies}, attention, 1, turned[0].view(), *cache);
    } else {
      const DeviceMatrix out = ToDevice(embedded[1]), rows = ToDevice(gathered[1]),
                         turn = ToDevice(turned[1]);
      backend.Embed(*plan, *prepared, out.view);
      backend.GatherLogitRows(*plan, out.view, rows.view);
      backend.RopeAndStoreKv(*plan, {frequencies}, attention, 1, turn.view, *cache);
      embedded[1] = ToHost(out);
      gathered[1] = ToHost(rows);
      turned[1] = ToHost(turn);
    }
  }
  EXPECT_EQ(embedded[1].values, embedded[0].values);
  EXPECT_EQ(gathered[1].values, gathered[0].values);
  // Queries alone: keys and values are only in the cache, where attention's tests find them.
  HostMatrix want(43, kHeads * kDim), got(43, kHeads * kDim);
  for (int64_t r = 0; r < 43; ++r) {
    std::copy_n(turned[0].row(r), want.columns, want.row(r));
    std::copy_n(turned[1].row(r), got.columns, got.row(r));
  }
  ExpectNear(got, want, 1, 1.1);
}

TEST_P(CudaBackendTest, ChoosesTheFirstOfTheGreatest) {
  Random random(5);
  for (const int64_t columns : {1, 31, 1024, 32000, 128256}) {
    HostMatrix logits = HostMatrix::Normal(5, columns, random);
    if (columns > 40) {
      logits.row(1)[17] = logits.row(1)[40] = 100;
      std::fill_n(logits.row(2), columns, -std::numeric_limits<float>::infinity());
      logits.row(3)[0] = std::numeric_limits<float>::quiet_NaN();
      logits.row(3)[columns - 1] = 100;
    }
    const Matrix on_device =
        Must(cuda_->Allocate(MemoryClass::kWorkspace, DType::kF32, 5, columns));
    ASSERT_EQ(cudaMemcpy(on_device.view().data, logits.values.data(), logits.values.size() * 4,
                         cudaMemcpyHostToDevice),
              cudaSuccess);
    cudaDeviceSynchronize();
    const Matrix tokens = Must(cuda_->Allocate(MemoryClass::kWorkspace, DType::kI32, 5, 1));
    cuda_->ArgMax(on_device.view(), tokens.view());
    const MatrixView got = Must(cuda_->ToHost(tokens.view()));
    for (int64_t r = 0; r < 5; ++r) {
      const float* row = logits.row(r);
      int32_t want = 0;
      for (int32_t c = 1; c < columns; ++c) {
        if (row[c] > row[want] || std::isnan(row[want])) want = c;
      }
      EXPECT_EQ(*got.row<int32_t>(r), want) << "row " << r << " of " << columns;
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

#include "src/ops/cuda/attention.h"

#include <gtest/gtest.h>

#include "src/ops/cuda/attention_test_util.h"

namespace nibble::cuda {
namespace {

TEST_F(CudaAttentionTest, DecodesContextsOfManyLengths) {
  for (const DType type : kTypes) {
    for (const int64_t head_dim : {8, 40, 64, 80, 96, 128, 256}) {
      Compare(
          {Spec(4, 2, head_dim),
           type,
           {{1}, {2}, {15}, {16}, {17}, {31}, {32}, {33}, {63}, {64}, {65}, {127}, {612}, {2000}}});
    }
  }
}

TEST_F(CudaAttentionTest, DecodesGroupsOfEverySize) {
  for (const int64_t group : {1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 32, 71}) {
    const DType type = kTypes[group % 2];
    Compare({Spec(2 * group, 2, 64), type, {{33}, {1}, {300}}});
    Compare({Spec(group, 1, 128), type, {{200}}});
  }
}

TEST_F(CudaAttentionTest, DecodesHoweverTheWorkIsCut) {
  Compare({Spec(2, 1, 64), DType::kF16, {{6000}}});   // one context in many parts
  Compare({Spec(2, 1, 64), DType::kF16, {{20000}}});  // and in small ones at the end
  Setting many{Spec(16, 16, 64), DType::kBF16, {}};   // hardly any context in parts
  for (int64_t s = 0; s < 150; ++s) many.pieces.push_back({1 + s * 37 % 140});
  Compare(many);
  many.pieces.resize(20);
  for (Piece& piece : many.pieces) piece.context += 200;
  Compare(many);
}

// Contexts of about the same length, which are cut by pairs of sequence and KV head: whole ones,
// and a few blocks to each.
TEST_F(CudaAttentionTest, DecodesContextsOfOneLength) {
  for (const auto& [sequences, kv_heads] :
       {std::pair{1, 4}, {2, 8}, {3, 1}, {8, 16}, {16, 32}, {17, 31}, {64, 9}, {150, 4}}) {
    for (const int64_t context : {1, 60, 300, 612}) {
      Setting setting{Spec(kv_heads, kv_heads, 64), kTypes[sequences % 2], {}};
      for (int s = 0; s < sequences; ++s)
        setting.pieces.push_back({context - (context > 1 ? s % 3 : 0)});
      Compare(setting);
    }
  }
}

TEST_F(CudaAttentionTest, TakesManyPairsInTurn) {
  Compare(ManyPairs(64, DType::kF16));
  Setting windowed = ManyPairs(128, DType::kBF16);
  windowed.spec.window = 290;
  Compare(windowed);
}

TEST_F(CudaAttentionTest, PrefillsWholeContexts) {
  for (const DType type : kTypes) {
    for (const int64_t head_dim : {8, 40, 64, 80, 96, 128, 256}) {
      Compare(
          {Spec(4, 2, head_dim),
           type,
           {{2, 2}, {31, 31}, {63, 63}, {64, 64}, {65, 65}, {127, 127}, {129, 129}, {300, 300}}});
    }
  }
}

TEST_F(CudaAttentionTest, PrefillsChunksOfContexts) {
  for (const DType type : kTypes) {
    for (const int64_t head_dim : {64, 72, 128, 192}) {
      Compare({Spec(6, 2, head_dim),
               type,
               {{33, 2},
                {64, 32},
                {65, 64},
                {200, 70},
                {612, 65},
                {613, 128},
                {2000, 5},
                {32, 31},
                {900, 257}}});
    }
  }
}

TEST_F(CudaAttentionTest, MindsTheWindow) {
  const std::vector<Piece> pieces = {{1},      {40},      {612},      {130},     {500},
                                     {40, 40}, {200, 70}, {300, 300}, {612, 65}, {100, 2}};
  for (const int64_t window : {1, 2, 15, 16, 17, 31, 32, 33, 64, 65, 100, 256, 611, 612, 613}) {
    Compare({Spec(4, 2, window % 2 == 0 ? 64 : 128, window), kTypes[window % 2], pieces});
  }
  Compare({Spec(4, 4, 256, 50), DType::kF16, pieces});
  Compare({Spec(4, 4, 40, int64_t{1} << 40), DType::kF16, pieces});
}

TEST_F(CudaAttentionTest, RandomSettings) {
  Normals normals(20);
  Random& random = normals.random();
  const auto pick = [&](const std::vector<int64_t>& from) {
    return from[random.Below(from.size())];
  };
  for (int i = 0; i < 300 && !HasFatalFailure(); ++i) {
    const int64_t kv_heads = 1 + static_cast<int64_t>(random.Below(5));
    const int64_t group = pick({1, 1, 2, 3, 4, 5, 7, 8, 12, 16, 20});
    const int64_t head_dim =
        random.Below(2) == 0 ? pick({64, 128}) : 8 + 8 * static_cast<int64_t>(random.Below(32));
    std::optional<int64_t> window;
    if (random.Below(3) == 0) window = 1 + static_cast<int64_t>(random.Below(150));
    Setting setting{
        Spec(kv_heads * group, kv_heads, head_dim, window), kTypes[random.Below(2)], {}};
    setting.gap = 8 * static_cast<int64_t>(random.Below(6));
    double work = 3e7;  // what the reference may take
    const auto pieces = 1 + random.Below(6);
    while (setting.pieces.size() < pieces) {
      const int64_t context = 1 + static_cast<int64_t>(random.Below(pick({10, 70, 300, 1000})));
      const int64_t rows =
          random.Below(2) == 0
              ? 1
              : 1 + static_cast<int64_t>(random.Below(std::min(context, int64_t{200})));
      const double wanted = 2.0 * static_cast<double>(rows * context * kv_heads * group * head_dim);
      if (wanted > work && !setting.pieces.empty()) break;
      if (wanted > work) continue;
      work -= wanted;
      setting.pieces.push_back({context, rows});
    }
    Compare(setting, random.Next());
  }
}

TEST_F(CudaAttentionTest, NaNStaysInItsSequence) {
  using enum CudaKernels;
  for (const auto& [head_dim, kernels] :
       {std::pair{64, kAuto}, {64, kPortable}, {80, kAuto}, {128, kAuto}, {128, kPortable}}) {
    Normals normals(3);
    HostCase host({.spec = Spec(4, 2, head_dim),
                   .type = DType::kF16,
                   .pieces = {{70}, {300}, {100, 40}, {90}, {200, 130}},
                   .kernels = kernels},
                  normals);
    const std::vector<uint16_t> clean = Run(host);
    for (const size_t poisoned : {size_t{1}, size_t{2}}) {
      HostCase sick = host;
      const int32_t block = host.tables[poisoned * static_cast<size_t>(host.max_blocks)];
      const auto elements = static_cast<size_t>(kBlockTokens * 2 * head_dim);
      std::fill_n(sick.keys.begin() + static_cast<ptrdiff_t>(static_cast<size_t>(block) * elements),
                  elements, kPoison);
      const std::vector<uint16_t> out = Run(sick);
      const auto columns = static_cast<size_t>(host.setting.columns());
      for (size_t i = 0; i < out.size(); ++i) {
        const auto row = static_cast<int32_t>(i / columns);
        if (row >= host.row_begin[poisoned] && row < host.row_begin[poisoned + 1]) {
          ASSERT_TRUE(std::isnan(FloatFromF16(out[i]))) << row;
        } else {
          ASSERT_EQ(out[i], clean[i]) << row;
        }
      }
    }
  }
}

TEST_F(CudaAttentionTest, HugeScoresDoNotOverflow) {
  Normals normals(4);
  HostCase host({Spec(4, 2, 64), DType::kBF16, {{500}, {1}, {200, 150}}}, normals);
  for (auto* values : {&host.q, &host.keys, &host.plain[0]}) {
    for (uint16_t& value : *values) {
      if (value != kPoison) value = BF16FromFloat(1000 * FloatFromBF16(value));
    }
  }
  const std::vector<float> want = host.Reference();
  for (const CudaKernels kernels : {CudaKernels::kAuto, CudaKernels::kPortable}) {
    host.setting.kernels = kernels;
    const std::vector<uint16_t> got = Run(host);
    double error = 0, total = 0;
    for (size_t i = 0; i < want.size(); ++i) {
      // Nearly all weighs on one token; scores of 1e7 carry an error of about 1.
      ASSERT_TRUE(std::abs(FloatFromBF16(got[i])) <= 5) << i;
      error += std::pow(FloatFromBF16(got[i]) - want[i], 2);
      total += std::pow(want[i], 2);
    }
    EXPECT_LT(error, 1e-3 * total);
  }
}

// One scratch memory serves batches of different sizes, in any order; results repeat bit for bit.
TEST_F(CudaAttentionTest, ScratchServesAllBatches) {
  Normals normals(5);
  const AttentionSpec spec = Spec(8, 4, 128);
  std::vector<HostCase> hosts;
  for (const int sequences : {1, 3, 40, 5}) {
    Setting setting{spec, DType::kF16, {}};
    for (int i = 0; i < sequences; ++i) {
      setting.pieces.push_back({1 + static_cast<int64_t>(normals.random().Below(900))});
    }
    hosts.emplace_back(setting, normals);
  }
  const Buffer scratch = Scratch(spec);
  std::vector<std::vector<uint16_t>> first;
  for (int round = 0; round < 4; ++round) {
    for (size_t i = 0; i < hosts.size(); ++i) {
      const DeviceCase device = ToDevice(hosts[i]);
      Decode(hosts[i], device, scratch);
      const std::vector<uint16_t> out = Download(hosts[i], device);
      if (round == 0) {
        ExpectNear(hosts[i], out, hosts[i].Reference());
        first.push_back(out);
      } else {
        EXPECT_EQ(out, first[i]);
      }
    }
  }
}

// A captured graph reads lengths, rows and tables where they lie when it runs.
TEST_F(CudaAttentionTest, AGraphServesEveryStep) {
  Normals normals(6);
  const AttentionSpec spec = Spec(8, 2, 64);
  const HostCase before({spec, DType::kF16, {{640}, {612}, {5}}}, normals);
  const HostCase after({spec, DType::kF16, {{600}, {3}, {333}}}, normals);
  DeviceCase device = ToDevice(before);
  const Buffer scratch = Scratch(spec);
  Decode(before, device, scratch);  // loads the kernel
  Must(stream_->Synchronize());
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  Must(cudaStreamBeginCapture(stream_->get(), cudaStreamCaptureModeThreadLocal));
  Decode(before, device, scratch);
  Must(cudaStreamEndCapture(stream_->get(), &graph));
  Must(cudaGraphInstantiate(&executable, graph, 0));
  const auto overwrite = [](Buffer& to, const auto& from) {
    const size_t bytes = from.size() * sizeof(from[0]);
    CHECK(bytes <= to.size());
    Must(cudaMemcpy(to.data(), from.data(), bytes, cudaMemcpyHostToDevice));
  };
  for (const HostCase* host : {&before, &after, &before}) {
    overwrite(device.keys, host->keys);
    overwrite(device.values, host->values);
    overwrite(device.q, host->q);
    overwrite(device.lengths, host->lengths);
    overwrite(device.parts, Parts(*host));
    // The graph's tables have the width of the first batch.
    std::vector<int32_t> tables(3 * static_cast<size_t>(before.max_blocks), kNoBlock);
    for (size_t s = 0; s < 3; ++s) {
      std::copy_n(host->tables.begin() + static_cast<ptrdiff_t>(s) * host->max_blocks,
                  host->max_blocks, tables.begin() + static_cast<ptrdiff_t>(s) * before.max_blocks);
    }
    overwrite(device.tables, tables);
    Must(cudaGraphLaunch(executable, stream_->get()));
    ExpectNear(*host, Download(*host, device), host->Reference());
  }
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
}

}  // namespace
}  // namespace nibble::cuda

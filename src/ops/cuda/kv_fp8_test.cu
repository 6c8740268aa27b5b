#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "src/ops/cuda/attention_test_util.h"
#include "src/ops/cuda/kv_fp8.cuh"
#include "src/ops/cuda/kv_fp8.h"

namespace nibble::cuda {
namespace {

constexpr uint8_t kPoisonCode = 0x7f;            // NaN
constexpr uint32_t kPoisonScales = 0x7fc07fc0u;  // likewise

float FromBits(uint32_t bits) { return std::bit_cast<float>(bits); }

float FromCode(uint8_t code) {
  const __half_raw half = __nv_cvt_fp8_to_halfraw(code, __NV_E4M3);
  return FloatFromF16(half.x);
}

size_t PlaceOf(int64_t element) {
  return static_cast<size_t>(Fp8Place(static_cast<int>(element / 2 * 2))) +
         static_cast<size_t>(element % 2);
}

class KvFp8Test : public CudaAttentionTest {
 protected:
  // A cache of 8 bits on the host.
  struct Codes {
    std::vector<uint8_t> keys, values;
    std::vector<uint32_t> scales;
  };

  // Rounds the case's keys and values to 8 bits, which become its own.
  static Codes Quantize(HostCase& host) {
    const AttentionSpec& spec = host.setting.spec;
    const DType type = host.setting.type;
    const auto dim = static_cast<size_t>(spec.head_dim);
    Codes codes{.keys = std::vector<uint8_t>(host.keys.size(), kPoisonCode),
                .values = std::vector<uint8_t>(host.values.size(), kPoisonCode),
                .scales = std::vector<uint32_t>(host.keys.size() / dim, kPoisonScales)};
    size_t at = 0;  // of the case's plain numbers
    for (size_t p = 0; p < host.setting.pieces.size(); ++p) {
      for (int64_t t = 0; t < host.setting.pieces[p].context; ++t) {
        const int64_t block = host.tables[p * static_cast<size_t>(host.max_blocks) +
                                          static_cast<size_t>(t / kBlockTokens)];
        for (int64_t head = 0; head < spec.kv_heads; ++head, at += dim) {
          const auto token =
              static_cast<size_t>((block * spec.kv_heads + head) * kBlockTokens + t % kBlockTokens);
          codes.scales[token] = 0;
          for (const int half : {0, 1}) {
            uint16_t* plain = host.plain[half].data() + at;
            float largest = 0;
            for (size_t i = 0; i < dim; ++i) {
              largest = std::max(largest, std::abs(ToFloat(plain[i], type)));
            }
            const uint32_t scale = Fp8ScaleBits(largest);
            codes.scales[token] |= half == 0 ? scale >> 16 : scale;
            for (size_t i = 0; i < dim; ++i) {
              const __nv_fp8_storage_t code = __nv_cvt_float_to_fp8(
                  ToFloat(plain[i], type) / FromBits(scale), __NV_SATFINITE, __NV_E4M3);
              (half == 0 ? codes.keys
                         : codes.values)[token * dim + PlaceOf(static_cast<int64_t>(i))] = code;
              const float value = FromCode(code) * FromBits(scale);
              plain[i] = type == DType::kF16 ? F16FromFloat(value) : BF16FromFloat(value);
              EXPECT_EQ(ToFloat(plain[i], type), value);  // exact in 16 bits
            }
          }
        }
      }
    }
    return codes;
  }

  // Decode of the cache as it is, prefill of what ExpandKv makes of it.
  void Compare(Setting setting, uint64_t seed = 1) {
    SCOPED_TRACE(setting.ToString());
    Normals normals(seed);
    HostCase host(setting, normals);
    const Codes codes = Quantize(host);
    DeviceCase device = ToDevice(host);
    const Buffer keys = Upload(codes.keys), values = Upload(codes.values);
    const Buffer scales = Upload(codes.scales),
                 scratch = Scratch(setting.spec);
    const std::vector<uint16_t> poison(host.keys.size(), kPoison);
    const Buffer wide_keys = Upload(poison), wide_values = Upload(poison);
    device.kv = {keys.data(), values.data(), scales.as<uint32_t>()};
    Decode(host, device, scratch);
    const KvView wide{wide_keys.data(), wide_values.data()};
    ExpandKv(*stream_, device.batch, setting.spec, setting.type, device.kv, wide);
    device.kv = wide;
    Prefill(host, device);
    ExpectNear(host, Download(host, device), host.Reference());
  }
};

TEST_F(KvFp8Test, DecodesContextsOfManyLengths) {
  for (const DType type : kTypes) {
    for (const int64_t head_dim : {16, 48, 64, 80, 96, 112, 128, 256}) {
      Compare(
          {Spec(4, 2, head_dim),
           type,
           {{1}, {2}, {15}, {16}, {17}, {31}, {32}, {33}, {63}, {64}, {65}, {127}, {612}, {2000}}});
    }
  }
}

TEST_F(KvFp8Test, TakesManyPairsInTurn) { Compare(ManyPairs(128, DType::kF16)); }

TEST_F(KvFp8Test, DecodesGroupsWindowsAndParts) {
  for (const int64_t group : {1, 2, 3, 7, 8, 9, 15, 16, 17, 32, 71}) {
    Compare({Spec(2 * group, 2, 64), kTypes[group % 2], {{33}, {1}, {300}}});
    Compare({Spec(group, 1, 128), kTypes[group % 2], {{200}}});
  }
  for (const int64_t window : {1, 15, 16, 17, 33, 100, 612}) {
    Compare({Spec(4, 2, 128, window), kTypes[window % 2], {{1}, {40}, {612}, {130}, {33}}});
  }
  Compare({Spec(2, 1, 64), DType::kF16, {{20000}}});
  Compare({Spec(2, 1, 128), DType::kBF16, {{6000}, {5}}});
}

TEST_F(KvFp8Test, PrefillsBesideDecode) {
  for (const DType type : kTypes) {
    for (const int64_t head_dim : {48, 64, 128}) {
      Compare(
          {Spec(4, 2, head_dim), type, {{300, 300}, {612}, {600, 100}, {33, 2}, {1}, {129, 129}}});
    }
  }
}

TEST_F(KvFp8Test, RandomSettings) {
  Normals normals(5);
  Random& random = normals.random();
  for (int i = 0; i < 150 && !HasFatalFailure(); ++i) {
    constexpr int64_t kGroups[] = {1, 2, 3, 4, 8, 20};
    const int64_t kv_heads = 1 + static_cast<int64_t>(random.Below(6));
    const int64_t head_dim = 16 * (1 + static_cast<int64_t>(random.Below(10)));
    std::optional<int64_t> window;
    if (random.Below(3) == 0) window = 1 + static_cast<int64_t>(random.Below(150));
    Setting setting{Spec(kv_heads * kGroups[random.Below(6)], kv_heads, head_dim, window),
                    kTypes[random.Below(2)],
                    {}};
    setting.gap = 8 * static_cast<int64_t>(random.Below(6));
    const auto pieces = 1 + random.Below(20);
    while (setting.pieces.size() < pieces) {
      const auto context = 1 + static_cast<int64_t>(random.Below(300));
      const bool whole = random.Below(4) == 0;
      setting.pieces.push_back({context, whole ? context : 1});
    }
    Compare(setting, random.Next());
  }
}

// Blocks that sequences share are there for each of them.
TEST_F(KvFp8Test, ExpandsSharedBlocks) {
  constexpr int64_t kDim = 32;
  const AttentionSpec spec = Spec(2, 2, kDim);
  const std::vector<uint8_t> codes(4 * 2 * kBlockTokens * kDim, 0x38);    // one
  const std::vector<uint32_t> scales(4 * 2 * kBlockTokens, 0x40003f80u);  // one, two
  const Buffer device_codes = Upload(codes), device_scales = Upload(scales);
  const std::vector<uint16_t> poison(codes.size(), kPoison);
  const Buffer keys = Upload(poison), values = Upload(poison);
  // The second sequence has one row, the third shares its first block with the first alone.
  const Buffer tables = Upload(std::vector<int32_t>{0, 1, 2, kNoBlock, 0, 3});
  const Buffer row_begin = Upload(std::vector<int32_t>{0, 2, 3, 6});
  const Buffer lengths = Upload(std::vector<int32_t>{40, 20, 33});
  const Buffer tiles = Upload(std::vector<PrefillTile>{{2, 3}, {0, 0}});
  const DeviceBatch batch{.row_begin = row_begin.as<int32_t>(),
                          .context_lengths = lengths.as<int32_t>(),
                          .block_tables = tables.as<int32_t>(),
                          .prefill_tiles = tiles.as<PrefillTile>(),
                          .rows = 6,
                          .sequences = 3,
                          .table_stride = 2,
                          .prefill_tile_count = 2,
                          .longest_prefill = 40};
  ExpandKv(*stream_, batch, spec, DType::kF16,
           {device_codes.data(), device_codes.data(), device_scales.as<uint32_t>()},
           {keys.data(), values.data()});
  Must(stream_->Synchronize());
  std::vector<uint16_t> got(codes.size());
  for (const bool is_key : {true, false}) {
    Must(cudaMemcpy(got.data(), (is_key ? keys : values).data(), 2 * got.size(),
                    cudaMemcpyDeviceToHost));
    for (size_t i = 0; i < got.size(); ++i) {
      const bool wanted = i / (2 * kBlockTokens * kDim) != 2;  // block 2 is decode's
      ASSERT_EQ(got[i], wanted ? F16FromFloat(is_key ? 1 : 2) : kPoison) << i;
    }
  }
}

class StoreFp8Test : public KvFp8Test {};

TEST_F(StoreFp8Test, StoresTheNearestNumbers) {
  for (const DType type : kTypes) {
    for (const int64_t dim : {16, 48, 64, 80, 128, 256}) {
      SCOPED_TRACE(fmt::format("{} of {}", Name(type), dim));
      constexpr int64_t kHeads = 5, kKvHeads = 3, kRows = 4;
      constexpr int32_t kPositions[kRows] = {0, 31, 32, 77};
      const int64_t columns = (kHeads + 2 * kKvHeads) * dim, half = dim / 2;
      Normals normals(static_cast<uint64_t>(dim));
      std::vector<uint16_t> qkv(static_cast<size_t>(kRows * columns));
      for (size_t i = 0; i < qkv.size(); ++i) {
        // Heads of many magnitudes, and one of zeros.
        const auto head = static_cast<int64_t>(i) % columns / dim;
        const float x = ToFloat(normals.Next(type), type) *
                        (head == kHeads ? 0.0f : std::exp2(static_cast<float>(4 * (head % 4) - 8)));
        qkv[i] = type == DType::kF16 ? F16FromFloat(x) : BF16FromFloat(x);
      }
      std::vector<float> angles;
      for (const int32_t position : kPositions) {
        for (int64_t i = 0; i < half; ++i) {
          const double angle = position * std::pow(10000.0, -2.0 * static_cast<double>(i) / dim);
          angles.push_back(static_cast<float>(std::cos(angle)));
          angles.push_back(static_cast<float>(std::sin(angle)));
        }
      }
      // A row for each sequence; tables of three blocks in a cache of twelve.
      std::vector<int32_t> tables(3 * kRows);
      for (size_t i = 0; i < tables.size(); ++i) tables[i] = static_cast<int32_t>(i * 5 % 12);
      const Buffer device_qkv = Upload(qkv), device_angles = Upload(angles);
      const Buffer device_tables = Upload(tables);
      const Buffer positions = Upload(std::vector<int32_t>(kPositions, kPositions + kRows));
      const Buffer sequence = Upload(std::vector<int32_t>{0, 1, 2, 3});
      const size_t tokens = 12 * kKvHeads * kBlockTokens;
      std::vector<uint8_t> codes(tokens * static_cast<size_t>(dim), kPoisonCode);
      std::vector<uint32_t> scales(tokens, kPoisonScales);
      const Buffer keys = Upload(codes), values = Upload(codes), device_scales = Upload(scales);
      const DeviceBatch batch{.positions = positions.as<int32_t>(),
                              .row_sequence = sequence.as<int32_t>(),
                              .block_tables = device_tables.as<int32_t>(),
                              .rows = kRows,
                              .sequences = kRows,
                              .table_stride = 3};
      RopeAndStoreFp8(*stream_, batch, Spec(kHeads, kKvHeads, dim),
                      reinterpret_cast<const float2*>(device_angles.data()),
                      {device_qkv.data(), type, kRows, columns, columns},
                      {keys.data(), values.data(), device_scales.as<uint32_t>()});
      Must(stream_->Synchronize());
      std::vector<uint16_t> turned(qkv.size());
      std::vector<uint8_t> codes_of[2] = {codes, codes};
      Must(cudaMemcpy(turned.data(), device_qkv.data(), 2 * turned.size(), cudaMemcpyDeviceToHost));
      Must(cudaMemcpy(codes_of[0].data(), keys.data(), codes.size(), cudaMemcpyDeviceToHost));
      Must(cudaMemcpy(codes_of[1].data(), values.data(), codes.size(), cudaMemcpyDeviceToHost));
      Must(cudaMemcpy(scales.data(), device_scales.data(), 4 * tokens, cudaMemcpyDeviceToHost));
      size_t written = 0;
      for (const uint32_t word : scales) written += word != kPoisonScales;
      EXPECT_EQ(written, static_cast<size_t>(kRows * kKvHeads));
      for (int64_t r = 0; r < kRows; ++r) {
        const uint16_t* row = qkv.data() + r * columns;
        for (int64_t c = 0; c < columns; ++c) {
          const int64_t head = c / dim, i = c % dim;
          const double own = ToFloat(row[c], type);
          double want = own;
          if (head < kHeads + kKvHeads) {
            const double other = ToFloat(row[head * dim + (i + half) % dim], type);
            const float* angle = angles.data() + r * dim + 2 * (i % half);
            want = own * angle[0] + (i < half ? -other : other) * angle[1];
          }
          if (head < kHeads) {
            const double got = ToFloat(turned[static_cast<size_t>(r * columns + c)], type);
            ASSERT_NEAR(got, want, std::abs(want) * 0x1p-8 + 0x1p-20) << r << ", " << c;
            continue;
          }
          const bool is_key = head < kHeads + kKvHeads;
          const int64_t kv_head = (head - kHeads) % kKvHeads;
          const int64_t block = tables[static_cast<size_t>(r * 3 + kPositions[r] / kBlockTokens)];
          const auto token = static_cast<size_t>((block * kKvHeads + kv_head) * kBlockTokens +
                                                 kPositions[r] % kBlockTokens);
          const double scale = FromBits(is_key ? scales[token] << 16 : scales[token] & 0xffff0000u);
          const double got =
              scale *
              FromCode(codes_of[is_key ? 0 : 1][token * static_cast<size_t>(dim) + PlaceOf(i)]);
          // Half a step of a 3-bit mantissa, or of the subnormal numbers; 448 · scale is reached.
          ASSERT_NEAR(got, want, std::abs(want) * 0x1.01p-4 + scale * 0x1.01p-10) << r << ", " << c;
        }
      }
    }
  }
}

TEST_F(StoreFp8Test, WhatIsNotFiniteStaysSo) {
  constexpr int64_t kDim = 64;
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), INFINITY, -INFINITY}) {
    std::vector<uint16_t> qkv(3 * kDim, F16FromFloat(1));
    qkv[2 * kDim + 5] = F16FromFloat(bad);  // of the values
    std::vector<float> angles;
    for (int64_t i = 0; i < kDim / 2; ++i) angles.insert(angles.end(), {1.0f, 0.0f});
    const Buffer device_qkv = Upload(qkv), device_angles = Upload(angles);
    const Buffer zeros = Upload(std::vector<int32_t>(8, 0));
    const Buffer codes = Upload(std::vector<uint8_t>(2 * kBlockTokens * kDim, 0));
    const Buffer scales = Upload(std::vector<uint32_t>(kBlockTokens, 0));
    const DeviceBatch batch{.positions = zeros.as<int32_t>(),
                            .row_sequence = zeros.as<int32_t>(),
                            .block_tables = zeros.as<int32_t>(),
                            .rows = 1,
                            .sequences = 1,
                            .table_stride = 1};
    RopeAndStoreFp8(
        *stream_, batch, Spec(1, 1, kDim), reinterpret_cast<const float2*>(device_angles.data()),
        {device_qkv.data(), DType::kF16, 1, 3 * kDim, 3 * kDim},
        {codes.data(), codes.as<uint8_t>() + kBlockTokens * kDim, scales.as<uint32_t>()});
    Must(stream_->Synchronize());
    uint32_t word = 0;
    Must(cudaMemcpy(&word, scales.data(), 4, cudaMemcpyDeviceToHost));
    EXPECT_EQ(FromBits(word << 16), 0x1p-8f);
    EXPECT_TRUE(std::isnan(FromBits(word & 0xffff0000u)));
  }
}

}  // namespace
}  // namespace nibble::cuda

// RopeAndAttendDecode against double, with the cache that it leaves.
#include <gtest/gtest.h>

#include <cmath>

#include "src/ops/cuda/attention_test_util.h"

namespace nibble::cuda {
namespace {

class RopeAndAttendTest : public CudaAttentionTest {
 protected:
  // A decode step before its last tokens are turned and stored.
  struct FreshCase {
    std::vector<uint16_t> qkv;  // [rows, stride]
    std::vector<float> angles;  // [rows, head_dim / 2][cos, sin]
    int64_t columns = 0, stride = 0;
    std::vector<uint16_t> keys, values;  // the cache, poison where the last tokens go
  };

  // Makes `host`, all of whose pieces have one row, what a FreshCase of random numbers becomes.
  static FreshCase Fresh(HostCase& host, Normals& normals) {
    const AttentionSpec& spec = host.setting.spec;
    const DType type = host.setting.type;
    const int64_t dim = spec.head_dim, half = dim / 2, heads = spec.heads + 2 * spec.kv_heads;
    FreshCase fresh{.columns = heads * dim, .keys = host.keys, .values = host.values};
    fresh.stride = fresh.columns + host.setting.gap;
    const auto rows = static_cast<int64_t>(host.positions.size());
    fresh.qkv.assign(static_cast<size_t>(rows * fresh.stride), kPoison);
    int64_t first_token = 0;
    for (int64_t r = 0; r < rows; ++r) {
      const int32_t position = host.positions[static_cast<size_t>(r)];
      for (int64_t i = 0; i < half; ++i) {
        const double angle = position * std::pow(10000.0, -2.0 * static_cast<double>(i) / dim);
        fresh.angles.push_back(static_cast<float>(std::cos(angle)));
        fresh.angles.push_back(static_cast<float>(std::sin(angle)));
      }
      uint16_t* row = fresh.qkv.data() + r * fresh.stride;
      for (int64_t c = 0; c < fresh.columns; ++c) row[c] = normals.Next(type);
      const float* angles = fresh.angles.data() + r * dim;
      const auto turned = [&](int64_t head, int64_t i) {
        const double own = ToFloat(row[head * dim + i], type);
        const double other = ToFloat(row[head * dim + (i + half) % dim], type);
        const double cosine = angles[2 * (i % half)], sine = angles[2 * (i % half) + 1];
        const auto value = static_cast<float>(own * cosine + (i < half ? -other : other) * sine);
        return type == DType::kF16 ? F16FromFloat(value) : BF16FromFloat(value);
      };
      for (int64_t c = 0; c < spec.heads * dim; ++c) {
        host.q[static_cast<size_t>(r * host.stride() + c)] = turned(c / dim, c % dim);
      }
      const int64_t token = first_token + position;
      first_token += host.setting.pieces[static_cast<size_t>(r)].context;
      const int32_t block =
          host.tables[static_cast<size_t>(r * host.max_blocks + position / kBlockTokens)];
      for (int64_t head = 0; head < spec.kv_heads; ++head) {
        for (int64_t i = 0; i < dim; ++i) {
          const auto slot = static_cast<size_t>(
              ((block * spec.kv_heads + head) * kBlockTokens + position % kBlockTokens) * dim + i);
          const auto plain = static_cast<size_t>((token * spec.kv_heads + head) * dim + i);
          fresh.keys[slot] = fresh.values[slot] = kPoison;
          host.plain[0][plain] = host.keys[slot] = turned(spec.heads + head, i);
          host.plain[1][plain] = host.values[slot] =
              row[(spec.heads + spec.kv_heads + head) * dim + i];
        }
      }
    }
    return fresh;
  }

  // Equal, but that a turned key may be rounded to the next number.
  static void ExpectCache(const std::vector<uint16_t>& got, const std::vector<uint16_t>& want,
                          int tolerance) {
    for (size_t i = 0; i < want.size(); ++i) {
      const int difference = static_cast<int>(got[i]) - static_cast<int>(want[i]);
      // 0 and -0 are neighbours, too.
      ASSERT_TRUE(std::abs(difference) <= tolerance ||
                  (tolerance > 0 && ((got[i] | want[i]) & 0x7fff) <= 1))
          << got[i] << " instead of " << want[i] << " at " << i;
    }
  }

  void Compare(const Setting& setting, uint64_t seed = 1) {
    SCOPED_TRACE(setting.ToString());
    Normals normals(seed);
    HostCase host(setting, normals);
    const FreshCase fresh = Fresh(host, normals);
    DeviceCase device = ToDevice(host);
    device.keys = Upload(fresh.keys);
    device.values = Upload(fresh.values);
    device.kv = {device.keys.data(), device.values.data()};
    const Buffer qkv = Upload(fresh.qkv), angles = Upload(fresh.angles);
    const Buffer scratch = Scratch(setting.spec);
    RopeAndAttendDecode(*stream_, device.batch, setting.spec,
                        reinterpret_cast<const float2*>(angles.data()),
                        {qkv.data(), setting.type, setting.rows(), fresh.columns, fresh.stride},
                        device.kv, device.out_view, scratch.data());
    ExpectNear(host, Download(host, device), host.Reference());
    for (const bool is_key : {true, false}) {
      std::vector<uint16_t> cache(host.keys.size());
      Must(cudaMemcpy(cache.data(), (is_key ? device.keys : device.values).data(), 2 * cache.size(),
                      cudaMemcpyDeviceToHost));
      ExpectCache(cache, is_key ? host.keys : host.values, is_key ? 1 : 0);
    }
  }
};

TEST_F(RopeAndAttendTest, ContextsOfManyLengths) {
  for (const DType type : kTypes) {
    for (const int64_t head_dim : {64, 128, 256}) {
      Compare(
          {Spec(4, 2, head_dim),
           type,
           {{1}, {2}, {15}, {16}, {17}, {31}, {32}, {33}, {63}, {64}, {65}, {127}, {612}, {2000}}});
      Compare({Spec(2, 1, head_dim), type, {{1}}});
      Compare({Spec(2, 1, head_dim), type, {{6001}}});  // one context in many parts
    }
  }
}

TEST_F(RopeAndAttendTest, TakesManyPairsInTurn) { Compare(ManyPairs(128, DType::kF16)); }

TEST_F(RopeAndAttendTest, GroupsOfEverySize) {
  for (const int64_t group : {1, 2, 3, 4, 5, 8, 15, 16, 17, 32, 71}) {
    const DType type = kTypes[group % 2];
    Compare({Spec(2 * group, 2, 64), type, {{33}, {1}, {300}}});
    Compare({Spec(group, 1, 128), type, {{200}}});
  }
}

TEST_F(RopeAndAttendTest, MindsTheWindow) {
  const std::vector<Piece> pieces = {{1}, {40}, {612}, {130}, {500}, {33}};
  for (const int64_t window : {1, 2, 15, 16, 17, 31, 32, 33, 64, 65, 100, 256, 611, 612, 613}) {
    Compare({Spec(4, 2, window % 2 == 0 ? 64 : 128, window), kTypes[window % 2], pieces});
  }
  Compare({Spec(4, 4, 256, 50), DType::kF16, pieces});
}

TEST_F(RopeAndAttendTest, RandomSettings) {
  Normals normals(21);
  Random& random = normals.random();
  for (int i = 0; i < 150 && !HasFatalFailure(); ++i) {
    constexpr int64_t kDims[] = {64, 128, 256}, kGroups[] = {1, 2, 3, 4, 8, 20};
    const int64_t kv_heads = 1 + static_cast<int64_t>(random.Below(8));
    const int64_t head_dim = kDims[random.Below(3)], group = kGroups[random.Below(6)];
    std::optional<int64_t> window;
    if (random.Below(3) == 0) window = 1 + static_cast<int64_t>(random.Below(150));
    Setting setting{
        Spec(kv_heads * group, kv_heads, head_dim, window), kTypes[random.Below(2)], {}};
    setting.gap = 8 * static_cast<int64_t>(random.Below(6));
    const auto pieces = 1 + random.Below(kv_heads * group > 40 ? 3 : 40);
    while (setting.pieces.size() < pieces) {
      setting.pieces.push_back({1 + static_cast<int64_t>(random.Below(300))});
    }
    Compare(setting, random.Next());
  }
}

}  // namespace
}  // namespace nibble::cuda

// What tests of the attention kernels share: a step's cache and queries, on the host and on the device.
#ifndef NIBBLE_OPS_CUDA_ATTENTION_TEST_UTIL_H_
#define NIBBLE_OPS_CUDA_ATTENTION_TEST_UTIL_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>
#include <vector>

#include "src/base/checked.h"
#include "src/base/must.h"
#include "src/base/random.h"
#include "src/base/thread_pool.h"
#include "src/ops/cuda/attention.h"
#include "src/ops/cuda/cuda_test.h"
#include "src/ops/cuda/decode_parts.h"
#include "src/ops/cuda/device_memory.h"
#include "src/ops/ref/ref_backend.h"

namespace nibble::cuda {

// Not a number in either 16-bit type: what no one has written, and what no one may read.
inline constexpr uint16_t kPoison = 0x7fa5;
inline constexpr int32_t kNoBlock = 0x0fffffff;  // far outside of any cache

inline void Must(cudaError_t error) { CHECK(error == cudaSuccess, "{}", ErrorText(error)); }

inline float ToFloat(uint16_t bits, DType type) {
  return type == DType::kF16 ? FloatFromF16(bits) : FloatFromBF16(bits);
}

// Normal numbers, faster than they can be computed anew.
class Normals {
 public:
  explicit Normals(uint64_t seed) : random_(seed) {
    for (float& value : table_) value = static_cast<float>(random_.Normal());
  }
  uint16_t Next(DType type) {
    const float value = table_[random_.Next() % table_.size()];
    return type == DType::kF16 ? F16FromFloat(value) : BF16FromFloat(value);
  }
  Random& random() { return random_; }

 private:
  Random random_;
  std::vector<float> table_ = std::vector<float>(1 << 14);
};

struct Piece {
  int64_t context;   // once the step is done
  int64_t rows = 1;  // the last of the context
};

struct Setting {
  AttentionSpec spec;
  DType type = DType::kF16;
  std::vector<Piece> pieces;
  int64_t gap = 24;  // between rows, in elements
  CudaKernels kernels = CudaKernels::kAuto;

  std::string ToString() const {
    std::string text =
        fmt::format("{} heads, {} kv heads of {}, {}, window {}:", spec.heads, spec.kv_heads,
                    spec.head_dim, Name(type), spec.window.value_or(0));
    for (const Piece& piece : pieces) text += fmt::format(" {}/{}", piece.rows, piece.context);
    return text;
  }
  int64_t columns() const { return spec.heads * spec.head_dim; }
  int64_t rows() const {
    int64_t rows = 0;
    for (const Piece& piece : pieces) rows += piece.rows;
    return rows;
  }
};

inline AttentionSpec Spec(int64_t heads, int64_t kv_heads, int64_t head_dim,
                   std::optional<int64_t> window = std::nullopt) {
  return {.heads = heads,
          .kv_heads = kv_heads,
          .head_dim = head_dim,
          .scale = 1 / std::sqrt(static_cast<float>(head_dim)),
          .window = window};
}

// More pairs of sequence and KV head than blocks take other than in turn (decode_parts.h).
inline Setting ManyPairs(int64_t head_dim, DType type) {
  Setting setting{Spec(136, 136, head_dim), type, {}};
  for (int64_t s = 0; s < 14; ++s) {
    setting.pieces.push_back({64 * MostDecodeStages(head_dim) + 13 + 9 * s});
  }
  return setting;
}

// What a step reads, on the host. Slots without a token hold poison.
struct HostCase {
  HostCase(const Setting& s, Normals& normals) : setting(s) {
    const int64_t token_elements = s.spec.kv_heads * s.spec.head_dim;
    for (const Piece& piece : s.pieces) {
      max_blocks = std::max(max_blocks, CeilDiv<int64_t>(piece.context, kBlockTokens));
      blocks += CeilDiv<int64_t>(piece.context, kBlockTokens);
      tokens += piece.context;
    }
    blocks += 3;
    std::vector<int32_t> order(static_cast<size_t>(blocks));
    std::iota(order.begin(), order.end(), 0);
    for (size_t i = order.size(); i > 1; --i) {
      std::swap(order[i - 1], order[normals.random().Below(i)]);
    }
    keys.assign(static_cast<size_t>(blocks * kBlockTokens * token_elements), kPoison);
    values = keys;
    for (int i = 0; i < 2; ++i) plain[i].resize(static_cast<size_t>(tokens * token_elements));
    tables.assign(s.pieces.size() * static_cast<size_t>(max_blocks), kNoBlock);
    size_t next_block = 0, at = 0;
    for (size_t p = 0; p < s.pieces.size(); ++p) {
      for (int64_t t = 0; t < s.pieces[p].context; ++t) {
        int32_t& block =
            tables[p * static_cast<size_t>(max_blocks) + static_cast<size_t>(t / kBlockTokens)];
        if (t % kBlockTokens == 0) block = order[next_block++];
        for (int64_t head = 0; head < s.spec.kv_heads; ++head) {
          const size_t slot = static_cast<size_t>(
              ((block * s.spec.kv_heads + head) * kBlockTokens + t % kBlockTokens) *
              s.spec.head_dim);
          for (int64_t i = 0; i < s.spec.head_dim; ++i, ++at) {
            plain[0][at] = keys[slot + static_cast<size_t>(i)] = normals.Next(s.type);
            plain[1][at] = values[slot + static_cast<size_t>(i)] = normals.Next(s.type);
          }
        }
      }
    }
    q.assign(static_cast<size_t>(s.rows() * stride()), kPoison);
    row_begin.push_back(0);
    for (size_t p = 0; p < s.pieces.size(); ++p) {
      const Piece& piece = s.pieces[p];
      lengths.push_back(static_cast<int32_t>(piece.context));
      for (int64_t r = 0; r < piece.rows; ++r) {
        if (piece.rows > 1 && r % kPrefillRows == 0) {
          tiles.push_back({static_cast<int32_t>(p), static_cast<int32_t>(positions.size())});
        }
        for (int64_t c = 0; c < s.columns(); ++c) {
          q[positions.size() * static_cast<size_t>(stride()) + static_cast<size_t>(c)] =
              normals.Next(s.type);
        }
        positions.push_back(static_cast<int32_t>(piece.context - piece.rows + r));
      }
      row_begin.push_back(static_cast<int32_t>(positions.size()));
    }
  }
  int64_t stride() const { return setting.columns() + setting.gap; }

  // By the reference backend: [rows, columns].
  std::vector<float> Reference() const {
    const AttentionSpec& spec = setting.spec;
    const auto backend = MakeRefBackend(UsableCores());
    const int64_t block = backend->kv_block_tokens();
    const int64_t table_blocks = max_blocks * kBlockTokens / block;
    const auto sequences = static_cast<int64_t>(setting.pieces.size());
    const auto cache = Must(backend->CreateKvCache({.layers = 1,
                                                    .kv_heads = spec.kv_heads,
                                                    .head_dim = spec.head_dim,
                                                    .block_tokens = block,
                                                    .dtype = setting.type},
                                                   sequences * table_blocks));
    const auto plan = Must(backend->CreatePlan({}, {}));
    std::vector<int32_t> table(static_cast<size_t>(sequences * table_blocks));
    std::iota(table.begin(), table.end(), 0);
    // Stores keys and values: without query heads, turned by an angle of zero.
    std::vector<int32_t> all_positions, all_begin{0};
    for (const Piece& piece : setting.pieces) {
      for (int64_t t = 0; t < piece.context; ++t) {
        all_positions.push_back(static_cast<int32_t>(t));
      }
      all_begin.push_back(static_cast<int32_t>(all_positions.size()));
    }
    Batch batch{.tokens = all_positions,
                .positions = all_positions,
                .row_begin = all_begin,
                .context_lengths = lengths,
                .block_tables = table,
                .max_blocks = table_blocks};
    backend->SetBatch(*plan, batch);
    const int64_t width = spec.kv_heads * spec.head_dim;
    std::vector<float> kv(static_cast<size_t>(tokens * 2 * width));
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t i = 0; i < 2 * width; ++i) {
        kv[static_cast<size_t>(t * 2 * width + i)] =
            ToFloat(plain[i / width][static_cast<size_t>(t * width + i % width)], setting.type);
      }
    }
    AttentionSpec keys_only = spec;
    keys_only.heads = 0;
    const std::vector<float> frequencies(static_cast<size_t>(spec.head_dim / 2), 0.0f);
    backend->RopeAndStoreKv(*plan, {frequencies}, keys_only, 0,
                            {kv.data(), DType::kF32, tokens, 2 * width, 2 * width}, *cache);
    batch.tokens = batch.positions = positions;
    batch.row_begin = row_begin;
    backend->SetBatch(*plan, batch);
    std::vector<float> queries(q.size());
    for (size_t i = 0; i < q.size(); ++i) queries[i] = ToFloat(q[i], setting.type);
    const int64_t rows = setting.rows(), columns = setting.columns();
    std::vector<float> out(static_cast<size_t>(rows * columns));
    backend->Attend(*plan, spec, 0, {queries.data(), DType::kF32, rows, columns, stride()}, *cache,
                    {out.data(), DType::kF32, rows, columns, columns});
    return out;
  }

  Setting setting;
  int64_t max_blocks = 0, blocks = 0, tokens = 0;
  std::vector<uint16_t> keys, values;  // [blocks, kv_heads, kBlockTokens, head_dim]
  std::vector<uint16_t> plain[2];      // the same, [tokens, kv_heads, head_dim]
  std::vector<uint16_t> q;             // [rows, stride]
  std::vector<int32_t> positions, row_begin, lengths, tables;
  std::vector<PrefillTile> tiles;
};

class CudaAttentionTest : public CudaTest {
 protected:
  template <typename T>
  Buffer Upload(const std::vector<T>& from) {
    Buffer buffer = Must(AllocateDevice(tracker_, MemoryClass::kWorkspace,
                                        std::max<size_t>(1, from.size()) * sizeof(T)));
    Must(cudaMemcpy(buffer.data(), from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice));
    Must(cudaDeviceSynchronize());  // the copy may return before it is done; streams do not wait
    return buffer;
  }

  // A step on the device, and its output between guards.
  struct DeviceCase {
    Buffer keys, values, q, out, positions, row_begin, lengths, tables, tiles, parts;
    DeviceBatch batch;
    MatrixView q_view, out_view;
    KvView kv;
  };
  static constexpr size_t kGuard = 4096;  // elements

  std::vector<DecodePart> Parts(const HostCase& host) const {
    std::vector<DecodePart> parts(static_cast<size_t>(DecodeBlocks(stream_->multiprocessors())));
    DivideDecode(host.setting.spec, host.row_begin, host.lengths, parts);
    return parts;
  }
  DeviceCase ToDevice(const HostCase& host) {
    const Setting& s = host.setting;
    DeviceCase device{.keys = Upload(host.keys),
                      .values = Upload(host.values),
                      .q = Upload(host.q),
                      .positions = Upload(host.positions),
                      .row_begin = Upload(host.row_begin),
                      .lengths = Upload(host.lengths),
                      .tables = Upload(host.tables),
                      .tiles = Upload(host.tiles),
                      .parts = Upload(Parts(host))};
    device.out = Upload(std::vector<uint16_t>(2 * kGuard + host.q.size(), kPoison));
    device.batch = {.positions = device.positions.as<int32_t>(),
                    .row_begin = device.row_begin.as<int32_t>(),
                    .context_lengths = device.lengths.as<int32_t>(),
                    .block_tables = device.tables.as<int32_t>(),
                    .prefill_tiles = device.tiles.as<PrefillTile>(),
                    .rows = s.rows(),
                    .sequences = static_cast<int64_t>(s.pieces.size()),
                    .table_stride = host.max_blocks,
                    .prefill_tile_count = static_cast<int64_t>(host.tiles.size())};
    (s.spec.window ? device.batch.window_decode_parts : device.batch.decode_parts) =
        device.parts.as<DecodePart>();
    for (const Piece& piece : s.pieces) {
      device.batch.has_decode |= piece.rows == 1;
      if (piece.rows > 1) {
        device.batch.longest_prefill = std::max(device.batch.longest_prefill, piece.context);
      }
    }
    device.q_view = {device.q.data(), s.type, s.rows(), s.columns(), host.stride()};
    device.out_view = device.q_view;
    device.out_view.data = device.out.as<uint16_t>() + kGuard;
    device.kv = {device.keys.data(), device.values.data()};
    return device;
  }

  Buffer Scratch(const AttentionSpec& spec) {
    return Upload(
        std::vector<std::byte>(DecodeScratchBytes(stream_->multiprocessors(), spec), std::byte{0}));
  }
  void Decode(const HostCase& host, const DeviceCase& device, const Buffer& scratch) {
    AttendDecode(*stream_, device.batch, host.setting.spec, device.q_view, device.kv,
                 device.out_view, scratch.data());
  }
  void Prefill(const HostCase& host, const DeviceCase& device) {
    AttendPrefill(*stream_, device.batch, host.setting.spec, device.q_view, device.kv,
                  device.out_view, host.setting.kernels);
  }
  // [rows, columns]; checks that the guards and gaps are as they were.
  std::vector<uint16_t> Download(const HostCase& host, const DeviceCase& device) {
    Must(stream_->Synchronize());
    std::vector<uint16_t> all(2 * kGuard + host.q.size()), out;
    Must(cudaMemcpy(all.data(), device.out.data(), 2 * all.size(), cudaMemcpyDeviceToHost));
    int64_t outside = 0;
    for (size_t i = 0; i < all.size(); ++i) {
      const bool inside = i >= kGuard && i < all.size() - kGuard &&
                          (i - kGuard) % static_cast<size_t>(host.stride()) <
                              static_cast<size_t>(host.setting.columns());
      if (inside) {
        out.push_back(all[i]);
      } else {
        outside += all[i] != kPoison;
      }
    }
    EXPECT_EQ(outside, 0) << "elements written outside of the output";
    return out;
  }

  std::vector<uint16_t> Run(const HostCase& host) {
    const DeviceCase device = ToDevice(host);
    const Buffer scratch = Scratch(host.setting.spec);
    Decode(host, device, scratch);
    const std::vector<uint16_t> decoded = Download(host, device);
    const auto columns = static_cast<size_t>(host.setting.columns());
    for (size_t p = 0; p < host.setting.pieces.size(); ++p) {  // prefill's rows were let alone
      if (host.setting.pieces[p].rows == 1) continue;
      for (size_t i = static_cast<size_t>(host.row_begin[p]) * columns;
           i < static_cast<size_t>(host.row_begin[p + 1]) * columns; ++i) {
        if (decoded[i] != kPoison) {
          ADD_FAILURE() << "decode wrote to sequence " << p;
          break;
        }
      }
    }
    Prefill(host, device);
    std::vector<uint16_t> out = Download(host, device);
    for (size_t p = 0; p < host.setting.pieces.size(); ++p) {
      if (host.setting.pieces[p].rows > 1) continue;
      const size_t at = static_cast<size_t>(host.row_begin[p]) * columns;
      EXPECT_TRUE(std::equal(out.begin() + static_cast<ptrdiff_t>(at),
                             out.begin() + static_cast<ptrdiff_t>(at + columns),
                             decoded.begin() + static_cast<ptrdiff_t>(at)))
          << "prefill wrote to sequence " << p;
    }
    return out;
  }

  // Weights (at most 1, their sum at least 1) are rounded to 16 bits, then the output is. A score
  // is head_dim products summed in float32, of |q| |k| scale ≈ sqrt(head_dim) at worst; its error
  // moves every weight by as much, relatively. Half-precision weights below 2^-14 lose at most
  // 2^-25 each.
  void ExpectNear(const HostCase& host, const std::vector<uint16_t>& got,
                  const std::vector<float>& want) {
    const Setting& s = host.setting;
    const double unit = s.type == DType::kF16 ? 0x1p-11 : 0x1p-8;
    const auto dim = static_cast<double>(s.spec.head_dim);
    const double score_error = 2 * (dim + 8) * 0x1p-24 * std::sqrt(dim);
    constexpr double kLargestValue = 4.5;
    const auto columns = static_cast<size_t>(s.columns());
    double all_error = 0, all_total = 0;
    ASSERT_EQ(got.size(), want.size());
    for (size_t r = 0; r < static_cast<size_t>(s.rows()); ++r) {
      const double weight_error =
          unit + score_error +
          (s.type == DType::kF16 ? (static_cast<double>(host.positions[r]) + 1) * 0x1p-25 : 0);
      double error = 0, total = 0;
      for (size_t c = 0; c < columns; ++c) {
        const double x = ToFloat(got[r * columns + c], s.type), y = want[r * columns + c];
        ASSERT_NEAR(x, y, weight_error * kLargestValue + unit * std::abs(y))
            << "row " << r << ", column " << c;
        error += (x - y) * (x - y);
        total += y * y;
      }
      // Errors of independent weights and values add up like the values themselves do: a rounding's
      // relative mean square, at most unit² / 3, twice; with few columns chance has more to say.
      if (columns >= 64) {
        ASSERT_LE(error, 4 * unit * unit * total) << "row " << r;
      }
      all_error += error;
      all_total += total;
    }
    if (all_total > 0 && want.size() >= 256) {
      EXPECT_LE(all_error, unit * unit * all_total);
    }
  }

  // With all kernels that there are.
  void Compare(const Setting& setting, uint64_t seed = 1) {
    SCOPED_TRACE(setting.ToString());
    Normals normals(seed);
    HostCase host(setting, normals);
    const std::vector<float> want = host.Reference();
    ExpectNear(host, Run(host), want);
    if (host.tiles.empty()) return;  // decode has one kernel
    host.setting.kernels = CudaKernels::kPortable;
    SCOPED_TRACE("portable kernels");
    ExpectNear(host, Run(host), want);
  }
};

inline constexpr DType kTypes[] = {DType::kF16, DType::kBF16};

}  // namespace nibble::cuda

#endif  // NIBBLE_OPS_CUDA_ATTENTION_TEST_UTIL_H_

#include "src/ops/cuda/attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>
#include <vector>

#include "src/base/checked.h"
#include "src/base/random.h"
#include "src/base/thread_pool.h"
#include "src/ops/cuda/device_memory.h"
#include "src/ops/ref/ref_backend.h"

namespace nibble::cuda {
namespace {

// Not a number in either 16-bit type: what no one has written, and what no one may read.
constexpr uint16_t kPoison = 0x7fa5;
constexpr int32_t kNoBlock = 0x0fffffff;  // far outside of any cache

template <typename T>
T Must(Result<T> result) {
  if (!result) CheckFailed(__FILE__, __LINE__, "a result", result.error().message());
  return std::move(*result);
}
void Must(Status status) {
  if (!status) CheckFailed(__FILE__, __LINE__, "success", status.error().message());
}
void Must(cudaError_t error) { CHECK(error == cudaSuccess, "{}", ErrorText(error)); }

float ToFloat(uint16_t bits, DType type) {
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

AttentionSpec Spec(int64_t heads, int64_t kv_heads, int64_t head_dim,
                   std::optional<int64_t> window = std::nullopt) {
  return {.heads = heads,
          .kv_heads = kv_heads,
          .head_dim = head_dim,
          .scale = 1 / std::sqrt(static_cast<float>(head_dim)),
          .window = window};
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

class CudaAttentionTest : public testing::Test {
 protected:
  void SetUp() override {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
      GTEST_SKIP() << "no CUDA device";
    }
    stream_ = Must(Stream::Create());
  }

  template <typename T>
  Buffer Upload(const std::vector<T>& from) {
    Buffer buffer = Must(AllocateDevice(tracker_, MemoryClass::kWorkspace,
                                        std::max<size_t>(1, from.size()) * sizeof(T)));
    Must(cudaMemcpy(buffer.data(), from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice));
    return buffer;
  }

  // A step on the device, and its output between guards.
  struct DeviceCase {
    Buffer keys, values, q, out, positions, row_begin, lengths, tables, tiles;
    DeviceBatch batch;
    MatrixView q_view, out_view;
    KvView kv;
  };
  static constexpr size_t kGuard = 4096;  // elements

  DeviceCase ToDevice(const HostCase& host) {
    const Setting& s = host.setting;
    DeviceCase device{.keys = Upload(host.keys),
                      .values = Upload(host.values),
                      .q = Upload(host.q),
                      .positions = Upload(host.positions),
                      .row_begin = Upload(host.row_begin),
                      .lengths = Upload(host.lengths),
                      .tables = Upload(host.tables),
                      .tiles = Upload(host.tiles)};
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
    for (const Piece& piece : s.pieces) device.batch.has_decode |= piece.rows == 1;
    device.q_view = {device.q.data(), s.type, s.rows(), s.columns(), host.stride()};
    device.out_view = device.q_view;
    device.out_view.data = device.out.as<uint16_t>() + kGuard;
    device.kv = {device.keys.data(), device.values.data()};
    return device;
  }

  Buffer Scratch(const AttentionSpec& spec, int64_t sequences) {
    return Upload(std::vector<std::byte>(
        DecodeScratchBytes(stream_->multiprocessors(), sequences, spec), std::byte{0}));
  }
  void Decode(const HostCase& host, const DeviceCase& device, const Buffer& scratch) {
    AttendDecode(*stream_, device.batch, host.setting.spec, device.q_view, device.kv,
                 device.out_view, scratch.data());
  }
  void Prefill(const HostCase& host, const DeviceCase& device) {
    AttendPrefill(*stream_, device.batch, host.setting.spec, device.q_view, device.kv,
                  device.out_view);
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
    const Buffer scratch = Scratch(host.setting.spec, device.batch.sequences);
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

  void Compare(const Setting& setting, uint64_t seed = 1) {
    SCOPED_TRACE(setting.ToString());
    Normals normals(seed);
    const HostCase host(setting, normals);
    ExpectNear(host, Run(host), host.Reference());
  }

  MemoryTracker tracker_;
  std::unique_ptr<Stream> stream_;
};

constexpr DType kTypes[] = {DType::kF16, DType::kBF16};

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
      Compare(
          {Spec(6, 2, head_dim),
           type,
           {{33, 2}, {64, 32}, {65, 64}, {200, 70}, {612, 65}, {613, 128}, {2000, 5}, {32, 31}}});
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
  for (const int64_t head_dim : {64, 80, 128}) {
    Normals normals(3);
    HostCase host({Spec(4, 2, head_dim), DType::kF16, {{70}, {300}, {100, 40}, {90}, {200, 130}}},
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
  const std::vector<uint16_t> got = Run(host);
  const std::vector<float> want = host.Reference();
  double error = 0, total = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    // Nearly all weighs on one token; scores of 1e7 carry an error of about 1.
    ASSERT_TRUE(std::abs(FloatFromBF16(got[i])) <= 5) << i;
    error += std::pow(FloatFromBF16(got[i]) - want[i], 2);
    total += std::pow(want[i], 2);
  }
  EXPECT_LT(error, 1e-3 * total);
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
  const Buffer scratch = Scratch(spec, 40);
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
  const Buffer scratch = Scratch(spec, 3);
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

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "src/base/random.h"
#include "src/ops/cuda/device_memory.h"
#include "src/ops/cuda/half.cuh"
#include "src/ops/cuda/linear_q4.h"

namespace nibble::cuda {
namespace {

struct Problem {
  int64_t rows = 1, out = 16, in = 128;
  int64_t group = 128;
  Grid grid = Grid::kAsymmetric;
  DType dtype = DType::kF16;
  Epilogue epilogue = Epilogue::kNone;
  bool bias = false;
  int64_t x_gap = 0, out_gap = 0;  // elements between rows; x's stride is rounded up to 8
  CudaKernels kernels = CudaKernels::kAuto;
  int64_t split = 0;               // the first so many rows of the weight are packed on their own

  int64_t columns() const { return epilogue == Epilogue::kSiluMul ? out / 2 : out; }
  QuantSpec spec() const { return {.group_size = group, .grid = grid}; }
  std::string text() const {
    return fmt::format(
        "{} rows, [{}, {}], group {}, {}, {}, epilogue {}{}, gaps {} and {}, split {}", rows, out,
        in, group, Name(grid), Name(dtype), static_cast<int>(epilogue), bias ? ", bias" : "", x_gap,
        out_gap, split) +
           (kernels == CudaKernels::kPortable ? ", portable kernels" : "");
  }
};

uint16_t Bits(DType dtype, double value) {
  const auto f = static_cast<float>(value);
  return dtype == DType::kF16 ? F16FromFloat(f) : BF16FromFloat(f);
}
double Value(DType dtype, uint16_t bits) {
  return dtype == DType::kF16 ? FloatFromF16(bits) : FloatFromBF16(bits);
}

// A product as the definition reads, in double. One thread an output.
struct Reference {
  const uint16_t* x;     // [rows, in], with stride
  const uint8_t* codes;  // as in QuantizedWeight
  const uint16_t* scales;
  const uint8_t* zeros;
  int64_t rows, out, in, group, x_stride;
  bool bf16;
};
struct ReferenceSums {
  double value;
  double terms;    // Σ |x| |weight|, for kernels that round weights
  double partial;  // Σ |x| |scale| (code + zero + 2 offset), which bounds every partial sum of kernels
                   // that add `offset` to codes and zeros
};
__device__ ReferenceSums ReferenceValue(const Reference& r, int64_t row, int64_t n) {
  const int64_t groups = r.in / r.group;
  ReferenceSums sums{};
  for (int64_t k = 0; k < r.in; ++k) {
    const int code = (r.codes[n * (r.in / 2) + k / 2] >> (4 * (k & 1))) & 15;
    const int zero = r.zeros[n * groups + k / r.group];
    const double scale = __half2float(__ushort_as_half(r.scales[n * groups + k / r.group]));
    const uint16_t bits = r.x[row * r.x_stride + k];
    const double x = r.bf16 ? __bfloat162float(__ushort_as_bfloat16(bits))
                            : __half2float(__ushort_as_half(bits));
    sums.value += x * scale * (code - zero);
    sums.terms += fabs(x * scale * (code - zero));
    sums.partial += fabs(x * scale) * (code + zero + (r.bf16 ? 256 : 0));
  }
  return sums;
}
__global__ void ReferenceKernel(Reference r, ReferenceSums* sums) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index < r.rows * r.out) sums[index] = ReferenceValue(r, index / r.out, index % r.out);
}

class LinearQ4Test : public testing::Test {
 protected:
  void SetUp() override {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
      GTEST_SKIP() << "no CUDA device";
    }
    auto stream = Stream::Create();
    ASSERT_TRUE(stream.has_value()) << stream.error().message();
    stream_ = std::move(*stream);
  }

  Buffer Allocate(size_t bytes) {
    auto buffer = AllocateDevice(tracker_, MemoryClass::kWorkspace, std::max<size_t>(bytes, 256));
    CHECK(buffer.has_value());
    return std::move(*buffer);
  }
  // In the stream, so that what follows there sees it: the stream does not wait for others.
  template <typename T>
  void Copy(const std::vector<T>& values, void* to) {
    EXPECT_EQ(cudaMemcpyAsync(to, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice,
                              stream_->get()),
              cudaSuccess);
  }
  void Fill(void* to, int byte, size_t bytes) {
    EXPECT_EQ(cudaMemsetAsync(to, byte, bytes, stream_->get()), cudaSuccess);
  }
  template <typename T>
  Buffer Upload(const std::vector<T>& values) {
    Buffer buffer = Allocate(values.size() * sizeof(T));
    Copy(values, buffer.data());
    return buffer;
  }
  template <typename T>
  std::vector<T> Download(const void* data, size_t count) {
    const Status status = stream_->Synchronize();
    EXPECT_TRUE(status.has_value()) << (status ? "" : status.error().message());
    std::vector<T> values(count);
    EXPECT_EQ(cudaMemcpy(values.data(), data, count * sizeof(T), cudaMemcpyDeviceToHost),
              cudaSuccess);
    return values;
  }

  void Check(const Problem& problem, uint64_t seed);

  MemoryTracker tracker_;
  std::unique_ptr<Stream> stream_;
  Buffer scratch_;  // kept between problems, as in a step
  size_t scratch_bytes_ = 0;
};

QuantizedWeight RandomWeight(const Problem& p, Random& random) {
  QuantizedWeight weight = QuantizedWeight::Empty(p.spec(), p.out, p.in);
  for (size_t i = 0; i < weight.codes.size(); i += 8) {
    const uint64_t bits = random.Next();
    std::memcpy(weight.codes.data() + i, &bits, std::min<size_t>(8, weight.codes.size() - i));
  }
  for (uint16_t& scale : weight.scales) {
    const double sign = p.grid == Grid::kSymmetricFull && random.Below(2) != 0 ? -1 : 1;
    scale = F16FromFloat(static_cast<float>(sign * (0.002 + 0.02 * random.Uniform())));
  }
  for (uint8_t& zero : weight.zeros) {
    zero = p.grid == Grid::kAsymmetric ? static_cast<uint8_t>(random.Below(16)) : uint8_t{8};
  }
  return weight;
}

double Silu(double x) { return x / (1 + std::exp(-x)); }

void LinearQ4Test::Check(const Problem& p, uint64_t seed) {
  SCOPED_TRACE(p.text());
  Random random(seed);
  const QuantizedWeight weight = RandomWeight(p, random);
  const bool silu = p.epilogue == Epilogue::kSiluMul;
  const int64_t columns = p.columns(), half = p.out / 2;
  // Packed row of a source row: gates come first in the source, alternate with ups when packed.
  const auto packed_row = [&](int64_t n) {
    return !silu ? n : n < half ? 2 * n : 2 * (n - half) + 1;
  };

  const Buffer codes = Upload(weight.codes), scales = Upload(weight.scales);
  const Buffer zeros = Upload(weight.zeros);
  const Q4Layout layout = Q4Layout::Of(p.out, p.in, p.spec());
  const Buffer packed = Allocate(layout.total_bytes);
  Fill(packed.data(), 0xff, layout.total_bytes);
  const auto pack = [&](int64_t first, int64_t count, int64_t to, int64_t step) {
    PackQ4(*stream_, layout, p.dtype, codes.as<uint8_t>() + first * (p.in / 2),
           scales.as<uint16_t>() + first * weight.groups(),
           zeros.as<uint8_t>() + first * weight.groups(), count, to, step, packed.data());
  };
  if (silu) {
    pack(0, half, 0, 2);
    pack(half, half, 1, 2);
  } else {
    pack(0, p.split, 0, 1);
    pack(p.split, p.out - p.split, p.split, 1);
  }

  // The dequantized weight is exact to one rounding.
  const Buffer dense = Allocate(static_cast<size_t>(p.out * p.in) * 2);
  Fill(dense.data(), 0xff, dense.size());
  for (int64_t first = 0; first < p.out; first += 384) {
    DequantizeQ4(*stream_, layout, packed.data(), p.dtype, first,
                 std::min<int64_t>(384, p.out - first), dense.as<uint16_t>() + first * p.in);
  }
  const auto dequantized = Download<uint16_t>(dense.data(), static_cast<size_t>(p.out * p.in));
  const int64_t stride = std::max<int64_t>(1, p.out * p.in / 200000);
  for (int64_t i = 0; i < p.out * p.in; i += stride) {
    const int64_t n = i / p.in, k = i % p.in;
    ASSERT_EQ(dequantized[static_cast<size_t>(packed_row(n) * p.in + k)],
              Bits(p.dtype, weight.At(n, k)))
        << n << ", " << k;
  }

  // x with NaN around it, out with a canary around it.
  const int64_t x_stride = (p.in + p.x_gap + 7) / 8 * 8, out_stride = columns + p.out_gap;
  constexpr uint16_t kCanary = 0x7bcd;
  constexpr int64_t kMargin = 64;
  const auto x_count = static_cast<size_t>(p.rows * x_stride + 2 * kMargin);
  const auto out_count = static_cast<size_t>(p.rows * out_stride + 2 * kMargin);
  std::vector<uint16_t> x(x_count, 0x7fff), before(out_count, kCanary);
  std::vector<float> bias(static_cast<size_t>(p.bias ? p.out : 0));
  for (int64_t r = 0; r < p.rows; ++r) {
    uint16_t* row = x.data() + kMargin + r * x_stride;
    for (int64_t k = 0; k < p.in; ++k) row[k] = Bits(p.dtype, random.Normal());
    uint16_t* out_row = before.data() + kMargin + r * out_stride;
    for (int64_t n = 0; n < columns; ++n) {  // only kAdd may read it
      out_row[n] = p.epilogue == Epilogue::kAdd ? Bits(p.dtype, random.Normal()) : uint16_t{0x7fff};
    }
  }
  for (float& b : bias) b = static_cast<float>(random.Normal());
  const Buffer device_x = Upload(x), device_bias = Upload(bias);
  Buffer device_out = Upload(before);
  const size_t scratch = LinearQ4ScratchBytes(stream_->multiprocessors(), p.rows, p.in);
  if (scratch > scratch_bytes_) {
    scratch_ = Allocate(scratch);
    scratch_bytes_ = scratch;
    Fill(scratch_.data(), 0, scratch);
  }
  const MatrixView x_view{device_x.as<uint16_t>() + kMargin, p.dtype, p.rows, p.in, x_stride};
  const MatrixView out_view{device_out.as<uint16_t>() + kMargin, p.dtype, p.rows, columns,
                            out_stride};
  const float* bias_data = p.bias ? device_bias.as<float>() : nullptr;
  const auto run = [&] {
    Copy(before, device_out.data());
    LinearQ4(*stream_, layout, packed.data(), bias_data, x_view, p.epilogue, out_view,
             scratch_.data(), p.kernels);
    return Download<uint16_t>(device_out.data(), out_count);
  };
  const std::vector<uint16_t> got = run();
  for (int repetition = 0; repetition < 2; ++repetition) ASSERT_EQ(run(), got) << "not repeatable";
  for (size_t i = 0; i < out_count; ++i) {
    const int64_t at = static_cast<int64_t>(i) - kMargin;
    const bool inside = at >= 0 && at < p.rows * out_stride && at % out_stride < columns;
    if (!inside) ASSERT_EQ(got[i], kCanary) << "written outside, at " << at;
  }

  const auto products = static_cast<size_t>(p.rows * p.out);
  const Buffer sums_buffer = Allocate(products * sizeof(ReferenceSums));
  const Reference reference{device_x.as<uint16_t>() + kMargin,
                            codes.as<uint8_t>(),
                            scales.as<uint16_t>(),
                            zeros.as<uint8_t>(),
                            p.rows,
                            p.out,
                            p.in,
                            weight.group_length(),
                            x_stride,
                            p.dtype == DType::kBF16};
  ReferenceKernel<<<static_cast<unsigned>((products + 127) / 128), 128, 0, stream_->get()>>>(
      reference, sums_buffer.as<ReferenceSums>());
  const auto sums = Download<ReferenceSums>(sums_buffer.data(), products);

  // float32: one rounding for each of a group's few steps, for each group (the shortest kept is
  // 32), and for the parts of a split sum; the tensor cores truncate instead of rounding.
  const double roundings = static_cast<double>(p.in) / 32 + 48;
  // Half a step of the output's type.
  const double unit = p.dtype == DType::kF16 ? 0x1p-11 : 0x1p-8;
  // Kernels for more rows may round weights to the activations' type, bfloat16's scales before that.
  const int64_t exact = p.kernels == CudaKernels::kAuto ? 8 : 16;
  const double weight_rounding = p.rows <= exact ? 0 : p.dtype == DType::kF16 ? unit : 2.1 * unit;
  double error = 0, total = 1e-30;
  for (int64_t r = 0; r < p.rows; ++r) {
    for (int64_t n = 0; n < columns; ++n) {
      const auto sum = [&](int64_t row) {  // of the source
        const auto at = static_cast<size_t>(r * p.out + row);
        const double b = p.bias ? bias[static_cast<size_t>(packed_row(row))] : 0.0;
        return std::pair{sums[at].value + b,
                         roundings * 0x1p-23 * (sums[at].partial + std::abs(b)) +
                             weight_rounding * sums[at].terms};
      };
      auto [want, bound] = sum(n);
      const auto at = static_cast<size_t>(kMargin + r * out_stride + n);
      if (p.epilogue == Epilogue::kAdd) {
        want += Value(p.dtype, before[at]);
        bound += std::abs(want) * 0x1p-23;
      } else if (silu) {
        const auto [up, up_bound] = sum(n + half);
        // |silu'| ≤ 1.1; the exponential and the division are good to a few steps.
        bound = 1.1 * bound * (std::abs(up) + up_bound) + std::abs(Silu(want)) * up_bound;
        want = Silu(want) * up;
        bound += std::abs(want) * 0x1p-19;
      }
      bound = bound * (1 + unit) + std::abs(want) * unit + 0x1p-25;
      const double value = Value(p.dtype, got[at]);
      ASSERT_NEAR(value, want, bound) << "row " << r << ", output " << n;
      error += (value - want) * (value - want);
      total += want * want;
    }
  }
  // Rounding the output gives unit² / 3 at most; bfloat16's offset of 128 up to as much again where
  // sums cancel. Rounded weights count twice where a gate meets an up. A few may all be unlucky.
  if (p.rows * columns < 64) return;
  const double few = p.dtype == DType::kF16 ? 0.5 : 0.7, many = p.dtype == DType::kF16 ? 0.8 : 1.2;
  EXPECT_LT(error / total, unit * unit * (weight_rounding == 0 ? few : many));
}

TEST_F(LinearQ4Test, TheDeviceReferenceAgreesWithTheHost) {
  const Problem p{.rows = 3, .out = 24, .in = 96, .group = 48};
  Random random(1);
  const QuantizedWeight weight = RandomWeight(p, random);
  std::vector<uint16_t> x(static_cast<size_t>(p.rows * p.in));
  for (uint16_t& bits : x) bits = Bits(p.dtype, random.Normal());
  const Buffer device_x = Upload(x), codes = Upload(weight.codes), scales = Upload(weight.scales);
  const Buffer zeros = Upload(weight.zeros), sums = Allocate(72 * sizeof(ReferenceSums));
  ReferenceKernel<<<1, 128, 0, stream_->get()>>>(
      {device_x.as<uint16_t>(), codes.as<uint8_t>(), scales.as<uint16_t>(), zeros.as<uint8_t>(),
       p.rows, p.out, p.in, 48, p.in, false},
      sums.as<ReferenceSums>());
  const auto got = Download<ReferenceSums>(sums.data(), 72);
  for (int64_t r = 0; r < p.rows; ++r) {
    for (int64_t n = 0; n < p.out; ++n) {
      double want = 0;
      for (int64_t k = 0; k < p.in; ++k) {
        want += Value(p.dtype, x[static_cast<size_t>(r * p.in + k)]) * weight.At(n, k);
      }
      EXPECT_NEAR(got[static_cast<size_t>(r * p.out + n)].value, want, 1e-6);
    }
  }
}

TEST_F(LinearQ4Test, EveryRowCount) {
  for (const int64_t rows :
       {1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 31, 33, 64, 100, 128, 200, 513}) {
    for (const DType dtype : {DType::kF16, DType::kBF16}) {
      for (const auto kernels : {CudaKernels::kAuto, CudaKernels::kPortable}) {
        Check({.rows = rows, .out = 576, .in = 1536, .dtype = dtype, .kernels = kernels}, 1);
      }
      Check({.rows = rows,
             .out = 172,
             .in = 576,
             .group = 64,
             .grid = Grid::kSymmetric,
             .dtype = dtype,
             .epilogue = Epilogue::kAdd,
             .bias = true,
             .x_gap = 8,
             .out_gap = 5},
            2);
    }
    if (HasFatalFailure()) return;
  }
}

TEST_F(LinearQ4Test, ModelShapes) {
  for (const auto& [out, in] : std::vector<std::pair<int64_t, int64_t>>{{8, 8},
                                                                        {111, 4096},
                                                                        {172, 172},
                                                                        {576, 576},
                                                                        {1536, 576},
                                                                        {4096, 4096},
                                                                        {4096, 11008},
                                                                        {22016, 4096}}) {
    for (const int64_t rows : {1, 5, 16, 32, 100}) {
      const int64_t group = in % 128 == 0 ? 128 : in % 64 == 0 ? 64 : kPerChannel;
      Check({.rows = rows, .out = out, .in = in, .group = group, .grid = Grid::kSymmetric}, 3);
      if (HasFatalFailure()) return;
    }
    Check({.rows = 8, .out = out, .in = in, .group = kPerChannel, .dtype = DType::kBF16}, 4);
    if (HasFatalFailure()) return;
  }
}

// More tiles than multiprocessors, whole and at the edges, so that blocks have several each.
TEST_F(LinearQ4Test, ManyTiles) {
  for (const int64_t rows : {64, 130, 192, 256, 300}) {
    for (const Epilogue epilogue : {Epilogue::kNone, Epilogue::kAdd, Epilogue::kSiluMul}) {
      Check({.rows = rows, .out = 33000, .in = 384, .epilogue = epilogue, .bias = rows == 192}, 8);
      Check({.rows = rows, .out = 21504, .in = 640, .epilogue = epilogue}, 9);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_F(LinearQ4Test, EveryGroupLength) {
  for (const Grid grid : {Grid::kAsymmetric, Grid::kSymmetric, Grid::kSymmetricFull}) {
    for (const DType dtype : {DType::kF16, DType::kBF16}) {
      for (const auto& [in, group] : std::vector<std::pair<int64_t, int64_t>>{{4096, 32},
                                                                              {576, 32},
                                                                              {4096, 64},
                                                                              {576, 64},
                                                                              {4096, 128},
                                                                              {4096, 256},
                                                                              {1536, 96},
                                                                              {1536, 48},
                                                                              {1536, 384},
                                                                              {222, 111},
                                                                              {1000, 125},
                                                                              {1000, 200},
                                                                              {96, 16},
                                                                              {64, 8},
                                                                              {64, 2},
                                                                              {66, 3},
                                                                              {10, 1},
                                                                              {222, kPerChannel},
                                                                              {172, kPerChannel},
                                                                              {8, kPerChannel},
                                                                              {576, kPerChannel},
                                                                              {11008, kPerChannel},
                                                                              {2, kPerChannel}}) {
        for (const int64_t rows : {1, 7, 20, 70}) {
          Check({.rows = rows, .out = 40, .in = in, .group = group, .grid = grid, .dtype = dtype},
                5);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST_F(LinearQ4Test, Epilogues) {
  for (const Epilogue epilogue : {Epilogue::kNone, Epilogue::kAdd, Epilogue::kSiluMul}) {
    for (const bool bias : {false, true}) {
      for (const int64_t out : {2, 8, 110, 222, 1024}) {
        for (const int64_t rows : {1, 2, 8, 9, 30, 64, 65}) {
          Check({.rows = rows,
                 .out = out,
                 .in = 1024,
                 .epilogue = epilogue,
                 .bias = bias,
                 .out_gap = 3,
                 .split = std::min<int64_t>(out, 13)},
                6);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST_F(LinearQ4Test, RandomProblems) {
  Random random(2026);
  for (int i = 0; i < 300; ++i) {
    Problem p;
    constexpr int64_t kGroups[] = {32, 64, 128, 256, 48, 80, kPerChannel};
    p.group = kGroups[random.Below(std::size(kGroups))];
    p.in = p.group == kPerChannel ? 2 * static_cast<int64_t>(1 + random.Below(1500))
                                  : p.group * static_cast<int64_t>(1 + random.Below(24));
    p.out = 2 * static_cast<int64_t>(1 + random.Below(700));
    p.rows = static_cast<int64_t>(1 + random.Below(random.Below(2) != 0 ? 12 : 150));
    p.grid = static_cast<Grid>(random.Below(3));
    p.dtype = random.Below(2) != 0 ? DType::kF16 : DType::kBF16;
    p.epilogue = static_cast<Epilogue>(random.Below(3));
    p.bias = random.Below(2) != 0;
    p.x_gap = static_cast<int64_t>(random.Below(20));
    p.out_gap = static_cast<int64_t>(random.Below(9));
    p.split = static_cast<int64_t>(random.Below(static_cast<uint64_t>(p.out)));
    p.kernels = random.Below(2) != 0 ? CudaKernels::kAuto : CudaKernels::kPortable;
    Check(p, random.Next());
    if (HasFatalFailure()) return;
  }
}

// What is not finite must not be lost, nor reach other rows.
TEST_F(LinearQ4Test, NonFiniteActivationsReachTheirRowOnly) {
  const int64_t in = 384, out = 40;
  for (const DType dtype : {DType::kF16, DType::kBF16}) {
    for (const int64_t rows : {3, 8, 13, 70}) {
      const Problem p{.rows = rows, .out = out, .in = in, .dtype = dtype};
      Random random(7);
      const QuantizedWeight weight = RandomWeight(p, random);
      const Q4Layout layout = Q4Layout::Of(out, in, p.spec());
      const Buffer packed = Allocate(layout.total_bytes), codes = Upload(weight.codes);
      const Buffer scales = Upload(weight.scales), zeros = Upload(weight.zeros);
      PackQ4(*stream_, layout, dtype, codes.as<uint8_t>(), scales.as<uint16_t>(),
             zeros.as<uint8_t>(), out, 0, 1, packed.data());
      std::vector<uint16_t> x(static_cast<size_t>(rows * in));
      for (uint16_t& bits : x) bits = Bits(dtype, random.Normal());
      const size_t scratch = LinearQ4ScratchBytes(stream_->multiprocessors(), rows, in);
      const Buffer room = Allocate(scratch);
      Fill(room.data(), 0, scratch);
      const auto count = static_cast<size_t>(rows * out);
      const auto run = [&] {
        const Buffer device_x = Upload(x), device_out = Allocate(count * 2);
        LinearQ4(*stream_, layout, packed.data(), nullptr, {device_x.data(), dtype, rows, in, in},
                 Epilogue::kNone, {device_out.data(), dtype, rows, out, out}, room.data(),
                 CudaKernels::kAuto);
        return Download<uint16_t>(device_out.data(), count);
      };
      const std::vector<uint16_t> clean = run();
      for (const double poison :
           {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
        x[static_cast<size_t>(2 * in + 201)] = Bits(dtype, poison);
        const std::vector<uint16_t> got = run();
        for (size_t i = 0; i < count; ++i) {
          if (static_cast<int64_t>(i) / out == 2) {
            EXPECT_FALSE(std::isfinite(Value(dtype, got[i]))) << i;
          } else {
            EXPECT_EQ(got[i], clean[i]) << i;
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace nibble::cuda

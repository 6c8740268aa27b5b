// What tests of 4-bit products share: a weight and activations on the device, a plain product in
// double, and the comparison with it.
#ifndef NIBBLE_OPS_CUDA_LINEAR_Q4_TEST_UTIL_CUH_
#define NIBBLE_OPS_CUDA_LINEAR_Q4_TEST_UTIL_CUH_

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "src/base/random.h"
#include "src/ops/cuda/cuda_test.h"
#include "src/ops/cuda/device_memory.h"
#include "src/ops/cuda/half.cuh"
#include "src/ops/cuda/linear_q4.h"

namespace nibble::cuda {

struct Problem {
  int64_t rows = 1, out = 16, in = 128;
  int64_t group = 128;
  Grid grid = Grid::kAsymmetric;
  DType dtype = DType::kF16;
  Epilogue epilogue = Epilogue::kNone;
  bool bias = false;
  int64_t x_gap = 0, out_gap = 0;  // elements between rows; x's stride is rounded up to 8
  CudaKernels kernels = CudaKernels::kAuto;
  int64_t split = 0;  // the first so many rows of the weight are packed on their own
  bool wide_scales = false;  // from 2⁻¹⁴ to 4

  int64_t columns() const { return epilogue == Epilogue::kSiluMul ? out / 2 : out; }
  // Hopper's kernel in float16, which rounds more than others (docs/kernels.md).
  bool MayUseHopperF16() const {
    return kernels == CudaKernels::kAuto && rows > 8 && dtype == DType::kF16;
  }
  QuantSpec spec() const { return {.group_size = group, .grid = grid}; }
  std::string text() const {
    return fmt::format(
               "{} rows, [{}, {}], group {}, {}, {}, epilogue {}{}, gaps {} and {}, split {}", rows,
               out, in, group, Name(grid), Name(dtype), static_cast<int>(epilogue),
               bias ? ", bias" : "", x_gap, out_gap, split) +
           (kernels == CudaKernels::kPortable ? ", portable kernels" : "") +
           (wide_scales ? ", wide scales" : "");
  }
};

inline uint16_t Bits(DType dtype, double value) {
  const auto f = static_cast<float>(value);
  return dtype == DType::kF16 ? F16FromFloat(f) : BF16FromFloat(f);
}
inline double Value(DType dtype, uint16_t bits) {
  return dtype == DType::kF16 ? FloatFromF16(bits) : FloatFromBF16(bits);
}

// A product as the definition reads, in double. One thread an output.
template <typename T>
struct Reference {
  const T* x;            // [rows, in], with stride
  const uint8_t* codes;  // as in QuantizedWeight
  const uint16_t* scales;
  const uint8_t* zeros;
  int64_t rows, out, in, group, x_stride;
  bool rounds_zeros;  // whether what is tested may round a scale's product with its zero
};
struct ReferenceSums {
  double value;
  double terms;  // Σ |x| |weight|, for kernels that round weights; with scale · zero where rounded
  double inputs;   // Σ |x|
  double partial;  // Σ |x| |scale| (code + zero + 2 offset), which bounds every partial sum of
                   // kernels that add `offset` to codes and zeros
};
template <typename T>
__device__ ReferenceSums ReferenceValue(const Reference<T>& r, int64_t row, int64_t n) {
  const int64_t groups = r.in / r.group;
  ReferenceSums sums{};
  for (int64_t k = 0; k < r.in; ++k) {
    const int code = (r.codes[n * (r.in / 2) + k / 2] >> (4 * (k & 1))) & 15;
    const int zero = r.zeros[n * groups + k / r.group];
    const double scale = __half2float(__ushort_as_half(r.scales[n * groups + k / r.group]));
    const double x = HalfTraits<T>::ToFloat(r.x[row * r.x_stride + k]);
    sums.value += x * scale * (code - zero);
    const bool rounds_zero = r.rounds_zeros && (zero & (zero - 1)) != 0;
    sums.terms += fabs(x * scale) * (abs(code - zero) + (rounds_zero ? zero : 0));
    sums.inputs += fabs(x);
    sums.partial += fabs(x * scale) * (code + zero + (std::is_same_v<T, __half> ? 0 : 256));
  }
  return sums;
}
template <typename T>
__global__ void ReferenceKernel(Reference<T> r, ReferenceSums* sums) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index < r.rows * r.out) sums[index] = ReferenceValue(r, index / r.out, index % r.out);
}

inline QuantizedWeight RandomWeight(const Problem& p, Random& random) {
  QuantizedWeight weight = QuantizedWeight::Empty(p.spec(), p.out, p.in);
  for (size_t i = 0; i < weight.codes.size(); i += 8) {
    const uint64_t bits = random.Next();
    std::memcpy(weight.codes.data() + i, &bits, std::min<size_t>(8, weight.codes.size() - i));
  }
  for (uint16_t& scale : weight.scales) {
    const double sign = p.grid == Grid::kSymmetricFull && random.Below(2) != 0 ? -1 : 1;
    const double magnitude =
        p.wide_scales ? std::exp2(16 * random.Uniform() - 14) : 0.002 + 0.02 * random.Uniform();
    scale = F16FromFloat(static_cast<float>(sign * magnitude));
  }
  for (uint8_t& zero : weight.zeros) {
    zero = p.grid == Grid::kAsymmetric ? static_cast<uint8_t>(random.Below(16)) : uint8_t{8};
  }
  return weight;
}

inline double Silu(double x) { return x / (1 + std::exp(-x)); }

// A problem on the device, and the sums that its product must have.
struct Case {
  Problem problem;
  QuantizedWeight weight;
  Q4Layout layout;
  Buffer packed, x, out, bias;
  std::vector<uint16_t> before;  // all of `out`, with a canary around its rows
  std::vector<float> host_bias;
  MatrixView x_view, out_view;
  const float* bias_data = nullptr;
  std::vector<ReferenceSums> sums;  // [rows, outputs as in `weight`]

  // Packed row of a source row: gates come first in the source, alternate with ups when packed.
  int64_t PackedRow(int64_t n) const {
    const int64_t half = problem.out / 2;
    if (problem.epilogue != Epilogue::kSiluMul) return n;
    return n < half ? 2 * n : 2 * (n - half) + 1;
  }
};

class LinearQ4Test : public CudaTest {
 protected:
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

  // Compares LinearQ4 with the reference.
  void Check(const Problem& problem, uint64_t seed);

  Case MakeCase(const Problem& problem, uint64_t seed);
  // The dequantized weight is exact to one rounding.
  void CheckDequantized(const Case& c);
  // Compares with the reference what multiply() writes into the case's `out`, several times.
  template <typename Multiply>
  void CheckProduct(const Case& c, const Multiply& multiply);

  static constexpr uint16_t kCanary = 0x7bcd;
  static constexpr int64_t kMargin = 64;  // elements before x and out, and after

  Buffer scratch_;  // kept between problems, as in a step
  size_t scratch_bytes_ = 0;
};

inline Case LinearQ4Test::MakeCase(const Problem& p, uint64_t seed) {
  Random random(seed);
  Case c{.problem = p, .weight = RandomWeight(p, random)};
  const int64_t columns = p.columns(), half = p.out / 2, groups = c.weight.groups();

  const Buffer codes = Upload(c.weight.codes), scales = Upload(c.weight.scales);
  const Buffer zeros = Upload(c.weight.zeros);
  c.layout = Q4Layout::Of(p.out, p.in, p.spec());
  c.packed = Allocate(c.layout.total_bytes);
  Fill(c.packed.data(), 0xff, c.layout.largest_offset);
  Fill(c.packed.as<std::byte>() + c.layout.largest_offset, 0, sizeof(uint32_t));
  const auto pack = [&](int64_t first, int64_t count, int64_t to, int64_t step) {
    PackQ4(*stream_, c.layout, p.dtype, codes.as<uint8_t>() + first * (p.in / 2),
           scales.as<uint16_t>() + first * groups, zeros.as<uint8_t>() + first * groups, count, to,
           step, c.packed.data());
  };
  if (p.epilogue == Epilogue::kSiluMul) {
    pack(0, half, 0, 2);
    pack(half, half, 1, 2);
  } else {
    pack(0, p.split, 0, 1);
    pack(p.split, p.out - p.split, p.split, 1);
  }

  // x with NaN around it, out with a canary around it.
  const int64_t x_stride = (p.in + p.x_gap + 7) / 8 * 8, out_stride = columns + p.out_gap;
  std::vector<uint16_t> x(static_cast<size_t>(p.rows * x_stride + 2 * kMargin), 0x7fff);
  c.before.assign(static_cast<size_t>(p.rows * out_stride + 2 * kMargin), kCanary);
  for (int64_t r = 0; r < p.rows; ++r) {
    uint16_t* row = x.data() + kMargin + r * x_stride;
    for (int64_t k = 0; k < p.in; ++k) row[k] = Bits(p.dtype, random.Normal());
    uint16_t* out_row = c.before.data() + kMargin + r * out_stride;
    for (int64_t n = 0; n < columns; ++n) {  // only kAdd may read it
      out_row[n] = p.epilogue == Epilogue::kAdd ? Bits(p.dtype, random.Normal()) : uint16_t{0x7fff};
    }
  }
  c.host_bias.resize(static_cast<size_t>(p.bias ? p.out : 0));
  for (float& b : c.host_bias) b = static_cast<float>(random.Normal());
  c.x = Upload(x);
  c.out = Upload(c.before);
  c.bias = Upload(c.host_bias);
  c.bias_data = p.bias ? c.bias.as<float>() : nullptr;
  c.x_view = {c.x.as<uint16_t>() + kMargin, p.dtype, p.rows, p.in, x_stride};
  c.out_view = {c.out.as<uint16_t>() + kMargin, p.dtype, p.rows, columns, out_stride};

  const auto products = static_cast<size_t>(p.rows * p.out);
  const Buffer sums = Allocate(products * sizeof(ReferenceSums));
  WithHalfType(p.dtype, [&]<typename T>() {
    const Reference<T> reference{c.x_view.row<T>(0),
                                 codes.as<uint8_t>(),
                                 scales.as<uint16_t>(),
                                 zeros.as<uint8_t>(),
                                 p.rows,
                                 p.out,
                                 p.in,
                                 c.weight.group_length(),
                                 x_stride,
                                 p.MayUseHopperF16()};
    ReferenceKernel<<<static_cast<unsigned>((products + 127) / 128), 128, 0, stream_->get()>>>(
        reference, sums.as<ReferenceSums>());
  });
  c.sums = Download<ReferenceSums>(sums.data(), products);
  return c;
}

inline void LinearQ4Test::CheckDequantized(const Case& c) {
  const Problem& p = c.problem;
  const Buffer dense = Allocate(static_cast<size_t>(p.out * p.in) * 2);
  Fill(dense.data(), 0xff, dense.size());
  for (int64_t first = 0; first < p.out; first += 384) {
    DequantizeQ4(*stream_, c.layout, c.packed.data(), p.dtype, first,
                 std::min<int64_t>(384, p.out - first), dense.as<uint16_t>() + first * p.in);
  }
  const auto dequantized = Download<uint16_t>(dense.data(), static_cast<size_t>(p.out * p.in));
  const int64_t stride = std::max<int64_t>(1, p.out * p.in / 200000);
  for (int64_t i = 0; i < p.out * p.in; i += stride) {
    const int64_t n = i / p.in, k = i % p.in;
    ASSERT_EQ(dequantized[static_cast<size_t>(c.PackedRow(n) * p.in + k)],
              Bits(p.dtype, c.weight.At(n, k)))
        << n << ", " << k;
  }
}

template <typename Multiply>
void LinearQ4Test::CheckProduct(const Case& c, const Multiply& multiply) {
  const Problem& p = c.problem;
  const bool silu = p.epilogue == Epilogue::kSiluMul;
  const int64_t columns = p.columns(), half_out = p.out / 2, out_stride = c.out_view.stride;
  const auto run = [&] {
    Copy(c.before, c.out.data());
    multiply();
    return Download<uint16_t>(c.out.data(), c.before.size());
  };
  const std::vector<uint16_t> got = run();
  for (int repetition = 0; repetition < 2; ++repetition) ASSERT_EQ(run(), got) << "not repeatable";
  for (size_t i = 0; i < got.size(); ++i) {
    const int64_t at = static_cast<int64_t>(i) - kMargin;
    const bool inside = at >= 0 && at < p.rows * out_stride && at % out_stride < columns;
    if (!inside) ASSERT_EQ(got[i], kCanary) << "written outside, at " << at;
  }

  // float32: one rounding for each of a group's few steps, for each group (the shortest kept is
  // 32), and for the parts of a split sum; the tensor cores truncate instead of rounding.
  const double roundings = static_cast<double>(p.in) / 32 + 48;
  // Half a step of the output's type.
  const double unit = p.dtype == DType::kF16 ? 0x1p-11 : 0x1p-8;
  // Kernels for more rows may round weights to the activations' type, bfloat16's scales before
  // that.
  const int64_t exact = p.kernels == CudaKernels::kAuto ? 8 : 16;
  const double weight_rounding = p.rows <= exact ? 0 : p.dtype == DType::kF16 ? unit : 2.1 * unit;
  // And Hopper's may lose last bits of small ones beside a scale of up to 2^(exponent - 14).
  int exponent = 0;
  for (const uint16_t scale : c.weight.scales)
    exponent = std::max(exponent, (scale & 0x7fff) >> 10);
  const double lost_bits = p.MayUseHopperF16() ? std::exp2(exponent - 6 - 24) : 0;
  double error = 0, total = 1e-30;
  for (int64_t r = 0; r < p.rows; ++r) {
    for (int64_t n = 0; n < columns; ++n) {
      const auto sum = [&](int64_t row) {  // of the source
        const auto at = static_cast<size_t>(r * p.out + row);
        const double b = p.bias ? c.host_bias[static_cast<size_t>(c.PackedRow(row))] : 0.0;
        return std::pair{c.sums[at].value + b,
                         roundings * 0x1p-23 * (c.sums[at].partial + std::abs(b)) +
                             weight_rounding * c.sums[at].terms + lost_bits * c.sums[at].inputs};
      };
      auto [want, bound] = sum(n);
      const auto at = static_cast<size_t>(kMargin + r * out_stride + n);
      if (p.epilogue == Epilogue::kAdd) {
        want += Value(p.dtype, c.before[at]);
        bound += std::abs(want) * 0x1p-23;
      } else if (silu) {
        const auto [up, up_bound] = sum(n + half_out);
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
  // sums cancel. Rounded weights count twice where a gate meets an up, and so do Hopper's products
  // of a scale and a zero in float16, which are larger. A few may all be unlucky.
  if (p.rows * columns < 64) return;
  const bool half = p.dtype == DType::kF16;
  const double few = half ? 0.5 : 0.7;
  const bool rounds_zeros = p.MayUseHopperF16() && p.grid == Grid::kAsymmetric;
  const double many = !half ? 1.2 : rounds_zeros ? 1.8 : 0.8;
  EXPECT_LT(error / total, unit * unit * (weight_rounding == 0 ? few : many));
}

inline void LinearQ4Test::Check(const Problem& p, uint64_t seed) {
  SCOPED_TRACE(p.text());
  const Case c = MakeCase(p, seed);
  ASSERT_NO_FATAL_FAILURE(CheckDequantized(c));
  const size_t scratch = LinearQ4ScratchBytes(stream_->multiprocessors(), p.rows, p.in);
  if (scratch > scratch_bytes_) {
    scratch_ = Allocate(scratch);
    scratch_bytes_ = scratch;
    Fill(scratch_.data(), 0, scratch);
  }
  CheckProduct(c, [&] {
    LinearQ4(*stream_, c.layout, c.packed.data(), c.bias_data, c.x_view, p.epilogue, c.out_view,
             scratch_.data(), p.kernels);
  });
}

}  // namespace nibble::cuda

#endif  // NIBBLE_OPS_CUDA_LINEAR_Q4_TEST_UTIL_CUH_

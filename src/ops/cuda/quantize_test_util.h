// What the tests of quantizing on a GPU share: the same numbers on the device and for the
// reference.
#ifndef NIBBLE_OPS_CUDA_QUANTIZE_TEST_UTIL_H_
#define NIBBLE_OPS_CUDA_QUANTIZE_TEST_UTIL_H_

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "src/base/must.h"
#include "src/base/random.h"
#include "src/ops/cuda/cuda_backend.h"
#include "src/ops/cuda/device.h"
#include "src/ops/ref/ref_backend.h"

namespace nibble {

// A float32 matrix on the host.
struct Floats {
  int64_t rows, columns;
  std::vector<float> values;

  Floats(int64_t r, int64_t c) : rows(r), columns(c), values(static_cast<size_t>(r * c)) {}
  static Floats Normal(int64_t rows, int64_t columns, uint64_t seed, double spread = 1) {
    Random random(seed);
    Floats floats(rows, columns);
    for (float& value : floats.values) value = static_cast<float>(random.Normal() * spread);
    return floats;
  }
  float& At(int64_t r, int64_t c) { return values[static_cast<size_t>(r * columns + c)]; }
  float At(int64_t r, int64_t c) const { return values[static_cast<size_t>(r * columns + c)]; }
  MatrixView view() const {
    return {const_cast<float*>(values.data()), DType::kF32, rows, columns, columns};
  }
};

inline std::vector<int32_t> Ascending(int64_t count) {
  std::vector<int32_t> order(static_cast<size_t>(count));
  std::iota(order.begin(), order.end(), 0);
  return order;
}

inline std::vector<float> SomeScales(int64_t count) {
  std::vector<float> scales;
  for (int64_t k = 0; k < count; ++k) scales.push_back(0.5f + 0.01f * static_cast<float>(k % 150));
  return scales;
}

inline constexpr Grid kGrids[] = {Grid::kAsymmetric, Grid::kSymmetric, Grid::kSymmetricFull};

class CudaQuantizeTestBase : public testing::TestWithParam<DType> {
 protected:
  void SetUp() override {
    if (ListCudaDevices().empty()) GTEST_SKIP() << "there is no NVIDIA GPU here";
    type_ = GetParam();
    cuda_ = Must(MakeCudaBackend({.activations = type_}));
    ops_ = Must(cuda_->CreateQuantizeOps());
    ref_backend_ = MakeRefBackend(4);
    ref_ = Must(ref_backend_->CreateQuantizeOps());
  }

  uint16_t Bits(float value) const {
    return type_ == DType::kF16 ? F16FromFloat(value) : BF16FromFloat(value);
  }
  // Inputs that both sides hold exactly, some of them outliers.
  Floats Inputs(int64_t rows, int64_t columns, uint64_t seed) const {
    Floats x = Floats::Normal(rows, columns, seed);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t k = 0; k < columns; ++k) {
        if (k % 37 == 20) x.At(r, k) *= 8;
        const uint16_t bits = Bits(x.At(r, k));
        x.At(r, k) = type_ == DType::kF16 ? FloatFromF16(bits) : FloatFromBF16(bits);
      }
    }
    return x;
  }

  void Copy(void* to, const void* from, size_t bytes) const {
    EXPECT_EQ(cudaMemcpy(to, from, bytes, cudaMemcpyDefault), cudaSuccess);
    cudaDeviceSynchronize();  // the copy may return before it is done, and our stream does not wait
  }
  Matrix ToDevice(const Floats& from) const {
    Matrix matrix =
        Must(cuda_->Allocate(MemoryClass::kWorkspace, DType::kF32, from.rows, from.columns));
    Copy(matrix.view().data, from.values.data(), from.values.size() * sizeof(float));
    return matrix;
  }
  struct Activations {
    Matrix memory;
    MatrixView view;
  };
  // Strided, with NaN after each row.
  Activations ToActivations(const Floats& from) const {
    constexpr int64_t kGap = 8;
    const int64_t stride = from.columns + kGap;
    std::vector<uint16_t> bits(static_cast<size_t>(from.rows * stride),
                               Bits(std::numeric_limits<float>::quiet_NaN()));
    for (int64_t r = 0; r < from.rows; ++r) {
      for (int64_t k = 0; k < from.columns; ++k) {
        bits[static_cast<size_t>(r * stride + k)] = Bits(from.At(r, k));
      }
    }
    Activations to{
        .memory = Must(cuda_->Allocate(MemoryClass::kWorkspace, type_, from.rows, stride)),
        .view = {}};
    Copy(to.memory.view().data, bits.data(), bits.size() * 2);
    to.view = to.memory.view().Columns(0, from.columns);
    return to;
  }
  Floats ToHost(MatrixView matrix) const {
    const MatrixView on_host = Must(cuda_->ToHost(matrix));
    Floats floats(matrix.rows, matrix.columns);
    std::copy_n(on_host.row<float>(0), floats.values.size(), floats.values.begin());
    return floats;
  }

  // The same on both sides, in two steps.
  struct BothStatistics {
    std::unique_ptr<InputStatistics> cuda, ref;
  };
  BothStatistics Statistics(const Floats& x) const {
    BothStatistics both{Must(ops_->CreateStatistics(x.columns)),
                        Must(ref_->CreateStatistics(x.columns))};
    const Activations on_device = ToActivations(x);
    const int64_t half = x.rows / 3;
    for (const auto& [first, count] : {std::pair{int64_t{0}, half}, {half, x.rows - half}}) {
      ops_->Accumulate(on_device.view.Rows(first, count), *both.cuda);
      ref_->Accumulate(x.view().Rows(first, count), *both.ref);
    }
    EXPECT_EQ(both.cuda->tokens(), x.rows);
    cudaDeviceSynchronize();
    return both;
  }

  static double ShareOfEqualCodes(const QuantizedWeight& a, const QuantizedWeight& b) {
    int64_t equal = 0;
    for (int64_t n = 0; n < a.rows; ++n) {
      for (int64_t k = 0; k < a.columns; ++k) equal += a.Code(n, k) == b.Code(n, k);
    }
    return static_cast<double>(equal) / static_cast<double>(a.rows * a.columns);
  }
  static double ShareOfEqualValues(const Floats& a, const Floats& b) {
    int64_t equal = 0;
    for (size_t i = 0; i < a.values.size(); ++i) {
      equal += std::abs(a.values[i] - b.values[i]) <= 1e-6f;
    }
    return static_cast<double>(equal) / static_cast<double>(a.values.size());
  }
  double ErrorOf(const Floats& weight, const QuantizedWeight& quantized,
                 const InputStatistics& statistics) const {
    const Floats values(weight.rows, weight.columns);
    ref_->Dequantize(quantized, values.view());
    return ref_->OutputError(weight.view(), values.view(), statistics);
  }

  DType type_ = DType::kF16;
  std::unique_ptr<Backend> cuda_, ref_backend_;
  std::unique_ptr<QuantizeOps> ops_, ref_;
};

}  // namespace nibble

#endif  // NIBBLE_OPS_CUDA_QUANTIZE_TEST_UTIL_H_

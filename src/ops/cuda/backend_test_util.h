// What tests of the CUDA backend against the reference share.
#ifndef NIBBLE_OPS_CUDA_BACKEND_TEST_UTIL_H_
#define NIBBLE_OPS_CUDA_BACKEND_TEST_UTIL_H_

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "src/base/random.h"
#include "src/ops/cuda/cuda_backend.h"
#include "src/ops/cuda/device.h"
#include "src/ops/ref/ref_backend.h"

namespace nibble {

template <typename T>
T Must(Result<T> result) {
  if (!result) CheckFailed(__FILE__, __LINE__, "a result", result.error().message());
  return std::move(*result);
}

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

inline uint16_t ToBits(float value, DType type) {
  return type == DType::kF16 ? F16FromFloat(value) : BF16FromFloat(value);
}
inline float FromBits(uint16_t bits, DType type) {
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

// A dense weight that owns its bytes.
inline Weight Dense(HostMatrix& values, DType type) {
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

}  // namespace nibble

#endif  // NIBBLE_OPS_CUDA_BACKEND_TEST_UTIL_H_

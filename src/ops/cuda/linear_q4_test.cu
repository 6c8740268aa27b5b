#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "src/ops/cuda/linear_q4_test_util.cuh"
#include "src/ops/cuda/matrix_product.h"

namespace nibble::cuda {
namespace {

TEST_F(LinearQ4Test, TheDeviceReferenceAgreesWithTheHost) {
  const Problem p{.rows = 3, .out = 24, .in = 96, .group = 48};
  Random random(1);
  const QuantizedWeight weight = RandomWeight(p, random);
  std::vector<uint16_t> x(static_cast<size_t>(p.rows * p.in));
  for (uint16_t& bits : x) bits = Bits(p.dtype, random.Normal());
  const Buffer device_x = Upload(x), codes = Upload(weight.codes), scales = Upload(weight.scales);
  const Buffer zeros = Upload(weight.zeros), sums = Allocate(72 * sizeof(ReferenceSums));
  ReferenceKernel<<<1, 128, 0, stream_->get()>>>(
      Reference<__half>{device_x.as<__half>(), codes.as<uint8_t>(), scales.as<uint16_t>(),
                        zeros.as<uint8_t>(), p.rows, p.out, p.in, 48, p.in},
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

// The other way to multiply many rows, with room for a piece of the weight and for all of it.
TEST_F(LinearQ4Test, Dequantized) {
  constexpr size_t kWorkspaceBytes = size_t{4} << 20;
  const auto product = MatrixProduct::Create(CudaKernels::kAuto);
  ASSERT_TRUE(product.has_value()) << product.error().message();
  const Buffer workspace = Allocate(kWorkspaceBytes);
  for (const DType dtype : {DType::kF16, DType::kBF16}) {
    for (const auto& [in, group] :
         {std::pair<int64_t, int64_t>{1024, 128}, {960, 48}, {222, kPerChannel}}) {
      for (const Epilogue epilogue : {Epilogue::kNone, Epilogue::kAdd}) {
        const Problem p{.rows = 130,
                        .out = 600,
                        .in = in,
                        .group = group,
                        .dtype = dtype,
                        .epilogue = epilogue,
                        .out_gap = 8};
        SCOPED_TRACE(p.text());
        const Case c = MakeCase(p, 10);
        for (const int64_t rows : {128, 300, 600}) {
          const Buffer dense = Allocate(static_cast<size_t>(rows * in) * 2);
          CheckProduct(c, [&] {
            (*product)->RunDequantized(*stream_, c.x_view, c.layout, c.packed.data(),
                                       epilogue == Epilogue::kAdd ? MatrixProduct::Output::kAdd
                                                                  : MatrixProduct::Output::kReplace,
                                       c.out_view, dense.data(), dense.size(), workspace.data(),
                                       kWorkspaceBytes);
          });
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

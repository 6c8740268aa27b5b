// Which kernel makes a product, and what they need of the host.
#include <algorithm>
#include <cmath>
#include <limits>

#include "src/ops/cuda/linear_q4_kernels.cuh"

namespace nibble::cuda {
namespace q4 {
namespace {

constexpr int kSpreadRows = 64;  // at a time

int64_t PaddedInputs(int64_t in) { return (in + kUnitInputs - 1) / kUnitInputs * kUnitInputs; }

// spread[r][k] = x[r][the input of packed column k], or 0.
__global__ void SpreadRows(Geometry g, const uint16_t* x, int64_t stride, uint16_t* spread) {
  const int columns = g.units * kUnitInputs;
  const uint16_t* from = x + blockIdx.x * stride;
  for (auto k = static_cast<int>(threadIdx.x); k < columns; k += static_cast<int>(blockDim.x)) {
    const int offset = k % g.padded_group;
    const int input = k / g.padded_group * g.group_length + offset;
    spread[static_cast<int64_t>(blockIdx.x) * columns + k] =
        offset < g.group_length && input < g.in_features ? from[input] : uint16_t{0};
  }
}

}  // namespace

SharedMemory SharedMemory::OfDevice() {
  static const SharedMemory memory = [] {
    int device = 0, of_block = 0, of_multiprocessor = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&of_block, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    cudaDeviceGetAttribute(&of_multiprocessor, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
    return SharedMemory{static_cast<size_t>(of_block), static_cast<size_t>(of_multiprocessor)};
  }();
  return memory;
}

// Room for kSpreadRows rows of four times the inputs, or of a row of groups of 1 in 32.
size_t SpreadBytes(int64_t rows, int64_t in_features) {
  const int64_t multiple = std::max<int64_t>(4 * std::min<int64_t>(rows, kSpreadRows), 32);
  return static_cast<size_t>(multiple * PaddedInputs(in_features) * 2);
}

}  // namespace q4

namespace {

// Of Llama-2-7B's layers on an H200 (docs/results/kernels.md).
constexpr int64_t kHopperFewestRows = 9, kPortableMostRows = 128;

// Whether tens to thousands of rows go through Hopper's kernel.
bool TakesHopper(const q4::Geometry& geometry, CudaKernels kernels) {
  return kernels == CudaKernels::kAuto && !geometry.spreads && q4::HasHopperProduct();
}

template <typename T>
q4::Product<T, true> Linked(const q4::Product<T>& product, const LinkedNorms& norms) {
  CHECK(product.rows <= kMostLinkedRows, "norms are linked for {} rows", product.rows);
  q4::Product<T, true> linked{product};
  if (norms.before != nullptr) {
    CHECK(norms.before->scaled.data == product.x, "x is the row times the gain");
    linked.before = {.squares = norms.before->squares,
                     .epsilon = norms.before->epsilon,
                     .scale = 1 / norms.before->scale};
  }
  if (norms.behind != nullptr) {
    const MatrixView scaled = norms.behind->scaled;
    CHECK(product.epilogue == Epilogue::kAdd && scaled.rows == product.rows &&
              scaled.columns == product.outputs,
          "a norm of [{}, {}] behind {} outputs", scaled.rows, scaled.columns, product.outputs);
    linked.behind = {.gain = norms.behind->gain,
                     .scale = norms.behind->scale,
                     .scaled = scaled.row<T>(0),
                     .scaled_stride = scaled.stride,
                     .squares = norms.behind->squares};
  }
  return linked;
}

}  // namespace

float ScaleOfGain(float largest_gain) {
  int exponent = 0;
  std::frexp(largest_gain, &exponent);
  return std::ldexp(1.0f, -exponent);
}

bool LinearQ4TakesNorms(const Q4Layout& layout) {
  return !q4::Geometry::Of(layout.out_features, layout.in_features, layout.group_length).spreads;
}

int64_t LinearQ4MostRows(const Q4Layout& layout, CudaKernels kernels) {
  const auto geometry =
      q4::Geometry::Of(layout.out_features, layout.in_features, layout.group_length);
  const bool has_limit = kernels != CudaKernels::kBatchInvariant && !TakesHopper(geometry, kernels);
  return has_limit ? kPortableMostRows : std::numeric_limits<int64_t>::max();
}

size_t LinearQ4ScratchBytes(int multiprocessors, int64_t rows, int64_t in_features) {
  return q4::SpreadBytes(rows, in_features) + q4::PartialBytes(multiprocessors, rows);
}

void LinearQ4(Stream& stream, const Q4Layout& layout, const void* packed, const float* bias,
              MatrixView x, Epilogue epilogue, MatrixView out, void* scratch, CudaKernels kernels,
              const LinkedNorms& norms) {
  const int64_t outputs = layout.out_features;
  CHECK(x.columns == layout.in_features && x.rows == out.rows && x.dtype == out.dtype,
        "x [{}, {}], weight [{}, {}], out [{}, {}]", x.rows, x.columns, outputs, layout.in_features,
        out.rows, out.columns);
  CHECK(out.columns == (epilogue == Epilogue::kSiluMul ? outputs / 2 : outputs) &&
            (epilogue != Epilogue::kSiluMul || outputs % 2 == 0),
        "{} columns for {} outputs", out.columns, outputs);
  CHECK(reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && x.stride % 8 == 0,
        "x must be aligned to 16 bytes, and its stride of {} elements too", x.stride);
  if (x.rows == 0) return;

  const q4::Geometry geometry = q4::Geometry::Of(outputs, layout.in_features, layout.group_length);
  const q4::Weights weights = q4::WeightsOf(geometry, layout, packed);
  auto* bytes = static_cast<std::byte*>(scratch);
  auto* spread = reinterpret_cast<uint16_t*>(bytes);

  WithHalfType(x.dtype, [&]<typename T>() {
    const auto product_of = [&](int64_t first, int64_t rows) {
      return q4::Product<T>{.x = x.row<T>(first),
                            .out = out.row<T>(first),
                            .bias = bias,
                            .x_stride = x.stride,
                            .out_stride = out.stride,
                            .rows = static_cast<int>(rows),
                            .in = static_cast<int>(layout.in_features),
                            .outputs = static_cast<int>(outputs),
                            .epilogue = epilogue};
    };
    if (norms.before != nullptr || norms.behind != nullptr) {
      CHECK(kernels == CudaKernels::kAuto && LinearQ4TakesNorms(layout));
      CHECK(q4::SmallProduct(stream, geometry, weights, Linked(product_of(0, x.rows), norms),
                             kernels));
      stream.CheckLaunch("a 4-bit linear layer", x.rows, outputs);
      return;
    }
    if (x.rows >= kHopperFewestRows && TakesHopper(geometry, kernels)) {
      q4::HopperProduct(stream, geometry, weights, product_of(0, x.rows),
                        q4::ChooseHopperForm(geometry, x.rows));
      stream.CheckLaunch("a 4-bit linear layer", x.rows, outputs);
      return;
    }
    int64_t rows_at_once = kernels == CudaKernels::kBatchInvariant ? q4::kSmallRows : x.rows;
    size_t partials_at = 0;
    if (geometry.spreads) {
      const size_t room = q4::SpreadBytes(x.rows, layout.in_features);
      rows_at_once = std::min({rows_at_once, int64_t{q4::kSpreadRows},
                               static_cast<int64_t>(room / 2) / geometry.packed_inputs()});
      partials_at = room;
    }
    auto* partials = reinterpret_cast<float*>(bytes + partials_at);
    for (int64_t first = 0; first < x.rows; first += rows_at_once) {
      const int64_t rows = std::min(rows_at_once, x.rows - first);
      q4::Product<T> product = product_of(first, rows);
      if (geometry.spreads) {
        q4::SpreadRows<<<static_cast<unsigned>(rows), 256, 0, stream.get()>>>(
            geometry, x.row<uint16_t>(first), x.stride, spread);
        stream.CheckLaunch("spreading rows", rows, geometry.packed_inputs());
        product.x = reinterpret_cast<const T*>(spread);
        product.x_stride = product.in = geometry.packed_inputs();
      }
      if (rows > q4::kSmallRows || !q4::SmallProduct(stream, geometry, weights, product, kernels)) {
        q4::LargeProduct(stream, geometry, weights, product, partials);
      }
      stream.CheckLaunch("a 4-bit linear layer", rows, outputs);
    }
  });
}

}  // namespace nibble::cuda

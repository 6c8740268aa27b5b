#include "src/ops/cuda/cuda_quantize.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "src/base/checked.h"
#include "src/ops/cuda/cuda_statistics.h"
#include "src/ops/cuda/device_memory.h"
#include "src/ops/cuda/quantize_algebra.h"
#include "src/ops/cuda/quantize_kernels.h"

namespace nibble::cuda {
namespace {

using Sum = QuantizeAlgebra::Sum;
using Precision = QuantizeAlgebra::Precision;
using Transposed = QuantizeAlgebra::Transposed;

// Vectors that operations upload: one slot for each kind, of as many elements of 4 bytes.
enum class Slot { kColumnScales, kRowScales, kOrder, kPositions, kImportance, kNumbers };
constexpr int64_t kSlots = 6;
constexpr int64_t kSlotElements = int64_t{128} << 10;
constexpr int64_t kMostPartials = kSlotElements / 2 - 1;  // doubles; the last one is their sum

// Operations that return no status work on so many rows at a time as this holds; a few hundred at
// 11008 columns.
constexpr size_t kLeastScratchBytes = size_t{32} << 20;
constexpr int64_t kErrorRows = 1024;  // of OutputError, which fill the device
constexpr size_t kLeastHostBytes = size_t{1} << 20;

const CudaStatistics& Cuda(const InputStatistics& statistics) {
  return static_cast<const CudaStatistics&>(statistics);
}

MatrixView View(float* data, int64_t rows, int64_t columns) {
  return {data, DType::kF32, rows, columns, columns};
}

// Where the parts of an operation's scratch memory begin.
class Layout {
 public:
  template <typename T>
  size_t Add(int64_t count) {
    const size_t at = bytes_;
    bytes_ = RoundUp(bytes_ + static_cast<size_t>(count) * sizeof(T), size_t{256});
    return at;
  }
  size_t bytes() const { return bytes_; }

 private:
  size_t bytes_ = 0;
};

// A QuantizedWeight's arrays on the device, one after the other.
struct PackedLayout {
  size_t codes, scales, zeros, bytes;

  PackedLayout(int64_t rows, int64_t columns, int64_t groups) {
    Layout layout;
    codes = layout.Add<uint8_t>(rows * columns / 2);
    scales = layout.Add<uint16_t>(rows * groups);
    zeros = layout.Add<uint8_t>(rows * groups);
    bytes = layout.bytes();
  }
};

class CudaQuantizeOps final : public QuantizeOps {
 public:
  static Result<std::unique_ptr<QuantizeOps>> Create(Stream& stream, WeightLoader& loader,
                                                     MemoryTracker& memory, DType activations) {
    std::unique_ptr<CudaQuantizeOps> ops(new CudaQuantizeOps(stream, loader, memory, activations));
    NIBBLE_ASSIGN_OR_RETURN(ops->algebra_, QuantizeAlgebra::Create(stream, memory));
    NIBBLE_ASSIGN_OR_RETURN(
        ops->slots_, AllocateDevice(memory, MemoryClass::kWorkspace,
                                    static_cast<size_t>(kSlots * kSlotElements) * sizeof(float)));
    NIBBLE_RETURN_IF_ERROR(ops->Reserve(kLeastScratchBytes));
    NIBBLE_RETURN_IF_ERROR(ops->ReserveHost(kLeastHostBytes));
    return ops;
  }

  Result<Matrix> Load(const DenseWeight& weight) override {
    NIBBLE_ASSIGN_OR_RETURN(Matrix matrix, loader_.LoadFloats(weight));
    auto* const row = SlotOf<int32_t>(Slot::kNumbers);
    FirstBadRow(stream_, matrix.view(), row);
    NIBBLE_RETURN_IF_ERROR(ToHost(row, sizeof(*row)));
    if (*host_.as<int32_t>() < weight.rows) {
      return BadInput("row {} is not finite", *host_.as<int32_t>());
    }
    return matrix;
  }

  void Dequantize(const QuantizedWeight& weight, MatrixView out) override {
    CHECK(out.rows == weight.rows && out.columns == weight.columns && out.dtype == DType::kF32);
    const int64_t groups = weight.groups(), code_bytes = weight.columns / 2;
    const int64_t fit = static_cast<int64_t>(scratch_.size()) - 3 * 256;
    const int64_t rows_at_once = fit / (code_bytes + 3 * groups);
    CHECK(rows_at_once > 0);
    for (int64_t row = 0; row < weight.rows; row += rows_at_once) {
      const int64_t rows = std::min(rows_at_once, weight.rows - row);
      const PackedLayout layout(rows, weight.columns, groups);
      FromHost(At<uint8_t>(layout.codes), &weight.codes[static_cast<size_t>(row * code_bytes)],
               rows * code_bytes);
      FromHost(At<uint16_t>(layout.scales), &weight.scales[static_cast<size_t>(row * groups)],
               rows * groups);
      FromHost(At<uint8_t>(layout.zeros), &weight.zeros[static_cast<size_t>(row * groups)],
               rows * groups);
      cuda::Dequantize(stream_, At<uint8_t>(layout.codes), At<uint16_t>(layout.scales),
                       At<uint8_t>(layout.zeros), weight.group_length(), out.Rows(row, rows));
    }
  }

  void Scale(MatrixView weight, std::span<const float> rows, std::span<const float> columns,
             MatrixView out) override {
    CHECK(rows.empty() || static_cast<int64_t>(rows.size()) == weight.rows);
    CHECK(columns.empty() || static_cast<int64_t>(columns.size()) == weight.columns);
    cuda::Scale(stream_, weight, Upload(Slot::kRowScales, rows),
                Upload(Slot::kColumnScales, columns), out);
  }

  double SumOfSquares(MatrixView a) override {
    SumSquares(stream_, a, {}, Partials());
    return SumOfPartials(kPartialSums);
  }

  double SquaredDifference(MatrixView a, MatrixView b) override {
    CHECK(a.rows == b.rows && a.columns == b.columns && a.dtype == b.dtype);
    SumSquares(stream_, a, b, Partials());
    return SumOfPartials(kPartialSums);
  }

  Result<std::unique_ptr<InputStatistics>> CreateStatistics(int64_t columns) override {
    NIBBLE_RETURN_IF_ERROR(Reserve(static_cast<size_t>(2 * kErrorRows * columns) * sizeof(float)));
    return CudaStatistics::Create(columns, memory_, stream_);
  }

  void Accumulate(MatrixView x, InputStatistics& statistics) override {
    CHECK(x.dtype == activations_, "inputs of type {}", Name(x.dtype));
    static_cast<CudaStatistics&>(statistics).Add(x, *algebra_);
  }

  std::vector<float> MeanSquares(const InputStatistics& statistics) override {
    const CudaStatistics& s = Cuda(statistics);
    auto* const means = SlotOf<float>(Slot::kImportance);
    cuda::MeanSquares(stream_, s.gram(), s.columns(), nullptr, s.mean_scale(), means);
    return VectorFrom(means, s.columns());
  }

  std::vector<float> MeanMagnitudes(const InputStatistics& statistics) override {
    const CudaStatistics& s = Cuda(statistics);
    std::vector<float> means;
    for (const double sum : VectorFrom(s.magnitudes(), s.columns())) {
      means.push_back(static_cast<float>(sum * s.mean_scale()));
    }
    return means;
  }

  Result<std::unique_ptr<InputDrift>> CreateDrift(std::span<const MatrixView> weights) override {
    return CudaDrift::Create(weights.front().columns, memory_);
  }

  void AccumulateDrift(MatrixView unquantized, std::span<const float> scales, MatrixView x,
                       InputDrift& drift) override {
    CHECK(x.dtype == activations_ && unquantized.dtype == activations_);
    CHECK(unquantized.rows == x.rows && static_cast<int64_t>(scales.size()) == x.columns);
    const float* const on_device = Upload(Slot::kColumnScales, scales);
    const int64_t rows_at_once =
        static_cast<int64_t>(scratch_.size() / BytesOf(activations_)) / x.columns;
    CHECK(rows_at_once > 0);
    for (int64_t row = 0; row < x.rows; row += rows_at_once) {
      const int64_t rows = std::min(rows_at_once, x.rows - row);
      const MatrixView difference{scratch_.data(), activations_, rows, x.columns, x.columns};
      Differences(stream_, unquantized.Rows(row, rows), on_device, x.Rows(row, rows), difference);
      static_cast<CudaDrift&>(drift).Add(difference, x.Rows(row, rows), *algebra_);
    }
  }

  Result<Matrix> Factorize(const InputStatistics& statistics, std::span<const int32_t> order,
                           double damping) override {
    const CudaStatistics& s = Cuda(statistics);
    const int64_t n = s.columns();
    CHECK(static_cast<int64_t>(order.size()) == n);
    NIBBLE_ASSIGN_OR_RETURN(const size_t inner_bytes, algebra_->InvertFactorBytes(n));
    Layout layout;
    const size_t hessian_at = layout.Add<double>(n * n), ridge_at = layout.Add<double>(1),
                 inner_at = layout.Add<std::byte>(static_cast<int64_t>(inner_bytes));
    NIBBLE_RETURN_IF_ERROR(Reserve(layout.bytes()));
    NIBBLE_ASSIGN_OR_RETURN(Matrix factor, AllocateMatrix(n, n));
    auto* const hessian = At<double>(hessian_at);
    BuildHessian(stream_, s.full_gram(), n, Upload(Slot::kOrder, order), 2 * s.mean_scale(),
                 damping, At<double>(ridge_at), hessian);
    NIBBLE_RETURN_IF_ERROR(
        algebra_->InvertFactor(hessian, n, At<std::byte>(inner_at), inner_bytes));
    // In reverse order H = R · Rᵀ for an upper R is an ordinary factorization, and U = R⁻¹.
    ReverseFactor(stream_, hessian, n, factor.view().row<float>(0));
    return factor;
  }

  Result<Matrix> Retarget(MatrixView weight, const InputDrift& drift, const Matrix& factor,
                          std::span<const int32_t> order, double share) override {
    const auto& d = static_cast<const CudaDrift&>(drift);
    const int64_t rows = weight.rows, n = weight.columns;
    CHECK(n == d.columns() && factor.rows() == n);
    Layout layout;
    const size_t first_at = layout.Add<float>(rows * n), second_at = layout.Add<float>(rows * n);
    NIBBLE_RETURN_IF_ERROR(Reserve(layout.bytes()));
    NIBBLE_ASSIGN_OR_RETURN(Matrix target, AllocateMatrix(rows, n));
    const MatrixView first = View(At<float>(first_at), rows, n),
                     second = View(At<float>(second_at), rows, n);
    // weight · D, then in sweep order · Uᵀ · U.
    algebra_->Product(weight, d.sums(), static_cast<float>(2 * share * d.mean_scale()),
                      Sum::kReplace, Precision::kFloat32, first);
    GatherFloats(stream_, first, Upload(Slot::kOrder, order), nullptr, second);
    algebra_->TriangularProduct(second, factor.view(), Transposed::kYes, first);
    algebra_->TriangularProduct(first, factor.view(), Transposed::kNo, second);
    AddInOrder(stream_, weight, second, UploadPositions(order), target.view());
    return target;
  }

  Result<QuantizedWeight> Sweep(MatrixView weight, const InputStatistics& statistics,
                                const Matrix& factor, const SweepOptions& options) override {
    const CudaStatistics& s = Cuda(statistics);
    const int64_t rows = weight.rows, n = weight.columns;
    CHECK(n == s.columns() && factor.rows() == n);
    const GroupSpec spec = GroupSpec::Of(options.grid, n);
    const int64_t groups = n / spec.length;
    const PackedLayout packed(rows, n, groups);
    Layout layout;
    const size_t packed_at = layout.Add<std::byte>(static_cast<int64_t>(packed.bytes)),
                 grids_at = layout.Add<GroupGrid>(rows * groups),
                 swept_at = layout.Add<float>(rows * n), codes_at = layout.Add<uint8_t>(rows * n),
                 errors_at = layout.Add<float>(rows * kSweepBlock);
    NIBBLE_RETURN_IF_ERROR(Reserve(layout.bytes()));
    auto* const grids = At<GroupGrid>(grids_at);
    auto* const codes = At<uint8_t>(codes_at);
    auto* const importance = SlotOf<float>(Slot::kImportance);
    const MatrixView swept = View(At<float>(swept_at), rows, n);

    // A group longer than a block has its grid before the sweep, as on every device.
    const bool finds_before = options.grid_time == GridTime::kStatic || spec.length > kSweepBlock;
    if (finds_before) {
      cuda::MeanSquares(stream_, s.gram(), n, nullptr, s.mean_scale(), importance);
      FindGrids(stream_, weight, spec, importance, grids, nullptr);
    }
    // What an input that is always zero is multiplied with does not matter.
    const int32_t* const order = Upload(Slot::kOrder, options.order);
    cuda::MeanSquares(stream_, s.gram(), n, order, s.mean_scale(), importance);
    GatherFloats(stream_, weight, order, importance, swept);
    // Whole groups, where the blocks find their grids.
    const int64_t most = finds_before ? kSweepBlock : kSweepBlock / spec.length * spec.length;
    for (int64_t begin = 0; begin < n; begin += most) {
      const int64_t count = std::min(most, n - begin), end = begin + count;
      const MatrixView u = factor.view().Rows(begin, count);
      const MatrixView errors{At<float>(errors_at), DType::kF32, rows, count, kSweepBlock};
      cuda::Sweep(stream_, spec,
                  {.columns = swept.Columns(begin, count),
                   .order = order + begin,
                   .factor = u.row<float>(0) + begin,
                   .factor_stride = n,
                   .finds_grids = !finds_before,
                   .importance = importance + begin,
                   .grids = grids,
                   .groups = groups,
                   .codes = codes + begin,
                   .codes_stride = n,
                   .errors = errors.row<float>(0)});
      if (end == n) break;
      algebra_->Product(errors, u.Columns(end, n - end), -1, Sum::kAdd, Precision::kFloat32,
                        swept.Columns(end, n - end));
    }
    PackCodes(stream_, codes, UploadPositions(options.order), rows, n,
              At<uint8_t>(packed_at + packed.codes));
    return Assemble(options.grid.spec, rows, n, packed, packed_at, grids);
  }

  Result<QuantizedWeight> Round(MatrixView weight, const GridOptions& options,
                                const InputStatistics* statistics) override {
    const int64_t rows = weight.rows, n = weight.columns;
    const GroupSpec spec = GroupSpec::Of(options, n);
    const PackedLayout packed(rows, n, n / spec.length);
    Layout layout;
    const size_t packed_at = layout.Add<std::byte>(static_cast<int64_t>(packed.bytes)),
                 grids_at = layout.Add<GroupGrid>(rows * n / spec.length);
    NIBBLE_RETURN_IF_ERROR(Reserve(layout.bytes()));
    float* importance = nullptr;
    if (statistics != nullptr) {
      const CudaStatistics& s = Cuda(*statistics);
      importance = SlotOf<float>(Slot::kImportance);
      cuda::MeanSquares(stream_, s.gram(), n, nullptr, s.mean_scale(), importance);
    }
    auto* const grids = At<GroupGrid>(grids_at);
    FindGrids(stream_, weight, spec, importance, grids, At<uint8_t>(packed_at + packed.codes));
    return Assemble(options.spec, rows, n, packed, packed_at, grids);
  }

  void PseudoQuantize(MatrixView weight, const GridOptions& options, std::span<const float> scales,
                      MatrixView out) override {
    CHECK(static_cast<int64_t>(scales.size()) == weight.columns);
    cuda::PseudoQuantize(stream_, weight, GroupSpec::Of(options, weight.columns),
                         Upload(Slot::kColumnScales, scales), ScalesAfter::kDividedOut, out);
  }

  Result<Weight> Trial(MatrixView weight, const GridOptions& options, std::span<const float> scales,
                       MatrixView memory) override {
    CHECK(static_cast<int64_t>(scales.size()) == weight.columns);
    CHECK(memory.rows == weight.rows && memory.columns == weight.columns &&
          memory.stride == memory.columns && memory.dtype == DType::kF32);
    cuda::PseudoQuantize(stream_, weight, GroupSpec::Of(options, weight.columns),
                         Upload(Slot::kColumnScales, scales), ScalesAfter::kKept, memory);
    return DenseWeight{.dtype = DType::kF32,
                       .rows = memory.rows,
                       .columns = memory.columns,
                       .data = static_cast<const std::byte*>(memory.data)};
  }

  void Clip(MatrixView weight, const GridOptions& options, std::span<const float> scales,
            const InputStatistics& statistics) override {
    const CudaStatistics& s = Cuda(statistics);
    const int64_t n = weight.columns;
    CHECK(n == s.columns() && static_cast<int64_t>(scales.size()) == n);
    const GroupSpec spec = GroupSpec::Of(options, n);
    const int64_t groups = n / spec.length, blocks = ClipBlocks(spec);
    const float* const on_device = Upload(Slot::kColumnScales, scales);
    const int64_t grids_of_row = groups * kClipLimits, losses_of_row = grids_of_row * blocks;
    const auto row_bytes = static_cast<size_t>(grids_of_row) * sizeof(GroupGrid) +
                           static_cast<size_t>(losses_of_row) * sizeof(float);
    const auto rows_at_once = static_cast<int64_t>((scratch_.size() - 256) / row_bytes);
    CHECK(rows_at_once > 0);
    for (int64_t row = 0; row < weight.rows; row += rows_at_once) {
      const int64_t rows = std::min(rows_at_once, weight.rows - row);
      Layout layout;
      const size_t grids_at = layout.Add<GroupGrid>(rows * grids_of_row),
                   losses_at = layout.Add<float>(rows * losses_of_row);
      cuda::Clip(stream_, weight.Rows(row, rows), spec, on_device, s.full_gram(),
                 At<GroupGrid>(grids_at), At<float>(losses_at));
    }
  }

  double OutputError(MatrixView weight, MatrixView other,
                     const InputStatistics& statistics) override {
    const CudaStatistics& s = Cuda(statistics);
    const int64_t n = s.columns();
    CHECK(weight.columns == n && other.columns == n && weight.rows == other.rows);
    const MatrixView gram = View(s.full_gram(), n, n);
    const auto fit = static_cast<int64_t>(scratch_.size() / sizeof(float)) / (2 * n);
    const int64_t rows_at_once = std::min(fit, kErrorRows);
    CHECK(rows_at_once > 0);
    int64_t partials = 0;
    for (int64_t row = 0; row < weight.rows; row += rows_at_once) {
      const int64_t rows = std::min(rows_at_once, weight.rows - row);
      const MatrixView a = weight.Rows(row, rows), b = other.Rows(row, rows);
      const MatrixView delta = View(scratch_.as<float>(), rows, n),
                       product = View(scratch_.as<float>() + rows * n, rows, n);
      // TF32 products: Δ is rounded here, G is cut off after 10 bits, which takes 0.04 % on
      // average.
      RoundedDifference(stream_, a, b, delta);
      algebra_->Product(delta, gram, 1, Sum::kReplace, Precision::kTf32, product);
      CHECK(partials + kPartialSums <= kMostPartials, "{} rows", weight.rows);
      SumProducts(stream_, a, b, product, Partials() + partials);
      partials += kPartialSums;
    }
    return SumOfPartials(partials) * s.mean_scale();
  }

 private:
  CudaQuantizeOps(Stream& stream, WeightLoader& loader, MemoryTracker& memory, DType activations)
      : stream_(stream), loader_(loader), memory_(memory), activations_(activations) {}

  // Scratch memory of at least so many bytes, for one operation after the other.
  Status Reserve(size_t bytes) {
    if (scratch_.size() >= bytes) return {};
    const size_t before = scratch_.size();
    scratch_ = Buffer();  // first, so that the two are never held together
    auto larger = AllocateDevice(memory_, MemoryClass::kWorkspace, bytes);
    if (!larger) {
      // Operations without a status rely on what there was.
      NIBBLE_ASSIGN_OR_RETURN(scratch_, AllocateDevice(memory_, MemoryClass::kWorkspace, before));
      return tl::unexpected<Error>(std::move(larger).error());
    }
    scratch_ = std::move(*larger);
    return {};
  }
  template <typename T>
  T* At(size_t offset) const {
    return reinterpret_cast<T*>(scratch_.as<std::byte>() + offset);
  }

  Status ReserveHost(size_t bytes) {
    if (host_.size() >= bytes) return {};
    host_ = Buffer();
    NIBBLE_ASSIGN_OR_RETURN(host_, AllocatePinned(bytes));
    return {};
  }
  // Into host_, once everything issued so far is done.
  Status ToHost(const void* data, size_t bytes) {
    NIBBLE_RETURN_IF_ERROR(ReserveHost(bytes));
    stream_.Check(cudaMemcpyAsync(host_.data(), data, bytes, cudaMemcpyDeviceToHost, stream_.get()),
                  "copying to the host", 1, static_cast<int64_t>(bytes));
    return stream_.Synchronize();
  }
  // `count` fits what host_ begins with.
  template <typename T>
  std::vector<T> VectorFrom(const T* data, int64_t count) {
    std::vector<T> values(static_cast<size_t>(count));
    // A failure is the stream's, and the next operation's that has a status.
    if (ToHost(data, values.size() * sizeof(T))) {
      std::memcpy(values.data(), host_.data(), values.size() * sizeof(T));
    }
    return values;
  }
  // The host's memory is read before this returns (CUDA: copies from pageable memory).
  template <typename T>
  void FromHost(T* to, const T* from, int64_t count) {
    stream_.Check(cudaMemcpyAsync(to, from, static_cast<size_t>(count) * sizeof(T),
                                  cudaMemcpyHostToDevice, stream_.get()),
                  "copying from the host", 1, count);
  }

  template <typename T>
  T* SlotOf(Slot slot) const {
    return reinterpret_cast<T*>(slots_.as<float>() + static_cast<int64_t>(slot) * kSlotElements);
  }
  // Null for an empty span.
  template <typename T>
  T* Upload(Slot slot, std::span<const T> values) {
    if (values.empty()) return nullptr;
    const auto count = static_cast<int64_t>(values.size());
    CHECK(count <= kSlotElements, "a vector of {} elements", count);
    FromHost(SlotOf<T>(slot), values.data(), count);
    return SlotOf<T>(slot);
  }
  // Where each column comes in the order.
  const int32_t* UploadPositions(std::span<const int32_t> order) {
    std::vector<int32_t> positions(order.size());
    for (size_t i = 0; i < order.size(); ++i) {
      positions[static_cast<size_t>(order[i])] = static_cast<int32_t>(i);
    }
    return Upload(Slot::kPositions, std::span<const int32_t>(positions));
  }

  double* Partials() const { return SlotOf<double>(Slot::kNumbers); }
  double SumOfPartials(int64_t count) {
    double* const sum = Partials() + kMostPartials;
    AddUp(stream_, Partials(), count, sum);
    return VectorFrom(sum, 1)[0];
  }

  Result<Matrix> AllocateMatrix(int64_t rows, int64_t columns) {
    NIBBLE_ASSIGN_OR_RETURN(Buffer buffer,
                            AllocateDevice(memory_, MemoryClass::kWorkspace,
                                           static_cast<size_t>(rows * columns) * sizeof(float)));
    return Matrix(std::move(buffer), DType::kF32, rows, columns);
  }

  // Of the codes in scratch memory and the grids.
  Result<QuantizedWeight> Assemble(const QuantSpec& spec, int64_t rows, int64_t columns,
                                   const PackedLayout& packed, size_t packed_at,
                                   const GroupGrid* grids) {
    QuantizedWeight weight = QuantizedWeight::Empty(spec, rows, columns);
    StoreGrids(stream_, grids, rows * weight.groups(), At<uint16_t>(packed_at + packed.scales),
               At<uint8_t>(packed_at + packed.zeros));
    NIBBLE_RETURN_IF_ERROR(ToHost(At<std::byte>(packed_at), packed.bytes));
    const std::byte* const from = host_.as<std::byte>();
    std::memcpy(weight.codes.data(), from + packed.codes, weight.codes.size());
    std::memcpy(weight.scales.data(), from + packed.scales, weight.scales.size() * 2);
    std::memcpy(weight.zeros.data(), from + packed.zeros, weight.zeros.size());
    for (size_t i = 0; i < weight.scales.size(); ++i) {
      constexpr uint16_t kExponent = 0x7c00;  // all ones: infinite, or no number
      if ((weight.scales[i] & kExponent) != kExponent) continue;
      NIBBLE_RETURN_IF_ERROR(ToHost(grids + i, sizeof(GroupGrid)));
      const auto groups = static_cast<size_t>(weight.groups());
      return BadInput("row {}, group {}: needs a scale of {}, beyond float16", i / groups,
                      i % groups, host_.as<GroupGrid>()->scale);
    }
    return weight;
  }

  Stream& stream_;
  WeightLoader& loader_;
  MemoryTracker& memory_;
  DType activations_;
  std::unique_ptr<QuantizeAlgebra> algebra_;
  Buffer slots_;    // see Slot
  Buffer scratch_;  // of the operation under way, of the largest so far
  Buffer host_;     // page-locked: what the last operation brought
};

}  // namespace

Result<std::unique_ptr<QuantizeOps>> MakeCudaQuantizeOps(Stream& stream, WeightLoader& loader,
                                                         MemoryTracker& memory, DType activations) {
  return CudaQuantizeOps::Create(stream, loader, memory, activations);
}

}  // namespace nibble::cuda

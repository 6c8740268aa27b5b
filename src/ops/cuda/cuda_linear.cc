#include "src/ops/cuda/cuda_linear.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "src/base/checked.h"
#include "src/base/thread_pool.h"
#include "src/ops/cuda/device_memory.h"
#include "src/ops/cuda/elementwise.h"

namespace nibble::cuda {
namespace {

constexpr size_t kAlignment = 256;
// What a thread copies from a mapped file at a time: one alone is slower than the device's bus.
constexpr int64_t kCopyBytes = int64_t{2} << 20;

bool IsInDeviceMemory(const void* data) {
  cudaPointerAttributes attributes{};
  const bool known = cudaPointerGetAttributes(&attributes, data) == cudaSuccess;
  if (!known) cudaGetLastError();  // not a failure of what comes next
  return known && attributes.type == cudaMemoryTypeDevice;
}

bool IsOnHost(const LinearSource& source) {
  const auto* const dense = std::get_if<DenseWeight>(source.weight);
  return dense == nullptr || !IsInDeviceMemory(dense->data);
}

void CopyTogether(std::byte* to, const std::byte* from, size_t bytes) {
  RunTogether(static_cast<int64_t>(bytes), kCopyBytes, [&](int64_t begin, int64_t end, int) {
    std::memcpy(to + begin, from + begin, static_cast<size_t>(end - begin));
  });
}

}  // namespace

LinearLayout LinearLayout::Of(int64_t out_features, int64_t in_features, const QuantSpec* quant,
                              bool bias) {
  LinearLayout layout{.out_features = out_features, .in_features = in_features, .has_bias = bias};
  size_t end;
  if (quant != nullptr) {
    layout.q4 = Q4Layout::Of(out_features, in_features, *quant);
    layout.has_order = quant->order == GroupOrder::kIndexed;
    end = layout.q4->total_bytes;
  } else {
    end = static_cast<size_t>(out_features * in_features) * 2;
  }
  layout.bias_at = RoundUp(end, kAlignment);
  if (bias) end = layout.bias_at + static_cast<size_t>(out_features) * sizeof(float);
  layout.order_at = RoundUp(end, kAlignment);
  if (layout.has_order) end = layout.order_at + static_cast<size_t>(in_features) * sizeof(int32_t);
  layout.total_bytes = RoundUp(end, kAlignment);
  return layout;
}

Result<std::unique_ptr<WeightLoader>> WeightLoader::Create(MemoryTracker& memory, Stream& stream) {
  std::unique_ptr<WeightLoader> loader(new WeightLoader(memory, stream));
  for (Lane& lane : loader->lanes_) {
    NIBBLE_ASSIGN_OR_RETURN(lane.host, AllocatePinned(kLaneBytes));
    const cudaError_t error = cudaEventCreateWithFlags(&lane.used, cudaEventDisableTiming);
    if (error != cudaSuccess) return Fail(ErrorCode::kInternal, "an event: {}", ErrorText(error));
  }
  return loader;
}

WeightLoader::~WeightLoader() {
  for (Lane& lane : lanes_) {
    if (lane.used != nullptr) cudaEventDestroy(lane.used);
  }
}

Status WeightLoader::AllocateLanes() {
  for (Lane& lane : lanes_) {
    NIBBLE_ASSIGN_OR_RETURN(lane.device,
                            AllocateDevice(memory_, MemoryClass::kWorkspace, kLaneBytes));
  }
  return {};
}

void WeightLoader::FreeLanes() {
  for (Lane& lane : lanes_) lane.device = Buffer();
}

WeightLoader::Lane& WeightLoader::NextLane() {
  Lane& lane = lanes_[next_];
  next_ = (next_ + 1) % std::size(lanes_);
  stream_.Check(cudaEventSynchronize(lane.used), "loading weights", 1, 1);
  return lane;
}

void WeightLoader::LoadDense(const DenseWeight& weight, int64_t first_row, int64_t row_step,
                             MatrixView out) {
  if (IsInDeviceMemory(weight.data)) {
    const MatrixView from{const_cast<std::byte*>(weight.data), weight.dtype, weight.rows,
                          weight.columns, weight.columns};
    return ConvertRows(stream_, from, first_row, row_step, out);
  }
  const size_t row_bytes = static_cast<size_t>(weight.columns) * BytesOf(weight.dtype);
  const auto rows_at_once = static_cast<int64_t>(kLaneBytes / row_bytes);
  CHECK(rows_at_once > 0, "a row of {} weights", weight.columns);
  for (int64_t row = 0; row < weight.rows; row += rows_at_once) {
    const int64_t rows = std::min(rows_at_once, weight.rows - row);
    const size_t bytes = static_cast<size_t>(rows) * row_bytes;
    Lane& lane = NextLane();
    CopyTogether(lane.host.as<std::byte>(), weight.data + static_cast<size_t>(row) * row_bytes,
                 bytes);
    stream_.Check(cudaMemcpyAsync(lane.device.data(), lane.host.data(), bytes,
                                  cudaMemcpyHostToDevice, stream_.get()),
                  "copying weights", rows, weight.columns);
    ConvertRows(stream_, {lane.device.data(), weight.dtype, rows, weight.columns, weight.columns},
                first_row + row * row_step, row_step, out);
    stream_.Check(cudaEventRecord(lane.used, stream_.get()), "copying weights", rows,
                  weight.columns);
  }
}

void WeightLoader::LoadQuantized(const QuantizedWeight& weight, int64_t first_row,
                                 int64_t row_step, const Q4Layout& layout, DType activations,
                                 void* packed) {
  const auto code_bytes = static_cast<size_t>(weight.columns / 2);
  const auto groups = static_cast<size_t>(weight.groups());
  // Each part of a lane begins at a multiple of kAlignment.
  const auto rows_at_once =
      static_cast<int64_t>((kLaneBytes - 3 * kAlignment) / (code_bytes + 3 * groups));
  CHECK(rows_at_once > 0, "a row of {} weights", weight.columns);
  for (int64_t row = 0; row < weight.rows; row += rows_at_once) {
    const int64_t rows = std::min(rows_at_once, weight.rows - row);
    const auto count = static_cast<size_t>(rows), first = static_cast<size_t>(row);
    const size_t scales_at = RoundUp(count * code_bytes, kAlignment);
    const size_t zeros_at = scales_at + RoundUp(count * groups * 2, kAlignment);
    const size_t bytes = zeros_at + count * groups;
    Lane& lane = NextLane();
    std::byte* host = lane.host.as<std::byte>();
    std::memcpy(host, weight.codes.data() + first * code_bytes, count * code_bytes);
    std::memcpy(host + scales_at, weight.scales.data() + first * groups, count * groups * 2);
    std::memcpy(host + zeros_at, weight.zeros.data() + first * groups, count * groups);
    stream_.Check(cudaMemcpyAsync(lane.device.data(), host, bytes, cudaMemcpyHostToDevice,
                                  stream_.get()),
                  "copying weights", rows, weight.columns);
    const uint8_t* device = lane.device.as<uint8_t>();
    PackQ4(stream_, layout, activations, device,
           reinterpret_cast<const uint16_t*>(device + scales_at), device + zeros_at, rows,
           first_row + row * row_step, row_step, packed);
    stream_.Check(cudaEventRecord(lane.used, stream_.get()), "copying weights", rows,
                  weight.columns);
  }
}

Result<std::unique_ptr<PreparedLinear>> WeightLoader::Load(std::span<const LinearSource> sources,
                                                           Interleave interleave,
                                                           DType activations) {
  CHECK(!sources.empty());
  const Weight& first = *sources[0].weight;
  const auto* quantized = std::get_if<QuantizedWeight>(&first);
  const int64_t in = ColumnsOf(first);
  int64_t out = 0;
  bool has_bias = false;
  for (const LinearSource& source : sources) {
    CHECK(ColumnsOf(*source.weight) == in && source.weight->index() == first.index());
    if (quantized != nullptr) {
      const auto& weight = std::get<QuantizedWeight>(*source.weight);
      CHECK(weight.spec == quantized->spec && weight.column_of_input == quantized->column_of_input);
    }
    CHECK(source.bias.empty() ||
          static_cast<int64_t>(source.bias.size()) == RowsOf(*source.weight));
    out += RowsOf(*source.weight);
    has_bias |= !source.bias.empty();
  }
  const bool gate_up = interleave == Interleave::kGateUp;
  CHECK(!gate_up || (sources.size() == 2 && RowsOf(first) * 2 == out));

  const LinearLayout layout =
      LinearLayout::Of(out, in, quantized ? &quantized->spec : nullptr, has_bias);
  NIBBLE_ASSIGN_OR_RETURN(Buffer memory,
                          AllocateDevice(memory_, MemoryClass::kWeights, layout.total_bytes));
  if (std::any_of(sources.begin(), sources.end(), IsOnHost)) {
    NIBBLE_RETURN_IF_ERROR(AllocateLanes());
  }
  auto linear = std::make_unique<CudaLinear>(layout, interleave, std::move(memory));
  // Padding that no source fills is zero: codes, scales, everything.
  stream_.Check(cudaMemsetAsync(linear->weight(), 0, layout.total_bytes, stream_.get()),
                "clearing a weight", out, in);
  std::vector<float> bias(has_bias ? static_cast<size_t>(out) : 0);
  int64_t next = 0;
  for (const LinearSource& source : sources) {
    const int64_t rows = RowsOf(*source.weight);
    const int64_t step = gate_up ? 2 : 1;
    if (quantized != nullptr) {
      LoadQuantized(std::get<QuantizedWeight>(*source.weight), next, step, *layout.q4, activations,
                    linear->weight());
    } else {
      LoadDense(std::get<DenseWeight>(*source.weight), next, step,
                {linear->weight(), activations, out, in, in});
    }
    for (size_t n = 0; n < source.bias.size(); ++n) {
      bias[static_cast<size_t>(next) + n * static_cast<size_t>(step)] = source.bias[n];
    }
    next += gate_up ? 1 : rows;
  }
  if (has_bias) {
    stream_.Check(cudaMemcpyAsync(linear->bias(), bias.data(), bias.size() * sizeof(float),
                                  cudaMemcpyHostToDevice, stream_.get()),
                  "copying a bias", 1, out);
  }
  std::vector<int32_t> order(layout.has_order ? static_cast<size_t>(in) : 0);
  for (size_t input = 0; input < order.size(); ++input) {
    order[static_cast<size_t>(quantized->column_of_input[input])] = static_cast<int32_t>(input);
  }
  if (layout.has_order) {
    stream_.Check(cudaMemcpyAsync(linear->order(), order.data(), order.size() * sizeof(int32_t),
                                  cudaMemcpyHostToDevice, stream_.get()),
                  "copying an order", 1, in);
  }
  NIBBLE_RETURN_IF_ERROR(stream_.Synchronize());
  FreeLanes();
  return linear;
}

Result<Matrix> WeightLoader::LoadFloats(const DenseWeight& weight) {
  NIBBLE_ASSIGN_OR_RETURN(
      Buffer memory,
      AllocateDevice(memory_, MemoryClass::kWorkspace,
                     static_cast<size_t>(weight.rows * weight.columns) * sizeof(float)));
  Matrix matrix(std::move(memory), DType::kF32, weight.rows, weight.columns);
  NIBBLE_RETURN_IF_ERROR(AllocateLanes());
  LoadDense(weight, 0, 1, matrix.view());
  const Status outcome = stream_.Synchronize();
  FreeLanes();
  NIBBLE_RETURN_IF_ERROR(outcome);
  return matrix;
}

}  // namespace nibble::cuda

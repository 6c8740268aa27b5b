#include "src/ops/cuda/cuda_backend.h"

#include <algorithm>
#include <atomic>

#include "src/base/checked.h"
#include "src/ops/cuda/attention.h"
#include "src/ops/cuda/cuda_linear.h"
#include "src/ops/cuda/cuda_plan.h"
#include "src/ops/cuda/cuda_quantize.h"
#include "src/ops/cuda/device.h"
#include "src/ops/cuda/device_memory.h"
#include "src/ops/cuda/elementwise.h"
#include "src/ops/cuda/fused_layers.h"
#include "src/ops/cuda/kv_fp8.h"
#include "src/ops/cuda/linear_q4.h"
#include "src/ops/cuda/linked_layers.h"
#include "src/ops/cuda/matrix_product.h"

namespace nibble {
namespace cuda {
namespace {

// A step's rows that fill the device, and more would only take memory.
constexpr int64_t kStepRows = 4096;
// What the driver takes while nibble runs, and nibble does not count: kernels' code, graphs.
constexpr size_t kUncountedBytes = size_t{256} << 20;

// The pool: [layers][keys, values][blocks, kv_heads, kBlockTokens, head_dim]. Of 8 bits the scales
// follow, [layers][blocks, kv_heads, kBlockTokens], and room for one layer's keys and values in 16.
class CudaKvCache final : public KvCache {
 public:
  CudaKvCache(const KvLayout& layout, int64_t blocks, Buffer memory)
      : layout_(layout), blocks_(blocks), memory_(std::move(memory)) {}
  const KvLayout& layout() const override { return layout_; }
  int64_t blocks() const override { return blocks_; }

  // Keys, or values, of one block in one layer.
  size_t block_bytes() const {
    return static_cast<size_t>(layout_.kv_heads * layout_.block_tokens * layout_.head_dim) *
           BytesOf(layout_.dtype);
  }
  size_t half_layer_bytes() const { return static_cast<size_t>(blocks_) * block_bytes(); }
  std::byte* data() const { return memory_.as<std::byte>(); }
  KvView layer(int64_t i) const {
    std::byte* keys = data() + static_cast<size_t>(2 * i) * half_layer_bytes();
    auto* layer_scales = layout_.scaled() ? scales() + i * layer_tokens() : nullptr;
    return {.keys = keys, .values = keys + half_layer_bytes(), .scales = layer_scales};
  }

  // Where there are scales: [layers, layer_tokens()].
  int64_t block_tokens() const { return layout_.kv_heads * layout_.block_tokens; }  // of all heads
  int64_t layer_tokens() const { return blocks_ * block_tokens(); }
  uint32_t* scales() const {
    return reinterpret_cast<uint32_t*>(data() + static_cast<size_t>(2 * layout_.layers) *
                                                    half_layer_bytes());
  }
  KvView wide() const {
    auto* keys = reinterpret_cast<std::byte*>(scales() + layout_.layers * layer_tokens());
    return {.keys = keys, .values = keys + 2 * half_layer_bytes()};
  }

 private:
  KvLayout layout_;
  int64_t blocks_;
  Buffer memory_;
};

CudaPlan& Cuda(BatchPlan& plan) { return static_cast<CudaPlan&>(plan); }
const CudaPlan& Cuda(const BatchPlan& plan) { return static_cast<const CudaPlan&>(plan); }
const CudaLinear& Cuda(const PreparedLinear& linear) {
  return static_cast<const CudaLinear&>(linear);
}
const CudaKvCache& Cuda(const KvCache& cache) { return static_cast<const CudaKvCache&>(cache); }

class CudaBackend final : public Backend {
 public:
  static Result<std::unique_ptr<Backend>> Create(const CudaDevice& device,
                                                 const CudaOptions& options) {
    std::unique_ptr<CudaBackend> backend(new CudaBackend(device, options));
    NIBBLE_ASSIGN_OR_RETURN(backend->stream_, Stream::Create());
    NIBBLE_ASSIGN_OR_RETURN(backend->product_, MatrixProduct::Create(options.kernels));
    NIBBLE_ASSIGN_OR_RETURN(backend->loader_,
                            WeightLoader::Create(backend->memory_, *backend->stream_));
    return backend;
  }

  ~CudaBackend() override {
    CudaBackend* self = this;
    fuses_layers_.compare_exchange_strong(self, nullptr);
  }

  std::string name() const override { return "cuda"; }
  std::string description() const override {
    const std::string_view kernels = kernels_ == CudaKernels::kPortable ? ", portable kernels"
                                     : kernels_ == CudaKernels::kBatchInvariant ? ", batch-invariant"
                                                                                : "";
    return fmt::format("cuda:{} ({}, compute capability {}, {}{})", device_.index, device_.name,
                       device_.compute_capability, Name(activations_), kernels);
  }
  DType activation_type() const override { return activations_; }
  int64_t kv_block_tokens() const override { return kBlockTokens; }
  int64_t step_rows() const override { return kStepRows; }
  MemoryTracker& memory() override { return memory_; }
  uint64_t MemoryBytes() const override { return device_.memory_bytes; }
  uint64_t AvailableBytes() const override {
    size_t free = 0, total = 0;
    if (cudaMemGetInfo(&free, &total) != cudaSuccess) return 0;
    return std::min<uint64_t>(free - std::min(free, kUncountedBytes), memory_.Room());
  }
  uint64_t SystemBytes() const override {
    size_t free = 0, total = 0;
    return cudaMemGetInfo(&free, &total) == cudaSuccess ? total - free : 0;
  }

  Result<Matrix> Allocate(MemoryClass memory_class, DType dtype, int64_t rows,
                          int64_t columns) override {
    NIBBLE_ASSIGN_OR_RETURN(
        Buffer buffer,
        AllocateDevice(memory_, memory_class, static_cast<size_t>(rows * columns) * BytesOf(dtype)));
    return Matrix(std::move(buffer), dtype, rows, columns);
  }

  Result<Matrix> Upload(std::span<const float> values) override {
    NIBBLE_ASSIGN_OR_RETURN(Matrix matrix, Allocate(MemoryClass::kWeights, DType::kF32, 1,
                                                    static_cast<int64_t>(values.size())));
    stream_->Check(cudaMemcpyAsync(matrix.view().data, values.data(), values.size_bytes(),
                                   cudaMemcpyHostToDevice, stream_->get()),
                   "copying a vector", 1, matrix.columns());
    NIBBLE_RETURN_IF_ERROR(stream_->Synchronize());
    return matrix;
  }

  Result<Matrix> AllocateBeside(const std::string&, DType dtype, int64_t rows,
                                int64_t columns) override {
    // Kernels read page-locked memory at the host's own addresses.
    NIBBLE_ASSIGN_OR_RETURN(Buffer buffer,
                            AllocatePinned(static_cast<size_t>(rows * columns) * BytesOf(dtype)));
    return Matrix(std::move(buffer), dtype, rows, columns);
  }

  Result<std::unique_ptr<PreparedLinear>> Prepare(std::span<const LinearSource> sources,
                                                  Interleave interleave) override {
    return loader_->Load(sources, interleave, activations_);
  }

  uint64_t PreparedBytes(int64_t out_features, int64_t in_features, DType, const QuantSpec* quant,
                         bool bias) const override {
    return LinearLayout::Of(out_features, in_features, quant, bias).total_bytes;
  }

  Result<std::unique_ptr<KvCache>> CreateKvCache(const KvLayout& layout, int64_t blocks) override {
    CHECK(layout.block_tokens == kBlockTokens, "blocks of {} tokens", layout.block_tokens);
    if (layout.dtype != activations_ && !layout.scaled()) {
      return BadInput("on a GPU the KV cache has the activations' type, {}, or {}, not {}",
                      Name(activations_), Name(DType::kF8E4M3), Name(layout.dtype));
    }
    if (layout.scaled() && (layout.head_dim % 16 != 0 || layout.head_dim > 256)) {
      return BadInput("a KV cache of {} wants heads of a multiple of 16, at most 256, not of {}",
                      Name(layout.dtype), layout.head_dim);
    }
    NIBBLE_ASSIGN_OR_RETURN(
        Buffer memory, AllocateDevice(memory_, MemoryClass::kKvCache,
                                      static_cast<size_t>(blocks) * layout.BlockBytes()));
    return std::make_unique<CudaKvCache>(layout, blocks, std::move(memory));
  }

  void CopyKvBlock(KvCache& cache, int64_t from, int64_t to) override {
    const CudaKvCache& kv = Cuda(cache);
    const size_t bytes = kv.block_bytes(), pitch = kv.half_layer_bytes();
    stream_->Check(
        cudaMemcpy2DAsync(kv.data() + static_cast<size_t>(to) * bytes, pitch,
                          kv.data() + static_cast<size_t>(from) * bytes, pitch, bytes,
                          static_cast<size_t>(2 * kv.layout().layers), cudaMemcpyDeviceToDevice,
                          stream_->get()),
        "copying a KV block", from, to);
    if (!kv.layout().scaled()) return;
    const auto scale_bytes = static_cast<size_t>(kv.block_tokens()) * sizeof(uint32_t);
    const auto scale_pitch = static_cast<size_t>(kv.layer_tokens()) * sizeof(uint32_t);
    stream_->Check(
        cudaMemcpy2DAsync(kv.scales() + to * kv.block_tokens(), scale_pitch,
                          kv.scales() + from * kv.block_tokens(), scale_pitch, scale_bytes,
                          static_cast<size_t>(kv.layout().layers), cudaMemcpyDeviceToDevice,
                          stream_->get()),
        "copying a KV block's scales", from, to);
  }

  Result<std::unique_ptr<BatchPlan>> CreatePlan(const StepLimits& limits,
                                                const ModelExtents& model) override {
    const PlanLayout layout = PlanLayout::Of(limits, model, stream_->multiprocessors());
    NIBBLE_ASSIGN_OR_RETURN(
        Buffer memory, AllocateDevice(memory_, MemoryClass::kWorkspace, layout.total_bytes));
    return CudaPlan::Create(layout, std::move(memory), kernels_, *stream_);
  }

  uint64_t PlanBytes(const StepLimits& limits, const ModelExtents& model) const override {
    return PlanLayout::Of(limits, model, stream_->multiprocessors()).total_bytes;
  }

  void SetBatch(BatchPlan& plan, const Batch& batch) override { Cuda(plan).SetBatch(batch); }

  void Issue(BatchPlan& plan, const std::function<void()>& operations) override {
    Cuda(plan).Issue(operations);
  }

  void Embed(const BatchPlan& plan, const PreparedLinear& table, MatrixView out) override {
    CheckActivations(out);
    CHECK(!Cuda(table).layout().q4 && out.columns == table.in_features());
    cuda::Embed(*stream_, Cuda(plan).batch(), Cuda(table).weight(), out);
  }

  void RmsNorm(MatrixView x, MatrixView gain, float epsilon, MatrixView out) override {
    CheckNorm(x, gain, out);
    cuda::RmsNorm(*stream_, x, gain.row<float>(0), epsilon, out);
  }

  void Linear(BatchPlan& plan, const PreparedLinear& linear, MatrixView x, Epilogue epilogue,
              MatrixView out) override {
    CheckActivations(x);
    const CudaLinear& weight = Cuda(linear);
    const bool gate_up = weight.interleave() == Interleave::kGateUp;
    CHECK(gate_up == (epilogue == Epilogue::kSiluMul));
    CHECK(x.columns == weight.in_features() && x.rows == out.rows &&
              out.columns == weight.out_features() / (gate_up ? 2 : 1),
          "[{}, {}] · [{}, {}]ᵀ into [{}, {}]", x.rows, x.columns, weight.out_features(),
          weight.in_features(), out.rows, out.columns);
    const CudaPlan& p = Cuda(plan);
    const PlanLayout& layout = p.layout();
    int64_t rows_at_once = layout.wide_rows;
    if (weight.order() != nullptr) {
      rows_at_once = std::min(
          rows_at_once, static_cast<int64_t>(layout.gathered_bytes) / (2 * x.columns));
    }
    for (int64_t row = 0; row < x.rows; row += rows_at_once) {
      const int64_t rows = std::min(rows_at_once, x.rows - row);
      MatrixView in = x.Rows(row, rows);
      if (weight.order() != nullptr) {
        const MatrixView gathered{p.at<void>(layout.gathered), x.dtype, rows, x.columns, x.columns};
        GatherColumns(*stream_, in, weight.order(), gathered);
        in = gathered;
      }
      if (weight.layout().q4) {
        MultiplyQ4(p, weight, in, epilogue, out.Rows(row, rows));
      } else {
        MultiplyDense(p, weight, in, epilogue, out.Rows(row, rows));
      }
    }
  }

  void RopeAndStoreKv(const BatchPlan& plan, const RopeSpec& rope, const AttentionSpec& attention,
                      int64_t layer, MatrixView qkv, KvCache& cache) override {
    const CudaPlan& p = Cuda(plan);
    CheckQkv(p, attention, qkv, Cuda(cache));
    const KvView kv = Cuda(cache).layer(layer);
    if (kv.scales != nullptr) {
      return RopeAndStoreFp8(*stream_, p.batch(), attention, Angles(p, rope), qkv, kv);
    }
    cuda::RopeAndStoreKv(*stream_, p.batch(), attention, Angles(p, rope), qkv, kv);
  }

  void RopeAndAttend(BatchPlan& plan, const RopeSpec& rope, const AttentionSpec& attention,
                     int64_t layer, MatrixView qkv, KvCache& cache, MatrixView out) override {
    const CudaPlan& p = Cuda(plan);
    if (Cuda(cache).layout().scaled() || !CanRopeAndAttendDecode(p.batch(), attention)) {
      return Backend::RopeAndAttend(plan, rope, attention, layer, qkv, cache, out);
    }
    CheckQkv(p, attention, qkv, Cuda(cache));
    CheckActivations(out);
    RopeAndAttendDecode(*stream_, p.batch(), attention, Angles(p, rope), qkv,
                        Cuda(cache).layer(layer), out, p.at<void>(p.layout().decode));
  }

  bool RunLayers(BatchPlan& plan, std::span<const DecoderLayer> layers, const RopeSpec& rope,
                 float epsilon, KvCache& cache, const LayerActivations& activations) override {
    const CudaPlan& p = Cuda(plan);
    const CudaKvCache& kv = Cuda(cache);
    CheckActivations(activations.residual);
    if (kernels_ != CudaKernels::kAuto) return false;
    if (CanLinkLayers(p.batch(), layers)) {
      RunLinkedLayers(*stream_, layers, epsilon, activations, p.at<void>(p.layout().linked_layers),
                      [&](int64_t i) {
                        RopeAndAttend(plan, rope, layers[static_cast<size_t>(i)].attention, i,
                                      activations.qkv, cache, activations.attention);
                      });
      return true;
    }
    if (p.batch().rows != 1 || !p.batch().has_decode ||
        !CanFuseLayers(layers, kv.layout(), p.layout().limits.context,
                       stream_->multiprocessors())) {
      return false;
    }
    // Two such kernels would wait for each other's multiprocessors, so one backend may launch them.
    CudaBackend* none = nullptr;
    if (!fuses_layers_.compare_exchange_strong(none, this) && none != this) return false;
    RunFusedLayers(*stream_, p.batch(), layers, Angles(p, rope), epsilon,
                   {kv.data(), kv.half_layer_bytes()}, activations.residual,
                   p.at<void>(p.layout().fused_layers));
    return true;
  }

  void Attend(BatchPlan& plan, const AttentionSpec& attention, int64_t layer, MatrixView q,
              const KvCache& cache, MatrixView out) override {
    CheckActivations(q);
    CheckActivations(out);
    const CudaPlan& p = Cuda(plan);
    KvView kv = Cuda(cache).layer(layer);
    if (p.batch().has_decode) {
      AttendDecode(*stream_, p.batch(), attention, q, kv, out, p.at<void>(p.layout().decode));
    }
    if (p.batch().prefill_tile_count > 0) {
      if (kv.scales != nullptr) {
        ExpandKv(*stream_, p.batch(), attention, activations_, kv, Cuda(cache).wide());
        kv = Cuda(cache).wide();
      }
      AttendPrefill(*stream_, p.batch(), attention, q, kv, out, kernels_);
    }
  }

  void NormLogitRows(const BatchPlan& plan, MatrixView x, MatrixView gain, float epsilon,
                     MatrixView out) override {
    CheckNorm(x, gain, out);
    RmsNormOfRows(*stream_, x, Cuda(plan).batch().logit_rows, gain.row<float>(0), epsilon, out);
  }

  void ChooseTokens(BatchPlan& plan, MatrixView logits) override {
    Cuda(plan).ChooseTokens(logits);
  }
  Result<std::span<const int32_t>> ReceiveTokens(BatchPlan& plan) override {
    return Cuda(plan).ReceiveTokens();
  }
  bool queues_steps() const override { return true; }

  Result<std::unique_ptr<QuantizeOps>> CreateQuantizeOps() override {
    return MakeCudaQuantizeOps(*stream_, *loader_, memory_, activations_);
  }

  Result<MatrixView> ToHost(MatrixView matrix) override {
    const size_t row_bytes = static_cast<size_t>(matrix.columns) * BytesOf(matrix.dtype);
    const size_t bytes = static_cast<size_t>(matrix.rows) * row_bytes;
    if (host_.size() < bytes) {
      host_ = Buffer();
      NIBBLE_ASSIGN_OR_RETURN(host_, AllocatePinned(bytes));
    }
    stream_->Check(cudaMemcpy2DAsync(host_.data(), row_bytes, matrix.data,
                                     static_cast<size_t>(matrix.stride) * BytesOf(matrix.dtype),
                                     row_bytes, static_cast<size_t>(matrix.rows),
                                     cudaMemcpyDeviceToHost, stream_->get()),
                   "copying to the host", matrix.rows, matrix.columns);
    NIBBLE_RETURN_IF_ERROR(stream_->Synchronize());
    return MatrixView{host_.data(), matrix.dtype, matrix.rows, matrix.columns, matrix.columns};
  }

 private:
  CudaBackend(const CudaDevice& device, const CudaOptions& options)
      : device_(device), activations_(options.activations), kernels_(options.kernels) {}

  void CheckActivations(MatrixView matrix) const {
    CHECK(matrix.dtype == activations_, "activations of type {}", Name(matrix.dtype));
  }

  void CheckNorm(MatrixView x, MatrixView gain, MatrixView out) const {
    CheckActivations(x);
    CheckActivations(out);
    CHECK(gain.dtype == DType::kF32 && gain.columns == x.columns && out.columns == x.columns);
  }

  void CheckQkv(const CudaPlan& plan, const AttentionSpec& attention, MatrixView qkv,
                const CudaKvCache& cache) const {
    CheckActivations(qkv);
    CHECK(attention.head_dim == 2 * plan.layout().half_dim &&
          attention.head_dim == cache.layout().head_dim &&
          attention.kv_heads == cache.layout().kv_heads &&
          attention.heads == plan.layout().attention.heads &&
          (!attention.window || attention.window == plan.layout().attention.window));
    CHECK(qkv.rows == plan.batch().rows &&
          qkv.columns == (attention.heads + 2 * attention.kv_heads) * attention.head_dim);
  }

  // Of the batch's rows, [rows, head_dim / 2], once what was issued so far is done.
  const float2* Angles(const CudaPlan& plan, const RopeSpec& rope) {
    const int64_t half = plan.layout().half_dim;
    CHECK(static_cast<int64_t>(rope.frequencies.size()) == half);
    auto* table = plan.at<float2>(plan.layout().rope_table);
    if (plan.NeedsRope(rope.frequencies)) {
      RopeTable(*stream_, plan.batch(), plan.at<float>(plan.layout().rope_frequencies), half, table);
    }
    return table;
  }

  // At most PlanLayout::wide_rows rows.
  void MultiplyDense(const CudaPlan& plan, const CudaLinear& weight, MatrixView x,
                     Epilogue epilogue, MatrixView out) {
    if (kernels_ != CudaKernels::kBatchInvariant && CanMultiplyFewRows(x, weight.weight())) {
      return MultiplyFewRows(*stream_, x, weight.weight(), weight.bias(), epilogue, out,
                             kernels_);
    }
    if (weight.bias() == nullptr && epilogue != Epilogue::kSiluMul) {
      return Product(plan, x, weight.weight(), epilogue, out);
    }
    CHECK(out.dtype == activations_);
    const MatrixView wide = Wide(plan, weight, x.rows);
    Product(plan, x, weight.weight(), Epilogue::kNone, wide);
    FinishLinear(*stream_, wide, weight.bias(), epilogue, out);
  }

  void MultiplyQ4(const CudaPlan& plan, const CudaLinear& weight, MatrixView x, Epilogue epilogue,
                  MatrixView out) {
    const PlanLayout& layout = plan.layout();
    const Q4Layout& q4 = *weight.layout().q4;
    if (x.rows <= LinearQ4MostRows(q4, kernels_) && out.dtype == activations_) {
      return LinearQ4(*stream_, q4, weight.weight(), weight.bias(), x, epilogue, out,
                      plan.at<void>(layout.linear_q4), kernels_);
    }
    const bool direct = weight.bias() == nullptr && epilogue != Epilogue::kSiluMul;
    const MatrixView wide = direct ? out : Wide(plan, weight, x.rows);
    product_->RunDequantized(*stream_, x, q4, weight.weight(),
                             MatrixProduct::OutputOf(direct ? epilogue : Epilogue::kNone), wide,
                             plan.at<void>(layout.dequantized), layout.dequantized_bytes,
                             plan.at<void>(layout.matrix_product), PlanLayout::kMatrixProductBytes);
    if (!direct) FinishLinear(*stream_, wide, weight.bias(), epilogue, out);
  }

  void Product(const CudaPlan& plan, MatrixView x, const void* w, Epilogue epilogue,
               MatrixView out) {
    product_->Run(*stream_, x, w, MatrixProduct::OutputOf(epilogue), out,
                  plan.at<void>(plan.layout().matrix_product), PlanLayout::kMatrixProductBytes);
  }

  MatrixView Wide(const CudaPlan& plan, const CudaLinear& weight, int64_t rows) const {
    const int64_t columns = weight.out_features();
    CHECK(static_cast<size_t>(rows * columns) * 2 <= plan.layout().wide_bytes);
    return {plan.at<void>(plan.layout().wide), activations_, rows, columns, columns};
  }

  inline static std::atomic<CudaBackend*> fuses_layers_ = nullptr;

  CudaDevice device_;
  DType activations_;
  CudaKernels kernels_;
  MemoryTracker memory_;
  std::unique_ptr<Stream> stream_;
  std::unique_ptr<MatrixProduct> product_;
  std::unique_ptr<WeightLoader> loader_;
  Buffer host_;  // where ToHost's matrix lies
};

}  // namespace
}  // namespace cuda

Result<std::unique_ptr<Backend>> MakeCudaBackend(const CudaOptions& options) {
  if (options.activations != DType::kF16 && options.activations != DType::kBF16) {
    return WrongUsage("on a GPU activations are f16 or bf16, not {}", Name(options.activations));
  }
  if (const Status driver = cuda::CheckDriver(); !driver) {
    return tl::unexpected<Error>(driver.error().In(fmt::format("cuda:{}", options.device)));
  }
  const std::vector<CudaDevice> devices = ListCudaDevices();
  if (options.device < 0 || options.device >= static_cast<int>(devices.size())) {
    return BadInput("cuda:{}: {}", options.device,
                    devices.empty() ? std::string("no usable NVIDIA GPU was found")
                                    : fmt::format("this machine has GPUs 0 to {}",
                                                  devices.size() - 1));
  }
  const CudaDevice& device = devices[static_cast<size_t>(options.device)];
  const cudaError_t error = cudaSetDevice(options.device);
  if (error != cudaSuccess) {
    return BadInput("cuda:{} ({}): {}", options.device, device.name, cuda::ErrorText(error));
  }
  NIBBLE_RETURN_IF_ERROR(cuda::CheckKernelsRun(device));
  return cuda::CudaBackend::Create(device, options);
}

}  // namespace nibble

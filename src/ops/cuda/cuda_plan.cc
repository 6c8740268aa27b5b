#include "src/ops/cuda/cuda_plan.h"

#include <algorithm>
#include <cstring>

#include "src/base/checked.h"
#include "src/ops/check_batch.h"
#include "src/ops/cuda/attention.h"
#include "src/ops/cuda/decode_parts.h"
#include "src/ops/cuda/device_memory.h"
#include "src/ops/cuda/fused_layers.h"
#include "src/ops/cuda/host_copy.h"
#include "src/ops/cuda/linear_q4.h"
#include "src/ops/cuda/linked_layers.h"
#include "src/ops/cuda/sampling.h"

namespace nibble::cuda {
namespace {

constexpr size_t kAlignment = 256;
// Enough rows that a product over them keeps the device busy, few enough to stay out of the way.
constexpr size_t kMaxWideBytes = size_t{96} << 20;
constexpr size_t kMaxDequantizedBytes = size_t{64} << 20;  // at least 128 rows of any weight
constexpr size_t kMaxGatheredBytes = size_t{32} << 20;

int64_t MaxTiles(const StepLimits& limits) {
  return limits.rows / kPrefillRows + limits.sequences;
}

}  // namespace

PlanLayout PlanLayout::Of(const StepLimits& limits, const ModelExtents& model,
                          int multiprocessors) {
  PlanLayout layout{.limits = limits,
                    .max_blocks = CeilDiv<int64_t>(limits.context, kBlockTokens),
                    .half_dim = model.head_dim / 2,
                    .attention = {.heads = model.heads,
                                  .kv_heads = model.kv_heads,
                                  .head_dim = model.head_dim,
                                  .window = model.window},
                    .decode_blocks = DecodeBlocks(multiprocessors)};
  size_t end = 0;
  const auto add = [&end](size_t bytes) {
    const size_t begin = end;
    end += RoundUp(bytes, kAlignment);
    return begin;
  };
  const auto integers = static_cast<size_t>(4 * limits.rows + 2 * limits.sequences + 1 +
                                            limits.sequences * layout.max_blocks +
                                            limits.logit_rows + 2 * MaxTiles(limits));
  layout.batch_bytes = integers * sizeof(int32_t) +
                       static_cast<size_t>(limits.logit_rows) * sizeof(TokenChoice) +
                       2 * static_cast<size_t>(layout.decode_blocks) * sizeof(DecodePart) +
                       8 * kAlignment;
  layout.batch = add(layout.batch_bytes);
  layout.chosen = add(static_cast<size_t>(limits.logit_rows) * sizeof(int32_t));
  layout.rope_frequencies = add(static_cast<size_t>(layout.half_dim) * sizeof(float));
  layout.rope_table =
      add(static_cast<size_t>(limits.rows * 2 * layout.half_dim) * sizeof(float));
  layout.decode = add(DecodeScratchBytes(multiprocessors, layout.attention));
  layout.fused_layers = add(FusedLayersScratchBytes(model));
  layout.linked_layers = add(LinkedLayersScratchBytes(model));

  const int64_t qkv = (model.heads + 2 * model.kv_heads) * model.head_dim;
  const int64_t widest = std::max({2 * model.intermediate, qkv, model.hidden});
  const int64_t longest = std::max({model.intermediate, model.heads * model.head_dim, model.hidden});
  layout.linear_q4 = add(LinearQ4ScratchBytes(multiprocessors, limits.rows, longest));
  const auto rows_within = [&](size_t bytes, int64_t columns) {
    const auto fit = static_cast<int64_t>(bytes / (static_cast<size_t>(columns) * 2));
    return std::max<int64_t>(1, std::min(limits.rows, fit >= 128 ? fit / 128 * 128 : fit));
  };
  layout.wide_rows = rows_within(kMaxWideBytes, widest);
  layout.wide_bytes = static_cast<size_t>(layout.wide_rows * widest) * 2;
  layout.wide = add(layout.wide_bytes);
  layout.dequantized_bytes =
      std::min(kMaxDequantizedBytes, static_cast<size_t>(widest * longest) * 2);
  layout.dequantized = add(layout.dequantized_bytes);
  layout.gathered_bytes = std::min(kMaxGatheredBytes, static_cast<size_t>(limits.rows * longest) * 2);
  layout.gathered = add(layout.gathered_bytes);
  layout.matrix_product = add(kMatrixProductBytes);
  layout.total_bytes = end;
  return layout;
}

Result<std::unique_ptr<CudaPlan>> CudaPlan::Create(const PlanLayout& layout, Buffer memory,
                                                   CudaKernels kernels, Stream& stream) {
  std::unique_ptr<CudaPlan> plan(new CudaPlan(layout, std::move(memory), kernels, stream));
  for (Staging& staging : plan->staging_) {
    NIBBLE_ASSIGN_OR_RETURN(staging.memory, AllocatePinned(layout.batch_bytes));
    const cudaError_t error = cudaEventCreateWithFlags(&staging.copied, cudaEventDisableTiming);
    if (error != cudaSuccess) return Fail(ErrorCode::kInternal, "an event: {}", ErrorText(error));
  }
  NIBBLE_ASSIGN_OR_RETURN(plan->tokens_, TokenQueue::Create(layout.limits.logit_rows, stream));
  // Kernels count on scratch memory that starts zeroed.
  stream.Check(cudaMemsetAsync(plan->memory_.data(), 0, layout.total_bytes, stream.get()),
               "zeroing scratch memory", 1, static_cast<int64_t>(layout.total_bytes));
  NIBBLE_RETURN_IF_ERROR(stream.Synchronize());
  return plan;
}

CudaPlan::~CudaPlan() {
  cudaStreamSynchronize(stream_.get());
  for (auto& [shape, recording] : recordings_) {
    if (recording.graph != nullptr) cudaGraphExecDestroy(recording.graph);
  }
  for (Staging& staging : staging_) {
    if (staging.copied != nullptr) cudaEventDestroy(staging.copied);
  }
}

void CudaPlan::SetBatch(const Batch& batch) {
  CheckBatch(batch, layout_.limits, layout_.max_blocks);

  // Of the batch before: recorded behind its step, since an event behind the copy would keep the
  // copy and the step's first kernels apart.
  stream_.Check(cudaEventRecord(staging_[staging_in_use_].copied, stream_.get()), "copying a batch",
                batch.rows(), 1);
  staging_in_use_ = (staging_in_use_ + 1) % staging_.size();
  Staging& staging = staging_[staging_in_use_];
  stream_.Check(cudaEventSynchronize(staging.copied), "copying a batch", batch.rows(), 1);
  std::byte* host = staging.memory.as<std::byte>();
  std::byte* device = at<std::byte>(layout_.batch);
  size_t end = 0;
  // Room for `count` integers: on the host, and where they will be on the device.
  const auto place = [&](size_t count) {
    auto* const on_host = reinterpret_cast<int32_t*>(host + end);
    auto* const on_device = reinterpret_cast<const int32_t*>(device + end);
    end += RoundUp(count * sizeof(int32_t), size_t{16});
    return std::pair(on_host, on_device);
  };
  const auto copy = [&](std::span<const int32_t> from) {
    const auto [on_host, on_device] = place(from.size());
    std::copy(from.begin(), from.end(), on_host);
    return on_device;
  };
  batch_.rows = batch.rows();
  batch_.sequences = batch.sequences();
  batch_.table_stride = layout_.max_blocks;
  batch_.tokens = copy(batch.tokens);
  batch_.positions = copy(batch.positions);
  batch_.chosen = at<int32_t>(layout_.chosen);
  const auto [chosen_rows, device_chosen_rows] = place(batch.tokens.size());
  batch_.chosen_rows = device_chosen_rows;
  if (batch.chosen_rows.empty()) {
    std::fill_n(chosen_rows, batch.tokens.size(), -1);
  } else {
    std::copy(batch.chosen_rows.begin(), batch.chosen_rows.end(), chosen_rows);
  }
  batch_.row_begin = copy(batch.row_begin);
  batch_.context_lengths = copy(batch.context_lengths);
  batch_.logit_rows = copy(batch.logit_rows);
  logit_rows_ = static_cast<int64_t>(batch.logit_rows.size());

  const auto [row_sequence, device_row_sequence] = place(batch.tokens.size());
  batch_.row_sequence = device_row_sequence;
  std::vector<PrefillTile> tiles;
  batch_.has_decode = false;
  batch_.longest_prefill = 0;
  for (size_t s = 0; s + 1 < batch.row_begin.size(); ++s) {
    const int32_t begin = batch.row_begin[s], next = batch.row_begin[s + 1];
    std::fill(row_sequence + begin, row_sequence + next, static_cast<int32_t>(s));
    // Decode attention cuts a context by what else is in the step.
    if (next - begin == 1 && kernels_ != CudaKernels::kBatchInvariant) {
      batch_.has_decode = true;
      continue;
    }
    batch_.longest_prefill = std::max<int64_t>(batch_.longest_prefill, batch.context_lengths[s]);
    for (int32_t row = begin; row < next; row += kPrefillRows) {
      tiles.push_back({static_cast<int32_t>(s), row});
    }
  }
  const auto [tables, device_tables] =
      place(static_cast<size_t>(batch.sequences() * layout_.max_blocks));
  batch_.block_tables = device_tables;
  for (int64_t s = 0; s < batch.sequences(); ++s) {
    const auto from = batch.block_tables.begin() + s * batch.max_blocks;
    std::copy(from, from + batch.max_blocks, tables + s * layout_.max_blocks);
  }
  const auto divide = [&](const AttentionSpec& attention) {
    const auto blocks = static_cast<size_t>(layout_.decode_blocks);
    end = RoundUp(end, alignof(DecodePart));
    const auto [on_host, on_device] = place(blocks * sizeof(DecodePart) / sizeof(int32_t));
    auto* const parts = reinterpret_cast<DecodePart*>(on_host);
    DivideDecode(attention, batch.row_begin, batch.context_lengths, {parts, blocks});
    return reinterpret_cast<const DecodePart*>(on_device);
  };
  batch_.decode_parts = batch_.window_decode_parts = nullptr;
  if (batch_.has_decode) {
    AttentionSpec attention = layout_.attention;
    if (attention.window) batch_.window_decode_parts = divide(attention);
    attention.window.reset();
    batch_.decode_parts = divide(attention);
  }
  choices_ = nullptr;
  if (!batch.choices.empty()) {
    const auto [choices, device_choices] =
        place(batch.choices.size_bytes() / sizeof(int32_t));
    std::memcpy(choices, batch.choices.data(), batch.choices.size_bytes());
    choices_ = reinterpret_cast<const TokenChoice*>(device_choices);
  }
  // Those that see the longest contexts go first, so that short ones fill the end.
  std::stable_sort(tiles.begin(), tiles.end(), [&](const PrefillTile& a, const PrefillTile& b) {
    return batch.positions[static_cast<size_t>(a.first_row)] >
           batch.positions[static_cast<size_t>(b.first_row)];
  });
  const auto [host_tiles, device_tiles] = place(2 * tiles.size());
  std::memcpy(host_tiles, tiles.data(), tiles.size() * sizeof(PrefillTile));
  batch_.prefill_tiles = reinterpret_cast<const PrefillTile*>(device_tiles);
  batch_.prefill_tile_count = static_cast<int64_t>(tiles.size());

  recording_ = batch_.prefill_tile_count > 0
                   ? nullptr
                   : &recordings_[{batch_.rows, batch_.sequences, logit_rows_}];

  CHECK(end <= layout_.batch_bytes);
  // Kernels read the batch, and the cache as the last step left it, before they wait for the kernel
  // before, so none may begin before the copy is done. A graph begins behind it; a kernel by itself
  // might begin early behind another kernel, but not behind the copying engine.
  if (recording_ != nullptr && recording_->graph != nullptr) {
    CopyFromHost(stream_, host, device, end);
  } else {
    stream_.Check(cudaMemcpyAsync(device, host, end, cudaMemcpyHostToDevice, stream_.get()),
                  "copying a batch", batch.rows(), 1);
  }
  has_rope_ = false;
}

void CudaPlan::ChooseTokens(MatrixView logits) {
  CHECK(logits.dtype == DType::kF32 && logits.rows == logit_rows_);
  int32_t* const for_host = tokens_->Next(logits.rows);
  cuda::ChooseTokens(stream_, logits, choices_, batch_.chosen, for_host);
  tokens_->Sent();
}

void CudaPlan::Issue(const std::function<void()>& operations) {
  if (recording_ == nullptr) return operations();
  Recording& recording = *recording_;
  if (!recording.seen) {
    recording.seen = true;
    return operations();
  }
  if (recording.graph == nullptr) {
    cudaGraph_t graph = nullptr;
    stream_.Check(cudaStreamBeginCapture(stream_.get(), cudaStreamCaptureModeThreadLocal),
                  "capturing a step", batch_.rows, 1);
    operations();
    stream_.Check(cudaStreamEndCapture(stream_.get(), &graph), "capturing a step", batch_.rows, 1);
    if (graph == nullptr) return;  // the failure is the stream's to report
    stream_.Check(cudaGraphInstantiate(&recording.graph, graph, 0), "instantiating a step's graph",
                  batch_.rows, 1);
    cudaGraphDestroy(graph);
    if (recording.graph == nullptr) return;
  }
  stream_.Check(cudaGraphLaunch(recording.graph, stream_.get()), "launching a step's graph",
                batch_.rows, 1);
}

bool CudaPlan::NeedsRope(std::span<const float> frequencies) const {
  const bool known = std::equal(frequencies.begin(), frequencies.end(), frequencies_.begin(),
                                frequencies_.end());
  if (has_rope_ && known) return false;
  if (!known) {
    frequencies_.assign(frequencies.begin(), frequencies.end());
    // From pageable memory, so the host has been read when this returns.
    stream_.Check(cudaMemcpyAsync(at<float>(layout_.rope_frequencies), frequencies_.data(),
                                  frequencies_.size() * sizeof(float), cudaMemcpyHostToDevice,
                                  stream_.get()),
                  "copying the rope frequencies", 1, static_cast<int64_t>(frequencies_.size()));
  }
  has_rope_ = true;
  return true;
}

}  // namespace nibble::cuda

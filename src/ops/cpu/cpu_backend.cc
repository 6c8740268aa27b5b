#include "src/ops/cpu/cpu_backend.h"

#include <algorithm>
#include <cstring>
#include <functional>

#include "src/base/checked.h"
#include "src/ops/cpu/attention.h"
#include "src/ops/cpu/cpu_kv_cache.h"
#include "src/ops/cpu/cpu_linear.h"
#include "src/ops/cpu/cpu_plan.h"
#include "src/ops/cpu/cpu_quantize.h"
#include "src/ops/cpu/elementwise.h"
#include "src/ops/cpu/linear_dense.h"
#include "src/ops/cpu/linear_q4.h"
#include "src/ops/cpu/pack.h"
#include "src/ops/host_backend.h"

namespace nibble {
namespace cpu {
namespace {

const CpuPlan& Cpu(const BatchPlan& plan) { return static_cast<const CpuPlan&>(plan); }
const CpuLinear& Cpu(const PreparedLinear& linear) { return static_cast<const CpuLinear&>(linear); }
const CpuKvCache& Cpu(const KvCache& cache) { return static_cast<const CpuKvCache&>(cache); }

void CheckActivations(MatrixView matrix) {
  CHECK(matrix.dtype == DType::kF32, "activations of type {}", Name(matrix.dtype));
}

class CpuBackend final : public HostBackend {
 public:
  using HostBackend::HostBackend;

  std::string name() const override { return "cpu"; }
  std::string description() const override {
    return fmt::format("cpu ({}, {} thread{})", TargetName(), pool_.threads(),
                       pool_.threads() == 1 ? "" : "s");
  }
  int64_t kv_block_tokens() const override { return kBlockTokens; }

  Result<std::unique_ptr<PreparedLinear>> Prepare(std::span<const LinearSource> sources,
                                                  Interleave interleave) override {
    return PackLinear(sources, interleave, arena_, memory_, pool_);
  }

  uint64_t PreparedBytes(int64_t out_features, int64_t in_features, DType dtype,
                         const QuantSpec* quant, bool bias) const override {
    return LinearLayout::Of(out_features, in_features, dtype, quant, bias, Interleave::kNone)
        .total_bytes;
  }

  Result<std::unique_ptr<KvCache>> CreateKvCache(const KvLayout& layout, int64_t blocks) override {
    CHECK(layout.block_tokens == kBlockTokens, "blocks of {} tokens", layout.block_tokens);
    CHECK(IsFloat(layout.dtype), "a cache of type {}", Name(layout.dtype));
    NIBBLE_ASSIGN_OR_RETURN(Buffer buffer, AllocateHost(memory_, MemoryClass::kKvCache,
                                                        CpuKvCache::Bytes(layout, blocks)));
    return std::make_unique<CpuKvCache>(layout, blocks, std::move(buffer));
  }

  void CopyKvBlock(KvCache& cache, int64_t from, int64_t to) override {
    const CpuKvCache& kv = Cpu(cache);
    const size_t bytes = 2 * static_cast<size_t>(kv.layout().kv_heads) * kv.half_bytes();
    for (int64_t layer = 0; layer < kv.layout().layers; ++layer) {
      std::memcpy(kv.keys(layer, to, 0), kv.keys(layer, from, 0), bytes);
    }
  }

  Result<std::unique_ptr<BatchPlan>> CreatePlan(const StepLimits& limits,
                                                const ModelExtents& model) override {
    const PlanLayout layout = PlanLayout::Of(limits, model, pool_.threads());
    NIBBLE_ASSIGN_OR_RETURN(Buffer buffer,
                            AllocateHost(memory_, MemoryClass::kWorkspace, layout.total_bytes));
    return std::make_unique<CpuPlan>(layout, std::move(buffer));
  }

  uint64_t PlanBytes(const StepLimits& limits, const ModelExtents& model) const override {
    return PlanLayout::Of(limits, model, pool_.threads()).total_bytes;
  }

  void SetBatch(BatchPlan& plan, const Batch& batch) override {
    static_cast<CpuPlan&>(plan).SetBatch(batch);
  }

  void Embed(const BatchPlan& plan, const PreparedLinear& table, MatrixView out) override {
    CheckActivations(out);
    const CpuLinear& weight = Cpu(table);
    CHECK(out.columns == weight.in_features() && weight.layout().interleave == Interleave::kNone);
    const std::span<const int32_t> tokens = Cpu(plan).batch().tokens;
    ForRows(out.rows, out.columns, [&](int64_t r) {
      EmbedRow(weight, tokens[static_cast<size_t>(r)], out.row<float>(r));
    });
  }

  void RmsNorm(MatrixView x, MatrixView gain, float epsilon, MatrixView out) override {
    CheckActivations(x);
    CheckActivations(out);
    CHECK(gain.dtype == DType::kF32 && gain.columns == x.columns && out.columns == x.columns);
    ForRows(x.rows, x.columns, [&](int64_t r) {
      NormalizeRow(x.row<float>(r), gain.row<float>(0), x.columns, epsilon, out.row<float>(r));
    });
  }

  void Linear(BatchPlan& plan, const PreparedLinear& linear, MatrixView x, Epilogue epilogue,
              MatrixView out) override {
    CheckActivations(x);
    CheckActivations(out);
    const CpuLinear& weight = Cpu(linear);
    const bool gate_up = weight.layout().interleave == Interleave::kGateUp;
    CHECK(gate_up == (epilogue == Epilogue::kSiluMul));
    CHECK(x.columns == weight.in_features() && x.rows == out.rows &&
              out.columns == weight.out_features() / (gate_up ? 2 : 1),
          "[{}, {}] · [{}, {}]ᵀ into [{}, {}]", x.rows, x.columns, weight.out_features(),
          weight.in_features(), out.rows, out.columns);
    for (int64_t row = 0; row < x.rows; row += kPackedRows) {
      const int64_t rows = std::min(kPackedRows, x.rows - row);
      RunLinear({.weight = &weight,
                 .x = x.Rows(row, rows),
                 .out = out.Rows(row, rows),
                 .epilogue = epilogue,
                 .tiling = {rows},
                 .scratch = Cpu(plan).linear_scratch()});
    }
  }

  void RopeAndStoreKv(const BatchPlan& plan, const RopeSpec& rope, const AttentionSpec& attention,
                      int64_t layer, MatrixView qkv, KvCache& cache) override {
    CheckActivations(qkv);
    const CpuPlan& p = Cpu(plan);
    const CpuKvCache& kv = Cpu(cache);
    const Batch& batch = p.batch();
    const int64_t d = attention.head_dim;
    const int64_t half = d / 2;
    CHECK(half == p.layout().half_dim && static_cast<int64_t>(rope.frequencies.size()) == half &&
          d == kv.layout().head_dim && attention.kv_heads == kv.layout().kv_heads);
    CHECK(qkv.rows == batch.rows() &&
          qkv.columns == (attention.heads + 2 * attention.kv_heads) * d);
    const bool needs_rope = p.NeedsRope(rope.frequencies);
    ForRows(qkv.rows, qkv.columns, [&](int64_t r) {
      const auto i = static_cast<size_t>(r);
      const int32_t position = batch.positions[i];
      if (needs_rope) RopeAngles(position, rope.frequencies, p.rope_cos(r), p.rope_sin(r));
      float* row = qkv.row<float>(r);
      for (int64_t head = 0; head < attention.heads + attention.kv_heads; ++head) {
        TurnHead(p.rope_cos(r), p.rope_sin(r), half, row + head * d);
      }
      const auto at =
          static_cast<size_t>(p.row_sequence()[i] * batch.max_blocks + position / kBlockTokens);
      const float* keys = row + attention.heads * d;
      StoreToken(kv, layer, batch.block_tables[at], position % kBlockTokens, keys,
                 keys + attention.kv_heads * d);
    });
  }

  void Attend(BatchPlan& plan, const AttentionSpec& attention, int64_t layer, MatrixView q,
              const KvCache& cache, MatrixView out) override {
    CheckActivations(q);
    CheckActivations(out);
    const CpuPlan& p = Cpu(plan);
    AttendTask task{
        .spec = attention,
        .layer = layer,
        .q = q,
        .out = out,
        .cache = &Cpu(cache),
        .batch = &p.batch(),
        .scratch = AttentionScratch::Of(attention.heads / attention.kv_heads, attention.head_dim)};
    CHECK(task.scratch.bytes() <= p.layout().attention_scratch.bytes());
    task.tile_begin = CountTiles(p.batch(), task.scratch.rows(task.group()), p.tile_begin());
    const auto body = [&](int64_t begin, int64_t end, int thread) {
      AttendItems(task, begin, end, p.attention_scratch(thread));
    };
    const std::span<const int32_t> contexts = p.batch().context_lengths;
    const int64_t context = *std::max_element(contexts.begin(), contexts.end());
    const int64_t rows = std::min(q.rows, task.scratch.rows(task.group()));
    pool_.ParallelFor(task.items(), Grain(2 * rows * task.group() * context * attention.head_dim),
                      std::ref(body));
  }

  void NormLogitRows(const BatchPlan& plan, MatrixView x, MatrixView gain, float epsilon,
                     MatrixView out) override {
    CheckActivations(x);
    CheckActivations(out);
    const std::span<const int32_t> rows = Cpu(plan).batch().logit_rows;
    for (int64_t i = 0; i < out.rows; ++i) {
      std::copy_n(x.row<float>(rows[static_cast<size_t>(i)]), x.columns, out.row<float>(i));
    }
    RmsNorm(out, gain, epsilon, out);
  }

  void ChooseTokens(BatchPlan& plan, MatrixView logits) override {
    static_cast<CpuPlan&>(plan).chosen().Choose(logits);
  }
  Result<std::span<const int32_t>> ReceiveTokens(BatchPlan& plan) override {
    return static_cast<CpuPlan&>(plan).chosen().Receive();
  }

  Result<std::unique_ptr<QuantizeOps>> CreateQuantizeOps() override {
    return MakeCpuQuantizeOps(pool_, memory_);
  }

 private:
  // How many items a thread should take at a time, given the multiplications (or the like) of one:
  // to share less than this takes longer than doing it.
  static int64_t Grain(int64_t operations) {
    constexpr int64_t kWorthSharing = 1 << 17;
    return CeilDiv(kWorthSharing, std::max<int64_t>(operations, 1));
  }

  template <typename RowBody>
  void ForRows(int64_t rows, int64_t columns, const RowBody& row_body) {
    constexpr int64_t kOperations = 8;  // of an element, in the time of multiplications
    const auto body = [&](int64_t begin, int64_t end, int) {
      for (int64_t r = begin; r < end; ++r) row_body(r);
    };
    pool_.ParallelFor(rows, Grain(kOperations * columns), std::ref(body));
  }

  void RunLinear(const LinearTask& task) {
    const LinearLayout& layout = task.weight->layout();
    const bool quantized = layout.packing == Packing::kQ4;
    const auto pack = [&](int64_t begin, int64_t end, int) {
      quantized ? QuantizeTiles(task, begin, end) : PackDenseTiles(task, begin, end);
    };
    constexpr int64_t kPackOperations = 8;  // of an element, in the time of multiplications
    pool_.ParallelFor(task.tiling.tiles(), Grain(kPackOperations * kMaxTile * layout.in_features),
                      std::ref(pack));
    const auto run = [&](int64_t begin, int64_t end, int thread) {
      quantized ? RunQ4Panels(task, begin, end, thread) : RunDensePanels(task, begin, end, thread);
    };
    const int64_t panel = task.tiling.rows * kPanelRows * layout.in_features;
    // Of many rows two panels at a time (gate and up) are work enough, and are shared more evenly.
    const int64_t panels = task.tiling.rows < kSumRows ? kGroupPanels : 2;
    pool_.ParallelFor(layout.panels, RoundUp(Grain(panel), panels), std::ref(run));
  }

  HostArena arena_;  // of the weights
};

}  // namespace
}  // namespace cpu

Result<std::unique_ptr<Backend>> MakeCpuBackend(const CpuOptions& options) {
  if (options.threads < 1) return WrongUsage("{} threads: want at least 1", options.threads);
  return std::make_unique<cpu::CpuBackend>(options.threads);
}

}  // namespace nibble

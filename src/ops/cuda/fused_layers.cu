// All layers of a step of one row, in one kernel.
//
// One row's products take as long as their weights' bytes; kernels of their own waste 2 to 3 µs
// each between the last byte of one and the first use of the next one's. Here one block on each
// multiprocessor stays for all layers, and its ring of weights fills while rows are exchanged.
//
//   for each layer:  x ─ norm ─ qkv ─ attention ─ o ─ + ─ norm ─ gate, up ─ SiLU · ─ down ─ + ─ x
//   exchanged:       a         b       c              d                   e
//
// As in linear_q4_small.cu, a block has some tiles of each weight's outputs with all of their
// inputs, and its warps divide the inputs. So every block needs all of each exchanged row. Nobody
// waits at a barrier of all blocks: a row is written as packets of two elements and the step's and
// layer's number, eight bytes that are written and read at once, and readers read until the numbers
// are right. A row is written again only by blocks that have read rows which took everybody's
// reading of it to make, so one copy of each is enough.
//
// Attention: a block has some tokens of one head. Its keys are on their way before the queries are
// there. Parts of a head are merged by whoever reads them, for the product with o.
//
// A product: x becomes integers of three signed digits of 8 bits and a power of two for every 128
// inputs, which are exact but for 2^-23 of the largest; codes are bytes as they lie in memory, two
// outputs' in one, so that eight cost one instruction. The digits take columns of the tensor cores'
// product that one row leaves empty.
//
// All blocks must be on the device at once: one on each multiprocessor, which fills it, and no
// second kernel of this kind beside it (Backend::RunLayers sees to that within a process).
#include <algorithm>
#include <limits>

#include "src/base/checked.h"
#include "src/ops/cuda/cuda_linear.h"
#include "src/ops/cuda/fused_layers.h"
#include "src/ops/cuda/fused_layers_warp.cuh"

namespace nibble::cuda {
namespace fused {
namespace {

template <typename T, int kGranule, int kDim>
__global__ void __launch_bounds__(kThreads, 1)
    FusedLayersKernel(const __grid_constant__ FusedArguments a) {
#if NIBBLE_HOPPER_CODE
  const auto thread = static_cast<int>(threadIdx.x);
  if (thread < a.stages) {
    for (uint64_t& full : Fixed().full[thread]) InitializeBarrier(SharedAddress(&full), 1);
    InitializeBarrier(SharedAddress(Fixed().empty + thread), kWarps);
  }
  if (thread == 0) {
    InitializeBarrier(SharedAddress(&Fixed().batch_is_here), 1);
    Fixed().waits_for_row = false;
  }
  PublishBarriers();
  // Where no scales have been yet must be no NaN, see Multiply.
  using S = Stage<kGranule>;
  for (int i = thread; i < a.stages * (S::kZeros - S::kScales) / 4; i += kThreads) {
    constexpr int kWords = (S::kZeros - S::kScales) / 4;
    *FloatsAt(sizeof(FusedFixed) + i / kWords * S::kBytes + S::kScales + i % kWords * 4) = 0;
  }
  ShowToProducts();  // and to copies
  __syncthreads();
  StartNextKernel();
  // The same in all lanes, so that the compiler sees it.
  if (__shfl_sync(~0u, thread / 128, 0) == kWarps / 4) {
    GiveRegisters<kHelperRegisters>();
    if (thread == kConsumers) BringWeights<kGranule, kDim>(a);
    const int helper = thread / 32 - kWarps;
    if (helper == 0) return;
    WaitForBatch<kDim>(a);
    const uint32_t tag = FirstTag(a);
    if (helper == 1) BringQueries<T, kDim>(a, tag);
    if (helper == 2) BringNewest<T, kDim>(a, tag);
  } else {
    TakeRegisters<kConsumerRegisters>();
    WaitForBatch<kDim>(a);
    FusedWarp<T, kGranule, kDim>(a).Run();
  }
#endif
}

const CudaLinear& WeightOf(const DecoderLayer& layer, int linear) {
  const PreparedLinear* const all[] = {layer.qkv, layer.output, layer.gate_up, layer.down};
  return static_cast<const CudaLinear&>(*all[linear]);
}

q4::Geometry GeometryOf(const CudaLinear& weight) {
  const Q4Layout& layout = *weight.layout().q4;
  return q4::Geometry::Of(layout.out_features, layout.in_features, layout.group_length);
}

// Of the first layer's weights, and what follows from them.
FusedArguments ShapeOf(std::span<const DecoderLayer> layers, int multiprocessors) {
  FusedArguments a{};
  a.layers = static_cast<int>(layers.size());
  int units = 0, tiles = 0;
  for (int i = 0; i < kLinears; ++i) {
    const CudaLinear& weight = WeightOf(layers[0], i);
    const q4::Geometry geometry = GeometryOf(weight);
    const Q4Layout& layout = *weight.layout().q4;
    a.linears[i] = {
        .tiles = geometry.tiles,
        .units = geometry.units,
        .inputs = geometry.in_features,
        .outputs = geometry.out_features,
        .codes_at = static_cast<uint32_t>(layout.codes_offset),
        .scales_at = static_cast<uint32_t>(layout.scales_offset),
        .zeros_at = layout.symmetric ? 0 : static_cast<uint32_t>(layout.zeros_offset),
        .bias_at = weight.layout().has_bias ? static_cast<uint32_t>(weight.layout().bias_at) : 0};
    units = std::max(units, geometry.units);
    tiles = std::max(tiles, CeilDiv(geometry.tiles, multiprocessors));
  }
  const AttentionSpec& attention = layers[0].attention;
  a.units = units;
  // Attention's sums take the place of some tiles'.
  a.sum_tiles = std::max(tiles, static_cast<int>(attention.head_dim) / kTileOutputs + 1);
  a.heads = static_cast<int>(attention.heads);
  a.kv_heads = static_cast<int>(attention.kv_heads);
  a.parts = std::min(kMostParts, multiprocessors / a.heads);
  a.window = WindowOf(attention);
  a.scale_log2 = attention.scale * kLog2E;
  return a;
}

// Gives the ring as many stages as there is room for, and all else its place; false where there is
// too little.
template <int kGranule>
bool Place(FusedArguments& a) {
  const int x = a.units * kDigits * kUnitInputs, x_scales = RoundUp(a.units, 4) * 4;
  const int sums = 2 * a.sum_tiles * kWarps * kTileOutputs * 4;
  const int residual = a.sum_tiles * kTileOutputs * 4;
  const auto available = static_cast<int>(q4::SharedMemory::OfDevice().of_block);
  const int rest = available - int{sizeof(FusedFixed)} - x - x_scales - sums - residual;
  a.stages = std::min(rest / Stage<kGranule>::kBytes, kMostStages);
  a.shared.x = int{sizeof(FusedFixed)} + a.stages * Stage<kGranule>::kBytes;
  a.shared.x_scales = a.shared.x + x;
  a.shared.sums = a.shared.x_scales + x_scales;
  a.shared.residual = a.shared.sums + sums;
  a.shared.total = a.shared.residual + residual;
  return a.stages >= 2;
}

// Calls body.template operator()<granule>().
template <typename Body>
auto WithGranule(int granule, const Body& body) {
  switch (granule) {
    case 32:
      return body.template operator()<32>();
    case 64:
      return body.template operator()<64>();
    default:
      return body.template operator()<128>();
  }
}

}  // namespace
}  // namespace fused

using fused::FusedArguments;
using fused::FusedLayersKernel;
using fused::GeometryOf;
using fused::kDown;
using fused::kLinears;
using fused::kMostEntries;
using fused::kMostLayers;
using fused::kMostParts;
using fused::kNormRounds;
using fused::kOutput;
using fused::kQkv;
using fused::kStageUnits;
using fused::kThreads;
using fused::Place;
using fused::ShapeOf;
using fused::WeightOf;
using fused::WithGranule;

bool CanFuseLayers(std::span<const DecoderLayer> layers, const KvLayout& cache, int64_t context,
                   int multiprocessors) {
  if (layers.empty() || layers.size() > kMostLayers || !q4::HasHopperProduct()) return false;
  const AttentionSpec& attention = layers[0].attention;
  if (cache.scaled() || (attention.head_dim != 64 && attention.head_dim != 128) ||
      attention.heads > multiprocessors) {
    return false;
  }
  int granule = 0;
  for (const DecoderLayer& layer : layers) {
    if (layer.attention.window != attention.window) return false;
    for (int i = 0; i < kLinears; ++i) {
      const CudaLinear& weight = WeightOf(layer, i);
      const LinearLayout& layout = weight.layout();
      if (!layout.q4 || layout.has_order) return false;
      const LinearLayout& first = WeightOf(layers[0], i).layout();
      if (layout.total_bytes != first.total_bytes || layout.has_bias != first.has_bias ||
          layout.q4->symmetric != first.q4->symmetric ||
          layout.q4->group_length != first.q4->group_length ||
          layout.total_bytes > std::numeric_limits<uint32_t>::max()) {
        return false;
      }
      const q4::Geometry geometry = GeometryOf(weight);
      if (granule == 0) granule = geometry.granule;
      if (geometry.spreads || geometry.granule != granule ||
          geometry.scale_groups != geometry.units * geometry.scales_per_unit() ||
          geometry.in_features % 16 != 0) {
        return false;
      }
    }
  }
  FusedArguments a = ShapeOf(layers, multiprocessors);
  const int64_t part = CeilDiv<int64_t>(std::min<int64_t>(context, a.window), a.parts);
  return CeilDiv(a.linears[kQkv].units, kStageUnits) <= kNormRounds &&
         CeilDiv<int64_t>(part, kBlockTokens) + 1 <= kMostEntries &&
         WithGranule(granule, [&]<int kGranule>() { return Place<kGranule>(a); });
}

namespace {

constexpr size_t Aligned(size_t bytes) { return RoundUp<size_t>(bytes, 256); }

// Offsets in bytes of what the kernel keeps in scratch memory.
struct FusedScratch {
  size_t step = 0, qkv, parts, part_sums, middle, gated, out, total;
  FusedScratch(int64_t hidden, int64_t intermediate, int64_t heads, int64_t kv_heads,
               int64_t head_dim) {
    size_t end = Aligned(sizeof(uint32_t));
    const auto packets = [&end](int64_t count) {
      const size_t begin = end;
      end += Aligned(static_cast<size_t>(count) * sizeof(uint64_t));
      return begin;
    };
    qkv = packets((heads + 2 * kv_heads) * head_dim / 2);
    parts = packets(heads * kMostParts * head_dim / 2);
    part_sums = packets(heads * kMostParts);
    middle = packets(CeilDiv<int64_t>(hidden, 2));
    gated = packets(CeilDiv<int64_t>(intermediate, 2));
    out = packets(CeilDiv<int64_t>(hidden, 2));
    total = end;
  }
};

}  // namespace

size_t FusedLayersScratchBytes(const ModelExtents& model) {
  return FusedScratch(model.hidden, model.intermediate, model.heads, model.kv_heads, model.head_dim)
      .total;
}

void RunFusedLayers(Stream& stream, const DeviceBatch& batch, std::span<const DecoderLayer> layers,
                    const float2* angles, float epsilon, const FusedKv& kv, MatrixView residual,
                    void* scratch) {
  CHECK(batch.rows == 1 && residual.rows == 1 && batch.prefill_tile_count == 0);
  FusedArguments a = ShapeOf(layers, stream.multiprocessors());
  const AttentionSpec& attention = layers[0].attention;
  const FusedScratch places(a.linears[kOutput].outputs, a.linears[kDown].inputs, a.heads,
                            a.kv_heads, attention.head_dim);
  auto* const memory = static_cast<std::byte*>(scratch);
  const auto packets = [memory](size_t at) { return reinterpret_cast<uint64_t*>(memory + at); };
  a.epsilon = epsilon;
  a.keys = kv.keys;
  a.half_layer_bytes = kv.half_layer_bytes;
  a.context = batch.context_lengths;
  a.block_table = batch.block_tables;
  a.angles = angles;
  a.residual = residual.data;
  a.step = reinterpret_cast<uint32_t*>(memory + places.step);
  a.qkv = packets(places.qkv);
  a.parts_packets = packets(places.parts);
  a.part_sums = packets(places.part_sums);
  a.middle = packets(places.middle);
  a.gated = packets(places.gated);
  a.out = packets(places.out);
  for (size_t i = 0; i < layers.size(); ++i) {
    for (int j = 0; j < kLinears; ++j) {
      a.layer[i].weights[j] = static_cast<const std::byte*>(WeightOf(layers[i], j).weight());
    }
    a.layer[i].input_gain = layers[i].input_norm.row<float>(0);
    a.layer[i].post_gain = layers[i].post_attention_norm.row<float>(0);
  }
  WithGranule(GeometryOf(WeightOf(layers[0], kQkv)).granule, [&]<int kGranule>() {
    Place<kGranule>(a);
    WithHalfType(residual.dtype, [&]<typename T>() {
      auto* const kernel = attention.head_dim == 64 ? FusedLayersKernel<T, kGranule, 64>
                                                    : FusedLayersKernel<T, kGranule, 128>;
      LaunchDependent(stream, kernel, static_cast<unsigned>(stream.multiprocessors()), kThreads,
                      static_cast<size_t>(a.shared.total), a);
    });
  });
  stream.CheckLaunch("a step's layers", 1, residual.columns);
}

}  // namespace nibble::cuda

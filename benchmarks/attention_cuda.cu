// The CUDA backend's attention at the shapes of a few models.
//
//   benchmark_attention_cuda [--portable] [FILTER]    only shapes whose line begins with FILTER
//
// --portable: with the kernels that run on any GPU.
//
// Each time is that of one layer inside a CUDA graph of many layers, whose keys and values together
// exceed the second-level cache several times. Decode is compared with the speed of reading,
// measured in the same run; prefill's operations count what the causal mask leaves, four for each
// pair of query and key and each dimension.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <string>
#include <vector>

#include "src/base/checked.h"
#include "src/base/must.h"
#include "src/base/random.h"
#include "src/ops/cuda/attention.h"
#include "src/ops/cuda/decode_parts.h"
#include "src/ops/cuda/device_memory.h"
#include "src/ops/cuda/half.cuh"

namespace nibble::cuda {
namespace {

void Must(cudaError_t error) { CHECK(error == cudaSuccess, "{}", ErrorText(error)); }

// Uniform in ±√3: of variance 1.
__global__ void FillKernel(__half* values, int64_t count) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < count;
       i += step) {
    uint32_t x = static_cast<uint32_t>(i) * 0x9e3779b9u;
    x = (x ^ (x >> 16)) * 0x85ebca6bu;
    x = (x ^ (x >> 13)) * 0xc2b2ae35u;
    values[i] = __float2half(1.7320508f * (static_cast<float>(x >> 8) * 0x1p-23f - 1));
  }
}

__global__ void ReadKernel(const uint4* from, int64_t count, uint32_t* sink) {
  constexpr int kAtOnce = 8;
  uint32_t sum = 0;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
       i + (kAtOnce - 1) * step < count; i += kAtOnce * step) {
    uint4 values[kAtOnce];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) values[j] = __ldcs(from + i + j * step);
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      sum ^= values[j].x ^ values[j].y ^ values[j].z ^ values[j].w;
    }
  }
  if (sum == 0x12345678u) *sink = sum;  // so that nothing is left out
}

class Bench {
 public:
  Bench() : stream_(Must(Stream::Create())) {
    Must(cudaEventCreate(&begin_));
    Must(cudaEventCreate(&end_));
  }
  ~Bench() {
    cudaEventDestroy(begin_);
    cudaEventDestroy(end_);
  }

  // Random numbers where there are no indices to upload.
  Buffer Halves(int64_t count) {
    Buffer buffer =
        Must(AllocateDevice(tracker_, MemoryClass::kWorkspace, static_cast<size_t>(count) * 2));
    FillKernel<<<1024, 256, 0, stream_->get()>>>(buffer.as<__half>(), count);
    return buffer;
  }
  template <typename T>
  Buffer Upload(const std::vector<T>& from) {
    const size_t bytes = std::max<size_t>(1, from.size()) * sizeof(T);
    Buffer buffer = Must(AllocateDevice(tracker_, MemoryClass::kWorkspace, bytes));
    Must(cudaMemcpy(buffer.data(), from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice));
    return buffer;
  }

  // Median seconds of the operations as a graph.
  template <typename Operations>
  double Time(const Operations& operations) {
    operations();  // loads the kernels
    CHECK(stream_->Synchronize().has_value());
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    Must(cudaStreamBeginCapture(stream_->get(), cudaStreamCaptureModeThreadLocal));
    operations();
    Must(cudaStreamEndCapture(stream_->get(), &graph));
    Must(cudaGraphInstantiate(&executable, graph, 0));
    std::vector<float> times;
    for (int i = 0; i < 12; ++i) {
      Must(cudaEventRecord(begin_, stream_->get()));
      Must(cudaGraphLaunch(executable, stream_->get()));
      Must(cudaEventRecord(end_, stream_->get()));
      Must(cudaEventSynchronize(end_));
      float milliseconds = 0;
      Must(cudaEventElapsedTime(&milliseconds, begin_, end_));
      if (i >= 2) times.push_back(milliseconds);
    }
    Must(cudaGraphExecDestroy(executable));
    Must(cudaGraphDestroy(graph));
    std::sort(times.begin(), times.end());
    return 1e-3 * times[times.size() / 2];
  }

  double ReadBandwidth() {
    constexpr int64_t kBytes = int64_t{4} << 30;
    const Buffer from = Halves(kBytes / 2);
    const Buffer sink = Upload(std::vector<uint32_t>(1));
    return static_cast<double>(kBytes) / Time([&] {
             ReadKernel<<<stream_->multiprocessors() * 8, 256, 0, stream_->get()>>>(
                 from.as<uint4>(), kBytes / 16, sink.as<uint32_t>());
           });
  }

  Stream& stream() { return *stream_; }

 private:
  MemoryTracker tracker_;
  std::unique_ptr<Stream> stream_;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

struct Shape {
  const char* model;
  int64_t heads, kv_heads, head_dim;
};
constexpr Shape kLlama2{"llama-2-7b", 32, 32, 128}, kLlama3{"llama-3-8b", 32, 8, 128},
    kTiny{"tinyllama", 32, 4, 64}, kSmol{"smollm2-135m", 9, 3, 64};

// Sequences of the contexts, the last `rows` of each being the step's.
void Measure(Bench& bench, const Shape& shape, const std::string& name,
             const std::vector<int32_t>& contexts, int64_t rows, CudaKernels kernels,
             double read_bandwidth) {
  const AttentionSpec spec{.heads = shape.heads,
                           .kv_heads = shape.kv_heads,
                           .head_dim = shape.head_dim,
                           .scale = 1 / std::sqrt(static_cast<float>(shape.head_dim))};
  const auto sequences = static_cast<int64_t>(contexts.size());
  const int32_t longest = *std::max_element(contexts.begin(), contexts.end());
  const int64_t stride = CeilDiv<int64_t>(longest, kBlockTokens);
  std::vector<int32_t> tables(static_cast<size_t>(sequences * stride)), row_begin{0}, positions;
  std::vector<PrefillTile> tiles;
  int64_t blocks = 0;
  for (const int32_t context : contexts) blocks += CeilDiv<int64_t>(context, kBlockTokens);
  std::vector<int32_t> order(static_cast<size_t>(blocks));  // scattered
  std::iota(order.begin(), order.end(), 0);
  Random random(1);
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random.Below(i)]);
  double tokens = 0, pairs = 0;
  for (int64_t s = 0; s < sequences; ++s) {
    const int32_t context = contexts[static_cast<size_t>(s)];
    for (int64_t b = 0; b < CeilDiv<int64_t>(context, kBlockTokens); ++b) {
      tables[static_cast<size_t>(s * stride + b)] = order.back();
      order.pop_back();
    }
    for (int64_t r = 0; r < rows; ++r) {
      if (rows > 1 && r % kPrefillRows == 0) {
        tiles.push_back({static_cast<int32_t>(s), static_cast<int32_t>(positions.size())});
      }
      positions.push_back(static_cast<int32_t>(context - rows + r));
      pairs += context - rows + r + 1;
    }
    row_begin.push_back(static_cast<int32_t>(positions.size()));
    tokens += context;
  }
  // As a plan orders them.
  std::stable_sort(tiles.begin(), tiles.end(), [&](const PrefillTile& a, const PrefillTile& b) {
    return positions[static_cast<size_t>(a.first_row)] >
           positions[static_cast<size_t>(b.first_row)];
  });

  std::vector<DecodePart> parts(
      static_cast<size_t>(DecodeBlocks(bench.stream().multiprocessors())));
  DivideDecode(spec, row_begin, contexts, parts);
  const int64_t part = blocks * spec.kv_heads * kBlockTokens * spec.head_dim;
  const double bytes = 4 * tokens * static_cast<double>(spec.kv_heads * spec.head_dim);
  const int64_t layers = std::clamp<int64_t>(static_cast<int64_t>(400e6 / bytes), 4, 64);
  const Buffer keys = bench.Halves(layers * part), values = bench.Halves(layers * part);
  const auto step_rows = static_cast<int64_t>(positions.size());
  const int64_t columns = spec.heads * spec.head_dim;
  const Buffer q = bench.Halves(step_rows * columns), out = bench.Halves(step_rows * columns);
  const Buffer d_tables = bench.Upload(tables), d_rows = bench.Upload(row_begin),
               d_positions = bench.Upload(positions), d_lengths = bench.Upload(contexts),
               d_tiles = bench.Upload(tiles), d_parts = bench.Upload(parts);
  const Buffer scratch = bench.Upload(std::vector<uint8_t>(
      DecodeScratchBytes(bench.stream().multiprocessors(), spec), 0));
  const DeviceBatch batch{.positions = d_positions.as<int32_t>(),
                          .row_begin = d_rows.as<int32_t>(),
                          .context_lengths = d_lengths.as<int32_t>(),
                          .block_tables = d_tables.as<int32_t>(),
                          .prefill_tiles = d_tiles.as<PrefillTile>(),
                          .decode_parts = d_parts.as<DecodePart>(),
                          .rows = step_rows,
                          .sequences = sequences,
                          .table_stride = stride,
                          .prefill_tile_count = static_cast<int64_t>(tiles.size()),
                          .longest_prefill = longest,
                          .has_decode = rows == 1};
  const MatrixView q_view{q.data(), DType::kF16, step_rows, columns, columns};
  const MatrixView out_view{out.data(), DType::kF16, step_rows, columns, columns};
  const double seconds = bench.Time([&] {
    for (int64_t layer = 0; layer < layers; ++layer) {
      const KvView kv{keys.as<__half>() + layer * part, values.as<__half>() + layer * part};
      if (rows == 1) {
        AttendDecode(bench.stream(), batch, spec, q_view, kv, out_view, scratch.data());
      } else {
        AttendPrefill(bench.stream(), batch, spec, q_view, kv, out_view, kernels);
      }
    }
  }) / static_cast<double>(layers);
  const double rate =
      rows == 1 ? bytes / seconds : 4 * pairs * static_cast<double>(columns) / seconds;
  if (rows == 1) {
    std::printf("%-52s %9.2f us  %7.1f GB/s  %5.1f %% of reading\n", name.c_str(), 1e6 * seconds,
                1e-9 * rate, 100 * rate / read_bandwidth);
  } else {
    std::printf("%-52s %9.2f us  %7.1f TFLOP/s\n", name.c_str(), 1e6 * seconds, 1e-12 * rate);
  }
}

void Run(const std::string& filter, CudaKernels kernels) {
  Bench bench;
  const double read_bandwidth = bench.ReadBandwidth();
  std::printf("reading: %.1f GB/s\n", 1e-9 * read_bandwidth);
  const auto measure = [&](const Shape& shape, const char* lengths,
                           const std::vector<int32_t>& contexts, int64_t rows) {
    const std::string name =
        fmt::format("{} {} {}x {} {}", rows == 1 ? "decode" : "prefill", shape.model,
                    contexts.size(), lengths, rows == 1 ? 0 : rows);
    if (name.compare(0, filter.size(), filter) != 0) return;
    Measure(bench, shape, name, contexts, rows, kernels, read_bandwidth);
  };
  const auto same = [](size_t sequences, int32_t context) {
    return std::vector<int32_t>(sequences, context);
  };
  for (const Shape& shape : {kLlama2, kLlama3, kTiny, kSmol}) {
    for (const size_t sequences : {1, 4, 16, 64, 128}) {
      measure(shape, "612", same(sequences, 612), 1);
    }
    measure(shape, "8192", same(1, 8192), 1);
    std::vector<int32_t> ragged;
    for (int32_t s = 0; s < 64; ++s) ragged.push_back(100 + s * 37 % 64 * 1024 / 63);
    measure(shape, "100..1124", ragged, 1);
  }
  for (const Shape& shape : {kLlama2, kLlama3, kTiny}) {
    measure(shape, "33", same(16, 33), 33);
    measure(shape, "128", same(1, 128), 128);
    measure(shape, "600", same(16, 600), 20);
    measure(shape, "512", same(8, 512), 512);
    measure(shape, "512", same(1, 512), 512);
    measure(shape, "1024", same(1, 1024), 1024);
    measure(shape, "4096", same(1, 4096), 4096);
    measure(shape, "4096", same(1, 4096), 512);
  }
}

}  // namespace
}  // namespace nibble::cuda

int main(int argc, char** argv) {
  std::string filter;
  auto kernels = nibble::CudaKernels::kAuto;
  for (int i = 1; i < argc; ++i) {
    if (std::string(argv[i]) == "--portable") {
      kernels = nibble::CudaKernels::kPortable;
    } else {
      filter = argv[i];
    }
  }
  nibble::cuda::Run(filter, kernels);
  return 0;
}

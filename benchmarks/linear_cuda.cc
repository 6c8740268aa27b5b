// The 4-bit linear layers of the CUDA backend at the shapes of a model, against the device's limits
// and cuBLASLt's fp16.
//
//   benchmark_linear_cuda [--model=llama-2-7b] [--rows=1,8,16] [--no-cublas] [--dequantize]
//                         [--portable] [--bf16] [--group=128] [--asym] [--read-tbps=4.5]
//                         [--tflops=770]
//
// --model: any PRESET of random:PRESET. --dequantize adds a column: the time of the backend's other
// way for many rows, a dequantized copy of the weight and cuBLASLt, without what finishes gate and
// up after that. Neither way cuts rows as a step does (PlanLayout::wide_rows).
//
// Each figure is the median time of a product inside a CUDA graph of many, whose weights together
// are several times the L2 cache. `layer` is the chain of a layer's four products. The limit is the
// larger of bytes (codes, scales, zeros, x and out, once) / read bandwidth and operations / matrix
// rate, both as measured on one H200; a share is limit / time.
#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "src/base/checked.h"
#include "src/base/must.h"
#include "src/base/random.h"
#include "src/checkpoint/random_checkpoint.h"
#include "src/model/model_config.h"
#include "src/ops/cuda/cuda_plan.h"
#include "src/ops/cuda/device_memory.h"
#include "src/ops/cuda/linear_q4.h"
#include "src/ops/cuda/matrix_product.h"
#include "src/ops/cuda/stream.h"

namespace nibble::cuda {
namespace {

constexpr size_t kPoolBytes = size_t{1} << 30;      // of weights
constexpr size_t kCachedBytes = size_t{256} << 20;  // several times any L2 cache
// In a graph at least, where the pool has them.
constexpr int kCopies = 32, kLayers = 6;
constexpr int kRepetitions = 15;
constexpr int64_t kMaxRows = 4096;

struct LinearShape {
  const char* name;
  int64_t out, in;
  Epilogue epilogue;
};
std::vector<LinearShape> ShapesOf(const ModelConfig& model) {
  return {{"qkv", model.qkv_features(), model.hidden, Epilogue::kNone},
          {"o", model.hidden, model.q_features(), Epilogue::kAdd},
          {"gate_up", 2 * model.intermediate, model.hidden, Epilogue::kSiluMul},
          {"down", model.hidden, model.intermediate, Epilogue::kAdd}};
}

struct Options {
  std::vector<int64_t> rows = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096};
  std::string model = "llama-2-7b";
  bool cublas = true, dequantize = false;
  CudaKernels kernels = CudaKernels::kAuto;
  DType dtype = DType::kF16;
  QuantSpec spec{.group_size = 128, .grid = Grid::kSymmetric};
  double read_bytes_per_second = 4.5e12, operations_per_second = 770e12;
};

void Must(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, ErrorText(error).c_str());
  std::exit(1);
}

struct Free {
  void operator()(void* data) const { cudaFree(data); }
};
using Memory = std::unique_ptr<void, Free>;
Memory Allocate(size_t bytes) {
  void* data = nullptr;
  Must(cudaMalloc(&data, bytes), "cudaMalloc");
  Must(cudaMemset(data, 0, bytes), "cudaMemset");
  return Memory(data);
}

// Uniform random 16-bit numbers in [-1, 1) · magnitude.
void FillHalves(void* to, size_t count, DType dtype, float magnitude) {
  constexpr size_t kPeriod = (size_t{1} << 20) + 24;
  static std::vector<uint16_t> values;
  Random random(1);
  values.clear();
  for (size_t i = 0; i < std::min(kPeriod, count); ++i) {
    const auto value = static_cast<float>(2 * random.Uniform() - 1) * magnitude;
    values.push_back(dtype == DType::kF16 ? F16FromFloat(value) : BF16FromFloat(value));
  }
  for (size_t at = 0; at < count; at += kPeriod) {
    Must(cudaMemcpy(static_cast<uint16_t*>(to) + at, values.data(),
                    std::min(kPeriod, count - at) * 2, cudaMemcpyHostToDevice),
         "filling");
  }
}

class Bench {
 public:
  Bench(const Options& options, const ModelConfig& model)
      : options_(options),
        shapes_(ShapesOf(model)),
        stream_(std::move(*Stream::Create())),
        product_(Must(MatrixProduct::Create(options.kernels))),
        pool_(Allocate(kPoolBytes)) {
    int64_t longest = 0, widest = 0;
    for (const LinearShape& shape : shapes_) {
      longest = std::max(longest, shape.in);
      widest = std::max(widest, shape.out);
    }
    const auto x_count = static_cast<size_t>(kMaxRows * longest);
    x_ = Allocate(x_count * 2);
    out_ = Allocate(static_cast<size_t>(kMaxRows * widest) * 2);
    FillHalves(x_.get(), x_count, options.dtype, 1);
    // What a step has for its linears.
    const int multiprocessors = stream_->multiprocessors();
    const StepLimits limits{.rows = kMaxRows, .sequences = 1, .context = 1, .logit_rows = 1};
    scratch_ = Allocate(LinearQ4ScratchBytes(multiprocessors, kMaxRows, longest));
    dense_bytes_ = PlanLayout::Of(limits, model.extents(), multiprocessors).dequantized_bytes;
    dense_ = Allocate(dense_bytes_);
    workspace_ = Allocate(kWorkspaceBytes);
    // Any bits are codes; scales must be small numbers, so random bits of exponent 2^-9 … 2^-6
    // serve for both.
    FillHalves(pool_.get(), kPoolBytes / 2, DType::kF16, 0.01f);
    if (options_.cublas) cublasLtCreate(&cublas_);
  }

  // The median time of one call of work(i), microseconds, `count` calls in a graph.
  template <typename Work>
  double Microseconds(int count, const Work& work) {
    work(0);  // loads the kernels, which a capture must not
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    Must(cudaStreamBeginCapture(stream_->get(), cudaStreamCaptureModeGlobal), "capture");
    for (int i = 0; i < count; ++i) work(i);
    Must(cudaStreamEndCapture(stream_->get(), &graph), "end of capture");
    Must(cudaGraphInstantiate(&executable, graph, 0), "instantiation");
    cudaEvent_t begin, end;
    cudaEventCreate(&begin);
    cudaEventCreate(&end);
    std::vector<float> times;
    for (int r = 0; r < kRepetitions + 2; ++r) {
      Must(cudaEventRecord(begin, stream_->get()), "event");
      Must(cudaGraphLaunch(executable, stream_->get()), "launch");
      Must(cudaEventRecord(end, stream_->get()), "event");
      Must(cudaEventSynchronize(end), "graph");
      float milliseconds = 0;
      cudaEventElapsedTime(&milliseconds, begin, end);
      if (r >= 2) times.push_back(milliseconds);
    }
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
    cudaGraphExecDestroy(executable);
    cudaGraphDestroy(graph);
    if (const Status status = stream_->Synchronize(); !status) {
      std::fprintf(stderr, "%s\n", status.error().message().c_str());
      std::exit(1);
    }
    std::nth_element(times.begin(), times.begin() + kRepetitions / 2, times.end());
    return 1e3 * times[kRepetitions / 2] / count;
  }

  MatrixView Matrix(const Memory& memory, int64_t rows, int64_t columns) const {
    return {memory.get(), options_.dtype, rows, columns, columns};
  }
  void Linear(const LinearShape& shape, int64_t rows, size_t offset) {
    const int64_t columns = shape.epilogue == Epilogue::kSiluMul ? shape.out / 2 : shape.out;
    LinearQ4(*stream_, Layout(shape), static_cast<std::byte*>(pool_.get()) + offset, nullptr,
             Matrix(x_, rows, shape.in), shape.epilogue, Matrix(out_, rows, columns),
             scratch_.get(), options_.kernels);
  }
  void Dequantized(const LinearShape& shape, int64_t rows, size_t offset) {
    product_->RunDequantized(*stream_, Matrix(x_, rows, shape.in), Layout(shape),
                             static_cast<std::byte*>(pool_.get()) + offset,
                             MatrixProduct::OutputOf(shape.epilogue), Matrix(out_, rows, shape.out),
                             dense_.get(), dense_bytes_, workspace_.get(), kWorkspaceBytes);
  }
  Q4Layout Layout(const LinearShape& shape) const {
    return Q4Layout::Of(shape.out, shape.in, options_.spec);
  }
  size_t Bytes(const LinearShape& shape) const { return Layout(shape).total_bytes; }
  double LimitMicroseconds(const LinearShape& shape, int64_t rows) const {
    const double bytes = static_cast<double>(Bytes(shape)) +
                         2.0 * static_cast<double>(rows * (shape.in + shape.out));
    const double operations =
        2.0 * static_cast<double>(rows) * static_cast<double>(shape.in * shape.out);
    return 1e6 * std::max(bytes / options_.read_bytes_per_second,
                          operations / options_.operations_per_second);
  }
  // How many times such weights are multiplied in a graph.
  static int Copies(size_t bytes, int wanted) {
    const size_t cold = CeilDiv(kCachedBytes, bytes);
    return static_cast<int>(
        std::min(std::max(cold, static_cast<size_t>(wanted)), kPoolBytes / bytes));
  }
  // One product, and the chain of a layer's, in either way.
  using Way = void (Bench::*)(const LinearShape& shape, int64_t rows, size_t offset);
  double Time(Way way, const LinearShape& shape, int64_t rows) {
    const size_t bytes = Bytes(shape);
    return Microseconds(Copies(bytes, kCopies),
                        [&](int i) { (this->*way)(shape, rows, static_cast<size_t>(i) * bytes); });
  }
  double LayerTime(Way way, int64_t rows) {
    size_t offset = 0, bytes = 0;
    for (const LinearShape& shape : shapes_) bytes += Bytes(shape);
    return Microseconds(Copies(bytes, kLayers), [&](int i) {
      if (i == 0) offset = 0;
      for (const LinearShape& shape : shapes_) {
        (this->*way)(shape, rows, offset);
        offset += Bytes(shape);
      }
    });
  }

  // out = x · Wᵀ in fp16 by cuBLASLt's first choice.
  double CublasTime(const LinearShape& shape, int64_t rows) {
    cublasLtMatmulDesc_t product;
    cublasLtMatrixLayout_t w, x, y;
    cublasLtMatmulPreference_t preference;
    cublasLtMatmulHeuristicResult_t choice;
    const cublasOperation_t transposed = CUBLAS_OP_T;
    int found = 0;
    cublasLtMatmulDescCreate(&product, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    cublasLtMatmulDescSetAttribute(product, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                   sizeof(transposed));
    const auto in = static_cast<uint64_t>(shape.in), out = static_cast<uint64_t>(shape.out);
    const auto n = static_cast<uint64_t>(rows);
    cublasLtMatrixLayoutCreate(&w, CUDA_R_16F, in, out, shape.in);
    cublasLtMatrixLayoutCreate(&x, CUDA_R_16F, in, n, shape.in);
    cublasLtMatrixLayoutCreate(&y, CUDA_R_16F, out, n, shape.out);
    cublasLtMatmulPreferenceCreate(&preference);
    const size_t workspace = kWorkspaceBytes;
    cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                         &workspace, sizeof(workspace));
    cublasLtMatmulAlgoGetHeuristic(cublas_, product, w, x, y, y, preference, 1, &choice, &found);
    double time = 0;
    if (found > 0) {
      const float one = 1, zero = 0;
      const size_t bytes = static_cast<size_t>(shape.in * shape.out) * 2;
      time = Microseconds(Copies(bytes, kCopies), [&](int i) {
        cublasLtMatmul(cublas_, product, &one,
                       static_cast<std::byte*>(pool_.get()) + static_cast<size_t>(i) * bytes, w,
                       x_.get(), x, &zero, out_.get(), y, out_.get(), y, &choice.algo,
                       workspace_.get(), workspace, stream_->get());
      });
    }
    cublasLtMatmulPreferenceDestroy(preference);
    cublasLtMatrixLayoutDestroy(w);
    cublasLtMatrixLayoutDestroy(x);
    cublasLtMatrixLayoutDestroy(y);
    cublasLtMatmulDescDestroy(product);
    return time;
  }

  void Run() {
    std::printf("%5s %-8s %9s %9s %6s %9s %7s%s\n", "rows", "product", "us", "limit us", "share",
                "fp16 us", "speedup", options_.dequantize ? "  dequantized us" : "");
    for (const int64_t rows : options_.rows) {
      double total = 0, limit = 0, dense = 0, total_dequantized = 0;
      const auto print = [&](const char* name, double time, double bound, double cublas,
                             double dequantized) {
        std::printf("%5lld %-8s %9.2f %9.2f %6.2f %9.2f %7.2f", static_cast<long long>(rows), name,
                    time, bound, bound / time, cublas, cublas / time);
        if (options_.dequantize) std::printf(" %15.2f", dequantized);
        std::puts("");
      };
      for (const LinearShape& shape : shapes_) {
        const double time = Time(&Bench::Linear, shape, rows);
        const double cublas = options_.cublas ? CublasTime(shape, rows) : 0;
        const double dequantized = options_.dequantize ? Time(&Bench::Dequantized, shape, rows) : 0;
        print(shape.name, time, LimitMicroseconds(shape, rows), cublas, dequantized);
        total += time;
        dense += cublas;
        total_dequantized += dequantized;
        limit += LimitMicroseconds(shape, rows);
      }
      print("sum", total, limit, dense, total_dequantized);
      print("layer", LayerTime(&Bench::Linear, rows), limit, dense,
            options_.dequantize ? LayerTime(&Bench::Dequantized, rows) : 0);
      std::fflush(stdout);
    }
  }

 private:
  static constexpr size_t kWorkspaceBytes = PlanLayout::kMatrixProductBytes;

  Options options_;
  std::vector<LinearShape> shapes_;
  std::unique_ptr<Stream> stream_;
  std::unique_ptr<MatrixProduct> product_;
  Memory pool_, x_, out_, scratch_, dense_, workspace_;
  size_t dense_bytes_ = 0;
  cublasLtHandle_t cublas_ = nullptr;
};

int Main(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const auto value = [&](const char* name) -> const char* {
      const size_t length = std::strlen(name);
      return argument.compare(0, length, name) == 0 ? argument.c_str() + length : nullptr;
    };
    if (const char* list = value("--rows=")) {
      options.rows.clear();
      for (char* at = const_cast<char*>(list); *at != '\0'; at += *at == ',') {
        options.rows.push_back(std::clamp<int64_t>(std::strtoll(at, &at, 10), 1, kMaxRows));
      }
    } else if (const char* model = value("--model=")) {
      options.model = model;
    } else if (argument == "--portable") {
      options.kernels = CudaKernels::kPortable;
    } else if (argument == "--no-cublas") {
      options.cublas = false;
    } else if (argument == "--dequantize") {
      options.dequantize = true;
    } else if (argument == "--bf16") {
      options.dtype = DType::kBF16;
    } else if (argument == "--asym") {
      options.spec.grid = Grid::kAsymmetric;
    } else if (const char* group = value("--group=")) {
      options.spec.group_size = std::atoll(group);
    } else if (const char* rate = value("--read-tbps=")) {
      options.read_bytes_per_second = 1e12 * std::atof(rate);
    } else if (const char* matrix_rate = value("--tflops=")) {
      options.operations_per_second = 1e12 * std::atof(matrix_rate);
    } else {
      std::fprintf(stderr, "unknown option %s\n", argv[i]);
      return 2;
    }
  }
  const Json config = RandomPresetConfig(options.model);
  if (config.is_null()) {
    std::fprintf(stderr, "no model %s\n", options.model.c_str());
    return 2;
  }
  const ModelConfig model = Must(ParseModelConfig(config, Json::object(), options.model));
  if (options.spec.group_size < 1 && options.spec.group_size != kPerChannel) {
    std::fprintf(stderr, "groups of %lld: want a number, or -1 for a whole row\n",
                 static_cast<long long>(options.spec.group_size));
    return 2;
  }
  size_t layer_bytes = 0;
  for (const LinearShape& shape : ShapesOf(model)) {
    layer_bytes += Q4Layout::Of(shape.out, shape.in, options.spec).total_bytes;
    const int64_t group = options.spec.GroupLength(shape.in);
    if (shape.in % group == 0) continue;
    std::fprintf(stderr, "groups of %lld do not divide the %lld inputs of %s\n",
                 static_cast<long long>(group), static_cast<long long>(shape.in), shape.name);
    return 2;
  }
  if (layer_bytes > kPoolBytes) {
    std::fprintf(stderr, "a layer of %s has %zu bytes: want %zu at most\n", options.model.c_str(),
                 layer_bytes, kPoolBytes);
    return 2;
  }
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::puts("no CUDA device");
    return 0;
  }
  Bench(options, model).Run();
  return 0;
}

}  // namespace
}  // namespace nibble::cuda

int main(int argc, char** argv) { return nibble::cuda::Main(argc, argv); }

#include "src/ops/cuda/stream.h"

namespace nibble::cuda {

std::string ErrorText(cudaError_t error) {
  return fmt::format("{} ({})", cudaGetErrorString(error), cudaGetErrorName(error));
}

Result<std::unique_ptr<Stream>> Stream::Create() {
  int device = 0, multiprocessors = 0;
  cudaStream_t stream = nullptr;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  }
  if (error == cudaSuccess) error = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  if (error != cudaSuccess) return BadInput("cuda:{}: {}", device, ErrorText(error));
  return std::unique_ptr<Stream>(new Stream(stream, multiprocessors));
}

Stream::~Stream() { cudaStreamDestroy(stream_); }

void Stream::Check(cudaError_t error, const char* operation, int64_t rows, int64_t columns) {
  last_operation_ = operation;
  if (error == cudaSuccess || !failure_.empty()) return;
  failure_ = fmt::format("{} of [{}, {}]: {}", operation, rows, columns, ErrorText(error));
}

Status Stream::Synchronize() { return Outcome(cudaStreamSynchronize(stream_)); }

Status Stream::WaitFor(cudaEvent_t event) { return Outcome(cudaEventSynchronize(event)); }

Status Stream::Outcome(cudaError_t error) {
  if (error != cudaSuccess && failure_.empty()) {
    failure_ = fmt::format("on the GPU, at or before {}: {}", last_operation_, ErrorText(error));
  }
  if (!failure_.empty()) return Fail(ErrorCode::kInternal, "{}", failure_);
  return {};
}

}  // namespace nibble::cuda

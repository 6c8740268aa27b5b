// A linear layer's weights as the CUDA kernels read them, packed on the device.
//
//   dense:  [out, in] of the activations' type; gate row i is row 2i and up row i is row 2i + 1
//   4-bit:  as linear_q4.h lays it out, rows in the same order
//   bias:   float32 [out], in the rows' order
//   order:  int32 [in], where groups are not consecutive inputs: the input of each column
#ifndef NIBBLE_OPS_CUDA_CUDA_LINEAR_H_
#define NIBBLE_OPS_CUDA_CUDA_LINEAR_H_

#include <optional>
#include <span>

#include "src/ops/backend.h"
#include "src/ops/cuda/linear_q4.h"
#include "src/ops/cuda/stream.h"

namespace nibble::cuda {

// Offsets in bytes.
struct LinearLayout {
  int64_t out_features = 0;
  int64_t in_features = 0;
  std::optional<Q4Layout> q4;  // none where the weight is dense
  bool has_bias = false;
  bool has_order = false;
  size_t bias_at = 0;
  size_t order_at = 0;
  size_t total_bytes = 0;

  static LinearLayout Of(int64_t out_features, int64_t in_features, const QuantSpec* quant,
                         bool bias);
};

class CudaLinear final : public PreparedLinear {
 public:
  CudaLinear(const LinearLayout& layout, Interleave interleave, Buffer memory)
      : PreparedLinear(layout.out_features, layout.in_features, memory.size()),
        layout_(layout),
        interleave_(interleave),
        memory_(std::move(memory)) {}

  const LinearLayout& layout() const { return layout_; }
  Interleave interleave() const { return interleave_; }
  void* weight() const { return memory_.data(); }
  float* bias() const { return layout_.has_bias ? at<float>(layout_.bias_at) : nullptr; }
  int32_t* order() const { return layout_.has_order ? at<int32_t>(layout_.order_at) : nullptr; }

 private:
  template <typename T>
  T* at(size_t offset) const {
    return reinterpret_cast<T*>(memory_.as<std::byte>() + offset);
  }

  LinearLayout layout_;
  Interleave interleave_;
  Buffer memory_;
};

// Carries weights to the device through two page-locked buffers in turns, so that one is filled while
// the other is copied.
class WeightLoader {
 public:
  static Result<std::unique_ptr<WeightLoader>> Create(MemoryTracker& memory, Stream& stream);
  ~WeightLoader();

  // See Backend::Prepare. `activations` is the type that kernels multiply with.
  Result<std::unique_ptr<PreparedLinear>> Load(std::span<const LinearSource> sources,
                                               Interleave interleave, DType activations);
  // The weight as float32, once it is there.
  Result<Matrix> LoadFloats(const DenseWeight& weight);

 private:
  struct Lane {
    Buffer host;    // page-locked
    Buffer device;  // where it is copied to, held while a linear is loaded
    cudaEvent_t used = nullptr;  // what reads `device` is done
  };
  static constexpr size_t kLaneBytes = size_t{16} << 20;

  WeightLoader(MemoryTracker& memory, Stream& stream) : memory_(memory), stream_(stream) {}
  // The lanes' parts on the device.
  Status AllocateLanes();
  void FreeLanes();
  // The next lane, once nothing uses it any more.
  Lane& NextLane();
  void LoadDense(const DenseWeight& weight, int64_t first_row, int64_t row_step,
                 MatrixView out);
  void LoadQuantized(const QuantizedWeight& weight, int64_t first_row, int64_t row_step,
                     const Q4Layout& layout, DType activations, void* packed);

  MemoryTracker& memory_;
  Stream& stream_;
  Lane lanes_[2];
  size_t next_ = 0;
};

}  // namespace nibble::cuda

#endif  // NIBBLE_OPS_CUDA_CUDA_LINEAR_H_

#include "src/ops/cuda/token_queue.h"

#include "src/ops/cuda/device_memory.h"

namespace nibble::cuda {

Result<std::unique_ptr<TokenQueue>> TokenQueue::Create(int64_t rows, Stream& stream) {
  std::unique_ptr<TokenQueue> queue(new TokenQueue(rows, stream));
  // One that the host reads, one that the device writes, one for the step that is being issued.
  for (int i = 0; i < 3; ++i) NIBBLE_RETURN_IF_ERROR(queue->AddSlot());
  return queue;
}

TokenQueue::~TokenQueue() {
  for (const std::unique_ptr<Slot>& slot : slots_) {
    if (slot->written != nullptr) cudaEventDestroy(slot->written);
  }
}

Status TokenQueue::AddSlot() {
  auto slot = std::make_unique<Slot>();
  NIBBLE_ASSIGN_OR_RETURN(slot->memory,
                          AllocatePinned(static_cast<size_t>(rows_) * sizeof(int32_t)));
  const cudaError_t error = cudaEventCreateWithFlags(&slot->written, cudaEventDisableTiming);
  if (error != cudaSuccess) return Fail(ErrorCode::kInternal, "an event: {}", ErrorText(error));
  free_.push_front(slot.get());
  slots_.push_back(std::move(slot));
  return {};
}

int32_t* TokenQueue::Next(int64_t rows) {
  CHECK(rows <= rows_);
  // The last of free_ may still be read.
  if (free_.size() < 2 && status_) status_ = AddSlot();
  Slot* const slot = free_.front();
  if (!status_) return slot->memory.as<int32_t>();  // Receive will say so
  free_.pop_front();
  slot->rows = rows;
  waiting_.push_back(slot);
  return slot->memory.as<int32_t>();
}

void TokenQueue::Sent() {
  if (!status_) return;
  stream_.Check(cudaEventRecord(waiting_.back()->written, stream_.get()), "sending tokens",
                waiting_.back()->rows, 1);
}

Result<std::span<const int32_t>> TokenQueue::Receive() {
  if (!status_) return tl::unexpected<Error>(status_.error());
  CHECK(!waiting_.empty(), "no tokens were chosen that were not received");
  Slot* const slot = waiting_.front();
  waiting_.pop_front();
  free_.push_back(slot);
  NIBBLE_RETURN_IF_ERROR(stream_.WaitFor(slot->written));
  return std::span<const int32_t>(slot->memory.as<int32_t>(), static_cast<size_t>(slot->rows));
}

}  // namespace nibble::cuda

// Puts finished layers where they last, on a thread of its own, while the next are computed: into
// the store for a run that is interrupted, and into the checkpoint.
#ifndef NIBBLE_QUANTIZE_LAYER_WRITER_H_
#define NIBBLE_QUANTIZE_LAYER_WRITER_H_

#include <future>
#include <set>
#include <string>

#include "src/checkpoint/checkpoint_writer.h"
#include "src/quantize/layer_store.h"

namespace nibble {

class LayerWriter {
 public:
  // Borrows all. `source` tells the types of the vectors.
  LayerWriter(const Checkpoint& source, const LayerStore& store, CheckpointWriter& writer)
      : source_(source), store_(store), writer_(writer) {}
  // Waits.
  ~LayerWriter() { Wait(); }
  LayerWriter(const LayerWriter&) = delete;
  LayerWriter& operator=(const LayerWriter&) = delete;

  // Where a layer comes from; one of the store is not saved again.
  enum class Origin { kComputed, kStore };
  // Takes over the next layer in order, once the one before is done, and returns what became of
  // that. A layer that was put before is ignored.
  Status Put(int64_t layer, QuantizedLayer quantized, Origin origin);
  // For the last one. Then the checkpoint holds all layers that were put, and written() names the
  // vectors among their tensors.
  Status Wait();
  const std::set<std::string>& written() const { return written_; }

 private:
  Status Write(int64_t layer, const QuantizedLayer& quantized, Origin origin);

  const Checkpoint& source_;
  const LayerStore& store_;
  CheckpointWriter& writer_;
  std::set<std::string> written_;
  int64_t next_ = 0;
  std::future<Status> pending_;
};

}  // namespace nibble

#endif  // NIBBLE_QUANTIZE_LAYER_WRITER_H_

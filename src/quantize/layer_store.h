// The layers that an unfinished quantization has done, so that it can go on where it was stopped:
// a directory with one safetensors file for each layer. A file that is there is complete.
#ifndef NIBBLE_QUANTIZE_LAYER_STORE_H_
#define NIBBLE_QUANTIZE_LAYER_STORE_H_

#include <cstdint>
#include <optional>
#include <string>

#include "src/base/error.h"
#include "src/quantize/layer_quantizer.h"

namespace nibble {

class LayerStore {
 public:
  // Makes the directory, or opens one made with the same fingerprint (of the model, the calibration
  // and the options); one of another fingerprint is emptied.
  static Result<LayerStore> Open(const std::string& directory, const std::string& fingerprint);

  // The layer, if it is done.
  Result<std::optional<QuantizedLayer>> Load(int64_t layer, const QuantSpec& spec) const;
  Status Save(int64_t layer, const QuantizedLayer& quantized) const;
  // Once all of it is in the checkpoint.
  void Remove() const;

 private:
  explicit LayerStore(std::string directory) : directory_(std::move(directory)) {}
  std::string PathOf(int64_t layer) const;

  std::string directory_;
};

}  // namespace nibble

#endif  // NIBBLE_QUANTIZE_LAYER_STORE_H_

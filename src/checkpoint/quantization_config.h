// `quantization_config` of a Hugging Face config.json: in which published layout which linear
// layers lie.
//
// Read: AutoAWQ's "gemm" layout, GPTQ's (checkpoint_format "gptq", that is version 1, and
// "gptq_v2") and compressed-tensors' "pack-quantized", 4 bits. Everything else is refused by name,
// and so is any setting that would change the weights and is not understood.
#ifndef NIBBLE_CHECKPOINT_QUANTIZATION_CONFIG_H_
#define NIBBLE_CHECKPOINT_QUANTIZATION_CONFIG_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "src/base/error.h"
#include "src/base/json.h"
#include "src/checkpoint/module_pattern.h"
#include "src/format/weight.h"

namespace nibble {

enum class QuantLayout : uint8_t { kAwqGemm, kGptqV1, kGptqV2, kCompressedTensors };
inline constexpr QuantLayout kQuantLayouts[] = {QuantLayout::kAwqGemm, QuantLayout::kGptqV1,
                                                QuantLayout::kGptqV2,
                                                QuantLayout::kCompressedTensors};
std::string_view Name(QuantLayout layout);  // "awq", "gptq", "gptq_v2", "compressed-tensors"
std::optional<QuantLayout> QuantLayoutFromName(std::string_view name);

struct QuantizationConfig {
  QuantLayout layout = QuantLayout::kAwqGemm;
  // Grid: kAsymmetric, or kSymmetric where the configuration says so (kSymmetricFull has the same
  // zeros and cannot be told from it).
  QuantSpec spec;
  // Modules that are left dense: those whose name contains one of these; under kCompressedTensors
  // those whose name is one of these.
  std::vector<std::string> modules_to_not_convert;
  // … and those that match one of these.
  std::vector<ModulePattern> skip_patterns;
  // Where not empty, only modules whose names end in one of these are quantized.
  std::vector<std::string> only_modules;
  bool lm_head = false;  // quantized too

  // Whether the linear layer, for example "model.layers.0.mlp.up_proj", is quantized.
  bool Covers(std::string_view linear_name) const;
  // "awq-g128-asym", "gptq-g64-sym", "compressed-tensors-channel-sym"
  std::string Label() const;
  // As transformers and vLLM expect it under "quantization_config".
  Json ToJson() const;
};

// `config` is the whole of config.json; none where it has no quantization_config. `source` names
// the file in errors.
Result<std::optional<QuantizationConfig>> ParseQuantizationConfig(const Json& config,
                                                                  std::string_view source);

}  // namespace nibble

#endif  // NIBBLE_CHECKPOINT_QUANTIZATION_CONFIG_H_

// A way to quantize, as the command line names it: NAME[-gN][-asym|-sym|-sym-full].
#ifndef NIBBLE_QUANTIZE_METHOD_H_
#define NIBBLE_QUANTIZE_METHOD_H_

#include <optional>
#include <string>
#include <string_view>

#include "src/base/error.h"
#include "src/checkpoint/quantization_config.h"
#include "src/format/weight.h"

namespace nibble {

enum class QuantMethod : uint8_t { kRtn, kAwq, kGptq, kAwqGptq };
std::string_view Name(QuantMethod method);  // "rtn", "awq", "gptq", "awq+gptq"

struct MethodSpec {
  QuantMethod method = QuantMethod::kRtn;
  QuantSpec quant;  // the group size as asked for; a model may need a smaller one
};

// "rtn", "awq-g64", "gptq-sym", "awq+gptq-gchannel-sym-full"; unless named, groups of 128, and for
// gptq the symmetric grid, else the asymmetric one.
Result<MethodSpec> ParseMethod(std::string_view text);

// 32, 64, 128 or "channel"; kUsage otherwise.
Result<int64_t> ParseGroupSize(std::string_view text);

// The layout that holds the grid and that most tools load: awq for asymmetric grids, gptq (version
// 1) for symmetric ones.
QuantLayout DefaultLayout(Grid grid);
// kUsage where the layout cannot express the grid, naming those that can.
Status CheckLayout(QuantLayout layout, Grid grid);
Result<QuantLayout> ParseLayout(std::string_view text);

}  // namespace nibble

#endif  // NIBBLE_QUANTIZE_METHOD_H_

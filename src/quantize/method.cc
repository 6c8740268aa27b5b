#include "src/quantize/method.h"

#include <algorithm>
#include <iterator>

namespace nibble {
namespace {

constexpr QuantMethod kMethods[] = {QuantMethod::kRtn, QuantMethod::kAwq, QuantMethod::kGptq,
                                    QuantMethod::kAwqGptq};

}  // namespace

std::string_view Name(QuantMethod method) {
  switch (method) {
    case QuantMethod::kRtn:
      return "rtn";
    case QuantMethod::kAwq:
      return "awq";
    case QuantMethod::kGptq:
      return "gptq";
    case QuantMethod::kAwqGptq:
      return "awq+gptq";
  }
  return "";
}

Result<int64_t> ParseGroupSize(std::string_view text) {
  if (text == "32") return 32;
  if (text == "64") return 64;
  if (text == "128") return 128;
  if (text == "channel") return kPerChannel;
  return WrongUsage("group size \"{}\": want 32, 64, 128 or channel", text);
}

Result<MethodSpec> ParseMethod(std::string_view text) {
  MethodSpec spec;
  std::string_view rest = text;
  std::optional<Grid> named;
  // The grid is the longest suffix that names one.
  for (const Grid grid : {Grid::kSymmetricFull, Grid::kAsymmetric, Grid::kSymmetric}) {
    const std::string suffix = fmt::format("-{}", Name(grid));
    if (rest.ends_with(suffix)) {
      named = grid;
      rest.remove_suffix(suffix.size());
      break;
    }
  }
  if (const size_t at = rest.find("-g"); at != std::string_view::npos) {
    NIBBLE_ASSIGN_OR_RETURN(spec.quant.group_size, ParseGroupSize(rest.substr(at + 2)));
    rest = rest.substr(0, at);
  }
  const auto* const method = std::find_if(std::begin(kMethods), std::end(kMethods),
                                          [&](QuantMethod m) { return rest == Name(m); });
  if (method == std::end(kMethods)) {
    return WrongUsage(
        "method \"{}\": want rtn, awq, gptq or awq+gptq, and after it "
        "[-g32|-g64|-g128|-gchannel][-asym|-sym|-sym-full]",
        text);
  }
  spec.method = *method;
  spec.quant.grid =
      named.value_or(*method == QuantMethod::kGptq ? Grid::kSymmetric : Grid::kAsymmetric);
  return spec;
}

QuantLayout DefaultLayout(Grid grid) {
  return grid == Grid::kAsymmetric ? QuantLayout::kAwqGemm : QuantLayout::kGptqV1;
}

Status CheckLayout(QuantLayout layout, Grid grid) {
  const bool symmetric = grid != Grid::kAsymmetric;
  if (layout == QuantLayout::kGptqV1 && !symmetric) {
    return WrongUsage(
        "the gptq layout (version 1) holds symmetric grids only; for {} use --format awq, "
        "gptq_v2 or compressed-tensors",
        Name(grid));
  }
  if (layout == QuantLayout::kAwqGemm && symmetric) {
    return WrongUsage(
        "the awq layout marks its weights as asymmetric; for {} use --format gptq, gptq_v2 "
        "or compressed-tensors",
        Name(grid));
  }
  return {};
}

Result<QuantLayout> ParseLayout(std::string_view text) {
  const std::optional<QuantLayout> layout = QuantLayoutFromName(text);
  if (!layout) {
    return WrongUsage("format \"{}\": want awq, gptq, gptq_v2 or compressed-tensors", text);
  }
  return *layout;
}

}  // namespace nibble

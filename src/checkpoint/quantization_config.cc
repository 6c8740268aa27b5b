#include "src/checkpoint/quantization_config.h"

#include <algorithm>
#include <array>

namespace nibble {
namespace {

constexpr std::array<std::string_view, 3> kLayoutNames = {"awq", "gptq", "gptq_v2"};

// A JSON array of strings; empty where absent. `nested` arrays are flattened.
Result<std::vector<std::string>> StringList(const JsonObject& object, std::string_view key) {
  std::vector<std::string> strings;
  const Json* list = object.Find(key);
  if (list == nullptr) return strings;
  const auto wrong = [&] {
    return BadInput("{}: \"{}\": want a list of strings", object.source(), key);
  };
  if (!list->is_array()) return wrong();
  for (const Json& item : *list) {
    if (item.is_string()) {
      strings.push_back(item.get<std::string>());
    } else if (item.is_array()) {
      for (const Json& inner : item) {
        if (!inner.is_string()) return wrong();
        strings.push_back(inner.get<std::string>());
      }
    } else {
      return wrong();
    }
  }
  return strings;
}

Status WantFourBits(const JsonObject& object) {
  NIBBLE_ASSIGN_OR_RETURN(const int64_t bits, object.Integer("bits", 1, 64));
  if (bits != 4) return BadInput("{}: {} bits; nibble reads 4", object.source(), bits);
  return {};
}

Result<int64_t> GroupSize(const JsonObject& object) {
  NIBBLE_ASSIGN_OR_RETURN(const int64_t group, object.Integer("group_size", -1, 1 << 20));
  if (group == 0 || (group > 0 && group % 2 != 0)) {
    return BadInput("{}: group_size {}: want an even number, or -1 for whole rows", object.source(),
                    group);
  }
  return group;
}

Result<QuantizationConfig> ParseAwq(const JsonObject& object) {
  QuantizationConfig config;
  config.layout = QuantLayout::kAwqGemm;
  NIBBLE_RETURN_IF_ERROR(WantFourBits(object));
  NIBBLE_ASSIGN_OR_RETURN(std::string version, object.StringOr("version", "gemm"));
  std::transform(version.begin(), version.end(), version.begin(),
                 [](unsigned char c) { return c >= 'A' && c <= 'Z' ? c + 32 : c; });
  if (version != "gemm") {
    return BadInput("{}: AWQ version \"{}\"; nibble reads \"gemm\"", object.source(), version);
  }
  NIBBLE_ASSIGN_OR_RETURN(const bool zero_point, object.BooleanOr("zero_point", true));
  if (!zero_point) {
    return BadInput("{}: AWQ without zero points (\"zero_point\": false) is not supported",
                    object.source());
  }
  NIBBLE_ASSIGN_OR_RETURN(config.spec.group_size, GroupSize(object));
  config.spec.grid = Grid::kAsymmetric;
  NIBBLE_ASSIGN_OR_RETURN(config.modules_to_not_convert,
                          StringList(object, "modules_to_not_convert"));
  return config;
}

Result<QuantizationConfig> ParseGptq(const JsonObject& object) {
  QuantizationConfig config;
  NIBBLE_RETURN_IF_ERROR(WantFourBits(object));
  NIBBLE_ASSIGN_OR_RETURN(const std::string format, object.StringOr("checkpoint_format", "gptq"));
  if (format != "gptq" && format != "gptq_v2") {
    return BadInput("{}: checkpoint_format \"{}\"; nibble reads \"gptq\" and \"gptq_v2\"",
                    object.source(), format);
  }
  config.layout = format == "gptq" ? QuantLayout::kGptqV1 : QuantLayout::kGptqV2;
  NIBBLE_ASSIGN_OR_RETURN(const std::string pack, object.StringOr("pack_dtype", "int32"));
  if (pack != "int32") {
    return BadInput("{}: pack_dtype \"{}\"; nibble reads \"int32\"", object.source(), pack);
  }
  // GPTQModel's per-module overrides.
  if (const Json* dynamic = object.Find("dynamic"); dynamic != nullptr && !dynamic->empty()) {
    return BadInput("{}: per-module settings (\"dynamic\") are not supported", object.source());
  }
  NIBBLE_ASSIGN_OR_RETURN(config.spec.group_size, GroupSize(object));
  NIBBLE_ASSIGN_OR_RETURN(const bool symmetric, object.BooleanOr("sym", true));
  config.spec.grid = symmetric ? Grid::kSymmetric : Grid::kAsymmetric;
  // desc_act only tells how the groups were chosen; g_idx, checked tensor by tensor, is what
  // counts.
  NIBBLE_RETURN_IF_ERROR(object.BooleanOr("desc_act", false));
  NIBBLE_ASSIGN_OR_RETURN(config.lm_head, object.BooleanOr("lm_head", false));
  NIBBLE_ASSIGN_OR_RETURN(config.modules_to_not_convert,
                          StringList(object, "modules_to_not_convert"));
  NIBBLE_ASSIGN_OR_RETURN(config.only_modules, StringList(object, "modules_in_block_to_quantize"));
  return config;
}

}  // namespace

std::string_view Name(QuantLayout layout) { return kLayoutNames[static_cast<size_t>(layout)]; }

bool QuantizationConfig::Covers(std::string_view linear_name) const {
  if (linear_name == "lm_head") return lm_head;
  const auto skips = [&](const std::string& part) {
    return linear_name.find(part) != std::string_view::npos;
  };
  if (std::any_of(modules_to_not_convert.begin(), modules_to_not_convert.end(), skips)) {
    return false;
  }
  return only_modules.empty() ||
         std::any_of(only_modules.begin(), only_modules.end(),
                     [&](const std::string& end) { return linear_name.ends_with(end); });
}

std::string QuantizationConfig::Label() const {
  return fmt::format(
      "{}-{}-{}", layout == QuantLayout::kAwqGemm ? "awq" : "gptq",
      spec.group_size == kPerChannel ? std::string("channel") : fmt::format("g{}", spec.group_size),
      Name(spec.grid));
}

Json QuantizationConfig::ToJson() const {
  Json json;
  json["quant_method"] = layout == QuantLayout::kAwqGemm ? "awq" : "gptq";
  json["bits"] = spec.bits;
  json["group_size"] = spec.group_size;
  if (layout == QuantLayout::kAwqGemm) {
    json["zero_point"] = true;
    json["version"] = "gemm";
    json["modules_to_not_convert"] =
        modules_to_not_convert.empty() ? Json() : Json(modules_to_not_convert);
    return json;
  }
  json["desc_act"] = false;
  json["sym"] = spec.grid != Grid::kAsymmetric;
  json["lm_head"] = lm_head;
  json["checkpoint_format"] = Name(layout);
  json["pack_dtype"] = "int32";
  if (!modules_to_not_convert.empty()) json["modules_to_not_convert"] = modules_to_not_convert;
  if (!only_modules.empty()) json["modules_in_block_to_quantize"] = Json::array({only_modules});
  return json;
}

Result<std::optional<QuantizationConfig>> ParseQuantizationConfig(const Json& config,
                                                                  std::string_view source) {
  NIBBLE_ASSIGN_OR_RETURN(const JsonObject root, JsonObject::Of(config, source));
  // compressed-tensors was once written under another key.
  if (root.Has("compression_config")) {
    return BadInput("{}: \"compression_config\" (compressed-tensors) is not supported", source);
  }
  if (!root.Has("quantization_config")) return std::nullopt;
  NIBBLE_ASSIGN_OR_RETURN(const JsonObject object, root.Object("quantization_config"));
  NIBBLE_ASSIGN_OR_RETURN(const std::string method, object.String("quant_method"));
  if (method == "awq") return ParseAwq(object);
  if (method == "gptq") return ParseGptq(object);
  return BadInput("{}: quant_method \"{}\" is not supported; nibble reads \"awq\" and \"gptq\"",
                  object.source(), method);
}

}  // namespace nibble

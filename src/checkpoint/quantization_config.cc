#include "src/checkpoint/quantization_config.h"

#include <algorithm>
#include <array>

namespace nibble {
namespace {

constexpr std::array<std::string_view, 4> kLayoutNames = {"awq", "gptq", "gptq_v2",
                                                          "compressed-tensors"};
constexpr std::string_view kPatternPrefix = "re:";  // of compressed-tensors' module names
constexpr std::string_view kSkipPrefix = "-:";      // of GPTQModel's "dynamic"

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

Status WantFourBits(const JsonObject& object, std::string_view key = "bits") {
  NIBBLE_ASSIGN_OR_RETURN(const int64_t bits, object.Integer(key, 1, 64));
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

// GPTQModel's settings for single modules: read where they only leave modules dense.
Result<std::vector<ModulePattern>> SkipsOfDynamic(const JsonObject& object) {
  std::vector<ModulePattern> patterns;
  if (!object.Has("dynamic")) return patterns;
  NIBBLE_ASSIGN_OR_RETURN(const JsonObject dynamic, object.Object("dynamic"));
  for (const auto& [key, settings] : dynamic.json().items()) {
    if (!key.starts_with(kSkipPrefix)) {
      return BadInput("{}: per-module settings (\"dynamic\": \"{}\") are not supported",
                      object.source(), key);
    }
    NIBBLE_ASSIGN_OR_RETURN(
        ModulePattern pattern,
        ModulePattern::Compile(std::string_view(key).substr(kSkipPrefix.size()),
                               fmt::format("{}: \"dynamic\"", object.source())));
    patterns.push_back(std::move(pattern));
  }
  return patterns;
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
  NIBBLE_ASSIGN_OR_RETURN(config.skip_patterns, SkipsOfDynamic(object));
  NIBBLE_ASSIGN_OR_RETURN(config.spec.group_size, GroupSize(object));
  NIBBLE_ASSIGN_OR_RETURN(const bool symmetric, object.BooleanOr("sym", true));
  config.spec.grid = symmetric ? Grid::kSymmetric : Grid::kAsymmetric;
  // A whole row is one group, in whatever order.
  NIBBLE_ASSIGN_OR_RETURN(const bool act_order, object.BooleanOr("desc_act", false));
  if (act_order && config.spec.group_size != kPerChannel) {
    config.spec.order = GroupOrder::kIndexed;
  }
  NIBBLE_ASSIGN_OR_RETURN(config.lm_head, object.BooleanOr("lm_head", false));
  NIBBLE_ASSIGN_OR_RETURN(config.modules_to_not_convert,
                          StringList(object, "modules_to_not_convert"));
  NIBBLE_ASSIGN_OR_RETURN(config.only_modules, StringList(object, "modules_in_block_to_quantize"));
  return config;
}

// What a member must be, where it is there: anything else would change the result.
Status WantIfPresent(const JsonObject& object, std::string_view key, std::string_view want) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string found, object.StringOr(key, want));
  if (found != want) {
    return BadInput("{}: \"{}\" is \"{}\"; nibble reads \"{}\"", object.source(), key, found, want);
  }
  return {};
}
Status WantAbsentOrEmpty(const JsonObject& object, std::string_view key) {
  const Json* value = object.Find(key);
  if (value != nullptr && !(value->is_structured() && value->empty())) {
    return BadInput("{}: \"{}\" is not supported", object.source(), key);
  }
  return {};
}

// "actorder": "group", its older names "dynamic" and true; "weight" (static groups) needs no index.
Result<GroupOrder> ParseActOrder(const JsonObject& weights) {
  const Json* value = weights.Find("actorder");
  if (value == nullptr || *value == false || *value == "weight" || *value == "static") {
    return GroupOrder::kConsecutive;
  }
  if (*value == true || *value == "group" || *value == "dynamic") return GroupOrder::kIndexed;
  return BadInput("{}: \"actorder\": want \"weight\", \"group\" or null, got {}", weights.source(),
                  value->dump(-1, ' ', true));
}

Result<QuantSpec> ParseCompressedWeights(const JsonObject& weights) {
  QuantSpec spec;
  NIBBLE_RETURN_IF_ERROR(WantFourBits(weights, "num_bits"));
  NIBBLE_RETURN_IF_ERROR(WantIfPresent(weights, "type", "int"));
  NIBBLE_ASSIGN_OR_RETURN(const bool dynamic, weights.BooleanOr("dynamic", false));
  if (dynamic) return BadInput("{}: \"dynamic\" weights are not supported", weights.source());
  NIBBLE_ASSIGN_OR_RETURN(const bool symmetric, weights.BooleanOr("symmetric", true));
  spec.grid = symmetric ? Grid::kSymmetric : Grid::kAsymmetric;
  spec.group_size = kPerChannel;
  if (weights.Has("group_size")) {
    NIBBLE_ASSIGN_OR_RETURN(spec.group_size, GroupSize(weights));
  }
  const std::string_view by_size = spec.group_size == kPerChannel ? "channel" : "group";
  NIBBLE_ASSIGN_OR_RETURN(const std::string strategy, weights.StringOr("strategy", by_size));
  if (strategy != by_size) {
    return BadInput(
        "{}: strategy \"{}\" with group_size {}; nibble reads \"group\" with a size and "
        "\"channel\" without one",
        weights.source(), strategy, spec.group_size);
  }
  if (spec.group_size != kPerChannel) {
    NIBBLE_ASSIGN_OR_RETURN(spec.order, ParseActOrder(weights));
  }
  return spec;
}

Result<QuantizationConfig> ParseCompressedTensors(const JsonObject& object) {
  QuantizationConfig config{.layout = QuantLayout::kCompressedTensors};
  NIBBLE_RETURN_IF_ERROR(object.String("format"));
  NIBBLE_RETURN_IF_ERROR(WantIfPresent(object, "format", "pack-quantized"));
  NIBBLE_ASSIGN_OR_RETURN(const std::string status,
                          object.StringOr("quantization_status", "compressed"));
  if (status != "compressed" && status != "frozen") {
    return BadInput("{}: quantization_status \"{}\"; nibble reads \"compressed\"", object.source(),
                    status);
  }
  NIBBLE_RETURN_IF_ERROR(WantAbsentOrEmpty(object, "kv_cache_scheme"));
  NIBBLE_RETURN_IF_ERROR(WantAbsentOrEmpty(object, "transform_config"));
  if (object.Has("sparsity_config")) {
    NIBBLE_ASSIGN_OR_RETURN(const JsonObject sparsity, object.Object("sparsity_config"));
    NIBBLE_RETURN_IF_ERROR(WantIfPresent(sparsity, "format", "dense"));
  }
  NIBBLE_ASSIGN_OR_RETURN(const JsonObject groups, object.Object("config_groups"));
  if (groups.json().size() != 1) {
    return BadInput("{}: {} config_groups; nibble reads one", object.source(),
                    groups.json().size());
  }
  NIBBLE_ASSIGN_OR_RETURN(const JsonObject group, groups.Object(groups.json().begin().key()));
  NIBBLE_RETURN_IF_ERROR(WantIfPresent(group, "format", "pack-quantized"));
  NIBBLE_RETURN_IF_ERROR(WantAbsentOrEmpty(group, "input_activations"));
  NIBBLE_RETURN_IF_ERROR(WantAbsentOrEmpty(group, "output_activations"));
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<std::string> targets, StringList(group, "targets"));
  if (targets != std::vector<std::string>{"Linear"}) {
    return BadInput("{}: \"targets\" are not [\"Linear\"], which is what nibble reads",
                    group.source());
  }
  NIBBLE_ASSIGN_OR_RETURN(const JsonObject weights, group.Object("weights"));
  NIBBLE_ASSIGN_OR_RETURN(config.spec, ParseCompressedWeights(weights));
  NIBBLE_ASSIGN_OR_RETURN(std::vector<std::string> ignore, StringList(object, "ignore"));
  for (std::string& name : ignore) {
    if (name.starts_with(kPatternPrefix)) {
      NIBBLE_ASSIGN_OR_RETURN(
          ModulePattern pattern,
          ModulePattern::Compile(std::string_view(name).substr(kPatternPrefix.size()),
                                 fmt::format("{}: \"ignore\"", object.source())));
      config.skip_patterns.push_back(std::move(pattern));
    } else if (name != "lm_head") {
      config.modules_to_not_convert.push_back(std::move(name));
    }
  }
  config.lm_head = std::find(ignore.begin(), ignore.end(), "lm_head") == ignore.end() &&
                   std::none_of(config.skip_patterns.begin(), config.skip_patterns.end(),
                                [](const ModulePattern& p) { return p.Matches("lm_head"); });
  return config;
}

Json AwqJson(const QuantizationConfig& config) {
  const auto& skipped = config.modules_to_not_convert;
  return {{"quant_method", "awq"},
          {"bits", config.spec.bits},
          {"group_size", config.spec.group_size},
          {"zero_point", true},
          {"version", "gemm"},
          {"modules_to_not_convert", skipped.empty() ? Json() : Json(skipped)}};
}

Json GptqJson(const QuantizationConfig& config) {
  Json json = {{"quant_method", "gptq"},
               {"bits", config.spec.bits},
               {"group_size", config.spec.group_size},
               {"desc_act", config.spec.order == GroupOrder::kIndexed},
               {"sym", config.spec.grid != Grid::kAsymmetric},
               {"lm_head", config.lm_head},
               {"checkpoint_format", Name(config.layout)},
               {"pack_dtype", "int32"}};
  // GPTQModel and vLLM know skipped modules from "dynamic", transformers from the other two.
  Json dynamic = Json::object();
  for (const ModulePattern& pattern : config.skip_patterns) {
    dynamic[fmt::format("{}{}", kSkipPrefix, pattern.text())] = Json::object();
  }
  for (const std::string& name : config.modules_to_not_convert) {
    if (const std::optional<std::string> pattern = PatternOfName(name)) {
      dynamic[fmt::format("{}{}", kSkipPrefix, *pattern)] = Json::object();
    }
  }
  if (!dynamic.empty()) json["dynamic"] = std::move(dynamic);
  if (!config.modules_to_not_convert.empty()) {
    json["modules_to_not_convert"] = config.modules_to_not_convert;
  }
  if (!config.only_modules.empty()) {
    json["modules_in_block_to_quantize"] = Json::array({config.only_modules});
  }
  return json;
}

Json CompressedTensorsJson(const QuantizationConfig& config) {
  const QuantSpec& spec = config.spec;
  const bool channel = spec.group_size == kPerChannel;
  Json weights = {{"num_bits", spec.bits},
                  {"type", "int"},
                  {"symmetric", spec.grid != Grid::kAsymmetric},
                  {"strategy", channel ? "channel" : "group"},
                  {"group_size", channel ? Json() : Json(spec.group_size)},
                  {"dynamic", false},
                  {"actorder", spec.order == GroupOrder::kIndexed ? Json("group") : Json()}};
  Json ignore = Json::array();
  if (!config.lm_head) ignore.push_back("lm_head");
  for (const std::string& name : config.modules_to_not_convert) ignore.push_back(name);
  for (const ModulePattern& pattern : config.skip_patterns) {
    ignore.push_back(fmt::format("{}{}", kPatternPrefix, pattern.text()));
  }
  return {{"quant_method", "compressed-tensors"},
          {"format", "pack-quantized"},
          {"quantization_status", "compressed"},
          {"kv_cache_scheme", Json()},
          {"ignore", std::move(ignore)},
          {"config_groups",
           {{"group_0",
             {{"targets", Json::array({"Linear"})},
              {"weights", std::move(weights)},
              {"input_activations", Json()},
              {"output_activations", Json()}}}}}};
}

}  // namespace

std::optional<QuantLayout> QuantLayoutFromName(std::string_view name) {
  for (const QuantLayout layout : kQuantLayouts) {
    if (Name(layout) == name) return layout;
  }
  return std::nullopt;
}

std::string_view Name(QuantLayout layout) { return kLayoutNames[static_cast<size_t>(layout)]; }

bool QuantizationConfig::Covers(std::string_view linear_name) const {
  if (linear_name == "lm_head") return lm_head;
  const auto skips = [&](const std::string& name) {
    return layout == QuantLayout::kCompressedTensors
               ? linear_name == name
               : linear_name.find(name) != std::string_view::npos;
  };
  if (std::any_of(modules_to_not_convert.begin(), modules_to_not_convert.end(), skips) ||
      std::any_of(skip_patterns.begin(), skip_patterns.end(),
                  [&](const ModulePattern& p) { return p.Matches(linear_name); })) {
    return false;
  }
  return only_modules.empty() ||
         std::any_of(only_modules.begin(), only_modules.end(),
                     [&](const std::string& end) { return linear_name.ends_with(end); });
}

std::string QuantizationConfig::Label() const {
  const std::string_view name =
      layout == QuantLayout::kGptqV2 ? Name(QuantLayout::kGptqV1) : Name(layout);
  return fmt::format(
      "{}-{}-{}", name,
      spec.group_size == kPerChannel ? std::string("channel") : fmt::format("g{}", spec.group_size),
      Name(spec.grid));
}

Json QuantizationConfig::ToJson() const {
  switch (layout) {
    case QuantLayout::kAwqGemm:
      return AwqJson(*this);
    case QuantLayout::kGptqV1:
    case QuantLayout::kGptqV2:
      return GptqJson(*this);
    case QuantLayout::kCompressedTensors:
      return CompressedTensorsJson(*this);
  }
  return {};
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
  if (method == "compressed-tensors") return ParseCompressedTensors(object);
  return BadInput(
      "{}: quant_method \"{}\" is not supported; nibble reads \"awq\", \"gptq\" and "
      "\"compressed-tensors\"",
      object.source(), method);
}

}  // namespace nibble

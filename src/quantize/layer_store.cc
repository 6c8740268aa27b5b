#include "src/quantize/layer_store.h"

#include <cstring>
#include <filesystem>
#include <map>

#include "src/base/file.h"
#include "src/checkpoint/safetensors.h"

namespace nibble {
namespace {

constexpr const char* kStateFile = "state.json";
constexpr std::string_view kModules = "modules";

struct Entry {
  std::string name;
  DType dtype;
  Shape shape;
  const void* data;
  size_t bytes;
};

Status Write(const std::string& path, const std::vector<Entry>& entries) {
  Json header = Json::object();
  size_t offset = 0;
  for (const Entry& entry : entries) {
    header[entry.name] = {{"dtype", SafetensorsTypeName(entry.dtype)},
                          {"shape", entry.shape.extents()},
                          {"data_offsets", Json::array({offset, offset + entry.bytes})}};
    offset += entry.bytes;
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const uint64_t length = text.size();
  std::vector<std::string_view> pieces = {
      {reinterpret_cast<const char*>(&length), sizeof(length)}, text};
  for (const Entry& entry : entries) {
    pieces.emplace_back(static_cast<const char*>(entry.data), entry.bytes);
  }
  return WriteFileAtomic(path, pieces);
}

}  // namespace

std::string LayerStore::PathOf(int64_t layer) const {
  return JoinPath(directory_, fmt::format("layer-{:05d}.safetensors", layer));
}

Result<LayerStore> LayerStore::Open(const std::string& directory, const std::string& fingerprint) {
  const std::string state = JoinPath(directory, kStateFile);
  const std::string want = Json{{"fingerprint", fingerprint}}.dump() + "\n";
  if (const auto found = ReadFile(state); !found || *found != want) {
    std::error_code error;
    std::filesystem::remove_all(directory, error);
    if (error) return BadInput("{}: cannot be emptied: {}", directory, error.message());
    NIBBLE_RETURN_IF_ERROR(MakeDirectories(directory));
    NIBBLE_RETURN_IF_ERROR(WriteFileAtomic(state, want));
  }
  return LayerStore(directory);
}

Status LayerStore::Save(int64_t layer, const QuantizedLayer& quantized) const {
  const std::string modules = quantized.modules.dump();
  std::vector<Entry> entries = {{std::string(kModules), DType::kU8,
                                 Shape{static_cast<int64_t>(modules.size())}, modules.data(),
                                 modules.size()}};
  for (const QuantizedLayer::Linear& linear : quantized.linears) {
    const QuantizedWeight& w = linear.weight;
    entries.push_back({linear.name + ".codes", DType::kU8, Shape{w.rows, w.columns / 2},
                       w.codes.data(), w.codes.size()});
    entries.push_back({linear.name + ".scales", DType::kF16, Shape{w.rows, w.groups()},
                       w.scales.data(), w.scales.size() * sizeof(uint16_t)});
    entries.push_back({linear.name + ".zeros", DType::kU8, Shape{w.rows, w.groups()},
                       w.zeros.data(), w.zeros.size()});
  }
  for (const QuantizedLayer::Vector& vector : quantized.vectors) {
    entries.push_back({vector.name, DType::kF32, Shape{static_cast<int64_t>(vector.values.size())},
                       vector.values.data(), vector.values.size() * sizeof(float)});
  }
  return Write(PathOf(layer), entries);
}

Result<std::optional<QuantizedLayer>> LayerStore::Load(int64_t layer, const QuantSpec& spec) const {
  const std::string path = PathOf(layer);
  if (!FileExists(path)) return std::nullopt;
  NIBBLE_ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  NIBBLE_ASSIGN_OR_RETURN(
      const std::vector<SafetensorsEntry> entries,
      ParseSafetensors({reinterpret_cast<const std::byte*>(text.data()), text.size()}, path));
  QuantizedLayer result;
  const auto copy = [&](const SafetensorsEntry& entry, auto& out) {
    out.resize((entry.end - entry.begin) / sizeof(out[0]));
    std::memcpy(out.data(), text.data() + entry.begin, entry.end - entry.begin);
  };
  for (const SafetensorsEntry& entry : entries) {
    const size_t dot = entry.name.rfind('.');
    const std::string part = dot == std::string::npos ? entry.name : entry.name.substr(dot);
    if (entry.name == kModules) {
      NIBBLE_ASSIGN_OR_RETURN(result.modules,
                              ParseJson(text.substr(entry.begin, entry.end - entry.begin), path));
    } else if (part == ".codes") {
      result.linears.push_back({entry.name.substr(0, dot), {}});
      QuantizedWeight& weight = result.linears.back().weight;
      weight.spec = spec;
      weight.rows = entry.shape[0];
      weight.columns = entry.shape[1] * 2;
      copy(entry, weight.codes);
    } else if (part == ".scales" && !result.linears.empty()) {
      copy(entry, result.linears.back().weight.scales);
    } else if (part == ".zeros" && !result.linears.empty()) {
      copy(entry, result.linears.back().weight.zeros);
    } else {
      result.vectors.push_back({entry.name, {}});
      copy(entry, result.vectors.back().values);
    }
  }
  return result;
}

void LayerStore::Remove() const {
  std::error_code ignored;
  std::filesystem::remove_all(directory_, ignored);
}

}  // namespace nibble

#include "src/checkpoint/hf_checkpoint.h"

#include <array>
#include <cstring>
#include <set>

#include "src/base/file.h"
#include "src/checkpoint/safetensors.h"
#include "src/checkpoint/tensor_table.h"

namespace nibble {
namespace {

constexpr uint64_t kMaxConfigBytes = 16u << 20;
constexpr uint64_t kMaxIndexBytes = 256u << 20;
constexpr uint64_t kMaxTokenizerBytes = 512u << 20;

constexpr std::array<std::string_view, 9> kTokenizerFiles = {
    "tokenizer.json",          "tokenizer.model",   "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "chat_template.json",      "vocab.json",        "merges.txt"};

class HfCheckpoint final : public Checkpoint {
 public:
  explicit HfCheckpoint(std::string directory) : path_(std::move(directory)) {}

  Status Open() {
    NIBBLE_RETURN_IF_ERROR(ReadConfigs());
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<std::string> names, ShardNames());
    for (const std::string& name : names) NIBBLE_RETURN_IF_ERROR(AddShard(name));
    for (const auto& [tensor, shard] : index_) {
      const std::optional<size_t> i = table_.Index(tensor);
      if (!i || names[places_[*i].shard] != shard) {
        return BadInput("{}: {} is not in {}, where model.safetensors.index.json has it", path_,
                        tensor, shard);
      }
    }
    label_ = quantization_ ? quantization_->Label() : DenseLabel(table_.tensors());
    return {};
  }

  const Json& config() const override { return config_; }
  const Json& generation_config() const override { return generation_config_; }
  const std::vector<TensorInfo>& tensors() const override { return table_.tensors(); }
  const TensorInfo* Find(std::string_view name) const override { return table_.Find(name); }

  Result<TensorView> Read(std::string_view name) const override {
    const std::optional<size_t> i = table_.Index(name);
    if (!i) return BadInput("{}: there is no tensor {}", path_, name);
    const TensorInfo& info = table_.tensors()[*i];
    if (!info.dtype) {
      return BadInput("{}: {}: tensors of type {} are not supported", path_, name,
                      info.stored_type);
    }
    TensorView view{.dtype = *info.dtype, .shape = info.shape, .bytes = Bytes(*i)};
    // The format does not align tensors; their users read whole elements.
    if (reinterpret_cast<uintptr_t>(view.bytes.data()) % BytesOf(view.dtype) != 0) {
      NIBBLE_ASSIGN_OR_RETURN(const auto copy, AllocateBytes(view.bytes.size()));
      std::memcpy(copy.get(), view.bytes.data(), view.bytes.size());
      view.bytes = {copy.get(), view.bytes.size()};
      view.owner = copy;
    }
    return view;
  }

  void Release(std::string_view name) const override {
    if (const std::optional<size_t> i = table_.Index(name)) {
      shards_[places_[*i].shard].Release(Bytes(*i));
    }
  }

  std::string label() const override { return label_; }
  const std::string& path() const override { return path_; }
  bool synthetic() const override { return synthetic_; }

  Result<std::unique_ptr<Tokenizer>> LoadTokenizer() const override {
    return nibble::LoadTokenizer(path_);
  }

  Result<std::vector<NamedChatTemplate>> ChatTemplates() const override {
    // A file of its own, where there is one, is what transformers takes.
    const std::string jinja = JoinPath(path_, "chat_template.jinja");
    if (FileExists(jinja)) {
      NIBBLE_ASSIGN_OR_RETURN(std::string text, ReadFile(jinja, kMaxConfigBytes));
      return std::vector<NamedChatTemplate>{{"default", std::move(text)}};
    }
    for (const char* name : {"chat_template.json", "tokenizer_config.json"}) {
      const std::string file = JoinPath(path_, name);
      if (!FileExists(file)) continue;
      NIBBLE_ASSIGN_OR_RETURN(const Json json, ReadJsonFile(file, kMaxConfigBytes));
      NIBBLE_ASSIGN_OR_RETURN(std::vector<NamedChatTemplate> templates,
                              ChatTemplatesOf(json, file));
      if (!templates.empty()) return templates;
    }
    return std::vector<NamedChatTemplate>();
  }

  Result<std::vector<File>> TokenizerFiles() const override {
    std::vector<File> files;
    for (const std::string_view name : kTokenizerFiles) {
      const std::string file = JoinPath(path_, name);
      if (!FileExists(file)) continue;
      NIBBLE_ASSIGN_OR_RETURN(std::string content, ReadFile(file, kMaxTokenizerBytes));
      files.push_back({std::string(name), std::move(content)});
    }
    return files;
  }

 private:
  struct Place {
    size_t shard;
    uint64_t begin, end;  // in the shard's file
  };

  std::span<const std::byte> Bytes(size_t i) const {
    const Place& place = places_[i];
    return shards_[place.shard].bytes().subspan(place.begin, place.end - place.begin);
  }

  Status ReadConfigs() {
    const std::string config_file = JoinPath(path_, "config.json");
    if (!FileExists(config_file)) {
      return BadInput("{}: not a model directory: it has no config.json", path_);
    }
    NIBBLE_ASSIGN_OR_RETURN(config_, ReadJsonFile(config_file, kMaxConfigBytes));
    NIBBLE_RETURN_IF_ERROR(AddGptqConfig(config_file));
    NIBBLE_ASSIGN_OR_RETURN(const JsonObject config, JsonObject::Of(config_, config_file));
    NIBBLE_ASSIGN_OR_RETURN(synthetic_, config.BooleanOr("nibble_synthetic", false));
    NIBBLE_ASSIGN_OR_RETURN(quantization_, ParseQuantizationConfig(config_, config_file));
    generation_config_ = Json::object();
    const std::string generation_file = JoinPath(path_, "generation_config.json");
    if (FileExists(generation_file)) {
      NIBBLE_ASSIGN_OR_RETURN(generation_config_, ReadJsonFile(generation_file, kMaxConfigBytes));
      NIBBLE_RETURN_IF_ERROR(JsonObject::Of(generation_config_, generation_file));
    }
    return {};
  }

  // AutoGPTQ once described its quantization in a file of its own only.
  Status AddGptqConfig(const std::string& config_file) {
    constexpr const char* kKey = "quantization_config";
    NIBBLE_ASSIGN_OR_RETURN(const JsonObject config, JsonObject::Of(config_, config_file));
    const std::string file = JoinPath(path_, "quantize_config.json");
    if (config.Has(kKey) || !FileExists(file)) return {};
    NIBBLE_ASSIGN_OR_RETURN(Json quantization, ReadJsonFile(file, kMaxConfigBytes));
    NIBBLE_ASSIGN_OR_RETURN(const JsonObject object, JsonObject::Of(quantization, file));
    if (!object.Has("quant_method")) quantization["quant_method"] = "gptq";
    config_[kKey] = std::move(quantization);
    return {};
  }

  // The files that hold the tensors; fills index_ where there is an index.
  Result<std::vector<std::string>> ShardNames() {
    if (FileExists(JoinPath(path_, "model.safetensors"))) {
      return std::vector<std::string>{"model.safetensors"};
    }
    const std::string index_file = JoinPath(path_, "model.safetensors.index.json");
    if (FileExists(index_file)) {
      NIBBLE_ASSIGN_OR_RETURN(const std::string text, ReadFile(index_file, kMaxIndexBytes));
      NIBBLE_ASSIGN_OR_RETURN(index_, ParseSafetensorsIndex(text, index_file));
      std::set<std::string> names;
      for (const auto& [tensor, shard] : index_) names.insert(shard);
      if (names.empty()) return BadInput("{}: \"weight_map\" is empty", index_file);
      for (const std::string& name : names) {
        if (!FileExists(JoinPath(path_, name))) {
          return BadInput("{}: names {}, which does not exist", index_file, name);
        }
      }
      return std::vector<std::string>(names.begin(), names.end());
    }
    for (const char* pickle : {"pytorch_model.bin", "pytorch_model.bin.index.json"}) {
      if (FileExists(JoinPath(path_, pickle))) {
        return BadInput(
            "{}: holds only PyTorch's pickled weights ({}), which can run code when read; nibble "
            "reads safetensors and GGUF: convert the model first",
            path_, pickle);
      }
    }
    return BadInput("{}: has neither model.safetensors nor model.safetensors.index.json", path_);
  }

  Status AddShard(const std::string& name) {
    const std::string file = JoinPath(path_, name);
    NIBBLE_ASSIGN_OR_RETURN(MappedFile mapped, MappedFile::Open(file));
    NIBBLE_ASSIGN_OR_RETURN(std::vector<SafetensorsEntry> entries,
                            ParseSafetensors(mapped.bytes(), file));
    for (SafetensorsEntry& entry : entries) {
      const std::string tensor = entry.name;
      if (!table_.Add({.name = std::move(entry.name),
                       .dtype = entry.dtype,
                       .shape = std::move(entry.shape),
                       .stored_type = std::move(entry.type),
                       .stored_bytes = entry.end - entry.begin})) {
        return BadInput("{}: {} is in another shard too", file, tensor);
      }
      places_.push_back({shards_.size(), entry.begin, entry.end});
    }
    shards_.push_back(std::move(mapped));
    return {};
  }

  std::string path_;
  Json config_, generation_config_;
  std::optional<QuantizationConfig> quantization_;
  std::map<std::string, std::string> index_;  // tensor → shard; empty for a single file
  std::vector<MappedFile> shards_;
  TensorTable table_;
  std::vector<Place> places_;  // of table_.tensors()[i]
  std::string label_;
  bool synthetic_ = false;
};

}  // namespace

Result<std::unique_ptr<Checkpoint>> OpenHfCheckpoint(const std::string& directory) {
  auto checkpoint = std::make_unique<HfCheckpoint>(directory);
  NIBBLE_RETURN_IF_ERROR(checkpoint->Open());
  return checkpoint;
}

Result<std::vector<NamedChatTemplate>> ChatTemplatesOf(const Json& tokenizer_config,
                                                       std::string_view source) {
  NIBBLE_ASSIGN_OR_RETURN(const JsonObject object, JsonObject::Of(tokenizer_config, source));
  std::vector<NamedChatTemplate> templates;
  const Json* value = object.Find("chat_template");
  if (value == nullptr) return templates;
  if (value->is_string()) {
    templates.push_back({"default", value->get<std::string>()});
    return templates;
  }
  const std::string where = fmt::format("{}: \"chat_template\"", source);
  if (!value->is_array()) return BadInput("{}: want a string or a list of named templates", where);
  for (const Json& item : *value) {
    NIBBLE_ASSIGN_OR_RETURN(const JsonObject named, JsonObject::Of(item, where));
    NIBBLE_ASSIGN_OR_RETURN(std::string name, named.String("name"));
    NIBBLE_ASSIGN_OR_RETURN(std::string jinja, named.String("template"));
    NIBBLE_RETURN_IF_ERROR(AddChatTemplate({std::move(name), std::move(jinja)}, where, templates));
  }
  return templates;
}

}  // namespace nibble

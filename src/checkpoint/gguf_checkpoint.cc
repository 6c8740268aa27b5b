#include "src/checkpoint/gguf_checkpoint.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <map>

#include "src/base/checked.h"
#include "src/base/file.h"
#include "src/base/thread_pool.h"
#include "src/checkpoint/tensor_table.h"

namespace nibble {
namespace {

class GgufCheckpoint final : public Checkpoint {
 public:
  GgufCheckpoint(std::string path, MappedFile mapped, GgufFile file, GgufModel model)
      : path_(std::move(path)),
        mapped_(std::move(mapped)),
        file_(std::move(file)),
        model_(std::move(model)) {
    for (const GgufMappedTensor& mapped_tensor : model_.tensors) {
      const GgufTensor& tensor = file_.tensors()[mapped_tensor.index];
      table_.Add({.name = mapped_tensor.name,
                  .dtype = DeliveredType(tensor.type->type),
                  .shape = tensor.shape,
                  .stored_type = std::string(tensor.type->name),
                  .stored_bytes = tensor.end - tensor.begin});
    }
    label_ = MakeLabel();
    ReleaseMetadata();
  }

  const Json& config() const override { return model_.config; }
  const Json& generation_config() const override { return model_.generation_config; }
  const std::vector<TensorInfo>& tensors() const override { return table_.tensors(); }
  const TensorInfo* Find(std::string_view name) const override { return table_.Find(name); }

  Result<TensorView> Read(std::string_view name) const override {
    const std::optional<size_t> i = table_.Index(name);
    if (!i) return BadInput("{}: there is no tensor {}", path_, name);
    return ReadGgufTensor(file_, model_.tensors[*i]);
  }
  void Release(std::string_view name) const override {
    if (const std::optional<size_t> i = table_.Index(name)) {
      mapped_.Release(file_.Bytes(file_.tensors()[model_.tensors[*i].index]));
    }
  }

  std::string label() const override { return label_; }
  const std::string& path() const override { return path_; }
  bool synthetic() const override { return false; }

  Result<std::unique_ptr<Tokenizer>> LoadTokenizer() const override {
    NIBBLE_ASSIGN_OR_RETURN(const HfTokenizerFiles files, MakeTokenizerFiles());
    return TokenizerFromJson(files.tokenizer_json, files.tokenizer_config, path_);
  }
  Result<std::vector<NamedChatTemplate>> ChatTemplates() const override {
    constexpr const char* kKey = "tokenizer.chat_template";
    std::vector<NamedChatTemplate> templates;
    NIBBLE_ASSIGN_OR_RETURN(std::optional<std::string> text, file_.String(kKey));
    if (text) templates.push_back({"default", *std::move(text)});
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<std::string> names,
                            file_.Strings("tokenizer.chat_templates"));
    for (const std::string& name : names) {
      NIBBLE_ASSIGN_OR_RETURN(text, file_.String(fmt::format("{}.{}", kKey, name)));
      if (!text) {
        return BadInput("{}: tokenizer.chat_templates names \"{}\", which is not there", path_,
                        name);
      }
      NIBBLE_RETURN_IF_ERROR(AddChatTemplate({name, *std::move(text)}, path_, templates));
    }
    return templates;
  }
  Result<std::vector<File>> TokenizerFiles() const override {
    NIBBLE_ASSIGN_OR_RETURN(const HfTokenizerFiles files, MakeTokenizerFiles());
    const auto text = [](const Json& json) {
      return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
    };
    return std::vector<File>{{"tokenizer.json", text(files.tokenizer_json)},
                             {"tokenizer_config.json", text(files.tokenizer_config)}};
  }

 private:
  Result<HfTokenizerFiles> MakeTokenizerFiles() const {
    NIBBLE_ASSIGN_OR_RETURN(const GgufVocabulary vocabulary, ReadGgufVocabulary(file_));
    ReleaseMetadata();
    return TokenizerFilesFromGguf(vocabulary, path_);
  }

  // The vocabulary's pages, which are most of what lies before the tensors, are read rarely.
  void ReleaseMetadata() const {
    const std::span<const std::byte> all = mapped_.bytes();
    mapped_.Release(file_.tensors().empty() ? all : all.first(file_.tensors().front().begin));
  }

  // "fp16 (from Q4_1)": the quantized type that most weights of the layers have.
  std::string MakeLabel() const {
    std::map<std::string, int64_t> elements;
    for (const TensorInfo& tensor : table_.tensors()) {
      if (tensor.name.starts_with("model.layers.") && tensor.shape.rank() == 2) {
        elements[tensor.stored_type] += tensor.shape.Elements().value_or(0);
      }
    }
    std::string type;
    for (const auto& [name, count] : elements) {
      if (type.empty() || count > elements[type]) type = name;
    }
    const std::string dense = DenseLabel(table_.tensors());
    const bool quantized = !type.empty() && type != "F32" && type != "F16" && type != "BF16";
    return quantized ? fmt::format("{} (from {})", dense, type) : dense;
  }

  std::string path_;
  MappedFile mapped_;
  GgufFile file_;  // borrows mapped_
  GgufModel model_;
  TensorTable table_;  // in the order of model_.tensors
  std::string label_;
};

// Expands one row of a quantized tensor into float16.
Status ExpandRow(const GgufTensor& tensor, const std::byte* data, int64_t row, int64_t elements,
                 uint16_t* out) {
  const GgmlTypeInfo& type = *tensor.type;
  const std::byte* in = data + row * (elements / type.block_elements * type.block_bytes);
  constexpr int64_t kChunkBlocks = 16;
  constexpr int64_t kMaxBlockElements = 256;
  float values[kChunkBlocks * kMaxBlockElements];
  const int64_t blocks = elements / type.block_elements;
  for (int64_t b = 0; b < blocks; b += kChunkBlocks) {
    const int64_t count = std::min(kChunkBlocks, blocks - b);
    Dequantize(type.type, in + b * type.block_bytes, count, values);
    uint16_t* chunk = out + b * type.block_elements;
    for (int64_t i = 0; i < count * type.block_elements; ++i) {
      chunk[i] = F16FromFloat(values[i]);
      if ((chunk[i] & 0x7c00) == 0x7c00) {
        return BadInput("{}: row {}, element {}: {} does not fit float16", tensor.name, row,
                        b * type.block_elements + i, values[i]);
      }
    }
  }
  return {};
}

}  // namespace

DType DeliveredType(GgmlType type) {
  return type == GgmlType::kF32    ? DType::kF32
         : type == GgmlType::kBF16 ? DType::kBF16
                                   : DType::kF16;
}

Result<TensorView> ReadGgufTensor(const GgufFile& file, const GgufMappedTensor& mapped) {
  const GgufTensor& tensor = file.tensors()[mapped.index];
  const std::span<const std::byte> stored = file.Bytes(tensor);
  TensorView view{.dtype = DeliveredType(tensor.type->type), .shape = tensor.shape};
  // The data's alignment is at least 8 bytes within the file, and files are mapped at pages.
  if (!tensor.type->quantized() && mapped.interleaved_heads == 0) {
    view.bytes = stored;
    return view;
  }
  const auto elements = static_cast<size_t>(*tensor.shape.Elements());  // checked by Parse
  const int64_t rows = tensor.shape[0];
  const int64_t row_elements = static_cast<int64_t>(elements) / rows;
  const size_t row_bytes = static_cast<size_t>(row_elements) * BytesOf(view.dtype);
  NIBBLE_ASSIGN_OR_RETURN(const auto owned, AllocateBytes(elements * BytesOf(view.dtype)));
  const int64_t head_dim = mapped.interleaved_heads > 0 ? rows / mapped.interleaved_heads : 0;
  const auto read_row = [&](int64_t row) -> Status {
    const int64_t from = head_dim > 0 ? InterleavedRow(row, head_dim) : row;
    std::byte* out = owned.get() + static_cast<size_t>(row) * row_bytes;
    if (tensor.type->quantized()) {
      return ExpandRow(tensor, stored.data(), from, row_elements, reinterpret_cast<uint16_t*>(out));
    }
    std::memcpy(out, stored.data() + static_cast<size_t>(from) * row_bytes, row_bytes);
    return {};
  };
  constexpr int64_t kElementsAtOnce = 1 << 17;
  std::atomic<int64_t> first_bad = rows;
  RunTogether(rows, CeilDiv(kElementsAtOnce, std::max<int64_t>(1, row_elements)),
              [&](int64_t begin, int64_t end, int) {
                for (int64_t row = begin; row < end; ++row) {
                  if (read_row(row)) continue;
                  int64_t known = first_bad;
                  while (row < known && !first_bad.compare_exchange_weak(known, row)) {
                  }
                  return;
                }
              });
  if (first_bad < rows) return tl::unexpected(read_row(first_bad).error().In(file.source()));
  view.bytes = {owned.get(), elements * BytesOf(view.dtype)};
  view.owner = owned;
  return view;
}

Result<std::unique_ptr<Checkpoint>> OpenGgufCheckpoint(const std::string& path) {
  NIBBLE_ASSIGN_OR_RETURN(MappedFile mapped, MappedFile::Open(path));
  NIBBLE_ASSIGN_OR_RETURN(GgufFile file, GgufFile::Parse(mapped.bytes(), path));
  NIBBLE_ASSIGN_OR_RETURN(GgufModel model, InterpretGguf(file));
  return std::make_unique<GgufCheckpoint>(path, std::move(mapped), std::move(file),
                                          std::move(model));
}

}  // namespace nibble

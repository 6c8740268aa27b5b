#include "src/checkpoint/checkpoint_writer.h"

#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <map>
#include <system_error>

#include "src/base/checked.h"
#include "src/base/file.h"
#include "src/base/units.h"
#include "src/checkpoint/partial_directory.h"
#include "src/checkpoint/quantized_linear.h"
#include "src/checkpoint/safetensors.h"

namespace nibble {
namespace fs = std::filesystem;
namespace {

// Left free on the disk for the small files and for whoever else writes.
constexpr uint64_t kSpareBytes = 16u << 20;

tl::unexpected<Error> SystemError(const std::string& path, std::string_view doing) {
  const int error = errno;
  const bool full = error == ENOSPC || error == EDQUOT;
  return Fail(full ? ErrorCode::kResources : ErrorCode::kBadInput, "{}: cannot {}: {}", path, doing,
              std::strerror(error));
}

// A file that is written at given offsets.
class OutputFile {
 public:
  OutputFile() = default;
  OutputFile(OutputFile&& other) noexcept
      : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)) {}
  OutputFile& operator=(OutputFile&& other) noexcept {
    std::swap(path_, other.path_);
    std::swap(fd_, other.fd_);
    return *this;
  }
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;
  ~OutputFile() {
    if (fd_ >= 0) ::close(fd_);
  }

  // Reserves the room on the disk where the file system can.
  static Result<OutputFile> Create(const std::string& path, uint64_t bytes) {
    OutputFile file;
    file.path_ = path;
    file.fd_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (file.fd_ < 0) return SystemError(path, "create");
    if (::ftruncate(file.fd_, static_cast<off_t>(bytes)) != 0) return SystemError(path, "write");
    if (::fallocate(file.fd_, 0, 0, static_cast<off_t>(bytes)) != 0 && errno != EOPNOTSUPP &&
        errno != ENOSYS) {
      return SystemError(path, "write");
    }
    return file;
  }

  Status Write(std::span<const std::byte> bytes, uint64_t offset) {
    constexpr size_t kPiece = size_t{1} << 30;
    while (!bytes.empty()) {
      const ssize_t n =
          ::pwrite(fd_, bytes.data(), std::min(bytes.size(), kPiece), static_cast<off_t>(offset));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return SystemError(path_, "write");
      // The disk begins now, so that Close has less to wait for; failures show there.
      ::sync_file_range(fd_, static_cast<off_t>(offset), n, SYNC_FILE_RANGE_WRITE);
      bytes = bytes.subspan(static_cast<size_t>(n));
      offset += static_cast<uint64_t>(n);
    }
    return {};
  }

  Status Close() {
    if (::fsync(fd_) != 0) return SystemError(path_, "write");
    if (::close(std::exchange(fd_, -1)) != 0) return SystemError(path_, "write");
    return {};
  }

 private:
  std::string path_;
  int fd_ = -1;
};

uint64_t BytesOfTensor(const CheckpointPlan::Tensor& tensor) {
  const std::optional<int64_t> elements = tensor.shape.Elements();
  CHECK(elements, "{}: {}", tensor.name, tensor.shape.ToString());
  return static_cast<uint64_t>(*elements) * BytesOf(tensor.dtype);
}

Status SyncDirectory(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return SystemError(path, "open");
  const int result = ::fsync(fd);
  ::close(fd);
  // Some file systems cannot sync a directory; the rename is atomic all the same.
  if (result != 0 && errno != EINVAL) return SystemError(path, "write");
  return {};
}

std::string WithoutTrailingSlash(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

std::string Text(const Json& json) {
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

// Other tools round the scales, float16 as the layouts want them, to the type they compute in, and
// AWQ's kernels know float16 only: the config asks for it. The other tensors stay as the source has
// them, since loaders convert what they read to that type.
void AskForFloat16(Json& config) {
  // Newer files say "dtype", older ones "torch_dtype".
  if (config.contains("dtype")) config["dtype"] = "float16";
  if (config.contains("torch_dtype") || !config.contains("dtype"))
    config["torch_dtype"] = "float16";
}

}  // namespace

void CheckpointPlan::AddTensor(std::string name, DType dtype, Shape shape) {
  tensors.push_back({std::move(name), dtype, std::move(shape)});
}

Status CheckpointPlan::AddLinear(std::string_view linear_name, int64_t out_features,
                                 int64_t in_features) {
  CHECK(quantization);
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<LinearTensor> parts,
                          TensorsOfLinear(*quantization, linear_name, out_features, in_features));
  for (const LinearTensor& part : parts) {
    AddTensor(fmt::format("{}{}", linear_name, part.suffix), part.dtype, part.shape);
  }
  packs_linears = true;
  return {};
}

uint64_t CheckpointPlan::tensor_bytes() const {
  uint64_t bytes = 0;
  for (const Tensor& tensor : tensors) bytes += BytesOfTensor(tensor);
  return bytes;
}

struct CheckpointWriter::State {
  struct Shard {
    std::string name;
    std::vector<size_t> tensors;  // of plan.tensors
    uint64_t data_bytes = 0;
    OutputFile file;
  };
  struct Place {
    size_t tensor = 0, shard = 0;
    uint64_t offset = 0;  // in the shard's file
    bool written = false;
  };

  std::string directory;
  PartialDirectory partial;
  CheckpointPlan plan;
  std::vector<Shard> shards;
  std::map<std::string, Place, std::less<>> places;

  void AssignShards();
  Status StartShards();
  Status StartShard(size_t index);
  Status WriteFiles() const;
  Status Rename();
};

void CheckpointWriter::State::AssignShards() {
  shards.emplace_back();
  for (size_t i = 0; i < plan.tensors.size(); ++i) {
    const uint64_t bytes = BytesOfTensor(plan.tensors[i]);
    if (!shards.back().tensors.empty() && shards.back().data_bytes + bytes > plan.max_shard_bytes) {
      shards.emplace_back();
    }
    shards.back().tensors.push_back(i);
    shards.back().data_bytes += bytes;
  }
  for (size_t i = 0; i < shards.size(); ++i) {
    shards[i].name = shards.size() == 1
                         ? std::string("model.safetensors")
                         : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
  }
}

Status CheckpointWriter::State::StartShard(size_t index) {
  Shard& shard = shards[index];
  uint64_t offset = 0;
  // Not through Json: adding a key to an object takes time proportional to its size.
  std::string text = "{\"__metadata__\":{\"format\":\"pt\"}";
  for (const size_t i : shard.tensors) {
    const CheckpointPlan::Tensor& tensor = plan.tensors[i];
    const uint64_t end = offset + BytesOfTensor(tensor);
    text += fmt::format(",{}:{{\"dtype\":\"{}\",\"shape\":{},\"data_offsets\":[{},{}]}}",
                        Json(tensor.name).dump(), SafetensorsTypeName(tensor.dtype),
                        Json(tensor.shape.extents()).dump(), offset, end);
    offset = end;
  }
  text += '}';
  text.resize(RoundUp<size_t>(text.size(), 8), ' ');
  const uint64_t header_bytes = text.size();
  const uint64_t data_begin = sizeof(header_bytes) + header_bytes;
  offset = data_begin;
  for (const size_t i : shard.tensors) {
    const bool added = places.emplace(plan.tensors[i].name, Place{i, index, offset, false}).second;
    CHECK(added, "{} is planned twice", plan.tensors[i].name);
    offset += BytesOfTensor(plan.tensors[i]);
  }
  NIBBLE_ASSIGN_OR_RETURN(shard.file,
                          OutputFile::Create(JoinPath(partial.path(), shard.name), offset));
  NIBBLE_RETURN_IF_ERROR(shard.file.Write(std::as_bytes(std::span(&header_bytes, 1)), 0));
  return shard.file.Write(std::as_bytes(std::span(text)), sizeof(header_bytes));
}

Status CheckpointWriter::State::StartShards() {
  for (size_t i = 0; i < shards.size(); ++i) NIBBLE_RETURN_IF_ERROR(StartShard(i));
  return {};
}

Status CheckpointWriter::State::WriteFiles() const {
  const auto write = [&](std::string_view name, std::string_view content) {
    return WriteFileAtomic(JoinPath(partial.path(), name), content);
  };
  Json config = plan.config;
  if (plan.packs_linears) AskForFloat16(config);
  if (plan.quantization) {
    const Json quantization = plan.quantization->ToJson();
    config["quantization_config"] = quantization;
    const QuantLayout layout = plan.quantization->layout;
    if (layout == QuantLayout::kGptqV1 || layout == QuantLayout::kGptqV2) {
      NIBBLE_RETURN_IF_ERROR(write("quantize_config.json", Text(quantization)));
    }
  }
  NIBBLE_RETURN_IF_ERROR(write("config.json", Text(config)));
  if (!plan.generation_config.empty()) {
    NIBBLE_RETURN_IF_ERROR(write("generation_config.json", Text(plan.generation_config)));
  }
  if (shards.size() > 1) {
    std::string map;
    for (const auto& [name, place] : places) {
      map += fmt::format("{}\n    {}: {}", map.empty() ? "" : ",", Json(name).dump(),
                         Json(shards[place.shard].name).dump());
    }
    NIBBLE_RETURN_IF_ERROR(write(
        "model.safetensors.index.json",
        fmt::format("{{\n  \"metadata\": {{\n    \"total_size\": {}\n  }},\n  \"weight_map\": "
                    "{{{}\n  }}\n}}\n",
                    plan.tensor_bytes(), map)));
  }
  for (const Checkpoint::File& file : plan.files) {
    NIBBLE_RETURN_IF_ERROR(write(file.name, file.content));
  }
  return {};
}

Status CheckpointWriter::State::Rename() {
  NIBBLE_RETURN_IF_ERROR(SyncDirectory(partial.path()));
  int result =
      ::renameat2(AT_FDCWD, partial.path().c_str(), AT_FDCWD, directory.c_str(), RENAME_NOREPLACE);
  if (result != 0 && errno == EINVAL) {  // the file system has no such rename
    NIBBLE_RETURN_IF_ERROR(CheckOutputDirectory(directory));
    result = ::rename(partial.path().c_str(), directory.c_str());
  }
  if (result != 0 && errno == EEXIST) {
    return WrongUsage("{}: exists already; give another output", directory);
  }
  if (result != 0) return SystemError(directory, "create");
  partial.Keep();
  return SyncDirectory(fs::absolute(directory).parent_path().string());
}

CheckpointWriter::CheckpointWriter(std::unique_ptr<State> state) : state_(std::move(state)) {}

CheckpointWriter::~CheckpointWriter() = default;

Status CheckOutputDirectory(const std::string& directory) {
  if (FileExists(directory)) {
    return WrongUsage("{}: exists already; give another output", directory);
  }
  return {};
}

Result<std::unique_ptr<CheckpointWriter>> CheckpointWriter::Create(const std::string& directory,
                                                                   CheckpointPlan plan) {
  NIBBLE_RETURN_IF_ERROR(CheckOutputDirectory(directory));
  auto state = std::make_unique<State>();
  state->directory = WithoutTrailingSlash(directory);
  state->plan = std::move(plan);
  RemoveAbandonedPartials(state->directory);  // which may be what the disk is full of

  uint64_t needed = state->plan.tensor_bytes() + kSpareBytes;
  for (const Checkpoint::File& file : state->plan.files) needed += file.content.size();
  NIBBLE_ASSIGN_OR_RETURN(const uint64_t free, FreeDiskBytes(state->directory));
  if (needed > free) {
    return NotEnough("{}: needs {} of disk space, {} are free", directory, FormatBytes(needed),
                     FormatBytes(free));
  }
  const fs::path parent = fs::absolute(state->directory).parent_path();
  NIBBLE_RETURN_IF_ERROR(MakeDirectories(parent.string()));
  NIBBLE_ASSIGN_OR_RETURN(state->partial, PartialDirectory::Create(state->directory));
  // From here on the destructor removes what was written.
  std::unique_ptr<CheckpointWriter> writer(new CheckpointWriter(std::move(state)));
  writer->state_->AssignShards();
  NIBBLE_RETURN_IF_ERROR(writer->state_->StartShards());
  return writer;
}

void CheckpointWriter::AddFile(Checkpoint::File file) {
  state_->plan.files.push_back(std::move(file));
}

Status CheckpointWriter::Add(std::string_view name, const TensorView& tensor) {
  const auto it = state_->places.find(name);
  if (it == state_->places.end()) {
    return Fail(ErrorCode::kInternal, "{}: {} was not planned", state_->directory, name);
  }
  State::Place& place = it->second;
  const CheckpointPlan::Tensor& planned = state_->plan.tensors[place.tensor];
  if (planned.dtype != tensor.dtype || planned.shape != tensor.shape ||
      tensor.bytes.size() != BytesOfTensor(planned) || place.written) {
    return Fail(ErrorCode::kInternal, "{}: {}: planned {} {}, got {} {} of {} bytes{}",
                state_->directory, name, nibble::Name(planned.dtype), planned.shape.ToString(),
                nibble::Name(tensor.dtype), tensor.shape.ToString(), tensor.bytes.size(),
                place.written ? ", again" : "");
  }
  NIBBLE_RETURN_IF_ERROR(state_->shards[place.shard].file.Write(tensor.bytes, place.offset));
  place.written = true;
  return {};
}

Status CheckpointWriter::AddLinear(std::string_view linear_name, const QuantizedWeight& weight) {
  const std::optional<QuantizationConfig>& quantization = state_->plan.quantization;
  if (!quantization || quantization->spec.group_size != weight.spec.group_size) {
    return Fail(ErrorCode::kInternal, "{}: {}: not quantized as planned", state_->directory,
                linear_name);
  }
  return PackQuantizedLinear(*quantization, linear_name, weight,
                             [&](std::string_view suffix, const TensorView& tensor) {
                               return Add(fmt::format("{}{}", linear_name, suffix), tensor);
                             });
}

Status CheckpointWriter::Finish() {
  for (const auto& [name, place] : state_->places) {
    if (!place.written) {
      return Fail(ErrorCode::kInternal, "{}: {} was planned and not written", state_->directory,
                  name);
    }
  }
  for (State::Shard& shard : state_->shards) NIBBLE_RETURN_IF_ERROR(shard.file.Close());
  NIBBLE_RETURN_IF_ERROR(state_->WriteFiles());
  return state_->Rename();
}

}  // namespace nibble

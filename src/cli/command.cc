#include "src/cli/command.h"

#include <charconv>

#include "src/base/file.h"

namespace nibble {

CLI::App* Program::Add(const std::string& name, const std::string& description,
                       const std::string& examples) {
  CLI::App* command = app_.add_subcommand(name, description);
  command->footer("Examples:\n" + examples);
  DeviceOptions& device = common_.device;
  const std::string group = "Common options";
  command->add_option("--device", device.device, "auto, cpu, ref (the scalar oracle), cuda, cuda:N")
      ->group(group)
      ->capture_default_str();
  command->add_option("--threads", device.threads, "threads; 0: all usable cores")
      ->group(group)
      ->capture_default_str();
  command
      ->add_option("--dtype", device.dtype,
                   "activations and KV cache: auto (the checkpoint's; f32 on ref), f32, f16, bf16;\n"
                   "on cpu activations are always f32")
      ->group(group)
      ->capture_default_str();
  command
      ->add_option("--kv-cache", device.kv_cache,
                   "auto (of --dtype), or fp8 on a GPU: half the memory, and faster for many or long\n"
                   "texts")
      ->group(group)
      ->capture_default_str();
  command
      ->add_flag("--batch-invariant", device.batch_invariant,
                 "the same bits whatever the batch: always so on a CPU, slower on a GPU")
      ->group(group);
  command
      ->add_option("--kernels", device.kernels,
                   "of a GPU: auto, or portable for those that run on any")
      ->group(group)
      ->capture_default_str();
  command
      ->add_option("--memory-fraction", device.memory_fraction,
                   "the share of the device's memory that may be used")
      ->group(group)
      ->capture_default_str();
  command->add_flag("--quiet", common_.quiet, "no progress, errors only")->group(group);
  command->add_option("--log-level", common_.log_level, "debug, info, warn, error")
      ->group(group)
      ->check(CLI::IsMember({"debug", "info", "warn", "error"}))
      ->capture_default_str();
  return command;
}

void Program::Run(CLI::App* command, CommandBody body) {
  command->callback([this, body = std::move(body)] { body_ = body; });
}

Status WriteOutput(const std::string& path, const Json& document) {
  if (path.empty()) return {};
  return WriteFileAtomic(path, document.dump(1) + "\n");
}

std::tm LocalTime() {
  const std::time_t seconds = std::time(nullptr);
  std::tm now = {};
  localtime_r(&seconds, &now);
  return now;
}

Result<std::vector<int32_t>> ParseTokenIds(const std::string& text) {
  std::vector<int32_t> ids;
  const char* at = text.data();
  const char* const end = at + text.size();
  while (true) {
    int32_t id = 0;
    const auto [next, error] = std::from_chars(at, end, id);
    if (error != std::errc() || id < 0) break;
    ids.push_back(id);
    if (next == end) return ids;
    if (*next != ',') break;
    at = next + 1;
  }
  return WrongUsage("--token-ids \"{}\": want ids separated by commas, for example 1,15,7", text);
}

}  // namespace nibble

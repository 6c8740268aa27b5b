// What the commands share: common options, and how a command is added to the program.
#ifndef NIBBLE_CLI_COMMAND_H_
#define NIBBLE_CLI_COMMAND_H_

#include <CLI/CLI.hpp>
#include <ctime>
#include <functional>
#include <string>

#include "src/base/cancel.h"
#include "src/base/json.h"
#include "src/base/progress.h"
#include "src/study/session.h"

namespace nibble {

// Options that every command has.
struct CommonOptions {
  DeviceOptions device;
  bool quiet = false;
  std::string log_level = "info";

  ProgressStyle progress() const { return quiet ? ProgressStyle::kQuiet : DetectProgressStyle(); }
};

// What a command runs once its options are parsed.
struct CommandContext {
  const CommonOptions& common;
  const CancelToken& cancel;
};
using CommandBody = std::function<Status(const CommandContext&)>;

// Collects the commands of the program; each file of this folder adds one.
class Program {
 public:
  explicit Program(CLI::App& app) : app_(app) {}
  // A subcommand with the common options; `examples` are lines for its help.
  CLI::App* Add(const std::string& name, const std::string& description,
                const std::string& examples);
  void Run(CLI::App* command, CommandBody body);

  const CommonOptions& common() const { return common_; }
  const CommandBody& body() const { return body_; }

 private:
  CLI::App& app_;
  CommonOptions common_;
  CommandBody body_;  // of the command that was parsed
};

void AddBenchCommand(Program& program);
void AddChatCommand(Program& program);
void AddConvertCommand(Program& program);
void AddEvaluateCommand(Program& program);
void AddGenerateCommand(Program& program);
void AddInspectCommand(Program& program);
void AddLoadTestCommand(Program& program);
void AddPerplexityCommand(Program& program);
void AddQuantizeCommand(Program& program);
void AddReportCommand(Program& program);
void AddScoreCommand(Program& program);
void AddServeCommand(Program& program);
void AddStudyCommand(Program& program);

inline RandomWeights AllowRandom(bool allowed) {
  return allowed ? RandomWeights::kAllow : RandomWeights::kRefuse;
}

// "--output": writes the document there (kUsage where the file's folder is absent), or does nothing
// for an empty path.
Status WriteOutput(const std::string& path, const Json& document);

// What a chat template may show as the time.
std::tm LocalTime();

// "1,15,7" as token ids. kUsage.
Result<std::vector<int32_t>> ParseTokenIds(const std::string& text);

}  // namespace nibble

#endif  // NIBBLE_CLI_COMMAND_H_

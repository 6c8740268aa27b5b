#include <fmt/format.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <csignal>
#include <cstdio>
#include <exception>
#include <new>

#include "src/cli/command.h"
#include "src/tensor/memory.h"

namespace nibble {
namespace {

// The signal handler reaches nothing else.
CancelToken g_cancel;

void OnSignal(int signal) {
  // A second Ctrl-C ends the process at once.
  if (g_cancel.requested()) std::_Exit(128 + signal);
  g_cancel.Request();
}

void SetUpLogging(const CommonOptions& options) {
  auto logger = spdlog::stderr_color_mt("nibble");
  logger->set_pattern("%^%l%$: %v");
  logger->set_level(options.quiet ? spdlog::level::err
                                  : spdlog::level::from_str(options.log_level));
  spdlog::set_default_logger(std::move(logger));
}

int ExitStatus(const Error& error) {
  fmt::print(stderr, "nibble: {}\n", error.message());
  return static_cast<int>(error.code());
}

int Main(int argc, char** argv) {
  ReturnFreedMemory();
  CLI::App app(
      "nibble quantizes a Llama-family model to 4 bits, measures what that costs and gains, and\n"
      "tells which version to deploy.\n\n"
      "MODEL is a directory in Hugging Face layout, a .gguf file, or random:PRESET[:METHOD].");
  app.name("nibble");
  app.set_version_flag("--version", "nibble " NIBBLE_VERSION);
  app.require_subcommand(1);
  Program program(app);
  AddInspectCommand(program);
  AddGenerateCommand(program);
  AddChatCommand(program);
  AddQuantizeCommand(program);
  AddConvertCommand(program);
  AddScoreCommand(program);
  AddPerplexityCommand(program);
  AddEvaluateCommand(program);
  AddBenchCommand(program);
  AddStudyCommand(program);
  AddReportCommand(program);
  AddServeCommand(program);
  AddLoadTestCommand(program);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : static_cast<int>(ErrorCode::kUsage);
  }
  SetUpLogging(program.common());
  std::signal(SIGINT, OnSignal);
  std::signal(SIGTERM, OnSignal);
  std::signal(SIGPIPE, SIG_IGN);
  const Status status = program.body()({program.common(), g_cancel});
  return status ? 0 : ExitStatus(status.error());
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  try {
    return nibble::Main(argc, argv);
  } catch (const std::bad_alloc&) {
    return nibble::ExitStatus(nibble::Error(nibble::ErrorCode::kResources, "out of memory"));
  } catch (const std::exception& e) {
    return nibble::ExitStatus(nibble::Error(nibble::ErrorCode::kInternal, e.what()));
  }
}

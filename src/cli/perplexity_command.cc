#include <fmt/format.h>

#include <algorithm>
#include <memory>

#include "src/cli/command.h"
#include "src/study/documents.h"

namespace nibble {
namespace {

struct PerplexityCommandOptions {
  std::string model;
  std::string text;
  int64_t context = 0;  // 0: 2048, or the model's where that is shorter
  std::string join = "raw";
  int64_t max_windows = 0;  // 0: all
  std::string reference;
  bool allow_random = false;
  std::string output;
};

Status Perplexity(const PerplexityCommandOptions& options, const CommandContext& context) {
  PerplexityRequest request{.text_path = options.text};
  NIBBLE_ASSIGN_OR_RETURN(request.join, ParseTextJoin(options.join));
  if (options.max_windows != 0) request.options.max_windows = options.max_windows;
  const auto load = [&](const std::string& path, const DeviceOptions& device) {
    return LoadModelOn(path, device, AllowRandom(options.allow_random), context.common.progress(),
                       context.cancel);
  };
  const DeviceOptions& device = context.common.device;
  NIBBLE_ASSIGN_OR_RETURN(const std::unique_ptr<LoadedModel> model, load(options.model, device));
  request.options.context = options.context != 0
                                ? options.context
                                : std::min<int64_t>(2048, model->weights.config.max_context);
  std::unique_ptr<LoadedModel> reference;
  if (!options.reference.empty()) {
    DeviceOptions of_reference = device;
    of_reference.kv_cache = "auto";  // so that what a smaller cache costs can be seen
    NIBBLE_ASSIGN_OR_RETURN(reference, load(options.reference, of_reference));
  }
  NIBBLE_ASSIGN_OR_RETURN(const Json document,
                          MeasurePerplexity(*model, reference.get(), request,
                                            context.common.progress(), context.cancel));
  fmt::print("{}", FormatPerplexity(document));
  return WriteOutput(options.output, document);
}

}  // namespace

void AddPerplexityCommand(Program& program) {
  CLI::App* command = program.Add(
      "perplexity", "Perplexity of a text; with --reference also divergence from that model",
      "  nibble perplexity ./model --text wiki.test.raw\n"
      "  nibble perplexity ./model-rtn --reference ./model --text wiki.test.raw --max-windows 20\n"
      "  nibble perplexity ./model --text wiki.test.raw --join paper --context 2048\n");
  auto options = std::make_shared<PerplexityCommandOptions>();
  command->add_option("model", options->model, "the model")->required();
  command->add_option("--text", options->text, "a UTF-8 text file")->required();
  command->add_option("--context", options->context,
                      "tokens of a window; default: 2048, or the model's context if shorter");
  command
      ->add_option("--join", options->join,
                   "raw: the file as it is; paper: rows joined by blank lines, as the literature\n"
                   "scores WikiText-2")
      ->capture_default_str();
  command->add_option("--max-windows", options->max_windows, "windows at most; 0: all")
      ->capture_default_str();
  command->add_option("--reference", options->reference, "the model to compare with");
  command->add_flag("--allow-random", options->allow_random, "accept synthetic weights");
  command->add_option("--output", options->output, "also write the result as JSON");
  program.Run(command, [options](const CommandContext& c) { return Perplexity(*options, c); });
}

}  // namespace nibble

// The options of calibration and of the quantizers, shared by the commands that quantize.
#ifndef NIBBLE_CLI_SOLVER_OPTIONS_H_
#define NIBBLE_CLI_SOLVER_OPTIONS_H_

#include <CLI/CLI.hpp>
#include <string>

#include "src/cli/chat_template_option.h"
#include "src/quantize/calibration.h"
#include "src/quantize/layer_quantizer.h"

namespace nibble {

struct SolverCommandOptions {
  CalibrationOptions calibration;
  int64_t search_tokens = AwqOptions().search_tokens;
  std::string awq_form = "x";
  std::string order = std::string(Name(GptqOptions().order));
  std::string scale_search = std::string(Name(GptqOptions().search));
  double damping = GptqOptions().damping;
  bool static_groups = false;
  double asymmetric_calibration = GptqOptions().drift_share;
  double asymmetric_samples = GptqOptions().drift_samples;

  // `seed_option`: the name under which `command` still has room for the seed.
  void AddTo(CLI::App& command, const char* seed_option) {
    command.add_option("--calibration", calibration.path,
                       "what awq and gptq learn from: text, or .jsonl of texts or chats; without "
                       "it the model writes its own");
    AddChatTemplateOption(command, calibration.chat_template);
    command.add_option("--samples", calibration.samples, "calibration sequences")
        ->check(CLI::PositiveNumber)
        ->capture_default_str();
    command.add_option("--sequence-length", calibration.sequence_length, "their tokens")
        ->check(CLI::Range(8, 1 << 20))
        ->capture_default_str();
    command.add_option(seed_option, calibration.seed, "which sequences are drawn")
        ->capture_default_str();
    command
        .add_option("--search-tokens", search_tokens,
                    "awq: tokens that a block's loss is measured on")
        ->check(CLI::PositiveNumber)
        ->capture_default_str();
    command
        .add_option("--awq-form", awq_form,
                    "awq: scales from activations (x), from weights too (xw), or both")
        ->check(CLI::IsMember({"x", "xw", "both"}))
        ->capture_default_str();
    command.add_option("--order", order, "gptq: columns by natural, act or group order")
        ->check(CLI::IsMember({"natural", "act", "group"}))
        ->capture_default_str();
    command
        .add_option("--scale-search", scale_search, "gptq: groups' ranges by none, mse or hessian")
        ->check(CLI::IsMember({"none", "mse", "hessian"}))
        ->capture_default_str();
    command.add_option("--damping", damping, "gptq: of the Hessian's mean diagonal")
        ->check(CLI::Range(1e-6, 1.0))
        ->capture_default_str();
    command.add_flag("--static-groups", static_groups,
                     "gptq: groups' grids from the weights as they were (always so with act)");
    command
        .add_option("--asymmetric-calibration", asymmetric_calibration,
                    "gptq: share of what earlier errors did to the inputs that later weights make "
                    "up for; takes samples through the unquantized model too")
        ->check(CLI::Range(0.0, 1.0))
        ->capture_default_str();
    command
        .add_option(
            "--asymmetric-samples", asymmetric_samples,
            "gptq: the share of the samples, the first ones, that those errors are measured "
            "on")
        ->check(CLI::Range(1e-6, 1.0))
        ->capture_default_str();
  }

  SolverOptions Solver() const {
    SolverOptions solver;
    if (awq_form == "xw") solver.awq.forms = {AwqForm::kActivationsAndWeights};
    if (awq_form == "both") {
      solver.awq.forms = {AwqForm::kActivations, AwqForm::kActivationsAndWeights};
    }
    solver.awq.search_tokens = search_tokens;
    solver.gptq.order = *ColumnOrderFromName(order);
    solver.gptq.search = *ScaleSearchFromName(scale_search);
    solver.gptq.damping = damping;
    solver.gptq.drift_share = asymmetric_calibration;
    solver.gptq.drift_samples = asymmetric_samples;
    if (static_groups) solver.gptq.grid_time = GridTime::kStatic;
    return solver;
  }
};

}  // namespace nibble

#endif  // NIBBLE_CLI_SOLVER_OPTIONS_H_

#include <fmt/format.h>

#include <memory>

#include "src/base/file.h"
#include "src/cli/command.h"
#include "src/report/report.h"
#include "src/study/kept_load_tests.h"
#include "src/study/study.h"

namespace nibble {
namespace {

struct ReportOptions {
  std::string directory;
  std::vector<std::string> load_tests;
};

}  // namespace

void AddReportCommand(Program& program) {
  CLI::App* command =
      program.Add("report", "Render a study's report again",
                  "  nibble report ./study\n"
                  "  nibble report ./study --load-test fp16-load.json --load-test awq-load.json\n");
  auto options = std::make_shared<ReportOptions>();
  command->add_option("directory", options->directory, "a study's directory")->required();
  command
      ->add_option("--load-test", options->load_tests,
                   "what `nibble load-test --output` wrote, to be shown too, in place of what "
                   "was; may be repeated")
      ->allow_extra_args(false);
  program.Run(command, [options](const CommandContext&) -> Status {
    NIBBLE_ASSIGN_OR_RETURN(StudyRecord record, ReadStudy(options->directory));
    if (!options->load_tests.empty()) {
      NIBBLE_RETURN_IF_ERROR(KeepLoadTests(options->directory, options->load_tests));
      NIBBLE_ASSIGN_OR_RETURN(record.load_series, ReadKeptLoadTests(options->directory));
    }
    NIBBLE_RETURN_IF_ERROR(WriteReport(record, options->directory));
    fmt::print("{}\nReport: {}\n", SummaryTable(record),
               JoinPath(options->directory, "report.html"));
    return {};
  });
}

}  // namespace nibble

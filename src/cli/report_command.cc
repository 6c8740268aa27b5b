#include <fmt/format.h>

#include <memory>

#include "src/base/file.h"
#include "src/cli/command.h"
#include "src/report/report.h"
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
                   "what `nibble load-test --output` wrote, to be shown too; may be repeated")
      ->allow_extra_args(false);
  program.Run(command, [options](const CommandContext&) -> Status {
    NIBBLE_ASSIGN_OR_RETURN(StudyRecord record, ReadStudy(options->directory));
    for (const std::string& path : options->load_tests) {
      NIBBLE_ASSIGN_OR_RETURN(const Json json, ReadJsonFile(path));
      NIBBLE_ASSIGN_OR_RETURN(LoadSeries series, LoadSeries::FromJson(json, path));
      record.load_series.push_back(std::move(series));
    }
    NIBBLE_RETURN_IF_ERROR(WriteReport(record, options->directory));
    fmt::print("{}\nReport: {}\n", SummaryTable(record),
               JoinPath(options->directory, "report.html"));
    return {};
  });
}

}  // namespace nibble

#include <fmt/format.h>

#include <memory>

#include "src/base/file.h"
#include "src/cli/command.h"
#include "src/report/report.h"
#include "src/study/study.h"

namespace nibble {

void AddReportCommand(Program& program) {
  CLI::App* command =
      program.Add("report", "Render a study's report again", "  nibble report ./study\n");
  auto directory = std::make_shared<std::string>();
  command->add_option("directory", *directory, "a study's directory")->required();
  program.Run(command, [directory](const CommandContext&) -> Status {
    NIBBLE_ASSIGN_OR_RETURN(const StudyRecord record, ReadStudy(*directory));
    NIBBLE_RETURN_IF_ERROR(WriteReport(record, *directory));
    fmt::print("{}\nReport: {}\n", SummaryTable(record), JoinPath(*directory, "report.html"));
    return {};
  });
}

}  // namespace nibble

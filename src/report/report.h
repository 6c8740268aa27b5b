// A study's report: report.html, report.md, accuracy.csv, throughput.csv and memory.csv.
#ifndef NIBBLE_REPORT_REPORT_H_
#define NIBBLE_REPORT_REPORT_H_

#include <string>

#include "src/base/error.h"
#include "src/report/study_record.h"

namespace nibble {

// Writes the five files into `directory`, which exists; each replaces an older one at once or not
// at all.
Status WriteReport(const StudyRecord& record, const std::string& directory);

// The result for a terminal: a table of the methods and the recommendation, ending in a newline.
std::string SummaryTable(const StudyRecord& record);

}  // namespace nibble

#endif  // NIBBLE_REPORT_REPORT_H_

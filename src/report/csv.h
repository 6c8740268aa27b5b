// A study's numbers as CSV (RFC 4180: CRLF line ends, quotes where needed, a header), unrounded.
// What is unknown is an empty field; shares and differences are fractions; units are in the
// headers.
#ifndef NIBBLE_REPORT_CSV_H_
#define NIBBLE_REPORT_CSV_H_

#include <string>

#include "src/report/study_record.h"

namespace nibble {

// One row a method, scoring (letters, cloze), level (overall, category, subcategory, subject) and
// group.
std::string AccuracyCsv(const StudyRecord& record);

// One row a method and batch size.
std::string ThroughputCsv(const StudyRecord& record);
std::string MemoryCsv(const StudyRecord& record);

}  // namespace nibble

#endif  // NIBBLE_REPORT_CSV_H_

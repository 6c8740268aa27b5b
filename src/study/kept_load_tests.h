// The load tests that a study's report shows, kept in its directory as load_tests.json
// (nibble.load-tests/1, docs/json.md), so that every later report shows them too.
#ifndef NIBBLE_STUDY_KEPT_LOAD_TESTS_H_
#define NIBBLE_STUDY_KEPT_LOAD_TESTS_H_

#include <span>
#include <string>
#include <vector>

#include "src/base/error.h"
#include "src/report/load_series.h"

namespace nibble {

// Replaces those kept by the documents (nibble.load-test/1) in these files. kBadInput, and nothing
// changes, where one is none.
Status KeepLoadTests(const std::string& directory, std::span<const std::string> paths);

// None where none were ever kept.
Result<std::vector<LoadSeries>> ReadKeptLoadTests(const std::string& directory);

}  // namespace nibble

#endif  // NIBBLE_STUDY_KEPT_LOAD_TESTS_H_

// The groups that accuracy is reported by, and the table of their scores.
#ifndef NIBBLE_REPORT_ACCURACY_GROUPS_H_
#define NIBBLE_REPORT_ACCURACY_GROUPS_H_

#include <string>
#include <vector>

#include "src/report/content.h"
#include "src/report/content_parts.h"
#include "src/report/study_record.h"

namespace nibble {

struct AccuracyGroup {
  std::string name;   // as in the documents
  std::string shown;  // for people
  std::string part;   // the category it belongs to, shown
};

enum class AccuracyLevel { kOverall, kCategory, kSubcategory, kSubject };

// The groups of a level that any method has, in the benchmark's order; those that the benchmark
// does not know come last. kOverall is one group.
std::vector<AccuracyGroup> GroupsOf(const StudyRecord& record, Scoring scoring,
                                    AccuracyLevel level);

// A group's score by method; null where the method was not evaluated.
std::vector<const Score*> ScoresOf(const StudyRecord& record, Scoring scoring, AccuracyLevel level,
                                   const std::string& group);

// The most questions that any method answered.
int64_t QuestionsOf(const std::vector<const Score*>& scores);

// "41.2 (38.0 to 44.5)", percent; "−1.2 (−3.1 to +0.7)", points.
std::string NumberAndRange(const Score& score);
std::string DifferenceAndRange(const ScoreComparison& comparison, int64_t questions);

// One row a group: accuracy by method, then the difference of each from the baseline.
Table ScoreTable(const StudyRecord& record, Scoring scoring, AccuracyLevel level);

std::string Capitalized(std::string text);

}  // namespace nibble

#endif  // NIBBLE_REPORT_ACCURACY_GROUPS_H_

// MMLU's 57 subjects, 17 subcategories and 4 categories, named as in the benchmark's categories.py
// (https://github.com/hendrycks/test; Hendrycks et al., 2009.03300).
#ifndef NIBBLE_EVAL_MMLU_SUBJECTS_H_
#define NIBBLE_EVAL_MMLU_SUBJECTS_H_

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>

namespace nibble {

inline constexpr double kChance = 0.25;  // of four choices
inline constexpr int64_t kMmluTestQuestions = 14042;

inline constexpr std::array<std::string_view, 4> kMmluCategories = {
    "STEM",
    "humanities",
    "social sciences",
    "other (business, health, misc.)",
};

struct MmluSubcategory {
  std::string_view name;
  int category;  // index into kMmluCategories
};

inline constexpr std::array<MmluSubcategory, 17> kMmluSubcategories = {{
    {"physics", 0},
    {"chemistry", 0},
    {"biology", 0},
    {"computer science", 0},
    {"math", 0},
    {"engineering", 0},
    {"history", 1},
    {"philosophy", 1},
    {"law", 1},
    {"politics", 2},
    {"culture", 2},
    {"economics", 2},
    {"geography", 2},
    {"psychology", 2},
    {"other", 3},
    {"business", 3},
    {"health", 3},
}};

struct MmluSubject {
  std::string_view name;  // as in file names: "abstract_algebra"
  int subcategory;        // index into kMmluSubcategories
};

// The index into kMmluSubcategories; a name that is not there does not compile.
consteval int MmluSubcategoryIndex(std::string_view name) {
  for (int i = 0; i < static_cast<int>(kMmluSubcategories.size()); ++i) {
    if (kMmluSubcategories[i].name == name) return i;
  }
  throw "no such subcategory";
}

// In alphabetical order.
inline constexpr std::array<MmluSubject, 57> kMmluSubjects = {{
    {"abstract_algebra", MmluSubcategoryIndex("math")},
    {"anatomy", MmluSubcategoryIndex("health")},
    {"astronomy", MmluSubcategoryIndex("physics")},
    {"business_ethics", MmluSubcategoryIndex("business")},
    {"clinical_knowledge", MmluSubcategoryIndex("health")},
    {"college_biology", MmluSubcategoryIndex("biology")},
    {"college_chemistry", MmluSubcategoryIndex("chemistry")},
    {"college_computer_science", MmluSubcategoryIndex("computer science")},
    {"college_mathematics", MmluSubcategoryIndex("math")},
    {"college_medicine", MmluSubcategoryIndex("health")},
    {"college_physics", MmluSubcategoryIndex("physics")},
    {"computer_security", MmluSubcategoryIndex("computer science")},
    {"conceptual_physics", MmluSubcategoryIndex("physics")},
    {"econometrics", MmluSubcategoryIndex("economics")},
    {"electrical_engineering", MmluSubcategoryIndex("engineering")},
    {"elementary_mathematics", MmluSubcategoryIndex("math")},
    {"formal_logic", MmluSubcategoryIndex("philosophy")},
    {"global_facts", MmluSubcategoryIndex("other")},
    {"high_school_biology", MmluSubcategoryIndex("biology")},
    {"high_school_chemistry", MmluSubcategoryIndex("chemistry")},
    {"high_school_computer_science", MmluSubcategoryIndex("computer science")},
    {"high_school_european_history", MmluSubcategoryIndex("history")},
    {"high_school_geography", MmluSubcategoryIndex("geography")},
    {"high_school_government_and_politics", MmluSubcategoryIndex("politics")},
    {"high_school_macroeconomics", MmluSubcategoryIndex("economics")},
    {"high_school_mathematics", MmluSubcategoryIndex("math")},
    {"high_school_microeconomics", MmluSubcategoryIndex("economics")},
    {"high_school_physics", MmluSubcategoryIndex("physics")},
    {"high_school_psychology", MmluSubcategoryIndex("psychology")},
    {"high_school_statistics", MmluSubcategoryIndex("math")},
    {"high_school_us_history", MmluSubcategoryIndex("history")},
    {"high_school_world_history", MmluSubcategoryIndex("history")},
    {"human_aging", MmluSubcategoryIndex("health")},
    {"human_sexuality", MmluSubcategoryIndex("culture")},
    {"international_law", MmluSubcategoryIndex("law")},
    {"jurisprudence", MmluSubcategoryIndex("law")},
    {"logical_fallacies", MmluSubcategoryIndex("philosophy")},
    {"machine_learning", MmluSubcategoryIndex("computer science")},
    {"management", MmluSubcategoryIndex("business")},
    {"marketing", MmluSubcategoryIndex("business")},
    {"medical_genetics", MmluSubcategoryIndex("health")},
    {"miscellaneous", MmluSubcategoryIndex("other")},
    {"moral_disputes", MmluSubcategoryIndex("philosophy")},
    {"moral_scenarios", MmluSubcategoryIndex("philosophy")},
    {"nutrition", MmluSubcategoryIndex("health")},
    {"philosophy", MmluSubcategoryIndex("philosophy")},
    {"prehistory", MmluSubcategoryIndex("history")},
    {"professional_accounting", MmluSubcategoryIndex("other")},
    {"professional_law", MmluSubcategoryIndex("law")},
    {"professional_medicine", MmluSubcategoryIndex("health")},
    {"professional_psychology", MmluSubcategoryIndex("psychology")},
    {"public_relations", MmluSubcategoryIndex("politics")},
    {"security_studies", MmluSubcategoryIndex("politics")},
    {"sociology", MmluSubcategoryIndex("culture")},
    {"us_foreign_policy", MmluSubcategoryIndex("politics")},
    {"virology", MmluSubcategoryIndex("health")},
    {"world_religions", MmluSubcategoryIndex("philosophy")},
}};

constexpr int MmluCategoryOf(int subject) {
  return kMmluSubcategories[kMmluSubjects[subject].subcategory].category;
}

constexpr std::optional<int> FindMmluSubject(std::string_view name) {
  for (int i = 0; i < static_cast<int>(kMmluSubjects.size()); ++i) {
    if (kMmluSubjects[i].name == name) return i;
  }
  return std::nullopt;
}

constexpr int CountMmluSubjects(int category) {
  int count = 0;
  for (int i = 0; i < static_cast<int>(kMmluSubjects.size()); ++i) {
    count += MmluCategoryOf(i) == category ? 1 : 0;
  }
  return count;
}
static_assert(CountMmluSubjects(0) == 18 && CountMmluSubjects(1) == 13 &&
              CountMmluSubjects(2) == 12 && CountMmluSubjects(3) == 14);

}  // namespace nibble

#endif  // NIBBLE_EVAL_MMLU_SUBJECTS_H_

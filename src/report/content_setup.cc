// What was measured on what: hardware, model, options, versions.
#include <algorithm>

#include "src/base/json_text.h"
#include "src/base/units.h"
#include "src/report/content_parts.h"
#include "src/report/markup.h"
#include "src/report/numbers.h"

namespace nibble {
namespace {

using Rows = std::vector<std::vector<std::string>>;

std::string Rate(double per_second, const char* unit) {
  static constexpr const char* kPrefixes[] = {"", "k", "M", "G", "T", "P"};
  int prefix = 0;
  while (per_second >= 999.5 && prefix < 5) {
    per_second /= 1000;
    ++prefix;
  }
  return fmt::format("{} {}{}/s", FormatSignificant(per_second), kPrefixes[prefix], unit);
}

struct Unit {
  std::string_view ending;
  std::string (*format)(double);
};

// By a key's ending, the longest first.
constexpr Unit kUnits[] = {
    {"_bytes_per_second", [](double v) { return Rate(v, "B"); }},
    {"_flops_per_second", [](double v) { return Rate(v, "FLOP"); }},
    {"_bytes",
     [](double v) { return FormatBytes(static_cast<uint64_t>(std::clamp(v, 0.0, 1e18))); }},
    {"_seconds", [](double v) { return FormatSeconds(v); }},
    {"_points", [](double v) { return FormatSignificant(v) + " points"; }},
    {"_watts", [](double v) { return FormatSignificant(v) + " W"; }},
    {"_mhz", [](double v) { return FormatSignificant(v, 4) + " MHz"; }},
};

struct Name {
  std::string_view key;
  std::string_view label;
};

constexpr Name kNames[] = {
    {"cpu", "Processor"},
    {"os", "Operating system"},
    {"read_bandwidth", "Read bandwidth, measured"},
    {"matrix", "Matrix rate, measured"},
    {"kv_heads", "KV heads"},
    {"is_sample", "sample set"},
    {"nibble", "nibble"},
    {"seed", "Random seed"},
    {"dtype", "Activation type"},
    {"max_accuracy_drop", "Accuracy drop tolerated, points"},
    {"bench", "Throughput measurement"},
    {"data", "Questions"},
    {"text", "Perplexity text"},
    {"context", "Context, tokens"},
};

std::string LabelFor(std::string key) {
  for (const Name& name : kNames) {
    if (name.key == key) return std::string(name.label);
  }
  std::replace(key.begin(), key.end(), '_', ' ');
  if (!key.empty() && key[0] >= 'a' && key[0] <= 'z') key[0] = static_cast<char>(key[0] - 32);
  return Printable(key);
}

std::string ShowNumber(const Json& value) {
  if (value.is_number_unsigned() && value.get<uint64_t>() > INT64_MAX) return value.dump();
  if (value.is_number_integer()) return FormatCount(value.get<int64_t>());
  return FormatShort(value.get<double>());
}

std::string ShowValue(const Json& value) {
  if (value.is_string()) return Printable(value.get<std::string>());
  if (value.is_boolean()) return value.get<bool>() ? "yes" : "no";
  if (value.is_number()) return ShowNumber(value);
  if (value.is_null()) return "–";
  if (!value.is_array()) {
    return Printable(JsonText(value));
  }
  std::string list;
  for (const Json& element : value) list += (list.empty() ? "" : ", ") + ShowValue(element);
  return list.empty() ? "none" : list;
}

Table FactTable(const std::string& caption, const Json& object) {
  Table table;
  table.caption = caption;
  table.columns = {{"Property", Align::kLeft}, {"Value", Align::kLeft}};
  table.rows = DescribeObject(object);
  return table;
}

}  // namespace

Rows DescribeObject(const Json& object) {
  Rows rows;
  for (const auto& [key, value] : object.items()) {
    if (value.is_object()) {
      std::string parts;
      for (const auto& row : DescribeObject(value)) {
        parts += fmt::format("{}{}: {}", parts.empty() ? "" : "; ", row[0], row[1]);
      }
      rows.push_back({LabelFor(key), parts.empty() ? "none" : parts});
      continue;
    }
    const Unit* unit = nullptr;
    for (const Unit& candidate : kUnits) {
      if (unit == nullptr && key.ends_with(candidate.ending)) {
        unit = &candidate;
      }
    }
    if (unit != nullptr && (value.is_number() || value.is_null())) {
      rows.push_back({LabelFor(key.substr(0, key.size() - unit->ending.size())),
                      value.is_null() ? "–" : unit->format(value.get<double>())});
    } else {
      rows.push_back({LabelFor(key), ShowValue(value)});
    }
  }
  return rows;
}

Section SetupSection(const StudyRecord& record) {
  Section section;
  section.title = "Test setup";
  if (!record.server.empty()) section.blocks.push_back(FactTable("Server", record.server));
  if (!record.accelerator.empty()) {
    section.blocks.push_back(FactTable("Accelerator", record.accelerator));
  }
  if (!record.model.empty()) section.blocks.push_back(FactTable("Model", record.model));
  return section;
}

Section OptionsSection(const StudyRecord& record) {
  Section section;
  section.title = "Options and versions";
  section.paragraphs.push_back(
      "Everything needed to repeat the study; every number it measured is in study.json, and the "
      "figures’ data in accuracy.csv, throughput.csv and memory.csv.");
  if (!record.options.empty()) section.blocks.push_back(FactTable("Options", record.options));
  if (!record.versions.empty()) section.blocks.push_back(FactTable("Versions", record.versions));
  return section;
}

}  // namespace nibble

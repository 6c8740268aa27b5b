#include "src/report/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <sstream>

#include "src/base/file.h"
#include "src/report/mock_study.h"

namespace nibble {
namespace {

using ::testing::ContainsRegex;
using ::testing::HasSubstr;

class ReportTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    directory_ = JoinPath(::testing::TempDir(), fmt::format("nibble_report_{}", info->name()));
    ASSERT_TRUE(MakeDirectories(directory_));
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  void Write(const Json& study) {
    const Result<StudyRecord> record = StudyRecord::FromJson(study, "study.json");
    ASSERT_TRUE(record) << record.error().message();
    const Status status = WriteReport(*record, directory_);
    ASSERT_TRUE(status) << status.error().message();
    summary_ = SummaryTable(*record);
  }
  std::string Read(const std::string& name) const {
    return ReadFile(JoinPath(directory_, name)).value_or("");
  }
  // Parsed by a strict XML parser, with every id unique and every reference to one resolved.
  void ExpectWellFormed() const {
    const std::string command = fmt::format(
        "python3 -c 'import sys, xml.etree.ElementTree as e\n"
        "ids = [n.get(\"id\") for n in e.parse(sys.argv[1]).iter() if n.get(\"id\")]\n"
        "assert len(ids) == len(set(ids)), \"an id occurs twice\"\n"
        "refs = [r for n in e.parse(sys.argv[1]).iter() for r in "
        "(n.get(\"aria-labelledby\") or \"\").split()]\n"
        "assert set(refs) <= set(ids), \"a reference leads nowhere\"' '{}/report.html'",
        directory_);
    EXPECT_EQ(std::system(command.c_str()), 0);
  }

  std::string directory_;
  std::string summary_;
};

// A whole report in a failure's message would hide the message.
void ExpectContains(const std::string& text, const std::string& part) {
  EXPECT_TRUE(text.find(part) != std::string::npos) << "absent: " << part;
}
void ExpectLacks(const std::string& text, const std::string& part) {
  EXPECT_TRUE(text.find(part) == std::string::npos) << "present: " << part;
}

std::string LowerCase(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

// Rows of fields, by RFC 4180.
std::vector<std::vector<std::string>> ParseCsv(const std::string& text) {
  std::vector<std::vector<std::string>> rows(1);
  rows.back().emplace_back();
  bool quoted = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (quoted && c == '"' && i + 1 < text.size() && text[i + 1] == '"') {
      rows.back().back() += text[i++];
    } else if (c == '"') {
      quoted = !quoted;
    } else if (!quoted && c == ',') {
      rows.back().emplace_back();
    } else if (!quoted && c == '\r' && text[i + 1] == '\n') {
      rows.emplace_back(1);
      ++i;
    } else {
      rows.back().back() += c;
    }
  }
  rows.pop_back();  // after the last line's end
  return rows;
}

// Pipes that separate cells: those not escaped.
size_t Pipes(const std::string& line) {
  size_t pipes = 0;
  for (size_t i = 0; i < line.size(); ++i)
    pipes += line[i] == '|' && (i == 0 || line[i - 1] != '\\');
  return pipes;
}

void ExpectTablesWellFormed(const std::string& markdown) {
  std::istringstream lines(markdown);
  size_t columns = 0, tables = 0;
  for (std::string line; std::getline(lines, line);) {
    if (!line.starts_with("|")) {
      columns = 0;
      continue;
    }
    if (columns == 0) {
      columns = Pipes(line);
      std::getline(lines, line);
      EXPECT_THAT(line, ContainsRegex("^\\|( :?---:? \\|)+$"));
      ++tables;
    }
    EXPECT_EQ(Pipes(line), columns) << line;
  }
  EXPECT_GT(tables, 3);
}

TEST_F(ReportTest, ShowsEveryGroupAndFigure) {
  Write(MockStudy({.cloze = true}));
  ExpectWellFormed();
  const std::string html = Read("report.html");
  const std::string lower = LowerCase(html);
  const auto expect_row = [&](std::string_view name) {
    std::string shown(name);
    std::replace(shown.begin(), shown.end(), '_', ' ');
    ExpectContains(lower, "<th scope=\"row\">" + LowerCase(shown) + "</th>");
  };
  for (const MmluSubject& subject : kMmluSubjects) expect_row(subject.name);
  for (const MmluSubcategory& subcategory : kMmluSubcategories) expect_row(subcategory.name);
  for (const std::string_view category : kMmluCategories) expect_row(category);
  ExpectContains(html, "High school US history");
  for (const char* figure :
       {"Figure 1.</b> Difference in accuracy from fp16", "Accuracy by category",
        "Accuracy by 17 subcategories", "Accuracy by 57 subjects", "Throughput by batch size",
        "Peak memory by batch size", "Perplexity and KL divergence",
        "Decode against the hardware’s limit"}) {
    ExpectContains(html, figure);
  }
  for (const char* fact : {"Intel(R) Xeon(R) Gold 6430", "512 GiB", "781 GB/s", "164 TFLOP/s",
                           "prompt template “original”", "5-shot"}) {
    ExpectContains(html, fact);
  }
}

TEST_F(ReportTest, FetchesNothing) {
  Write(MockStudy());
  const std::string html = Read("report.html");
  for (const char* reference :
       {" src=", " href=", "@import", "<link", "url(http", "fetch(", "<script"}) {
    ExpectLacks(html, reference);
  }
}

TEST_F(ReportTest, HostileNamesAreText) {
  const std::string attack = "<script>alert(1)</script>|`*\"'&\n# x";
  Json study = MockStudy();
  study["model"]["name"] = attack;
  study["hardware"]["server"][attack] = attack;
  study["options"]["data"]["name"] = attack;
  study["methods"][attack] = study["methods"]["gptq-g128-sym"];
  study["methods"][attack]["evaluate"]["subjects"][attack] =
      study["methods"]["gptq-g128-sym"]["evaluate"]["subjects"]["anatomy"];
  study["methods"][attack]["quantize"]["notes"] = Json::array({attack});
  study["recommendation"] = {
      {"method", attack}, {"summary", attack}, {"reasons", Json::array({attack})}};
  Write(study);
  ExpectWellFormed();
  ExpectLacks(Read("report.html"), "<script>alert");
  const std::string markdown = Read("report.md");
  ExpectLacks(markdown, "<script>");
  ExpectLacks(markdown, "\n# x");
  ExpectTablesWellFormed(markdown);
  ExpectLacks(summary_, "\n# x");
  const auto rows = ParseCsv(Read("accuracy.csv"));
  EXPECT_EQ(rows.back()[0], "<script>alert(1)</script>|`*\"'& # x");
}

TEST_F(ReportTest, MissingDocumentsAreNamed) {
  Json study = MockStudy();
  study["methods"]["awq-g128-asym"].erase("bench");
  study["methods"]["awq-g128-asym"].erase("perplexity");
  study["methods"]["gptq-g128-sym"] = {{"error", "the Hessian is not positive definite"}};
  Write(study);
  ExpectWellFormed();
  const std::string html = Read("report.html");
  ExpectContains(html, "awq-g128-asym has no perplexity and throughput and memory");
  ExpectContains(html, "the Hessian is not positive definite");
}

TEST_F(ReportTest, NothingMeasuredIsStillAReport) {
  Write({{"schema", "nibble.study/1"}, {"methods", {{"fp16", Json::object()}}}});
  ExpectWellFormed();
  ExpectLacks(Read("report.html"), "<figure>");
  EXPECT_EQ(ParseCsv(Read("accuracy.csv")).size(), 1);
  ExpectContains(summary_, "fp16");
}

TEST_F(ReportTest, OneMethodAndOneBatchSize) {
  Json study = MockStudy({.batch_sizes = {4}});
  const Json baseline = study["methods"]["fp16"];
  study["methods"] = {{"fp16", baseline}};
  Write(study);
  ExpectWellFormed();
  ExpectContains(Read("report.html"), "Throughput at batch size 4");
  ExpectLacks(Read("report.html"), "Difference in accuracy");
}

TEST_F(ReportTest, SaysThatASampleCannotRank) {
  Json study = MockStudy({.questions_per_subject = 3});
  Write(study);
  const std::string html = Read("report.html");
  ExpectContains(html, "A sample of 171 questions cannot rank the methods.");
  ExpectContains(html, "holds a loss, no change and a gain alike");
  ExpectContains(html, "one repetition");
  Write(MockStudy());
  ExpectLacks(Read("report.html"), "cannot rank");
}

TEST_F(ReportTest, SaysWhatTheModelIsNot) {
  Json study = MockStudy({.accuracy = 0.25});
  study["model"]["synthetic"] = true;
  study["model"]["baseline"] = "fp16 (from Q4_1)";
  Write(study);
  const std::string html = Read("report.html");
  ExpectContains(html, "The weights are synthetic");
  ExpectContains(html, "The baseline is fp16 (from Q4_1)");
  ExpectContains(html, "not better than chance");
}

TEST_F(ReportTest, CsvHoldsTheNumbersUnrounded) {
  const Json study = MockStudy();
  Write(study);
  const auto accuracy = ParseCsv(Read("accuracy.csv"));
  EXPECT_EQ(accuracy.size(), 1 + 4 * (1 + 4 + 17 + 57));
  for (const auto& row : accuracy) EXPECT_EQ(row.size(), accuracy[0].size());
  bool found = false;
  for (const auto& row : accuracy) {
    if (row[0] != "awq-g128-asym" || row[3] != "virology") continue;
    found = true;
    const Json& score = study["methods"]["awq-g128-asym"]["evaluate"]["subjects"]["virology"];
    EXPECT_EQ(row[2], "subject");
    EXPECT_EQ(std::stoll(row[4]), score["correct"].get<int64_t>());
    EXPECT_EQ(std::stod(row[6]), score["accuracy"].get<double>());
    EXPECT_EQ(std::stod(row[9]), score["comparison"]["difference"].get<double>());
  }
  EXPECT_TRUE(found);
  const auto throughput = ParseCsv(Read("throughput.csv"));
  ASSERT_EQ(throughput.size(), 1 + 4 * 8);
  EXPECT_EQ(throughput[0][6], "output_tokens_per_second");
  EXPECT_EQ(std::stod(throughput[1][6]),
            study["methods"]["fp16"]["bench"]["runs"][0]["output_tokens_per_second"].get<double>());
  EXPECT_EQ(throughput[1][11], "");  // energy is unknown
  const auto memory = ParseCsv(Read("memory.csv"));
  ASSERT_EQ(memory.size(), 1 + 4 * 8);
  EXPECT_EQ(memory[1][2], "13480000000");
}

TEST_F(ReportTest, MarkdownHasTheSameTables) {
  Write(MockStudy());
  const std::string markdown = Read("report.md");
  ExpectTablesWellFormed(markdown);
  ExpectContains(markdown, "| High school government and politics |");
  ExpectContains(markdown, "## Throughput");
}

TEST_F(ReportTest, SummaryTableIsAligned) {
  Json study = MockStudy();
  study["recommendation"] = {{"method", "gptq-g128-sym"},
                             {"summary", "gptq-g128-sym is the fastest."}};
  Write(study);
  ExpectContains(summary_, "Recommendation: gptq-g128-sym is the fastest.");
  ExpectContains(summary_, "rtn-g128-asym");
  std::istringstream lines(summary_);
  for (std::string line; std::getline(lines, line);) EXPECT_FALSE(line.ends_with(' '));
}

TEST_F(ReportTest, DirectoryThatIsNotThere) {
  const Result<StudyRecord> record = StudyRecord::FromJson(MockStudy(), "study.json");
  ASSERT_TRUE(record);
  const Status status = WriteReport(*record, JoinPath(directory_, "absent"));
  ASSERT_FALSE(status);
  EXPECT_THAT(status.error().message(), HasSubstr("absent"));
}

}  // namespace
}  // namespace nibble

#include "src/report/load_series.h"

#include <gmock/gmock.h>

#include "src/report/content_parts.h"
#include "src/report/html.h"

namespace nibble {
namespace {

using testing::HasSubstr;

Json Latency(double ms) { return {{"p50", ms}, {"p90", 2 * ms}, {"p99", 3 * ms}}; }

Json Run(Json concurrency, Json rate, double tokens_per_second) {
  return {{"concurrency", concurrency},
          {"request_rate", rate},
          {"requests", 10},
          {"completed", 9},
          {"output_tokens_per_second", tokens_per_second},
          {"requests_per_second", 2.5},
          {"time_to_first_token_ms", Latency(100)},
          {"time_per_output_token_ms", Latency(7)},
          {"end_to_end_ms", nullptr},
          {"goodput_requests_per_second", 1.25}};
}

Json Document() {
  return {{"schema", "nibble.load-test/1"},
          {"model", "<b>m</b>"},
          {"workload", {{"input_length", 512}, {"output_length", 200}}},
          {"slo", {{"time_to_first_token_ms", 500}, {"time_per_output_token_ms", nullptr}}},
          {"runs", {Run(16, nullptr, 160), Run(1, nullptr, 40), Run(nullptr, 0.5, 30)}}};
}

TEST(LoadSeriesTest, SortsItsRuns) {
  const Result<LoadSeries> series = LoadSeries::FromJson(Document(), "load.json");
  ASSERT_TRUE(series) << series.error().message();
  ASSERT_EQ(series->closed_loop.size(), 2u);
  EXPECT_EQ(series->closed_loop[0].concurrency, 1);
  EXPECT_EQ(series->closed_loop[1].output_tokens_per_second, 160);
  EXPECT_EQ(series->closed_loop[1].first_token->p99, 300);
  EXPECT_FALSE(series->closed_loop[1].end_to_end);
  ASSERT_EQ(series->poisson.size(), 1u);
  EXPECT_EQ(series->poisson[0].request_rate, 0.5);
  EXPECT_EQ(series->slo_first_token_ms, 500);
}

TEST(LoadSeriesTest, NamesWhatIsWrong) {
  const auto refused = [](const char* pointer, Json value) {
    Json document = Document();
    document[Json::json_pointer(pointer)] = std::move(value);
    const Result<LoadSeries> series = LoadSeries::FromJson(document, "load.json");
    EXPECT_FALSE(series) << pointer;
    return series ? "" : series.error().message();
  };
  EXPECT_THAT(refused("/schema", "nibble.study/1"), HasSubstr("nibble.load-test/1"));
  EXPECT_THAT(refused("/runs", Json::array()), HasSubstr("runs"));
  EXPECT_THAT(refused("/runs/1/concurrency", 0), HasSubstr("concurrency"));
  EXPECT_THAT(refused("/runs/1/request_rate", 2), HasSubstr("either"));
  EXPECT_THAT(refused("/runs/1/completed", 11), HasSubstr("completed"));
  EXPECT_THAT(refused("/runs/0/output_tokens_per_second", -1),
              HasSubstr("output_tokens_per_second"));
  EXPECT_THAT(refused("/runs/0/time_to_first_token_ms/p99", "fast"), HasSubstr("p99"));
  EXPECT_THAT(refused("/workload/output_length", 1e300), HasSubstr("output_length"));
}

TEST(LoadSeriesTest, BecomesFigures) {
  StudyRecord record;
  EXPECT_FALSE(LoadSection(record));
  record.load_series = {*LoadSeries::FromJson(Document(), "a"),
                        *LoadSeries::FromJson(Document(), "b")};
  const std::optional<Section> section = LoadSection(record);
  ASSERT_TRUE(section);
  ASSERT_EQ(section->blocks.size(), 2u);
  const Figure& closed = std::get<Figure>(section->blocks[0]);
  EXPECT_EQ(closed.drawings.size(), 3u);
  EXPECT_EQ(closed.data.rows.size(), 4u);
  EXPECT_EQ(closed.legend[1].name, "<b>m</b> (2)");
  EXPECT_THAT(closed.caption, HasSubstr("512 random tokens"));
  EXPECT_THAT(closed.caption, HasSubstr("within 500 ms"));
  for (const auto& row : closed.data.rows) EXPECT_EQ(row.size(), closed.data.columns.size());
  Content content;
  content.sections.push_back(*section);
  const std::string html = RenderHtml(content);
  EXPECT_THAT(html, HasSubstr("&lt;b&gt;m&lt;/b&gt;"));
  EXPECT_THAT(html, testing::Not(HasSubstr("<b>m</b>")));
}

TEST(LoadSeriesTest, OfWhichNothingWasAnsweredIsATableWithoutCurves) {
  Json document = Document();
  Json run = document["runs"][0];
  run["completed"] = run["output_tokens_per_second"] = 0;
  run["time_to_first_token_ms"] = run["time_per_output_token_ms"] = nullptr;
  document["runs"] = Json::array({run});
  StudyRecord record;
  record.load_series = {*LoadSeries::FromJson(document, "a")};
  const std::optional<Section> section = LoadSection(record);
  ASSERT_TRUE(section);
  const Figure& figure = std::get<Figure>(section->blocks.at(0));
  EXPECT_TRUE(figure.drawings.empty());
  EXPECT_EQ(figure.data.rows.size(), 1u);
}

}  // namespace
}  // namespace nibble

#include "src/serve/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace nibble {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(MetricsTest, HistogramsAreCumulative) {
  Histogram histogram({0.5, 1});
  for (const double value : {0.25, 0.5, 0.75, 4.0}) histogram.Observe(value);
  std::string text;
  histogram.AppendTo(text, "h", "a=\"b\"");
  EXPECT_EQ(text,
            "h_bucket{a=\"b\",le=\"0.5\"} 2\n"
            "h_bucket{a=\"b\",le=\"1\"} 3\n"
            "h_bucket{a=\"b\",le=\"+Inf\"} 4\n"
            "h_sum{a=\"b\"} 5.5\n"
            "h_count{a=\"b\"} 4\n");
}

TEST(MetricsTest, TextNamesTheModelsAndEscapesThem) {
  ServeMetrics metrics;
  metrics.kv_tokens = 64;
  metrics.kv_tokens_used = 16;
  metrics.stopped = 3;
  ServeMetrics second;
  second.prefix_cache = {.queries = 50, .hits = 20};
  const std::vector<ModelMetrics> models = {{"a\"b\\c\nd", metrics}, {"other", second}};
  const std::string text = MetricsText(models, 12.5);
  EXPECT_THAT(text, HasSubstr("vllm:kv_cache_usage_perc{model_name=\"a\\\"b\\\\c\\nd\"} 0.25\n"));
  EXPECT_THAT(text, HasSubstr(",finished_reason=\"stop\"} 3\n"));
  EXPECT_THAT(text, HasSubstr("# TYPE vllm:prompt_tokens_total counter\n"));
  // One head for the samples of all models.
  EXPECT_THAT(text, HasSubstr("} 0.25\nvllm:kv_cache_usage_perc{model_name=\"other\"} 0\n"));
  EXPECT_THAT(text, HasSubstr("vllm:prefix_cache_queries_total{model_name=\"other\"} 50\n"));
  EXPECT_THAT(text, HasSubstr("vllm:prefix_cache_hits_total{model_name=\"other\"} 20\n"));
  EXPECT_THAT(text, HasSubstr("\nnibble:energy_joules_total 12.5\n"));
  EXPECT_THAT(MetricsText(models, std::nullopt), Not(HasSubstr("energy")));
}

}  // namespace
}  // namespace nibble

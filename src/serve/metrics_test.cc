#include "src/serve/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace nibble {
namespace {

using ::testing::HasSubstr;

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

TEST(MetricsTest, TextNamesTheModelAndEscapesIt) {
  ServeMetrics metrics;
  metrics.kv_tokens = 64;
  metrics.kv_tokens_used = 16;
  metrics.stopped = 3;
  const std::string text = MetricsText(metrics, "a\"b\\c\nd");
  EXPECT_THAT(text, HasSubstr("vllm:kv_cache_usage_perc{model_name=\"a\\\"b\\\\c\\nd\"} 0.25\n"));
  EXPECT_THAT(text, HasSubstr(",finished_reason=\"stop\"} 3\n"));
  EXPECT_THAT(text, HasSubstr("# TYPE vllm:prompt_tokens_total counter\n"));
}

}  // namespace
}  // namespace nibble

#include "src/bench/workload.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "src/base/units.h"
#include "src/ops/cpu/cpu_backend.h"

namespace nibble {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

const CancelToken kNever;

class WorkloadTest : public ::testing::Test {
 protected:
  void Open(const std::string& path) {
    checkpoint_ = OpenCheckpoint(path).value();
    description_ = DescribeModel(*checkpoint_).value();
  }
  uint64_t Predicted(int64_t batch_size) const {
    return PredictMemory(*checkpoint_, description_, *backend_,
                         BenchEngineOptions(workload_, batch_size, *backend_, DType::kF16))
        .use.total();
  }
  int64_t Largest(uint64_t budget) const {
    return LargestBatch(workload_, *checkpoint_, description_, *backend_, DType::kF16, budget);
  }
  std::string Refusal(uint64_t available) const {
    const Status status =
        CheckWorkload(workload_, *checkpoint_, description_, *backend_, DType::kF16, available);
    if (status) return "";
    EXPECT_EQ(status.error().code(), ErrorCode::kResources);
    return status.error().message();
  }

  std::unique_ptr<Checkpoint> checkpoint_;
  ModelDescription description_;
  std::unique_ptr<Backend> backend_ = MakeCpuBackend({.threads = 2}).value();
  Workload workload_{.batch_sizes = {1, 100}, .input_length = 60, .output_length = 20};
};

TEST_F(WorkloadTest, TheLargestBatchIsTheLargest) {
  Open("random:tiny");
  for (const int64_t batch : {1, 2, 17, 300}) {
    EXPECT_EQ(Largest(Predicted(batch)), batch);
    EXPECT_EQ(Largest(Predicted(batch) - 1), batch - 1);
  }
}

TEST_F(WorkloadTest, RefusalsSayWhatWouldFit) {
  Open("random:tiny");
  EXPECT_EQ(Refusal(Predicted(100)), "");
  EXPECT_THAT(Refusal(Predicted(42)),
              AllOf(HasSubstr("batch size 100 needs " + FormatBytes(Predicted(100))),
                    HasSubstr(FormatBytes(Predicted(42)) + " is available"),
                    HasSubstr("the largest batch that fits is 42")));
  EXPECT_THAT(Refusal(Predicted(1) - 1), AllOf(HasSubstr("not even one sequence of 80 tokens fits"),
                                               ::testing::ContainsRegex("one of [0-9]+ would")));
  EXPECT_THAT(Refusal(1000), HasSubstr("at 4 bits the weights would take"));
  Open("random:tiny:rtn-g32");
  EXPECT_THAT(Refusal(1000), HasSubstr("the weights alone take"));
}

// Ten joules more whenever it is asked.
class TenJoules final : public EnergyMeter {
 public:
  std::optional<double> Joules() override { return joules_ += 10; }

 private:
  double joules_ = 0;
};

TEST_F(WorkloadTest, EnergyIsThatOfDecode) {
  Open("random:tiny");
  const ModelWeights weights =
      LoadModel(
          *checkpoint_, description_, *backend_, [](int64_t, int64_t) {}, kNever)
          .value();
  workload_.batch_sizes = {3};
  const DeviceLimits limits{.read_bytes_per_second = 1e9, .matrix_flops_per_second = 1e9};
  const auto run = [&](EnergyMeter* energy) {
    return RunWorkload(
               workload_, weights, *backend_, DType::kF16, limits, energy,
               [](int64_t, int64_t, int64_t) {}, kNever)
        .value()[0];
  };
  TenJoules meter;
  const Json measured = run(&meter);
  EXPECT_DOUBLE_EQ(measured["energy_joules_per_token"].get<double>(), 10.0 / (3 * 19));
  double seconds = 0;
  for (const Json& repetition : measured["repetitions"]) {
    EXPECT_EQ(repetition["decode_joules"], 10);
    seconds += repetition["decode_seconds"].get<double>();
  }
  EXPECT_NEAR(measured["mean_power_watts"].get<double>() * seconds, 30, 1e-9);
  const Json unmeasured = run(nullptr);
  EXPECT_TRUE(unmeasured["energy_joules_per_token"].is_null());
  EXPECT_TRUE(unmeasured["mean_power_watts"].is_null());
}

TEST(EnergyMeterTest, WithoutALibraryThereIsNone) {
  EXPECT_EQ(OpenNvmlMeter("libnvidia-ml-of-another-world.so", "0000:00:00.0"), nullptr);
}

}  // namespace
}  // namespace nibble

// A whole study: quantizes a model with every method, evaluates, measures, recommends, reports.
//
// Everything lands in one directory (see docs/json.md); each finished stage is kept, so that a rerun
// with the same options does only what is left. A method that fails is recorded with its error and
// the others go on.
#ifndef NIBBLE_STUDY_STUDY_H_
#define NIBBLE_STUDY_STUDY_H_

#include <optional>
#include <string>
#include <vector>

#include "src/bench/workload.h"
#include "src/quantize/quantize.h"
#include "src/report/study_record.h"
#include "src/study/documents.h"
#include "src/study/recommendation.h"
#include "src/study/stage.h"

namespace nibble {

struct StudyOptions {
  std::string model;
  std::string output;
  std::vector<std::string> methods;  // the baseline (fp16) first
  DeviceOptions device;
  RandomWeights random_weights = RandomWeights::kRefuse;

  std::string data;  // MMLU's directory
  int64_t max_batch = kMmluSequences;
  MmluDataOptions questions;
  MmluTemplate prompt_template = MmluTemplate::kOriginal;
  std::vector<MmluScoring> scorings = {MmluScoring::kLetters};

  CalibrationOptions calibration;  // of the methods that need one
  SolverOptions solver;

  PerplexityRequest perplexity;
  Workload workload;
  RecommendationLimits limits;
  ProgressStyle progress = ProgressStyle::kLines;
};

// Names that mean the unquantized model: fp16, bf16, fp32, baseline.
bool IsBaseline(std::string_view method);

class Study {
 public:
  // Opens the model and the data and checks everything that can be known to fail before hours are
  // spent. kUsage where `output` exists and is not a study.
  static Result<std::unique_ptr<Study>> Create(const StudyOptions& options,
                                               const CancelToken& cancel);
  // Runs what is left, writes study.json and the report, returns the record.
  Result<StudyRecord> Run();
  // After Run: why the methods that are recorded with an error failed, in their order.
  const std::vector<Error>& failures() const { return failures_; }

 private:
  Study(StudyOptions options, StageStore stages, const CancelToken& cancel)
      : options_(std::move(options)), stages_(std::move(stages)), cancel_(cancel) {}

  // Runs `compute` unless the stage is done already.
  template <typename Compute>
  Result<Json> Stage(const std::string& name, const Json& inputs, const Compute& compute);
  // Fills `record` stage by stage; what was done before an error stays. `baseline` is the baseline's
  // finished record (null for the baseline itself).
  Status RunMethod(const std::string& method, const Json& hardware, const Json& baseline,
                   Json& record);
  // What a method's checkpoint depends on beside the model.
  Json CheckpointInputs(const std::string& method) const;
  Result<Json> QuantizeStage(const std::string& method);
  Result<const CalibrationSet*> CalibrationFor(const MethodSpec& method);
  Result<Json> HardwareStage();
  std::string PathOfMethod(const std::string& method) const;
  Json OptionsRecord() const;
  Json ModelRecord() const;

  StudyOptions options_;
  StageStore stages_;
  const CancelToken& cancel_;
  std::string model_fingerprint_;
  OpenedModel original_;
  std::optional<MmluDataset> data_;
  std::optional<CalibrationSet> calibration_;  // read when a method first needs it
  std::vector<Error> failures_;
};

// Reads a study directory's study.json, and the load tests kept beside it.
Result<StudyRecord> ReadStudy(const std::string& directory);

}  // namespace nibble

#endif  // NIBBLE_STUDY_STUDY_H_

// Where a quantizer's calibration comes from: a file, or the model's own words.
#ifndef NIBBLE_STUDY_CALIBRATE_H_
#define NIBBLE_STUDY_CALIBRATE_H_

#include "src/quantize/calibration.h"
#include "src/study/session.h"

namespace nibble {

// Reads options.path; where that is empty, lets the model write: samples at temperature 1 from its
// beginning-of-sequence token, which is noted. A template for chats that cannot be had is an error
// where it was asked for, or where there is a chat.
Result<CalibrationSet> Calibrate(const CalibrationOptions& options, const OpenedModel& model,
                                 const DeviceOptions& device, ProgressStyle progress,
                                 const CancelToken& cancel);

}  // namespace nibble

#endif  // NIBBLE_STUDY_CALIBRATE_H_

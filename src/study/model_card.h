// What a study measured of a quantized model, in that model's card.
#ifndef NIBBLE_STUDY_MODEL_CARD_H_
#define NIBBLE_STUDY_MODEL_CARD_H_

#include <string>

#include "src/base/error.h"
#include "src/base/json.h"

namespace nibble {

// `card` with a section "Measured" at its end, in place of one that it has. `record` and `baseline`
// are the stages of the model and of the unquantized one by name, as in study.json.
std::string CardWithMeasurements(std::string card, const Json& record, const Json& baseline);

// The same for DIRECTORY/README.md; writes nothing where nothing changes.
Status AddMeasurementsToCard(const std::string& directory, const Json& record,
                             const Json& baseline);

}  // namespace nibble

#endif  // NIBBLE_STUDY_MODEL_CARD_H_

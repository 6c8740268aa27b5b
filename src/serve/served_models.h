// The models that a server has, by name.
#ifndef NIBBLE_SERVE_SERVED_MODELS_H_
#define NIBBLE_SERVE_SERVED_MODELS_H_

#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "src/bench/energy_meter.h"
#include "src/serve/model_service.h"

namespace nibble {

// Thread-safe.
class ServedModels {
 public:
  // Borrows the services, of which there is at least one; their names differ. `meter` is of the
  // device that they compute on, and may be null.
  ServedModels(std::vector<ModelService*> services, EnergyMeter* meter);

  // The first where no name is given; 404 where none has this one.
  ApiResult<ModelService*> Find(const std::optional<std::string>& name) const;
  // The document of /v1/models.
  Json List() const;
  // The text of /metrics.
  std::string Metrics() const;

 private:
  const std::vector<ModelService*> services_;
  EnergyMeter* const meter_;
  mutable std::mutex metering_;
};

}  // namespace nibble

#endif  // NIBBLE_SERVE_SERVED_MODELS_H_

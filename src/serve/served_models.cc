#include "src/serve/served_models.h"

namespace nibble {

ServedModels::ServedModels(std::vector<ModelService*> services, EnergyMeter* meter)
    : services_(std::move(services)), meter_(meter) {
  CHECK(!services_.empty());
}

ApiResult<ModelService*> ServedModels::Find(const std::optional<std::string>& name) const {
  if (!name) return services_.front();
  std::string names;
  for (ModelService* const service : services_) {
    if (service->name() == *name) return service;
    names += (names.empty() ? "" : ", ") + Json(service->name()).dump();
  }
  return tl::unexpected<ApiError>(
      {.status = 404,
       .message = fmt::format("the model {} does not exist; this server has {}", Json(*name).dump(),
                              names),
       .param = "model",
       .code = "model_not_found"});
}

Json ServedModels::List() const {
  Json models = Json::array();
  for (const ModelService* const service : services_) {
    models.push_back({{"id", service->name()},
                      {"object", "model"},
                      {"created", service->created_s()},
                      {"owned_by", "nibble"},
                      {"max_model_len", service->context()}});
  }
  return {{"object", "list"}, {"data", std::move(models)}};
}

std::string ServedModels::Metrics() const {
  std::vector<ModelMetrics> models;
  for (ModelService* const service : services_) {
    models.push_back({service->name(), service->loop().metrics()});
  }
  std::optional<double> joules;
  if (meter_ != nullptr) {
    const std::lock_guard lock(metering_);
    joules = meter_->Joules();
  }
  return MetricsText(models, joules);
}

}  // namespace nibble

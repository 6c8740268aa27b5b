// The energy that a device takes, as it says itself.
#ifndef NIBBLE_BENCH_ENERGY_METER_H_
#define NIBBLE_BENCH_ENERGY_METER_H_

#include <memory>
#include <optional>
#include <string>

#include "src/ops/backend.h"

namespace nibble {

class EnergyMeter {
 public:
  virtual ~EnergyMeter() = default;
  // Joules since some moment in the past, up to about the last tenth of a second; none where the
  // device does not answer.
  virtual std::optional<double> Joules() = 0;
};

// Of an NVIDIA GPU, by its PCI bus id ("00000000:3B:00.0"), through the driver's NVML library
// (https://docs.nvidia.com/deploy/nvml-api), which is looked for when the program runs: its counter
// of energy, or its power, sampled, where there is no counter. Null where there is no such library
// or device.
std::unique_ptr<EnergyMeter> OpenNvmlMeter(const std::string& library,
                                           const std::string& pci_bus_id);

// Of the device that the backend computes on; null where it has none.
std::unique_ptr<EnergyMeter> OpenEnergyMeter(const Backend& backend);

}  // namespace nibble

#endif  // NIBBLE_BENCH_ENERGY_METER_H_

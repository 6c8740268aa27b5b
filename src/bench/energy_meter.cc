#include "src/bench/energy_meter.h"

#include <dlfcn.h>

#include <condition_variable>
#include <mutex>
#include <thread>

#include "src/bench/clock.h"
#include "src/ops/cuda/device.h"

namespace nibble {
namespace {

// What is used of NVML's interface, of which only the library itself is there when nibble is built
// without CUDA. All functions return 0 for success.
struct Nvml {
  using Device = struct nvmlDevice_st*;

  int (*init)() = nullptr;
  int (*shutdown)() = nullptr;
  int (*device_by_bus_id)(const char* pci_bus_id, Device* device) = nullptr;
  int (*energy_millijoules)(Device device, unsigned long long* energy) = nullptr;
  int (*power_milliwatts)(Device device, unsigned* power) = nullptr;
};

// The library, initialized, and one device of it.
class NvmlDevice {
 public:
  static std::unique_ptr<NvmlDevice> Open(const std::string& library,
                                          const std::string& pci_bus_id) {
    std::unique_ptr<NvmlDevice> device(new NvmlDevice);
    device->library_ = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (device->library_ == nullptr) return nullptr;
    Nvml& nvml = device->nvml_;
    device->Find("nvmlInit_v2", nvml.init);
    device->Find("nvmlShutdown", nvml.shutdown);
    device->Find("nvmlDeviceGetHandleByPciBusId_v2", nvml.device_by_bus_id);
    device->Find("nvmlDeviceGetTotalEnergyConsumption", nvml.energy_millijoules);
    device->Find("nvmlDeviceGetPowerUsage", nvml.power_milliwatts);
    if (nvml.init == nullptr || nvml.shutdown == nullptr || nvml.device_by_bus_id == nullptr) {
      return nullptr;
    }
    if (nvml.init() != 0) return nullptr;
    device->initialized_ = true;
    if (nvml.device_by_bus_id(pci_bus_id.c_str(), &device->device_) != 0) return nullptr;
    return device;
  }
  ~NvmlDevice() {
    if (initialized_) nvml_.shutdown();
    if (library_ != nullptr) dlclose(library_);
  }
  NvmlDevice(const NvmlDevice&) = delete;
  NvmlDevice& operator=(const NvmlDevice&) = delete;

  std::optional<double> Joules() const {
    unsigned long long energy = 0;
    if (nvml_.energy_millijoules == nullptr) return std::nullopt;
    if (nvml_.energy_millijoules(device_, &energy) != 0) return std::nullopt;
    return static_cast<double>(energy) / 1e3;
  }
  std::optional<double> Watts() const {
    unsigned power = 0;
    if (nvml_.power_milliwatts == nullptr) return std::nullopt;
    if (nvml_.power_milliwatts(device_, &power) != 0) return std::nullopt;
    return static_cast<double>(power) / 1e3;
  }

 private:
  NvmlDevice() = default;
  template <typename Function>
  void Find(const char* name, Function& function) {
    function = reinterpret_cast<Function>(dlsym(library_, name));
  }

  void* library_ = nullptr;
  Nvml nvml_;
  Nvml::Device device_ = nullptr;
  bool initialized_ = false;
};

class EnergyCounter final : public EnergyMeter {
 public:
  explicit EnergyCounter(std::unique_ptr<NvmlDevice> device) : device_(std::move(device)) {}
  std::optional<double> Joules() override { return device_->Joules(); }

 private:
  std::unique_ptr<NvmlDevice> device_;
};

// Adds up power × time from samples that a thread of its own takes.
class PowerSampler final : public EnergyMeter {
 public:
  explicit PowerSampler(std::unique_ptr<NvmlDevice> device)
      : device_(std::move(device)), last_(Clock::now()), thread_([this] { Run(); }) {}
  ~PowerSampler() override {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    stopped_.notify_all();
    thread_.join();
  }

  std::optional<double> Joules() override {
    const std::lock_guard lock(mutex_);
    Sample();
    return answers_ ? std::optional(joules_) : std::nullopt;
  }

 private:
  static constexpr std::chrono::milliseconds kInterval{20};

  void Run() {
    std::unique_lock lock(mutex_);
    while (!stopped_.wait_for(lock, kInterval, [this] { return stop_; })) Sample();
  }
  // With the lock held.
  void Sample() {
    const std::optional<double> watts = device_->Watts();
    const Clock::time_point now = Clock::now();
    answers_ = watts.has_value();
    joules_ += watts.value_or(0) * std::chrono::duration<double>(now - last_).count();
    last_ = now;
  }

  std::unique_ptr<NvmlDevice> device_;
  std::mutex mutex_;
  std::condition_variable stopped_;
  bool stop_ = false;
  bool answers_ = false;
  double joules_ = 0;
  Clock::time_point last_;
  std::thread thread_;  // last, so that it sees the others
};

}  // namespace

std::unique_ptr<EnergyMeter> OpenNvmlMeter(const std::string& library,
                                           const std::string& pci_bus_id) {
  std::unique_ptr<NvmlDevice> device = NvmlDevice::Open(library, pci_bus_id);
  if (device == nullptr) return nullptr;
  if (device->Joules()) return std::make_unique<EnergyCounter>(std::move(device));
  if (device->Watts()) return std::make_unique<PowerSampler>(std::move(device));
  return nullptr;
}

std::unique_ptr<EnergyMeter> OpenEnergyMeter(const Backend& backend) {
  if (backend.name() != "cuda") return nullptr;
  return OpenNvmlMeter("libnvidia-ml.so.1", CurrentCudaDevice().pci_bus_id);
}

}  // namespace nibble

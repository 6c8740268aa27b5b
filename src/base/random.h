// Reproducible random numbers: the same seed gives the same numbers on every machine and standard
// library (the standard's distributions do not).
#ifndef NIBBLE_BASE_RANDOM_H_
#define NIBBLE_BASE_RANDOM_H_

#include <cmath>
#include <cstdint>

namespace nibble {

// SplitMix64 (Steele, Lea, Flood 2014): the i-th number of a stream is Mix(seed + i · gamma), so a
// stream can be entered anywhere.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  Random(uint64_t seed, uint64_t first) : state_(seed + first * kGamma) {}  // enters at number `first`

  uint64_t Next() { return Mix(state_ += kGamma); }
  double Uniform() { return static_cast<double>(Next() >> 11) * 0x1p-53; }  // [0, 1)
  uint64_t Below(uint64_t bound) {  // [0, bound), bound > 0
    return static_cast<uint64_t>((static_cast<unsigned __int128>(Next()) * bound) >> 64);
  }
  double Normal() {  // Box–Muller, one of the pair
    const double u = 1.0 - Uniform();
    return std::sqrt(-2 * std::log(u)) * std::cos(6.283185307179586 * Uniform());
  }

  static uint64_t Mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }

 private:
  static constexpr uint64_t kGamma = 0x9e3779b97f4a7c15u;
  uint64_t state_;
};

}  // namespace nibble

#endif  // NIBBLE_BASE_RANDOM_H_

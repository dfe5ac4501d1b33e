// Numbers by chance that a seed makes the same on every platform.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace moetrim {

/// The bijective mix of SplitMix64.
inline std::uint64_t mix_bits(std::uint64_t x) {
  x = (x ^ (x >> 30U)) * 0xBF58476D1CE4E5B9U;
  x = (x ^ (x >> 27U)) * 0x94D049BB133111EBU;
  return x ^ (x >> 31U);
}

/// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014): every step adds the golden ratio,
/// then mixes. Ours rather than the library's, so that a seed means the same on every platform.
class SplitMix64 {
 public:
  explicit SplitMix64(std::uint64_t seed) : state_(seed) {}
  std::uint64_t next() { return mix_bits(state_ += 0x9E3779B97F4A7C15U); }

 private:
  std::uint64_t state_;
};

/// The first number of a seed.
inline std::uint64_t split_mix(std::uint64_t seed) { return SplitMix64(seed).next(); }

/// In [0, 1): 53 bits fill a double's mantissa.
inline double unit_interval(std::uint64_t bits) { return static_cast<double>(bits >> 11U) * 0x1p-53; }

/// A resample with replacement: how often each of `count` is drawn in `count` draws.
inline std::vector<int> draw_with_replacement(std::size_t count, std::uint64_t seed) {
  std::vector<int> times(count);
  for (std::size_t i = 0; i < count; ++i) {
    ++times[static_cast<std::size_t>(unit_interval(split_mix(seed + i)) * static_cast<double>(count))];
  }
  return times;
}

}  // namespace moetrim

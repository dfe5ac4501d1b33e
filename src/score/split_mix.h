// Numbers of the random controls, private to the stage.
#pragma once

#include <cstdint>

namespace moetrim {

/// One step of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014): add the golden
/// ratio, then a bijective mix. Ours rather than the library's, so that a seed means the same on every platform.
inline std::uint64_t split_mix(std::uint64_t x) {
  x += 0x9E3779B97F4A7C15U;
  x = (x ^ (x >> 30U)) * 0xBF58476D1CE4E5B9U;
  x = (x ^ (x >> 27U)) * 0x94D049BB133111EBU;
  return x ^ (x >> 31U);
}

/// In [0, 1): 53 bits fill a double's mantissa.
inline double unit_interval(std::uint64_t bits) { return static_cast<double>(bits >> 11U) * 0x1p-53; }

}  // namespace moetrim

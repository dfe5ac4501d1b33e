// A control: uniform numbers that depend on the seed, the layer and the expert, and on nothing that was measured.
#include <cstdint>

#include "score/methods.h"

namespace moetrim::methods {
namespace {

/// One step of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014): add the golden
/// ratio, then a bijective mix. Ours rather than the library's, so that a seed means the same on every platform.
std::uint64_t mix(std::uint64_t x) {
  x += 0x9E3779B97F4A7C15U;
  x = (x ^ (x >> 30U)) * 0xBF58476D1CE4E5B9U;
  x = (x ^ (x >> 27U)) * 0x94D049BB133111EBU;
  return x ^ (x >> 31U);
}

std::vector<double> random_numbers(const StatisticsManifest&, const LayerStatistics& layer, int, const ScoreOptions& options) {
  const std::uint64_t layer_seed = mix(mix(options.seed) + static_cast<std::uint64_t>(layer.layer));
  std::vector<double> scores;
  for (int expert = 0; expert < layer.experts; ++expert) {
    const std::uint64_t bits = mix(layer_seed + static_cast<std::uint64_t>(expert));
    scores.push_back(static_cast<double>(bits >> 11U) * 0x1p-53);  // 53 bits fill a double's mantissa: [0, 1)
  }
  return scores;
}

}  // namespace

const ScoringMethod random{
    .name = "random",
    .source = "control of this project: SplitMix64 of seed, layer and expert",
    .unit = "uniform in [0, 1)",
    .official = "",
    .score = random_numbers,
};

}  // namespace moetrim::methods

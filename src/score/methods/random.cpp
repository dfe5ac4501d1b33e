// A control: uniform numbers that depend on the seed, the layer and the expert, and on nothing that was measured.
#include <cstdint>

#include "moetrim/split_mix.h"
#include "score/methods.h"

namespace moetrim::methods {
namespace {

std::vector<double> random_numbers(const StatisticsManifest&, const LayerStatistics& layer, int, const ScoreOptions& options) {
  const std::uint64_t layer_seed = split_mix(split_mix(options.seed) + static_cast<std::uint64_t>(layer.layer));
  std::vector<double> scores;
  for (int expert = 0; expert < layer.experts; ++expert) {
    scores.push_back(unit_interval(split_mix(layer_seed + static_cast<std::uint64_t>(expert))));
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

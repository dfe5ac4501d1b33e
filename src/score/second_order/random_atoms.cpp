// A control: uniform numbers that depend on the seed, the layer, the expert and the atom, and on nothing that was measured.
#include "moetrim/split_mix.h"
#include "score/methods.h"

namespace moetrim::methods {
namespace {

std::vector<double> random_numbers(const StatisticsManifest&, const AtomStatistics& atoms, int, const ScoreOptions& options) {
  const std::uint64_t layer_seed = split_mix(split_mix(options.seed) + static_cast<std::uint64_t>(atoms.layer));
  std::vector<double> scores;
  for (int expert = 0; expert < atoms.experts; ++expert) {
    const std::uint64_t expert_seed = split_mix(layer_seed + static_cast<std::uint64_t>(expert));
    for (int atom = 0; atom < atoms.width; ++atom) {
      scores.push_back(unit_interval(split_mix(expert_seed + static_cast<std::uint64_t>(atom))));
    }
  }
  return scores;
}

}  // namespace

const ScoringMethod random_atoms{
    .name = "random-atoms",
    .source = "control of this project: SplitMix64 of seed, layer, expert and atomic expert",
    .unit = "uniform in [0, 1)",
    .official = "",
    .second_order = random_numbers,
    .grain = Grain::atom,
    .expert_method = "random",
};

}  // namespace moetrim::methods

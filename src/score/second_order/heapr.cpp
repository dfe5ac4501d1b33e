// HEAPr: the mean square of an atom's value times the mean square of its gradient, over the tokens routed to its expert.
// Source: HEAPr, arXiv:2509.22299. Published as x^2 wT (mean g gT) w with a d x d matrix per expert, which is A B / n^2.
#include <algorithm>
#include <limits>

#include "score/importance.h"
#include "score/methods.h"

namespace moetrim::methods {
namespace {

/// The published code leaves a never-routed expert at the fill value -1, or makes it 0 / 0 and takes NaN for the largest.
double official_unrouted(const ScoreOptions& options) {
  return options.library == "4.51" ? std::numeric_limits<double>::max() : -1.0;
}

std::vector<double> mean_importance(const StatisticsManifest& manifest, const AtomStatistics& atoms, int task,
                                    const ScoreOptions& options) {
  std::vector<double> scores = atom_importance(Importance::mean, manifest, atoms, task);
  if (options.variant == Variant::executed) return scores;
  for (int e = 0; e < atoms.experts; ++e) {
    if (atoms.tokens[static_cast<std::size_t>(task * atoms.experts + e)] > 0) continue;
    std::fill_n(scores.begin() + static_cast<std::ptrdiff_t>(e) * atoms.width, atoms.width, official_unrouted(options));
  }
  return scores;
}

}  // namespace

const ScoringMethod heapr{
    .name = "heapr",
    .source = "HEAPr, arXiv:2509.22299: mean x^2 times mean squared gradient, over the routed tokens",
    .unit = "squared change of the mean loss per routed token",
    .official = "the same but for experts that no token reached: they go first (-1) with transformers 4.56, and stay whole "
                "with 4.51, see --library-version; one task only",
    .second_order = mean_importance,
    .grain = Grain::atom,
    .expert_method = "heapr-expert",
    .by_library = true,
};

}  // namespace moetrim::methods

// How much the loss changes without an expert, squared and summed: (gT o)^2, o the gated output, g the loss gradient there.
// Source: the empirical Fisher diagonal of a gate on the expert (Molchanov et al., arXiv:1906.10771), for whole experts.
#include "score/importance.h"
#include "score/methods.h"

namespace moetrim::methods {
namespace {

std::vector<double> summed_square(const StatisticsManifest& manifest, const AtomStatistics& atoms, int task,
                                  const ScoreOptions&) {
  return divided_total(atoms, atoms.fisher, task, predicted_tokens(manifest, task) * predicted_tokens(manifest, task));
}

}  // namespace

const ScoringMethod fisher{
    .name = "fisher",
    .source = "second order in a gate on the expert, as in arXiv:1906.10771: sum of (gT o)^2",
    .unit = "squared change of the mean loss x tokens",
    .official = "",
    .second_order = summed_square,
};

}  // namespace moetrim::methods

// HEAPr's score times the number of routed tokens: what the loss of a whole task sees.
// Source: this project, after HEAPr, arXiv:2509.22299, whose mean lets an expert used 50 times weigh as much as one used
// 50,000 times.
#include "score/importance.h"
#include "score/methods.h"

namespace moetrim::methods {
namespace {

std::vector<double> summed_importance(const StatisticsManifest& manifest, const AtomStatistics& atoms, int task,
                                      const ScoreOptions&) {
  return atom_importance(Importance::sum, manifest, atoms, task);
}

}  // namespace

const ScoringMethod heapr_sum{
    .name = "heapr-sum",
    .source = "this project, after HEAPr, arXiv:2509.22299: its score times the routed tokens",
    .unit = "squared change of the mean loss x tokens",
    .official = "",
    .second_order = summed_importance,
    .grain = Grain::atom,
    .expert_method = "heapr-sum-expert",
};

}  // namespace moetrim::methods

// How much the loss changes without an expert, to first order: the sum of gT o, o the gated output, g the gradient there.
// Source: first-order Taylor pruning (Molchanov et al., arXiv:1611.06440), for whole experts. Tokens that gain and tokens
// that lose cancel in the sum, and only its magnitude counts.
#include <cmath>

#include "score/importance.h"
#include "score/methods.h"

namespace moetrim::methods {
namespace {

std::vector<double> change_of_loss(const StatisticsManifest& manifest, const AtomStatistics& atoms, int task,
                                   const ScoreOptions&) {
  std::vector<double> scores = divided_total(atoms, atoms.taylor, task, predicted_tokens(manifest, task));
  for (double& value : scores) value = std::abs(value);
  return scores;
}

}  // namespace

const ScoringMethod taylor{
    .name = "taylor",
    .source = "first order in a gate on the expert, as in arXiv:1611.06440: magnitude of the sum of gT o",
    .unit = "change of the mean loss",
    .official = "",
    .second_order = change_of_loss,
};

}  // namespace moetrim::methods

// The sum of x^2 c^2 over the routed tokens: a product of two means takes x and c for independent, this does not.
// Source: this project, after HEAPr, arXiv:2509.22299.
#include "score/importance.h"
#include "score/methods.h"

namespace moetrim::methods {
namespace {

std::vector<double> joint_importance(const StatisticsManifest& manifest, const AtomStatistics& atoms, int task,
                                     const ScoreOptions&) {
  return atom_importance(Importance::joint, manifest, atoms, task);
}

}  // namespace

const ScoringMethod heapr_joint{
    .name = "heapr-joint",
    .source = "this project, after HEAPr, arXiv:2509.22299: sum of x^2 times squared gradient, token by token",
    .unit = "squared change of the mean loss x tokens",
    .official = "",
    .second_order = joint_importance,
    .grain = Grain::atom,
    .expert_method = "heapr-joint-expert",
};

}  // namespace moetrim::methods

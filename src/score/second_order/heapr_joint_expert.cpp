// heapr-joint summed over the atomic experts of an expert.
// Source: HEAPr, arXiv:2509.22299, for whole experts.
#include "score/importance.h"
#include "score/methods.h"

namespace moetrim::methods {
namespace {

std::vector<double> summed_over_atoms(const StatisticsManifest& manifest, const AtomStatistics& atoms, int task,
                                      const ScoreOptions&) {
  return expert_importance(Importance::joint, manifest, atoms, task);
}

}  // namespace

const ScoringMethod heapr_joint_expert{
    .name = "heapr-joint-expert",
    .source = "HEAPr, arXiv:2509.22299: heapr-joint summed over an expert's atomic experts",
    .unit = "squared change of the mean loss x tokens",
    .official = "",
    .second_order = summed_over_atoms,
};

}  // namespace moetrim::methods

// What a plan must know of a router, from a model or from what was measured on it.
#include "moetrim/family.h"
#include "moetrim/plan.h"

namespace moetrim {

RouterLimits router_limits(const StatisticsManifest& manifest) {
  return {.experts = manifest.experts,
          .experts_per_token = manifest.experts_per_token,
          .groups = manifest.groups,
          .router = manifest.router,
          .gates_normalised = manifest.gates_normalised};
}

RouterLimits router_limits(const Model& model) {
  return {.experts = static_cast<int>(model.experts),
          .experts_per_token = static_cast<int>(model.experts_per_token),
          .groups = router_groups(model),
          .router = model.family->router.score == RouterScore::sigmoid ? "sigmoid" : "softmax",
          .gates_normalised = model.normalise_gates};
}

RouterGroups router_groups(const Model& model) {
  return {.count = static_cast<int>(model.groups),
          .chosen = static_cast<int>(model.groups_chosen),
          .rule = std::string(group_rule_name(model.group_rule))};
}

}  // namespace moetrim

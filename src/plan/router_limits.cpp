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
          .groups = {},  // no family so far has any
          .router = model.family->router_score == RouterScore::softmax ? "softmax" : "sigmoid",
          .gates_normalised = model.normalise_gates};
}

}  // namespace moetrim

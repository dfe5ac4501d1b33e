// A plan that is not yet written, as a restriction of the router.

#include "evaluate/plan_mask.h"

#include <fmt/format.h>

#include "moetrim/error.h"

namespace moetrim {

ExpertMask mask_of(const Model& model, const Plan& plan) {
  if (plan.family != model.family->name || plan.experts != model.experts) {
    throw InvalidInput(fmt::format("{}: the plan is for {} with {} experts, the checkpoint is {} with {}",
                                   model.checkpoint->folder().string(), plan.family, plan.experts, model.family->name,
                                   model.experts));
  }
  ExpertMask mask(static_cast<std::size_t>(model.layers));
  const auto drift = router_drift(plan);
  std::vector<int> planned;
  for (const PlanLayer& layer : plan.layers) {
    if (layer.layer >= model.layers && layer.layer < model.layers + model.mtp_layers) continue;  // blocks are not evaluated
    planned.push_back(layer.layer);
    if (layer.layer < 0 || layer.layer >= model.layers) continue;  // reported below
    LayerMask& of_layer = mask[static_cast<std::size_t>(layer.layer)];
    of_layer.regroup = plan.regroup;
    if (plan.correct_drift && drift) of_layer.gate_scale = drift->mean_mass;
    auto& kept = of_layer.kept;
    kept.assign(static_cast<std::size_t>(model.experts), false);
    for (const int expert : layer.keep) kept[static_cast<std::size_t>(expert)] = true;
  }
  if (planned != model.moe_layers()) {
    throw InvalidInput(fmt::format("{}: the plan covers other layers than the checkpoint's {} MoE layers",
                                   model.checkpoint->folder().string(), model.moe_layers().size()));
  }
  return mask;
}

}  // namespace moetrim

// A plan that is not yet written, as a restriction of the router.

#include "evaluate/plan_mask.h"

#include <algorithm>

#include <fmt/format.h>

#include "moetrim/error.h"

namespace moetrim {

namespace {

/// [experts][F]: atomic experts that stay.
std::vector<std::vector<bool>> atom_masks(const Model& model, const PlanLayer& layer) {
  std::vector<std::vector<bool>> masks(static_cast<std::size_t>(model.experts),
                                       std::vector<bool>(static_cast<std::size_t>(model.expert_width), false));
  for (std::size_t i = 0; i < layer.keep.size(); ++i) {
    auto& mask = masks[static_cast<std::size_t>(layer.keep[i])];
    for (const AtomRange& range : layer.atoms[i]) std::fill(mask.begin() + range.begin, mask.begin() + range.end, true);
  }
  return masks;
}

bool restricts_nothing(const Model& model, const LayerMask& mask) {
  const auto all = [](const std::vector<bool>& flags) { return std::find(flags.begin(), flags.end(), false) == flags.end(); };
  const bool grouped = model.group_rule != GroupRule::none;
  return all(mask.kept) && std::all_of(mask.atoms.begin(), mask.atoms.end(), all) && mask.gate_scale == 1.0 && !(mask.regroup && grouped);
}

}  // namespace

ExpertMask mask_of(const Model& model, const Plan& plan) {
  if (changes_values(plan) || plan.keep > plan.experts) {
    throw InvalidInput("the plan makes experts that the checkpoint does not have (merged, scaled, silenced, constant, smoothed or "
                       "repeated ones); write it with moetrim rewrite, then evaluate the result with --against the checkpoint");
  }
  if (plan.family != model.family->name || plan.experts != model.experts) {
    throw InvalidInput(fmt::format("{}: the plan is for {} with {} experts, the checkpoint is {} with {}",
                                   model.checkpoint->folder().string(), plan.family, plan.experts, model.family->name,
                                   model.experts));
  }
  if (plan.width > 0 && plan.width != model.expert_width) {
    throw InvalidInput(fmt::format("{}: the plan is for experts of width {}, those of the checkpoint have {}",
                                   model.checkpoint->folder().string(), plan.width, model.expert_width));
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
    if (plan.width > 0) of_layer.atoms = atom_masks(model, layer);
    if (restricts_nothing(model, of_layer)) of_layer = {};
  }
  if (planned != model.moe_layers()) {
    throw InvalidInput(fmt::format("{}: the plan covers other layers than the checkpoint's {} MoE layers",
                                   model.checkpoint->folder().string(), model.moe_layers().size()));
  }
  return mask;
}

}  // namespace moetrim

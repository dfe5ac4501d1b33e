// Experts whose outputs are multiplied by a factor: their down projection with its bias. The same as a factor on their gate
// weights, which no checkpoint can hold. Source: RICE (arXiv 2505.14681) strengthens cognitive experts so at run time.

#include <algorithm>

#include "rewrite/operations.h"

namespace moetrim::operations {

namespace {

class Scale : public Editor {
 public:
  void edit(const PlanLayer& layer, const SlabPlace& place, SlabRecipe& recipe) const override {
    if (place.role != Role::expert_down && place.role != Role::fused_down && place.role != Role::fused_down_bias) return;
    const auto found = std::find_if(layer.scale.begin(), layer.scale.end(),
                                    [&](const ScaledExpert& scaled) { return scaled.expert == place.expert; });
    if (found != layer.scale.end()) recipe.factor *= found->factor;
  }
};

std::unique_ptr<Editor> make(const Model&, const Plan& plan, const RewriteSources&) {
  const auto scales = [](const PlanLayer& layer) { return !layer.scale.empty(); };
  return std::any_of(plan.layers.begin(), plan.layers.end(), scales) ? std::make_unique<Scale>() : nullptr;
}

}  // namespace

const Operation scale{.name = "scale", .make = make};

}  // namespace moetrim::operations

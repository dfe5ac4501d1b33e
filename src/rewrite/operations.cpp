// Operations: what a plan makes of the values of experts, routers and norms.

#include "rewrite/operations.h"

namespace moetrim {

namespace {

constexpr const Operation* kOperations[] = {
#define MOETRIM_OPERATION(name) &operations::name,
#include "rewrite/operations.def"
#undef MOETRIM_OPERATION
};

}  // namespace

Operations::Operations(const Model& model, const Plan& plan, const RewriteSources& sources) {
  for (const Operation* operation : kOperations) {
    if (auto editor = operation->make(model, plan, sources)) editors_.push_back(std::move(editor));
  }
}

SlabRecipe Operations::recipe(const PlanLayer& layer, const SlabPlace& place) const {
  SlabRecipe recipe;
  recipe.parts = {{place.expert, 1.0}};
  for (const auto& editor : editors_) editor->edit(layer, place, recipe);
  return recipe;
}

}  // namespace moetrim
